"""What all ways to make clients of labelled samples have in common, and what is out of range of any of their options.

It is checked when options are made: before a data set is looked for, decoded or tokenised.
"""

import math
from dataclasses import dataclass

from fedsim.options import check_options

AT_LEAST = {
    "n_clients": 1,
    "clients_per_domain": 1,
    "clients_per_style": 1,
    "classes_per_client": 1,
    "train_per_client": 1,
    "test_per_client": 1,
    "min_train": 0,
    "min_test": 0,
    "flower_seed": 0,
    "proxy_samples": 0,
}


@dataclass(frozen=True, kw_only=True)
class ClientOptions:
    """Who is not trained: unseen clients, and the server."""

    unseen_fraction: float = 0.2
    """Share of the clients that do not take part in training."""
    proxy_samples: int = 0
    """Training samples that the server keeps, in the proportions of their classes, before clients get the others."""

    def __post_init__(self) -> None:
        check_options(self, "data")
        if problems := self.problems():
            raise ValueError("; ".join(problems) + " (--data.*).")

    def problems(self) -> list[str]:
        """What is out of range, of these options and of those of images or texts that they are joined with."""
        found = [
            f"{name} is {value}; it must be {least} or more"
            for name, least in AT_LEAST.items()
            if (value := getattr(self, name, None)) is not None and value < least
        ]
        alpha = getattr(self, "alpha", None)
        if alpha is not None and not 0 < alpha < math.inf:
            found.append(f"alpha is {alpha}; it must be positive and finite, for it is a Dirichlet concentration")
        for name in ("unseen_fraction", "min_share"):
            value = getattr(self, name, 0.0)
            if not 0 <= value < 1:
                found.append(f"{name} is {value}; it must lie in [0, 1)")
        joined_with = getattr(super(), "problems", None)
        return found + (joined_with() if joined_with else [])
