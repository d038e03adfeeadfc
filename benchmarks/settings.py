"""What the tables of RESULTS.md compare: federations, backbones, budgets and rows, at full size and at smoke size.

Which orderings are judged is in gates.toml, written before the runs. Data and ViT-Tiny are taken from $FEDSIM_DATA.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from results import ROOT

import fedsim
from fedsim.data.builtin.digits import DigitStyles
from fedsim.data.images.images import ImageOptions
from fedsim.data.protocols import Clients, Skew
from fedsim.data.texts.texts import TextOptions
from fedsim.models.backbones import TimmModel, timm_statistics
from fedsim.models.digits_vit import DigitsViT
from fedsim.models.text import TextModel
from fedsim.parts.directions import SubspaceClustering
from fedsim.parts.fisher import FisherAllocation

sys.path.append(str(ROOT / "recipes"))
from fedtreelora_glue import ablations
from ilora_text import ladder

STYLES = 6
"""True clusters of the digits."""
VIT = "vit_tiny_patch16_224"
WEIGHTS = Path("vit_tiny_patch16_224/model_fp16.safetensors")
IMAGES: dict[str, Any] = {"image_size": 64, "augment": False, **timm_statistics(VIT)}
"""Options of all images: at 64 pixels ViT-Tiny sees 16 patches."""
CIFAR = {**IMAGES, "dataset": "cifar100", "path": Path("cifar100_8k")}
SUPERCLASSES = (
    "aquatic_mammals",
    "flowers",
    "fruit_and_vegetables",
    "household_furniture",
    "insects",
    "large_carnivores",
    "trees",
    "vehicles_1",
)
"""Eight of CIFAR-100's twenty super-classes, of five classes each."""


@dataclass(frozen=True)
class Row:
    """A method of a table, with local training or rounds of its own where its budget is counted otherwise."""

    method: fedsim.Method
    local: fedsim.LocalTraining | None = None
    rounds: int | None = None


@dataclass(frozen=True)
class Setting:
    """A federation and the rows that are compared on it, seed by seed.

    `test` says what clients are tested on: their own share of the test samples, or, where all clients hold the same
    model, equal shares whatever a client's classes are (`dealt`), whose mean is the accuracy on all of them.
    `per_class` are the training and the test samples kept of each class; where the data set has too few to test on, the
    last training samples of the class take their place.
    """

    title: str
    data: Any
    model: Any
    rows: Mapping[str, Row]
    local: fedsim.LocalTraining
    rounds: int
    seeds: int
    reference: str
    cohort_size: int | None = None
    test: str = "own"
    per_class: tuple[int, int] | None = None
    evaluations: tuple[str, ...] = ("global",)
    same: Mapping[str, str] = field(default_factory=dict)
    """Rows of which another table has the same cells, by name there."""


def rows(methods: Mapping[str, fedsim.Method], **own: Row) -> dict[str, Row]:
    """Return methods as rows, those in `own` as they are there (with - for _)."""
    of_their_own = {name.replace("_", "-"): row for name, row in own.items()}
    return {name: of_their_own.get(name, Row(method)) for name, method in methods.items()}


def personalised(hilora: fedsim.HiLoRA) -> dict[str, fedsim.Method]:
    """Return HiLoRA and the six methods that it is compared with, at its LoRA rank and head policy."""
    return {
        "hilora": hilora,
        "local": fedsim.Local(lora_rank=4),
        "fedit": fedsim.FedIT(lora_rank=4, head_policy="tier"),
        "flexlora": fedsim.FlexLoRA(ranks=fedsim.LoraRanks(values=(4,)), lora_alpha=None, head_policy="tier"),
        "fedsa": fedsim.FedSALoRA(lora_rank=4),
        "fedalt": fedsim.FedALT(lora_rank=4),
        "feddpa-t": fedsim.FedDPA(lora_rank=4),
    }


