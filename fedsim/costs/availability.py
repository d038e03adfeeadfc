"""When clients are there: windows of simulated time, from a table or drawn; without either they always are.

    on and off     periods of log-normal length, one after the other, over a week that then repeats
    by night       one window a day, of the same length for all, from an hour of the day that is drawn per client

Who is not there is not sampled; who leaves before its update has arrived is dropped, as after a deadline.
"""

import csv
import json
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from fedsim.options import check_options, out_of_range, refuse
from fedsim.randomness import numpy_generator

HOUR, DAY, WEEK = 3600.0, 86400.0, 604800.0
WHERE = "(--availability.table)"


class Windows(NamedTuple):
    """When a client is there: `ends[i]` follows `starts[i]`, in seconds, ascending; all of it again every `period`."""

    starts: Sequence[float]
    ends: Sequence[float]
    period: float

    def until(self, second: float) -> float:
        """Return the second at which the client goes away; `second` itself where it is not there."""
        turn, now = divmod(second, self.period)
        index = bisect_right(self.starts, now) - 1
        if index < 0 or now >= self.ends[index]:
            return second
        end, base = self.ends[index], turn * self.period
        while end >= self.period and self.starts[0] == 0:  # goes on in the next period
            if self.ends[0] >= self.period:
                return math.inf
            base, end = base + self.period, self.ends[0]
        return base + end

    def since(self, second: float) -> float:
        """Return the first second from `second` on at which the client is there; infinity where it never is."""
        if not self.starts or self.until(second) > second:
            return second if self.starts else math.inf
        turn, now = divmod(second, self.period)
        index = bisect_right(self.starts, now)
        later = self.starts[index] if index < len(self.starts) else self.period + self.starts[0]
        found = turn * self.period + later
        while self.until(found) <= found:  # rounded down
            found = math.nextafter(found, math.inf)
        return found


@dataclass(frozen=True, kw_only=True)
class Availability:
    """When clients are there; by default always."""

    table: Path | None = None
    """CSV or JSON file of windows in FedScale's format of client behaviour: `active`, `inactive`, `finish_time`."""
    on_hours: float | None = None
    """Median hours for which a client stays, drawn anew each time."""
    off_hours: float | None = None
    """Median hours for which it is away."""
    sigma: float = 1.0
    """Standard deviation of the logarithm of both."""
    night_hours: float | None = None
    """Instead: hours of each night for which a client is there; its time zone is drawn."""

    def __post_init__(self) -> None:
        check_options(self, "availability")
        drawn = ("on_hours", "off_hours")
        problems = out_of_range(self, {"be positive": (*drawn, "night_hours"), "be 0 or more": ("sigma",)})
        given = [name for name in ("table", *drawn, "night_hours") if getattr(self, name) is not None]
        if len(given) == 1 and given[0] in drawn:
            problems.append(f"{given[0]} is given; give {' and '.join(drawn)}")
        elif len(given) > 1 and given != list(drawn):
            problems.append(
                f"{', '.join(given)} are given; windows come from a table, on_hours and off_hours, or nights"
            )
        if self.night_hours is not None and self.night_hours >= 24:
            problems.append(f"night_hours is {self.night_hours}; it must be less than 24")
        refuse(problems, "--availability.*")

    @property
    def is_given(self) -> bool:
        """Whether clients come and go."""
        return any(value is not None for value in (self.table, self.on_hours, self.night_hours))

    def calendar(self, seed: int) -> "Calendar | None":
        """Return when which client is there, None where all always are; raises ValueError (table)."""
        if not self.is_given:
            return None
        return Calendar(self, seed, () if self.table is None else read_windows(self.table))


