"""What options of data may be, whosever they are, and those that all ways to make clients have in common.

It is checked when options are made: before a data set is looked for, decoded or tokenised.
"""

from dataclasses import dataclass
from typing import Any

from fedsim.options import check_options, out_of_range, refuse

PER_CLIENT = ("clients_per_domain", "clients_per_style", "classes_per_client", "train_per_client", "test_per_client")
KEPT = ("top_classes", "first_classes", "train_samples", "test_samples", "image_size", "stored_size")
RANGES = {
    "be 1 or more": ("n_clients", "clients_per_task", *PER_CLIENT, *KEPT, "max_new_tokens", "beams"),
    "be 4 or more": ("max_length",),
    "be 0 or more": ("min_train", "min_test", "flower_seed", "proxy_samples"),
    "be positive": ("alpha",),
    "lie in [0, 1)": ("unseen_fraction", "min_share"),
    "lie in (0, 1]": ("crop",),
    "lie between 0 and 1": ("test_share",),
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
    refuse(out_of_range(options, RANGES) + getattr(options, "problems", list)(), "--data.*")
