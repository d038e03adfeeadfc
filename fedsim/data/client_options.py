"""What options of data may be, whosever they are, and those that all ways to make clients have in common.

It is checked when options are made: before a data set is looked for, decoded or tokenised.
"""

import math
from dataclasses import dataclass
from typing import Any

from fedsim.options import check_options

AT_LEAST = {
    **dict.fromkeys(("n_clients", "clients_per_domain", "clients_per_style", "clients_per_task", "beams"), 1),
    **dict.fromkeys(("classes_per_client", "train_per_client", "test_per_client", "max_new_tokens"), 1),
    **dict.fromkeys(("top_classes", "first_classes", "train_samples", "test_samples", "image_size", "stored_size"), 1),
    "max_length": 4,
    **dict.fromkeys(("min_train", "min_test", "flower_seed", "proxy_samples"), 0),
}


@dataclass(frozen=True, kw_only=True)
class ClientOptions:
    """Who is not trained: unseen clients, and the server."""

    unseen_fraction: float = 0.2
    """Share of the clients that do not take part in training."""
    proxy_samples: int = 0
    """Training samples that the server keeps, in the proportions of their classes, before clients get the others."""

    def __post_init__(self) -> None:
        check_data_options(self)


def check_data_options(options: Any) -> None:
    """Raise ValueError that names all that is out of range, with what `options.problems()` adds where there is such."""
    check_options(options, "data")
    given = {name: value for name, value in vars(options).items() if value is not None}
    problems = [
        f"{name} is {given[name]}; it must be {least} or more"
        for name, least in AT_LEAST.items()
        if given.get(name, least) < least
    ]
    if not 0 < given.get("alpha", 1.0) < math.inf:
        problems.append(f"alpha is {given['alpha']}; it must be positive and finite, for it is a concentration")
    for name in ("unseen_fraction", "min_share"):
        if not 0 <= given.get(name, 0.0) < 1:
            problems.append(f"{name} is {given[name]}; it must lie in [0, 1)")
    if not 0 < given.get("test_share", 0.5) < 1:
        problems.append(f"test_share is {given['test_share']}; it must lie between 0 and 1")
    problems += getattr(options, "problems", list)()
    if problems:
        raise ValueError("; ".join(problems) + " (--data.*).")
