"""What travels in a round: the server's state, what a client is asked to do, and what it sends back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from fedsim.adapters.bank import NEVER, Bank
from fedsim.adapters.layout import Slot
from fedsim.options import LocalTraining


@dataclass(frozen=True)
class Population:
    """Who takes part. Client ids are 0 … n_clients-1; `seen` train, `unseen` only meet the finished model.

    The server's own data set, where there is one, is the last client, `proxy`: it measures when a plan asks for it, and
    neither trains nor is evaluated. What a plan says client by client need not have an entry for it.
    """

    n_clients: int
    seen: tuple[int, ...]
    unseen: tuple[int, ...]
    samples: tuple[int, ...]
    """Training samples of each client, by id."""
    domains: tuple[int, ...] | None = None
    """The domain (style, speaker, …) of each client where it is known; for reports, never for training."""
    proxy: int | None = None
    """The id of the server's proxy client."""

    @property
    def n_participants(self) -> int:
        """Clients but for the proxy; their ids are 0 … n_participants-1."""
        return self.n_clients - (self.proxy is not None)

    @cached_property
    def trained(self) -> frozenset[int]:
        """Those of `seen`, to look a client up in."""
        return frozenset(self.seen)

    @cached_property
    def groupings(self) -> dict[str, Tensor]:
        """The vectors (C,) by which most slots are shared, one object each for all plans: nobody may write to them."""
        alone, nobody = torch.arange(self.n_clients), torch.full((self.n_clients,), NEVER)
        return {"everyone": torch.zeros_like(alone), "alone": alone, "nobody": nobody}


PRESENT = -1
"""The place of the version that the server holds now."""


class AtWork(NamedTuple):
    """A client that is at work while the server steps: what it received, and when its update arrives."""

    client: int
    version: int
    """The round whose beginning it received."""
    place: int
    """Where the bank keeps that version, `PRESENT` while the server still holds it."""
    ends: float
    """The simulated second in which its update arrives, or in which it goes away."""
    is_dropped: bool
    bytes_down: int
    bytes_up: int
    steps: int
    down: float
    compute: float
    up: float


@dataclass
class Horizon:
    """The number of rounds of a run, and whether anything that was done so far depended on it."""

    rounds: int
    is_read: bool = False


@dataclass(frozen=True)
class ServerState:
    """All that outlives a round.

    `learnt` holds what a method found out (stage, cluster labels, cuts) as tensors that every worker gets; `bank` the
    adapters, empty on all workers but 0; `last_seen` (C,) the round in which each client last took part, -1 for never;
    `depths` the depth of every name that a slot's site may have (`Layout.depths`), `adapted` those that carry adapters,
    ascending; `memory` the MiB that a client needs to train the last k depths, for k = 0 … D. What a method draws is a
    function of the run's `seed`. `cohort` are the clients of the round, which are known before it is planned.
    `horizon` is one object for all states of a run: who reads `rounds` leaves its mark there. `second` is the
    simulated time, `at_work` are clients that work on while the server steps, `arrived` those whose updates the step
    takes, or who went away.
    """

    round_index: int
    horizon: Horizon
    learnt: Mapping[str, Tensor] = field(default_factory=dict)
    bank: Bank = field(default_factory=lambda: Bank({}))
    last_seen: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    depths: Mapping[str, int] = field(default_factory=dict)
    adapted: tuple[int, ...] = ()
    seed: int = 0
    cohort: tuple[int, ...] = ()
    memory: tuple[float, ...] = ()
    second: float = 0.0
    at_work: tuple[AtWork, ...] = ()
    arrived: tuple[AtWork, ...] = ()

    @property
    def rounds(self) -> int:
        """Rounds of the run. A run in which this was read cannot be continued with more of them."""
        self.horizon.is_read = True
        return self.horizon.rounds

    @property
    def is_last(self) -> bool:
        """Whether no round follows. Only where that is so does it depend on the number of rounds."""
        is_last = self.round_index + 1 >= self.horizon.rounds
        self.horizon.is_read |= is_last
        return is_last


@dataclass(frozen=True)
class Assignment:
    """One client's work: its starting tensors at its own LoRA rank, which of them it trains, and for how long."""

    client: int
    round_index: int
    tensors: Mapping[Slot, Tensor]
    trains: frozenset[Slot]
    scales: Mapping[str, float]
    """tier -> the factor in front of B @ A, usually α/R."""
    steps: int
    local: LocalTraining
    corrections: Mapping[Slot, Tensor] = field(default_factory=dict)
    """What is added to the raw gradients of a slot in every step."""
    rates: Mapping[Slot, float] = field(default_factory=dict)
    """The learning rate of a slot that has one of its own."""
    kept: Mapping[Slot, Tensor] = field(default_factory=dict)
    """What the client kept back of a slot when it last sent its change."""
    withheld: Mapping[Slot, Tensor] = field(default_factory=dict)
    """What the server holds of a slot and did not send, where downloads are sparse; zero where it did."""


@dataclass(frozen=True)
class ClientUpdate:
    """What a client sends back: the slots it trained, how many samples weigh it, and what it logged (plain numbers).

    `measured` is what the plan asks to be measured at the model that it received: the mean over its data of gradients
    or of their squares. The proxy client's update holds nothing else.
    """

    client: int
    n_samples: int
    tensors: Mapping[Slot, Tensor] = field(default_factory=dict)
    logs: Mapping[str, float] = field(default_factory=dict)
    measured: Mapping[Slot, Tensor] = field(default_factory=dict)
    kept: Mapping[Slot, Tensor] = field(default_factory=dict)
    """What the client keeps back of its change for the next time: it never leaves the client."""


@dataclass(frozen=True)
class Outcome:
    """What a server update decides: new copies `{slot: {group: tensor}}`, what it learnt, and what to log.

    `log` values are numbers or (nested) lists of numbers; they go to events.jsonl. `learnt` replaces the state's; None
    leaves it as it is. `stack_bytes` were added to a tier that grows, and are sent to all who took part.
    """

    tensors: Mapping[Slot, Mapping[int, Tensor]] = field(default_factory=dict)
    learnt: Mapping[str, Tensor] | None = None
    log: Mapping[str, object] = field(default_factory=dict)
    stack_bytes: int = 0


class ClientError(RuntimeError):
    """A failure inside a client's work, with the first thing one asks: which client, in which round and stage.

    Several clients when they fail together and none of them alone.
    """

    def __init__(self, clients: Sequence[int], round_index: int, stage: str, cause: BaseException):
        who = f"client {clients[0]}" if len(clients) == 1 else f"clients {list(clients)} together"
        super().__init__(f"{who} failed in round {round_index + 1}, stage '{stage}': {cause}")
        self.clients, self.round_index, self.stage = tuple(clients), round_index, stage


Block = Sequence[Assignment]
"""Clients that are trained together by an engine that can; a worker is dealt whole blocks."""
