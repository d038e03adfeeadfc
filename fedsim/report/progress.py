"""Live progress on worker 0: a rich bar on a terminal, one plain line a round elsewhere."""

import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from fedsim.report.evaluation import mean_loss, summarise_updates
from fedsim.report.summary import EPSILONS
from fedsim.round import ClientUpdate


class LiveProgress:
    """Shows round, stage, loss, the headline metric, clients per second and ETA; silent on every worker but 0.

    Runs that are not alone on the terminal, but side by side, take turns with plain lines.
    """

    def __init__(
        self,
        title: str,
        rounds: int,
        first_round: int,
        is_shown: bool,
        console: Console | None = None,
        metric: str = "accuracy",
        is_alone: bool = True,
    ):
        self.metric = metric
        self.title, self.rounds, self.first_round, self.is_shown = title, rounds, first_round, is_shown
        self.console = console or (Console() if is_alone else Console(force_terminal=False))
        self.started = time.perf_counter()
        self.bar: Progress | None = None
        self.begin_phase(first_round, "", 0)

    def __enter__(self) -> "LiveProgress":
        self.started = time.perf_counter()
        if self.is_shown and self.console.is_terminal:
            words = Column(ratio=1, no_wrap=True, overflow="ellipsis")  # bar, rounds and ETA are whole in 60 columns
            columns = (
                TextColumn("{task.description}", markup=False, table_column=words),
                BarColumn(12),
                MofNCompleteColumn(),
            )
            self.bar = Progress(*columns, TextColumn("ETA"), TimeRemainingColumn(), console=self.console, expand=True)
            self.bar.start()
            self.task = self.bar.add_task(self.title, total=self.rounds, completed=self.first_round)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def show_data(self, notes: Mapping[str, float]) -> None:
        """Say in one line how the data were made, where there is something to say."""
        if self.is_shown and notes:
            parts = [f"{name} {value:,.3f}" if value % 1 else f"{name} {value:,.0f}" for name, value in notes.items()]
            self.console.print(f"data · {' · '.join(parts)}", highlight=False, soft_wrap=True)

    def begin_phase(self, round_index: int, stage: str, clients: int) -> None:
        """Say what begins (a round's training, the probe, the tuning) and how many clients this worker will train."""
        self.round_index, self.stage, self.clients, self.done = round_index, stage, clients, 0
        self.round_started = time.perf_counter()

    def client_done(self, update: ClientUpdate) -> None:
        """Count one of this worker's clients (terminal only)."""
        self.done += 1
        if self.bar:
            text = f"{self.title} · round {self.round_index + 1} · {self.stage} · client {self.done}/{self.clients}"
            self.bar.update(self.task, description=text)

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
        scores = f"{kind} {self.metric}{of} {mean:.3f} · {self.stage} · loss {loss:.3f}"
        scores += "".join(f" · {title} {log[key]:.3g}" for key, title in EPSILONS.items() if key in log)
        text = f"{self.title} · {scores} · {rate:.1f} clients/s"
        if self.bar:
            self.bar.update(self.task, completed=done, description=text)
            return
        eta = (now - self.started) / max(done - self.first_round, 1) * (self.rounds - done)
        self.console.print(f"round {done}/{self.rounds} · {text} · ETA {eta:.0f} s", highlight=False, soft_wrap=True)
