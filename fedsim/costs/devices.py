"""Simulated devices: how long a client's work and bytes would take it, and who misses a round's deadline.

Nothing here changes what is computed, but for the deadline: who misses it is left out of the round.

    compute   FLOPs of all local steps, forward and backward at the client's LoRA rank and allocation, / FLOP per second
    down, up  bytes really sent, / bytes per second
    a round   waits for the slowest client in time, or until the deadline where somebody misses it
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from fedsim.costs.availability import Calendar, read_entries
from fedsim.costs.step_cost import Profile, Work
from fedsim.options import check_options, out_of_range, refuse
from fedsim.randomness import numpy_generator

COLUMNS = ("computation", "communication")
"""Of a table in FedScale's format: ms of a forward pass of one sample, and kbit/s (1000 bits), down and up alike."""


@dataclass(frozen=True, kw_only=True)
class DeviceProfiles:
    """The clients' devices: log-normal speeds around medians, or a table; without either, no time is simulated."""

    gflops: float | None = None
    """Median compute speed of a client, in GFLOP per second that training really reaches."""
    gflops_sigma: float | None = None
    """Standard deviation of its logarithm; default: all clients are alike."""
    mbps_down: float | None = None
    """Median bandwidth from the server to a client, in Mbit/s."""
    mbps_up: float | None = None
    """Median bandwidth from a client to the server, in Mbit/s."""
    mbps_sigma: float | None = None
    """Standard deviation of the logarithm of both, in which a client is alike; default: all clients are alike."""
    table: Path | None = None
    """CSV or JSON file with FedScale's columns `computation` (ms a sample) and `communication` (kbit/s), instead."""
    deadline: float | None = None
    """Seconds after which a round does not wait for a client any more; default: it waits for all."""

    def __post_init__(self) -> None:
        check_options(self, "devices_profile")
        medians, sigmas = ("gflops", "mbps_down", "mbps_up"), ("gflops_sigma", "mbps_sigma")
        problems = out_of_range(self, {"be positive": (*medians, "deadline"), "be 0 or more": sigmas})
        given = [name for name in (*medians, *sigmas) if getattr(self, name) is not None]
        missing = [name for name in medians if name not in given]
        if self.table is not None and given:
            problems.append(f"table and {', '.join(given)} are given; devices come from a table or from medians")
        elif self.table is None and missing and (given or self.deadline is not None):
            what = ", ".join([*given, *(["deadline"] if self.deadline is not None else [])])
            problems.append(f"{what} needs devices; give {', '.join(missing)} too, or a table")
        refuse(problems, "--devices-profile.*")

    @property
    def is_given(self) -> bool:
        """Whether there are any devices."""
        return self.table is not None or self.gflops is not None

    def clock(self, profile: Profile, seed: int, calendar: Calendar | None = None) -> "Clock | None":
        """Return the clock of these devices for a backbone, None where there are none; raises ValueError (table)."""
        if not self.is_given:
            return None
        return Clock(self, profile, seed, () if self.table is None else read_table(self.table), calendar)


class Device(NamedTuple):
    """How fast a client is: FLOP per second, and bytes per second down and up."""

    flops: float
    down: float
    up: float


class Seconds(NamedTuple):
    """How long a client needs for its part of a round."""

    down: float
    compute: float
    up: float

    @property
    def total(self) -> float:
        """One after the other."""
        return self.down + self.compute + self.up


@dataclass(frozen=True)
class ClientCost:
    """What a round costs one client: bytes sent, local steps, and how long they take it where devices are simulated.

    Who misses the deadline, or goes away before, has its model sent, and would need so many seconds, but sends nothing
    that arrives.
    """

    client: int
    bytes_down: int
    bytes_up: int
    steps: int
    seconds: Seconds | None = None
    is_dropped: bool = False
    leaves: float = math.inf
    """Seconds until the client goes away."""

    def row(self, round_index: int) -> dict[str, Any]:
        """Return its row of costs.csv."""
        sent = {"bytes_down": self.bytes_down, "bytes_up": self.bytes_up, "local_steps": self.steps}
        if self.seconds is not None:
            sent |= {f"seconds_{name}": value for name, value in self.seconds._asdict().items()}
            sent |= {"seconds": self.seconds.total, "dropped": int(self.is_dropped)}
        return {"round": round_index + 1, "client": self.client, **sent}


