"""Who takes part in a round."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from fedsim.parts.downlink import from_dense
from fedsim.parts.privacy_loss import Sampling
from fedsim.plan import Plan
from fedsim.randomness import numpy_generator
from fedsim.round import Block, ClientUpdate, Population


@dataclass(frozen=True)
class Dispatch:
    """What a worker is dealt: the round's plan, its blocks, and the busiest worker's load over the mean.

    `clients` are those of all workers.
    """

    plan: Plan
    blocks: list[Block]
    utilisation: float
    clients: list[int]

    @property
    def n_clients(self) -> int:
        """Clients of this worker."""
        return sum(map(len, self.blocks))

    def from_dense(self, updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
        """Return updates as if what these clients received had not been sparse."""
        assignments = {assignment.client: assignment for block in self.blocks for assignment in block}
        return [from_dense(update, assignments[update.client]) for update in updates]


def clients_to_evaluate(population: Population, n_clients: int | None, seed: int) -> Sequence[int]:
    """Return the seen clients that are evaluated between rounds: all of them, or `n_clients` of them, ascending.

    They are a function of the seed alone, the same in every round.
    """
    n = len(population.seen)
    if n_clients is None or n_clients >= n:
        return population.seen
    places = numpy_generator(seed, "evaluated").choice(n, size=n_clients, replace=False)
    return sorted(population.seen[place] for place in places.tolist())


def sample_cohort(
    population: Population,
    size: int,
    seed: int,
    round_index: int,
    *,
    sampling: Sampling = "fixed",
    draw: int = 0,
    without: Collection[int] = (),
    is_there: Callable[[int], bool] | None = None,
) -> list[int]:
    """Return the clients of a round in ascending order: `size` of them, uniform without replacement.

    Under "poisson" each takes part by itself, with the probability that makes `size` of all on average; there may be
    none. `draw` numbers several draws of one round, `without` are clients that cannot be drawn, and `is_there` says
    whether one could take part; there are fewer where there are not so many.
    """
    rng = numpy_generator(seed, "cohort", round_index, draw)
    if sampling == "poisson":
        joins = rng.random(len(population.seen)) < size / len(population.seen)
        drawn = [
            client for client, is_in in zip(population.seen, joins, strict=True) if is_in and client not in without
        ]
        return [client for client in drawn if is_there is None or is_there(client)]
    if is_there is None and not without:  # without a look at each of a million
        places = rng.choice(len(population.seen), size=min(size, len(population.seen)), replace=False)
        return sorted(population.seen[place] for place in places.tolist())
    able = np.setdiff1d(population.seen, list(without)) if without else population.seen
    if is_there is None:
        return sorted(int(client) for client in rng.choice(able, size=min(size, len(able)), replace=False))
    return sorted(islice(filter(is_there, rng.permutation(able).tolist()), size))