def half(local: fedsim.LocalTraining) -> fedsim.LocalTraining:
    """Return half the local steps: FedDPA-T trains two adapters in turn, so it takes as many as the others then."""
    return replace(local, epochs=local.epochs // 2) if local.epochs > 1 else replace(local, share=local.share / 2)


DIGITS = DigitStyles(clients_per_style=4, train_per_client=100, test_per_client=150)
DIGITS_LOCAL = fedsim.LocalTraining(epochs=2, batch_size=10, learning_rate=3e-3)
HILORA = fedsim.HiLoRA(lora_rank=4)
PAPERS_K = replace(HILORA, clustering=SubspaceClustering(rule="eigengap", k_min=2))
"""HiLoRA with the paper's rule for K by name, whatever the default is."""


def d1(smoke: bool) -> Setting:
    """Digits in six styles: HiLoRA with five clusterings or objectives, and six methods at equal local steps."""
    plain = replace(HILORA, gamma_c=0.0, gamma_l=0.0)
    methods = personalised(HILORA) | {
        "paper-k": PAPERS_K,
        "true-k": replace(HILORA, clustering=SubspaceClustering(k_min=STYLES, k_max=STYLES)),
        "no-penalty": plain,
        "k-means": replace(plain, clustering=SubspaceClustering(by="updates")),
    }
    small = DigitStyles(clients_per_style=2, train_per_client=20, test_per_client=10)
    return Setting(
        "Digits in six styles",
        small if smoke else DIGITS,
        DigitsViT(),
        rows(methods, feddpa_t=Row(methods["feddpa-t"], half(DIGITS_LOCAL))),
        DIGITS_LOCAL,
        rounds=4 if smoke else 20,
        seeds=2 if smoke else 12,
        reference="hilora",
        evaluations=("global", "unseen.tuned"),
    )


def d2(smoke: bool) -> Setting:
    """CIFAR-100 by super-classes: HiLoRA with two rules for K and six methods."""
    local = fedsim.LocalTraining(epochs=1, batch_size=8, learning_rate=5e-3)
    methods = personalised(HILORA) | {"paper-k": PAPERS_K}
    source = ImageOptions(**CIFAR, domain=SUPERCLASSES, top_classes=40)
    return Setting(
        "CIFAR-100, forty classes, SC-Dir(3)",
        Clients(source=source, split=Skew(partition="sc-dir", n_clients=8 if smoke else 24)),
        TimmModel(name=VIT, weights=WEIGHTS),
        rows(methods, feddpa_t=Row(methods["feddpa-t"], half(local))),
        local,
        rounds=3 if smoke else 10,
        seeds=2 if smoke else 10,
        reference="hilora",
        per_class=(5, 3) if smoke else (48, 40),
        evaluations=("global", "unseen.tuned"),
    )


def d3(smoke: bool) -> Setting:
    """ILoRA's ladder at three unequal LoRA ranks, tested on 400 images."""
    rungs = ladder(fedsim.ILoRA())
    methods = {
        **rungs,
        "control-1/16": replace(rungs["control"], correction_scale=1 / 16),
        "flexlora": fedsim.FlexLoRA(),
    }
    split = Skew(partition="sized-dir", n_clients=3, alpha=0.3, unseen_fraction=0.0)
    return Setting(
        "CIFAR-100, twenty classes, three clients of LoRA ranks 2, 4, 6",
        Clients(
            source=ImageOptions(**CIFAR, first_classes=20, test_samples=60 if smoke else None),
            split=replace(split, train_per_client=16 if smoke else 256, test_per_client=10),
        ),
        TimmModel(name=VIT, weights=WEIGHTS),
        rows(methods),
        fedsim.LocalTraining(epochs=1, batch_size=16, learning_rate=2e-3),
        rounds=2 if smoke else 5,
        seeds=2 if smoke else 16,
        reference="base",
        test="dealt",
    )


def d4(smoke: bool) -> Setting:
    """FedTreeLoRA's tree on six kinds of question: the whole, τ = 0, no tree, and one cluster at every depth."""
    full = fedsim.FedTreeLoRA(lora_rank=4, warmup_rounds=1 if smoke else 2)
    variants = ablations(full)
    methods = {
        "full": full,
        "tau-0": replace(full, tree=replace(full.tree, tau=0.0)),
        "no-tree": variants["no-tree"],
        "fixed-1": variants["fixed-1"],
    }
    split = Skew(partition="sized-dir", n_clients=8, unseen_fraction=0.0)
    return Setting(
        "TREC, eight clients of 36 training and 40 test samples, Dirichlet(0.5)",
        Clients(
            source=TextOptions(task="trec", path=Path("text/trec"), label_column="label", max_length=16),
            split=replace(split, train_per_client=12 if smoke else 36, test_per_client=8 if smoke else 40),
        ),
        TextModel(name=""),
        rows(methods),
        fedsim.LocalTraining(epochs=2, batch_size=12, learning_rate=5e-3),
        rounds=2 if smoke else 6,
        seeds=2 if smoke else 14,
        reference="full",
    )


def d5(smoke: bool) -> Setting:
    """Fed-HeLLo and three others at equal budgets, ten classes a client, tested on all test images of the classes."""
    ranks = fedsim.LoraRanks(values=(4, 6, 8), assign="blocks")  # as many parameters as 6, 9, 12 of 12 layers of rank 8
    methods: dict[str, fedsim.Method] = {
        "fed-hello": fedsim.FedHeLLo(lora_rank=8, fim=FisherAllocation(warmup_rounds=2, period=2)),
        "hetlora": fedsim.HetLoRA(ranks=ranks, lora_alpha=None),
        "flexlora": fedsim.FlexLoRA(ranks=ranks, lora_alpha=None),
        "exclusive": fedsim.Exclusive(lora_rank=8),
    }
    split = Skew(partition="patho", classes_per_client=10, n_clients=20, alpha=1.0, unseen_fraction=0.0)
    return Setting(
        "CIFAR-100, thirty classes, ten a client",
        Clients(
            source=ImageOptions(**CIFAR, first_classes=30, test_samples=200 if smoke else None),
            split=replace(
                split,
                proxy_samples=100,
            ),
        ),
        TimmModel(name=VIT, weights=WEIGHTS),
        rows(methods),
        fedsim.LocalTraining(epochs=1, share=0.16, batch_size=12, learning_rate=1e-2),
        rounds=3 if smoke else 40,
        seeds=2 if smoke else 8,
        reference="fed-hello",
        cohort_size=4 if smoke else 10,
        test="dealt",
    )


def curves(smoke: bool) -> Setting:
    """D1's federation with 50, 100 and 200 local steps, in rounds of ten; those with 400 are D1's own."""
    whole, ten = d1(smoke), replace(DIGITS_LOCAL, epochs=1)
    chosen = ("hilora", "local", "fedalt", "feddpa-t")
    found = {}
    for n_rounds in (2,) if smoke else (5, 10, 20):
        for name in chosen:
            local = half(ten) if name == "feddpa-t" else ten
            found[f"{name}, {10 * n_rounds} steps"] = Row(whole.rows[name].method, local, n_rounds)
    most = {} if smoke else {f"{name}, 400 steps": whole.rows[name] for name in chosen}
    return replace(
        whole,
        title="Digits in six styles, 50 to 400 local steps",
        rows=found | most,
        seeds=2 if smoke else 8,
        reference="",
        evaluations=("global",),
        same={f"{name}, 400 steps": f"d1/{name}" for name in chosen} if most else {},
    )


SETTINGS: dict[str, Callable[[bool], Setting]] = {"d1": d1, "d2": d2, "d3": d3, "d4": d4, "d5": d5, "curves": curves}