@dataclass(frozen=True)
class Clock:
    """Simulated time. Devices are a function of the seed and the client, or the table's rows in turn."""

    profiles: DeviceProfiles
    profile: Profile
    seed: int
    rows: Sequence[tuple[float, float]] = ()
    calendar: Calendar | None = None
    """When clients are there; None: always."""

    @cached_property
    def _devices(self) -> dict[int, Device]:
        return {}

    def device(self, client: int) -> Device:
        """Return a client's device."""
        if client not in self._devices:
            self._devices[client] = self._from_row(client) if self.rows else self._drawn(client)
        return self._devices[client]

    def _from_row(self, client: int) -> Device:
        """Client k has row k, and again from the first where there are fewer; its time is that of the bare backbone."""
        milliseconds, kilobits = self.rows[client % len(self.rows)]
        bandwidth = kilobits * 1000 / 8
        return Device(self.profile.forward / (milliseconds / 1000), bandwidth, bandwidth)

    def _drawn(self, client: int) -> Device:
        of = self.profiles
        assert of.gflops is not None, "without a table all three medians are given"
        assert of.mbps_down is not None
        assert of.mbps_up is not None
        compute, network = numpy_generator(self.seed, "devices", client=client).standard_normal(2).tolist()
        faster, wider = math.exp((of.gflops_sigma or 0) * compute), math.exp((of.mbps_sigma or 0) * network)
        return Device(of.gflops * 1e9 * faster, of.mbps_down * 1e6 / 8 * wider, of.mbps_up * 1e6 / 8 * wider)

    def timed(self, cost: ClientCost, works: Iterable[Work], second: float) -> ClientCost:
        """Return the cost with its seconds from this one on; `works` are what the client does in the round."""
        device, flops = self.device(cost.client), sum(map(self.profile.flops, works))
        seconds = Seconds(cost.bytes_down / device.down, flops / device.flops, cost.bytes_up / device.up)
        return replace(cost, seconds=seconds, leaves=self.until(cost.client, second) - second)

    def until(self, client: int, second: float) -> float:
        """Return the second at which a client goes away; `second` itself where it is not there."""
        return self.calendar.until(client, second) if self.calendar else math.inf

    def on_time(self, costs: Sequence[ClientCost]) -> list[ClientCost]:
        """Return the costs with those dropped who miss the deadline, or go away before they have sent.

        A round has to have a result: where nobody who trains is in time, it waits for the fastest of those who stay.
        """
        deadline = self.profiles.deadline or math.inf
        needs = {
            cost.client: cost.seconds.total for cost in costs if cost.seconds and cost.seconds.total <= cost.leaves
        }
        busy = [cost.client for cost in costs if cost.steps and cost.client in needs] or list(needs)
        kept = {client for client, seconds in needs.items() if seconds <= deadline}
        if busy and kept.isdisjoint(busy):
            kept.add(min(busy, key=lambda client: (needs[client], client)))
        return [cost if cost.client in kept else replace(cost, is_dropped=True, bytes_up=0) for cost in costs]

    def round_seconds(self, costs: Sequence[ClientCost], stack: int = 0) -> float:
        """Return how long a round takes: until the last update, or the deadline where somebody misses it.

        Who goes away is waited for until then.

        Then those who took part are sent the `stack` bytes that were added to a tier that grows.
        """
        ends = [cost.seconds.total for cost in costs if cost.seconds and not cost.is_dropped]
        ends += [min(cost.leaves, self.profiles.deadline or math.inf) for cost in costs if cost.is_dropped]
        sent = [stack / self.device(cost.client).down for cost in costs if not cost.is_dropped]
        return max(ends, default=0.0) + max(sent, default=0.0)

    def with_stack(self, cost: ClientCost, stack: int) -> ClientCost:
        """Return the seconds of a cost with those of the `stack` bytes that are sent at the end of the round."""
        assert cost.seconds is not None
        more = stack / self.device(cost.client).down
        return replace(cost, seconds=cost.seconds._replace(down=cost.seconds.down + more))


def read_table(path: Path) -> list[tuple[float, float]]:
    """Return (ms a sample, kbit/s) of each row of a table in FedScale's format, in the file's order.

    CSV with a header, or JSON with an object of objects. FedScale publishes a pickle, which would run what is in it:
    it is refused. Raises ValueError for what cannot be read.
    """
    where = f"The table of devices '{path}'"
    entries = read_entries(path, where, "device", "(--devices-profile.table)")
    return [_speeds(entry, f"{where}, device {index + 1},") for index, entry in enumerate(entries)]


def _speeds(entry: object, where: str) -> tuple[float, float]:
    values = [entry.get(column) if isinstance(entry, Mapping) else None for column in COLUMNS]
    try:
        milliseconds, kilobits = (float(value) for value in values)  # type: ignore[arg-type]
        if not (0 < milliseconds < math.inf and 0 < kilobits < math.inf):
            raise ValueError
    except (TypeError, ValueError):
        shown = ", ".join(f"{column} {value!r}" for column, value in zip(COLUMNS, values, strict=True))
        raise ValueError(
            f"{where} has {shown}; both must be positive numbers: ms a sample, kbit/s (--devices-profile.table)."
        ) from None
    return milliseconds, kilobits
