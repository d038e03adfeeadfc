"""Live progress on worker 0: a rich bar on a terminal, one plain line a round elsewhere; teams share a screen."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isnan
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column

from fedsim.report.evaluation import mean_loss, summarise_updates
from fedsim.report.summary import EPSILONS
from fedsim.round import ClientUpdate

LOOK = 0.5
"""Seconds between two looks at what teams are at, and between two rows of a team within a round."""


class Row(NamedTuple):
    """What a run is at: words, finished rounds, all rounds."""

    text: str
    done: int
    rounds: int


def columns() -> tuple[ProgressColumn, ...]:
    """Return words, a bar, rounds, and the time that is left; the last three are whole in 60 columns."""
    words = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    text = TextColumn("{task.description}", markup=False, table_column=words)
    return text, BarColumn(12), MofNCompleteColumn(), TextColumn("ETA"), TimeRemainingColumn()


class TeamRows(Progress):
    """Bars of runs that go on side by side, one a team; their rows as JSON, or empty, are `read` twice a second."""

    def __init__(self, read: Callable[[], Sequence[str]], console: Console | None = None):
        self.read: Callable[[], Sequence[str]] = tuple  # rich draws before it has all it needs
        super().__init__(*columns(), console=console, expand=True, refresh_per_second=1 / LOOK)
        self.read = read

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return the bars as they are now."""
        for number, text in enumerate(self.read()):
            row = Row(*json.loads(text)) if text else Row("", 0, 1)
            if number == len(self.task_ids):
                self.add_task("")
            task = self.tasks[number]
            if row.done < task.completed:
                self.reset(task.id)  # the time that is left is the next run's
            self.update(task.id, description=row.text, completed=row.done, total=row.rounds, visible=bool(text))
        yield from super().get_renderables()


class LiveProgress:
    """Shows round, stage, loss, the headline metric, clients per second and ETA; silent on every worker but 0.

    A run that is not alone on the terminal, but side by side with others, hands its row to `post`.
    """

    def __init__(
        self,
        title: str,
        rounds: int,
        first_round: int,
        is_shown: bool,
        console: Console | None = None,
        metric: str = "accuracy",
        post: Callable[[str], None] | None = None,
    ):
        self.metric = metric
        self.title, self.rounds, self.first_round, self.is_shown = title, rounds, first_round, is_shown
        self.console, self.post, self.posted = console or Console(), post, 0.0
        self.started = time.perf_counter()
        self.bar: Progress | None = None
        self.begin_phase(first_round, "", 0)

    def __enter__(self) -> "LiveProgress":
        self.started = time.perf_counter()
        if self.is_shown and not self.post and self.console.is_terminal:
            self.bar = Progress(*columns(), console=self.console, expand=True)
            self.bar.start()
            self.task = self.bar.add_task(self.title, total=self.rounds, completed=self.first_round)
        self._show(self.title, self.first_round)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def _show(self, text: str, done: int) -> bool:
        """Show it in the bar or among the other teams' rows, and say whether there is either."""
        if self.bar:
            self.bar.update(self.task, completed=done, description=text)
        elif self.post and self.is_shown:
            self.posted = time.perf_counter()
            self.post(json.dumps(Row(text, done, self.rounds)))
        return bool(self.bar or self.post)

    def show_data(self, notes: Mapping[str, float]) -> None:
        """Say in one line how the data were made, where there is something to say."""
        if self.is_shown and notes and not self.post:
            parts = [f"{name} {value:,.3f}" if value % 1 else f"{name} {value:,.0f}" for name, value in notes.items()]
            self.console.print(f"data · {' · '.join(parts)}", highlight=False, soft_wrap=True)

    def begin_phase(self, round_index: int, stage: str, clients: int) -> None:
        """Say what begins (a round's training, the probe, the tuning) and how many clients this worker will train."""
        self.round_index, self.stage, self.clients, self.done = round_index, stage, clients, 0
        self.round_started = time.perf_counter()

    def client_done(self, update: ClientUpdate) -> None:
        """Count one of this worker's clients (terminal only)."""
        self.done += 1
        if self.bar or time.perf_counter() - self.posted > LOOK:
            text = f"{self.title} · round {self.round_index + 1} · {self.stage} · client {self.done}/{self.clients}"
            self._show(text, self.round_index)

    def end_round(
        self,
        updates: Sequence[ClientUpdate],
        evaluated: Sequence[ClientUpdate],
        n_seen: int = 0,
        log: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Show a finished round; the metric is the global model's where that was evaluated, else the personal one's.

        Where fewer than all `n_seen` seen clients were evaluated, it says how many. What clients have given away so
        far, under differential privacy, is in the `log`.
        """
        if not self.is_shown:
            return
        now, done = time.perf_counter(), self.round_index + 1
        rate, loss = len(updates) / max(now - self.round_started, 1e-9), mean_loss(updates)
        kind, source = ("global", evaluated) if evaluated else ("personal", updates)
        mean = summarise_updates(source, kind, (self.metric,)).get(f"{kind}.mean", float("nan"))
        of = f" of {len(evaluated):,} clients" if 0 < len(evaluated) < n_seen else ""
        scores = f"{kind} {self.metric}{of} {mean:.3f} · {self.stage} · loss {'–' if isnan(loss) else f'{loss:.3f}'}"
        scores += "".join(f" · {title} {log[key]:.3g}" for key, title in EPSILONS.items() if key in log)
        text = f"{self.title} · {scores} · {rate:.1f} clients/s"
        if self._show(text, done):
            return
        eta = (now - self.started) / max(done - self.first_round, 1) * (self.rounds - done)
        self.console.print(f"round {done}/{self.rounds} · {text} · ETA {eta:.0f} s", highlight=False, soft_wrap=True)
