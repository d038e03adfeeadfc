"""What clients give away under differential privacy, counted by round."""

from collections import Counter
from dataclasses import dataclass, field

from fedsim.parts.privacy import Privacy
from fedsim.parts.privacy_loss import Mechanism, check_accounting, epsilon, noise_for
from fedsim.round import Population
from fedsim.server.cohort import sample_cohort


@dataclass
class Ledger:
    """What clients have given away, by round; raises ValueError where that cannot be told.

    `mechanism` says how they are sampled and noised, and `rounds` are those of the run.
    """

    privacy: Privacy
    mechanism: Mechanism
    population: Population
    seed: int
    rounds: int
    _taken: Counter[int] = field(default_factory=Counter)
    """Rounds in which each client took part, in those counted so far."""
    _counted: int = 0

    def __post_init__(self) -> None:
        self.noise_multiplier = self.privacy.noise_multiplier or 0.0
        if self.noise_multiplier or self.privacy.epsilon is not None:
            check_accounting()
        if self.privacy.epsilon is not None:
            releases = self._releases(self.rounds)
            self.noise_multiplier = noise_for(self.mechanism, self.privacy.epsilon, self.privacy.delta, releases)

    @property
    def deviation(self) -> float:
        """The standard deviation of the noise on each entry: of the sum of clients' changes, or of each change."""
        return self.noise_multiplier * (self.privacy.clip or 0.0) if self.noise_multiplier else 0.0

    def log(self, round_index: int) -> dict[str, object]:
        """Return what is logged of a round: ε after it, at which δ, and in the first round how it is told."""
        if self.privacy.is_off:
            return {}
        told = {"epsilon": self.epsilon(round_index + 1), "delta": self.privacy.delta}
        if round_index:
            return told
        who = "client" if self.privacy.local else "server"
        how = {"noise_multiplier": self.noise_multiplier, "noise_by": who, "neighbours": self.mechanism.relation}
        return {**told, "privacy": how}

    def epsilon(self, rounds: int) -> float:
        """Return ε after so many rounds; where clients add the noise, of the one that took part most often."""
        return epsilon(self.mechanism, self.noise_multiplier, self.privacy.delta, self._releases(rounds))

    def _releases(self, rounds: int) -> int:
        if not self.mechanism.is_local:
            return rounds
        if self._counted > rounds:
            self._taken.clear()
            self._counted = 0
        for round_index in range(self._counted, rounds):
            size, sampling = self.mechanism.cohort, self.mechanism.sampling
            self._taken.update(sample_cohort(self.population, size, self.seed, round_index, sampling=sampling))
        self._counted = rounds
        return max(self._taken.values(), default=0)
