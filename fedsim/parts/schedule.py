"""When the server steps: after every round, or as soon as some clients have arrived (asynchronous federated learning).

    buffered   FedBuff (arXiv 2106.06639): at the K-th arrival   x ← x + mean of s(τ) (y − x_received)
    async      FedAsync (arXiv 1903.03934): at every arrival     x ← x + α s(τ) (y − x)

y is what a client trained, from the version x_received that it was sent; τ is the number of server steps since then. A
mean is weighted as the method weighs it. Both are written as what a client would have sent from the server's present
version, so that a method's merge and the server's optimiser see usual updates; with τ = 0 (and α = 1) that is y itself.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro
from torch import Tensor

from fedsim.adapters.layout import Slot
from fedsim.options import check_options, out_of_range, refuse

ARGUMENTS = {"constant": 0, "polynomial": 1, "hinge": 2}
"""How many numbers each function of staleness takes."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When the server steps; all but `rounds` need simulated devices, which say who arrives when."""

    kind: Annotated[Literal["rounds", "buffered", "async"], tyro.conf.arg(name="")] = "rounds"
    """Wait for everyone of a round; step when some have arrived (FedBuff); or step at every arrival (FedAsync)."""
    buffer: int | None = None
    """K: arrivals that a step of `buffered` takes; default 10, or the concurrency where that is less."""
    concurrency: int | None = None
    """M: clients at work at a time, not with `rounds`; default: the cohort size."""
    staleness: str = "polynomial:0.5"
    """s(τ): constant, polynomial:a for (1 + τ)^−a, or hinge:a,b for 1 up to τ = b and then 1 / (a (τ − b) + 1)."""
    mixing: float = 0.6
    """α of `async`."""

    def __post_init__(self) -> None:
        check_options(self, "schedule")
        problems = out_of_range(self, {"be 1 or more": ("buffer", "concurrency"), "lie in (0, 1]": ("mixing",)})
        if self.kind == "rounds" and (self.buffer or self.concurrency):
            problems.append("buffer and concurrency are given; rounds have neither, so choose buffered or async")
        if self.kind == "async" and self.buffer not in (None, 1):
            problems.append(
                f"buffer is {self.buffer}; async steps at every arrival, so leave it out or choose buffered"
            )
        problems += [] if self._numbers() is not None else [self._what_staleness_may_be()]
        refuse(problems, "--schedule.*")

    @property
    def is_rounds(self) -> bool:
        """Whether the server waits for everyone of a round."""
        return self.kind == "rounds"

    def at_work(self, cohort_size: int) -> int:
        """Return M, how many clients are at work at a time."""
        return self.concurrency or cohort_size

    def per_step(self, cohort_size: int) -> int:
        """Return how many clients' updates a server step takes."""
        if self.kind == "buffered":
            return self.buffer or min(10, self.at_work(cohort_size))
        return cohort_size if self.is_rounds else 1

    def weight(self, staleness: int) -> float:
        """Return s(τ)."""
        name, numbers = self.staleness.partition(":")[0], self._numbers() or []
        if name == "polynomial":
            return float((1 + staleness) ** -numbers[0])
        if name == "hinge":
            slope, free = numbers
            return 1.0 if staleness <= free else 1 / (slope * (staleness - free) + 1)
        return 1.0

    def as_of_now(self, trained: Tensor, received: Tensor, held: Tensor, staleness: int) -> Tensor:
        """Return what a client would have sent, had it received `held`, what the server holds; all of one shape."""
        share = self.weight(staleness) * (self.mixing if self.kind == "async" else 1)
        if share == 1 and (not staleness or self.kind == "async"):
            return trained
        return held + share * (trained - (held if self.kind == "async" else received))

    def _numbers(self) -> list[float] | None:
        """Return the numbers of s; None where it is none of the functions."""
        name, _, rest = self.staleness.partition(":")
        try:
            numbers = [float(number) for number in rest.split(",")] if rest else []
        except ValueError:
            return None
        fit = len(numbers) == ARGUMENTS.get(name) and all(0 <= number < math.inf for number in numbers)
        return numbers if fit else None

    def _what_staleness_may_be(self) -> str:
        known = "constant, polynomial:a or hinge:a,b with numbers of 0 or more, such as polynomial:0.5"
        return f"staleness is '{self.staleness}'; it must be {known}"


def older(slot: Slot) -> Slot:
    """Return where the bank keeps what clients at work received of a slot, once the server holds a newer version."""
    return slot._replace(tier=f"received:{slot.tier}")
