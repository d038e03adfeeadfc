"""What noise is worth: ε of (ε, δ)-differential privacy after some releases, by Google's dp-accounting.

Rényi differential privacy of the (sampled) Gaussian mechanism, composed and converted by that library: an upper bound.
"""

import importlib.util
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from dp_accounting import DpEvent

Sampling = Literal["fixed", "poisson"]
"""A cohort of so many clients, without replacement; or each client by itself, so many on average."""
BELOW_ALL = range(2, 64)
"""Orders of Rényi differential privacy that are quick to compute; with all of them ε is no larger."""


@dataclass(frozen=True)
class Mechanism:
    """How one client's data enter a release: who is sampled, and who adds the noise.

    `cohort` of `clients` take part in a round; with `is_local` a release is the client's own. Of the samples of one
    client (`unit`) the same is true of a local step.
    """

    clients: int
    cohort: int
    sampling: Sampling = "fixed"
    is_local: bool = False
    unit: Literal["client", "sample"] = "client"

    @property
    def replaces(self) -> bool:
        """Whether neighbours differ in what one client holds, not in whether it is there."""
        return self.is_local or (self.sampling == "fixed" and self.cohort < self.clients)

    @property
    def relation(self) -> str:
        """Which data sets are neighbours, in words."""
        return f"{'replace' if self.replaces else 'add or remove'} one {self.unit}"

    def event(self, noise_multiplier: float) -> "DpEvent":
        """Return one release, as dp-accounting names it.

        Where a client is replaced, a sum of clipped changes moves by twice the clip norm, so that the noise is worth
        half of its multiplier; where it is added or removed, by the clip norm.
        """
        import dp_accounting as dp

        gaussian = dp.GaussianDpEvent(noise_multiplier / (2 if self.replaces else 1))
        if self.is_local or self.cohort == self.clients:
            return gaussian
        if self.sampling == "poisson":
            return dp.PoissonSampledDpEvent(self.cohort / self.clients, gaussian)
        return dp.SampledWithoutReplacementDpEvent(self.clients, self.cohort, gaussian)


def epsilon(
    mechanism: Mechanism, noise_multiplier: float, delta: float, releases: int, orders: range | None = None
) -> float:
    """Return ε after so many releases; infinite without noise. With few `orders` it is sooner found, and no smaller."""
    if not releases:
        return 0.0
    if not noise_multiplier:
        return math.inf
    from dp_accounting import rdp

    used, of_one = _renyi(mechanism, noise_multiplier, orders)
    found, _ = rdp.compute_epsilon(used, releases * of_one, delta)
    return float(found)


def largest_epsilon(releases: Mapping[Mechanism, int], noise_multiplier: float, delta: float) -> float:
    """Return the largest ε of several mechanisms after so many releases of each; 0 where there are none."""
    bounds = {each: epsilon(each, noise_multiplier, delta, n, BELOW_ALL) for each, n in releases.items()}
    found = 0.0
    for each in sorted(bounds, key=bounds.__getitem__, reverse=True):
        if bounds[each] <= found:
            break
        found = max(found, epsilon(each, noise_multiplier, delta, releases[each]))
    return found


@lru_cache(maxsize=16)
def noise_for(mechanism: Mechanism, target: float, delta: float, releases: int) -> float:
    """Return the noise multiplier with which ε is at most `target` after so many releases.

    Raises ValueError where it would lie below .05 or beyond reach.
    """
    import dp_accounting as dp
    from dp_accounting.mechanism_calibration import NoBracketIntervalFoundError

    def found(bracket: Any, orders: Any = None) -> float:
        return float(
            dp.calibrate_dp_mechanism(
                lambda: _accountant(mechanism, orders),
                lambda noise: dp.SelfComposedDpEvent(mechanism.event(noise), releases),
                target,
                delta,
                bracket_interval=bracket,
                tol=1e-3,
            )
        )

    try:
        enough = found(dp.LowerEndpointAndGuess(0.05, 1.0), BELOW_ALL)
        return found(dp.ExplicitBracketInterval(enough / 2, enough))
    except (NoBracketIntervalFoundError, ValueError) as error:
        raise ValueError(
            f"epsilon is {target}, and no noise multiplier from .05 on gives that at delta {delta} after {releases} "
            "releases; choose another one, or noise_multiplier (--privacy.epsilon)."
        ) from error


def check_accounting() -> None:
    """Raise ValueError where dp-accounting is not installed."""
    if importlib.util.find_spec("dp_accounting") is None:
        hint = "run `pip install -e '.[privacy]'` in fedsim's checkout"
        raise ValueError(f"ε is told by the package dp-accounting, which is not installed; {hint} (--privacy.*).")


def _accountant(mechanism: Mechanism, orders: Any = None) -> Any:
    import dp_accounting as dp
    from dp_accounting import rdp

    logging.getLogger("absl").setLevel(logging.ERROR)  # it warns of orders that it leaves out, where ε is larger
    relation = dp.NeighboringRelation
    return rdp.RdpAccountant(orders, relation.REPLACE_ONE if mechanism.replaces else relation.ADD_OR_REMOVE_ONE)


@lru_cache(maxsize=4096)
def _renyi(mechanism: Mechanism, noise_multiplier: float, orders: range | None = None) -> Any:
    """Orders, and Rényi differential privacy of one release at each: releases add it up, which spares a second each."""
    accountant = _accountant(mechanism, orders).compose(mechanism.event(noise_multiplier))
    return accountant._orders, accountant._rdp
