"""Data sets that fedsim knows by name: where they are and what their columns and splits are called.

An entry stands in for what `--data.*` leaves out. `mean` and `std` are those of the training images. A set without
`hub` is read from its folder. docs/reference/datasets.md says whose they are and what their licences allow.
"""

from collections.abc import Mapping
from typing import Any


def _glue(subset: str, *columns: str, test: str = "validation") -> Mapping[str, Any]:
    """GLUE's own test labels are secret: its validation sets are tested on."""
    return {"hub": "nyu-mll/glue", "subset": subset, "text_columns": columns, "test_split": test}


def _texts(hub: str, *columns: str, **more: Any) -> Mapping[str, Any]:
    return {"hub": hub, "text_columns": columns, "test_split": "test", **more}


IMAGE_SETS: Mapping[str, Mapping[str, Any]] = {
    "cifar10": {
        "hub": "uoft-cs/cifar10",
        "test_split": "test",
        "stored_size": 32,
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2470, 0.2435, 0.2616),
    },
    "cifar100": {
        "hub": "uoft-cs/cifar100",
        "test_split": "test",
        "label_column": "fine_label",
        "domain_column": "coarse_label",
        "stored_size": 32,
        "mean": (0.5071, 0.4865, 0.4409),
        "std": (0.2673, 0.2564, 0.2762),
    },
    "domainnet": {"hub": "wltjr1007/DomainNet", "test_split": "test", "domain_column": "domain"},
    "mnist": {
        "hub": "ylecun/mnist",
        "test_split": "test",
        "stored_size": 28,
        "mean": (0.1307,) * 3,
        "std": (0.3081,) * 3,
    },
    "office-caltech10": {"domain_column": "domain"},  # its authors give out no test split
    "pacs": {
        "hub": "flwrlabs/pacs",  # without a test split
        "domain_column": "domain",
        "mean": (0.706, 0.682, 0.645),  # of 1,680 of its images
        "std": (0.313, 0.323, 0.351),
    },
    "tiny-imagenet": {
        "hub": "zh-plus/tiny-imagenet",
        "test_split": "valid",
        "stored_size": 64,
        "mean": (0.4802, 0.4481, 0.3975),
        "std": (0.2770, 0.2691, 0.2821),
    },
}

TEXT_SETS: Mapping[str, Mapping[str, Any]] = {
    "20newsgroups": _texts("SetFit/20_newsgroups", "text"),
    "agnews": _texts("fancyzhx/ag_news", "text"),
    "cola": _glue("cola", "sentence"),
    "dbpedia": _texts("fancyzhx/dbpedia_14", "title", "content"),
    "imdb": _texts("stanfordnlp/imdb", "text"),
    "ledgar": _texts("coastalcph/lex_glue", "text", subset="ledgar", f1=True),
    "mnli": _glue("mnli", "premise", "hypothesis", test="validation_matched"),
    "mrpc": _glue("mrpc", "sentence1", "sentence2"),
    "qnli": _glue("qnli", "question", "sentence"),
    "qqp": _glue("qqp", "question1", "question2"),
    "rte": _glue("rte", "sentence1", "sentence2"),
    "sst2": _glue("sst2", "sentence"),
    "trec": _texts("CogComp/trec", "text", label_column="coarse_label"),
    "yahoo": _texts(
        "community-datasets/yahoo_answers_topics", "question_title", "question_content", label_column="topic"
    ),
}


LEFT_OUT = {
    "text_columns": ("text",),
    "label_column": "label",
    "f1": False,
    "instruction_column": "instruction",
    "answer_column": "output",
}
"""What options are where neither they are given nor a known data set."""


def filled(given: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were left out (empty or None) with the known set's values, else with those above.

    An empty `test_split` is not left out: it says that there is none.
    """
    empty = {name: (None,) if name == "test_split" else (None, "", ()) for name in given}
    values = {**LEFT_OUT, **known}
    return {name: value for name, value in values.items() if name in given and given[name] in empty[name]}
