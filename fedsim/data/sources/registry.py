"""Data sets that fedsim knows by name: where they are, what their columns and splits are called, and whose they are.

An entry's `options` stand in for what `--data.*` leaves out. `mean` and `std` are those of the training images. A set
without `hub` is read from its folder.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Known(NamedTuple):
    """A data set: what stands in for options left out, its natural groups, its source and its licence."""

    options: Mapping[str, Any]
    groups: str
    source: str
    licence: str


NONE = "none stated; customary research use"
GLUE_SOURCE = "Wang et al. 2019, GLUE"


def _glue(subset: str, *columns: str, test: str = "validation") -> Mapping[str, Any]:
    """GLUE's own test labels are secret: its validation sets are tested on."""
    return {"hub": "nyu-mll/glue", "subset": subset, "text_columns": columns, "test_split": test}


IMAGE_SETS = {
    "cifar10": Known(
        {
            "hub": "uoft-cs/cifar10",
            "stored_size": 32,
            "mean": (0.4914, 0.4822, 0.4465),
            "std": (0.2470, 0.2435, 0.2616),
        },
        "",
        "Krizhevsky 2009",
        NONE,
    ),
    "cifar100": Known(
        {
            "hub": "uoft-cs/cifar100",
            "label_column": "fine_label",
            "group_column": "coarse_label",
            "stored_size": 32,
            "mean": (0.5071, 0.4865, 0.4409),
            "std": (0.2673, 0.2564, 0.2762),
        },
        "20 super-classes",
        "Krizhevsky 2009",
        NONE,
    ),
    "domainnet": Known(
        {"hub": "wltjr1007/DomainNet", "group_column": "domain"},
        "6 domains",
        "Peng et al. 2019; the cleaned version and its lists from ai.bu.edu/M3SDA",
        "non-commercial research (fair use)",
    ),
    "mnist": Known(
        {"hub": "ylecun/mnist", "stored_size": 28, "mean": (0.1307,) * 3, "std": (0.3081,) * 3},
        "",
        "LeCun et al. 1998",
        NONE,
    ),
    "office-caltech10": Known(
        {"group_column": "domain", "test_split": None},  # its authors give out none
        "4 domains",
        "Gong et al. 2012; folders amazon, caltech, dslr and webcam of ten classes",
        NONE,
    ),
    "pacs": Known(
        {
            "hub": "flwrlabs/pacs",
            "group_column": "domain",
            "test_split": None,  # the hub has none
            "mean": (0.706, 0.682, 0.645),  # of 1,680 of its images
            "std": (0.313, 0.323, 0.351),
        },
        "4 domains",
        "Li et al. 2017",
        NONE,
    ),
    "tiny-imagenet": Known(
        {
            "hub": "zh-plus/tiny-imagenet",
            "test_split": "valid",
            "stored_size": 64,
            "mean": (0.4802, 0.4481, 0.3975),
            "std": (0.2770, 0.2691, 0.2821),
        },
        "",
        "Le & Yang 2015, Stanford CS231n, from ImageNet",
        "non-commercial research (ImageNet's terms)",
    ),
}

TEXT_SETS = {
    "20newsgroups": Known(
        {"hub": "SetFit/20_newsgroups", "text_columns": ("text",)}, "", "Lang 1995, split by date", NONE
    ),
    "agnews": Known({"hub": "fancyzhx/ag_news", "text_columns": ("text",)}, "", "Zhang et al. 2015", NONE),
    "cola": Known(_glue("cola", "sentence"), "", f"Warstadt et al. 2019; {GLUE_SOURCE}", NONE),
    "dbpedia": Known(
        {"hub": "fancyzhx/dbpedia_14", "text_columns": ("title", "content")}, "", "Zhang et al. 2015", "CC BY-SA 3.0"
    ),
    "imdb": Known({"hub": "stanfordnlp/imdb", "text_columns": ("text",)}, "", "Maas et al. 2011", NONE),
    "ledgar": Known(
        {"hub": "coastalcph/lex_glue", "subset": "ledgar", "text_columns": ("text",), "f1": True},
        "",
        "Tuggener et al. 2020; Chalkidis et al. 2022, LexGLUE (100 classes)",
        "CC BY 4.0",
    ),
    "mnli": Known(
        _glue("mnli", "premise", "hypothesis", test="validation_matched"),
        "",
        f"Williams et al. 2018; {GLUE_SOURCE}",
        "OANC, CC BY and others, by genre",
    ),
    "mrpc": Known(_glue("mrpc", "sentence1", "sentence2"), "", f"Dolan & Brockett 2005; {GLUE_SOURCE}", NONE),
    "qnli": Known(
        _glue("qnli", "question", "sentence"), "", f"Rajpurkar et al. 2016; {GLUE_SOURCE}", "CC BY-SA 4.0 (SQuAD)"
    ),
    "qqp": Known(_glue("qqp", "question1", "question2"), "", f"Quora 2017; {GLUE_SOURCE}", "non-commercial (Quora)"),
    "rte": Known(_glue("rte", "sentence1", "sentence2"), "", f"Dagan et al. 2005 to 2009; {GLUE_SOURCE}", NONE),
    "sst2": Known(_glue("sst2", "sentence"), "", f"Socher et al. 2013; {GLUE_SOURCE}", NONE),
    "trec": Known(
        {"hub": "CogComp/trec", "text_columns": ("text",), "label_column": "coarse_label"}, "", "Li & Roth 2002", NONE
    ),
    "yahoo": Known(
        {
            "hub": "community-datasets/yahoo_answers_topics",
            "text_columns": ("question_title", "question_content"),
            "label_column": "topic",
        },
        "",
        "Zhang et al. 2015",
        "non-commercial research (Yahoo Webscope)",
    ),
}


def filled(given: Mapping[str, Any], known: Mapping[str, Any], last: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were left out (empty or None) with the known set's values, else with the last resort's.

    An empty `test_split` is not left out: it says that there is none.
    """
    empty = {name: (None,) if name == "test_split" else (None, "", ()) for name in given}
    return {name: value for name, value in {**last, **known}.items() if given[name] in empty[name]}