@dataclass(frozen=True)
class Calendar:
    """Windows of clients: a function of the seed and the client, or the table's in turn."""

    options: Availability
    seed: int
    rows: Sequence[Windows] = ()

    @cached_property
    def _windows(self) -> dict[int, Windows]:
        return {}

    def of(self, client: int) -> Windows:
        """Return a client's windows."""
        if client not in self._windows:
            self._windows[client] = self.rows[client % len(self.rows)] if self.rows else self._drawn(client)
        return self._windows[client]

    def until(self, client: int, second: float) -> float:
        """Return the second at which a client goes away; `second` itself where it is not there."""
        return self.of(client).until(second)

    def since(self, client: int, second: float) -> float:
        """Return the first second from `second` on at which a client is there."""
        return self.of(client).since(second)

    def _drawn(self, client: int) -> Windows:
        random, of = numpy_generator(self.seed, "availability", client=client), self.options
        if of.night_hours is not None:
            start, length = DAY * random.random(), of.night_hours * HOUR
            if start + length <= DAY:
                return Windows((start,), (start + length,), DAY)
            return Windows((0.0, start), (start + length - DAY, DAY), DAY)
        assert of.on_hours is not None
        assert of.off_hours is not None
        starts, ends, second, is_on = [], [], 0.0, bool(random.random() < of.on_hours / (of.on_hours + of.off_hours))
        while second < WEEK:
            median = of.on_hours if is_on else of.off_hours
            length = median * HOUR * math.exp(of.sigma * random.standard_normal())
            length *= 1 if second else random.random()  # the week begins in the middle of a period
            if is_on:
                starts.append(second)
                ends.append(min(second + length, WEEK))
            second, is_on = second + length, not is_on
        return Windows(starts, ends, WEEK)


def read_windows(path: Path) -> list[Windows]:
    """Return each client's windows from a table in FedScale's format, in the file's order.

    JSON: an object of objects (or a list) with lists `active` and `inactive` of seconds at which the client comes and
    goes, and `finish_time`, the seconds after which all of it repeats. CSV: a row a window with columns `client`,
    `active`, `inactive`, `finish_time`. FedScale publishes a pickle, which would run what is in it: it is refused.
    Raises ValueError for what cannot be read.
    """
    where = f"The table of windows '{path}'"
    entries = read_entries(path, where, "client", WHERE, of_csv=_gathered)
    return [_windows(entry, f"{where}, client {index + 1},") for index, entry in enumerate(entries)]


def read_entries(
    path: Path, where: str, what: str, option: str, of_csv: Callable[["csv.DictReader[str]"], Any] = list
) -> list[Any]:
    """Return the entries of a table in one of FedScale's formats, in the file's order.

    `where` is what messages call the table, `what` an entry of it, `option` where it is set; `of_csv` makes of a CSV
    file's rows what the JSON form holds. Raises ValueError for what is no table.
    """
    kind = path.suffix.lower()
    if kind not in (".csv", ".json"):
        hint = " Pickles are not loaded, since that executes code: convert it where you trust it."
        raise ValueError(f"{where} is no .csv or .json {option}.{hint}")
    try:
        with path.open(newline="") as file:
            found: Any = of_csv(csv.DictReader(file)) if kind == ".csv" else json.load(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{where} cannot be read: {error} {option}.") from None
    entries = list(found.values()) if isinstance(found, dict) else found
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{where} holds no {what} {option}.")
    return entries


def _gathered(rows: "csv.DictReader[str]") -> dict[str, Any]:
    """Rows of a CSV file by client, as the JSON form has them."""
    clients: dict[str, Any] = {}
    for row in rows:
        if missing := [name for name in ("client", "active", "inactive", "finish_time") if row.get(name) is None]:
            raise ValueError(f"a row has no {' and no '.join(missing)}")
        own = clients.setdefault(row["client"], {"active": [], "inactive": [], "finish_time": row["finish_time"]})
        own["active"].append(row["active"])
        own["inactive"].append(row["inactive"])
    return clients


def _windows(entry: object, where: str) -> Windows:
    """FedScale's lists as windows: who is there when they end, or begin with going away, is so across the repeat."""
    try:
        assert isinstance(entry, Mapping)
        period = float(entry["finish_time"])
        active, inactive = ([float(second) for second in entry[name]] for name in ("active", "inactive"))
        events = sorted([(second, True) for second in active] + [(second, False) for second in inactive])
        if not events or not 0 < period < math.inf or not 0 <= events[0][0] <= events[-1][0] <= period:
            raise ValueError
        if not active or any(before[1] == after[1] for before, after in pairwise(events)):
            raise ValueError
    except (AssertionError, KeyError, TypeError, ValueError):
        raise ValueError(
            f"{where} must have `active` and `inactive`, seconds in turn within 0 … `finish_time`, and at least one of "
            f"`active` {WHERE}."
        ) from None
    starts = ([] if events[0][1] else [0.0]) + active
    ends = inactive + ([period] if events[-1][1] else [])
    return Windows(starts, ends, period)
