"""Several runs as rows of one comparison: what is a seed of what, whether they can be tested, and their curves."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.report.comparison import Comparison
from fedsim.report.drawing import LINES, Picture, legend, new_figure, picture
from fedsim.report.how_to_read import HIGHER, LOWER
from fedsim.report.paired import Difference
from fedsim.report.reading import GLOBAL, PERSONAL, PRICES, Run
from fedsim.storage.run_folder import flat

OF_EACH_RUN = ("seed", "seeds", "fingerprint", "environment", "out", "resume")
"""Fields of recipes in which the runs of one row may differ."""


@dataclass(frozen=True)
class Rows:
    """The runs of every row of a table, one a seed, and why rows are not tested against each other ("": they are)."""

    runs: Mapping[str, Sequence[Run]]
    seeds: Sequence[Any]
    untested: str

    def comparison(self, reference: str | None = None) -> Comparison:
        """Return the rows as a comparison; raises ValueError when there is no row called `reference`."""
        if reference is not None and reference not in self.runs:
            raise ValueError(f"--reference is '{reference}'; it must be one of {', '.join(self.runs)}.")
        results = {name: [run.result for run in runs] for name, runs in self.runs.items()}
        kind = Untested if self.untested else Comparison
        return kind(Path(), self.seeds, results, "", reference)


class Untested(Comparison):
    """A comparison of runs that cannot be paired by client."""

    @cached_property
    def differences(self) -> dict[str, Difference]:
        """None."""
        return {}


def rows_of(runs: Sequence[Run]) -> Rows:
    """Put runs that differ by seed only into one row, where every row then has the same seeds."""
    alike: dict[str, list[Run]] = {}
    for run in runs:
        recipe = {k: v for k, v in flat(run.recipe).items() if k.split(".")[0] not in OF_EACH_RUN}
        alike.setdefault(repr(sorted(recipe.items())), []).append(run)
    groups = [sorted(group, key=lambda run: run.seed) for group in alike.values()]
    seeds = {tuple(run.seed for run in group) for group in groups}
    if len(seeds) == 1 and len(set(of_each := next(iter(seeds)))) == len(of_each):
        rows = dict(zip(_names(groups), groups, strict=True))
        return Rows(rows, of_each, _why_untested(groups))
    own = {run.seed for run in runs}
    alone = [[run] for run in runs]
    why = _why_untested(alone) if len(own) == 1 else "the rows have different seeds"
    return Rows({run.name: [run] for run in runs}, tuple(own) if len(own) == 1 else ("each run's own",), why)


def _names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """The first of folder names, method names and names of runs that tells the rows apart."""
    for name in (lambda run: run.path.name, lambda run: run.recipe.get("method_name"), lambda run: run.name):
        names = [{name(run) for run in group} for group in groups]
        firsts = [next(iter(of_group)) for of_group in names]
        if all(len(of_group) == 1 for of_group in names) and all(firsts) and len(set(firsts)) == len(firsts):
            return [str(first) for first in firsts]
    return [group[0].name for group in groups]


def _why_untested(groups: Sequence[Sequence[Run]]) -> str:
    """Why rows cannot be paired by client and seed; empty when they can."""
    if any(run.finished is None for group in groups for run in group):
        return "some runs have no result yet"
    for of_seed in zip(*groups, strict=True):
        clients = [
            {client: (row["train_samples"], row["domain"]) for client, row in run.latest(GLOBAL).items()}
            for run in of_seed
        ]
        if not clients[0] or any(found != clients[0] for found in clients):
            return "the runs were not evaluated on the same clients"
        if len({run.metrics[0] for run in of_seed}) > 1:
            return "the runs were scored by different metrics"
    return ""


def draw_several(rows: Rows) -> Iterator[Picture]:
    """Yield curves of all rows in one figure each: mean and 10th percentile by round, mean by bytes sent and time."""
    metric = next(iter(rows.runs.values()))[0].metrics[0]
    label = f"{metric} ({HIGHER})"
    yield from _by_round(rows, f"{GLOBAL}.mean", "mean", f"Mean {metric} of global models", label)
    yield from _by_round(rows, f"{GLOBAL}.p10", "p10", f"10th percentile of {metric}", label)
    yield from _by_round(rows, f"{PERSONAL}.mean", "personal", f"Mean {metric} of personal models", label)
    yield from _by_round(rows, "train_loss", "loss", "Training loss", f"training loss ({LOWER})")
    for unit in PRICES:
        yield from _by_price(rows, metric, unit)


def _by_round(rows: Rows, column: str, name: str, title: str, label: str) -> Iterator[Picture]:
    figure, axes = new_figure(4.4, 3.2)
    ends = []
    for index, (row, runs) in enumerate(rows.runs.items()):
        found = [dict(zip(*run.curve(column), strict=True)) for run in runs]
        rounds = sorted(set.intersection(*map(set, found)))
        if rounds:
            values = np.asarray([[of_run[x] for x in rounds] for of_run in found])
            axes.plot(rounds, values.mean(0), **look(index), label=row)
            axes.fill_between(rounds, values.min(0), values.max(0), color=look(index)["color"], alpha=0.15, linewidth=0)
            ends.append(f"{row} {values.mean(0)[-1]:.4g}")
    if ends:
        axes.set(xlabel="round", ylabel=label)
        axes.get_xaxis().get_major_locator().set_params(integer=True)
        legend(axes)
        over = ", mean over seeds and their range" if len(rows.seeds) > 1 else ""
        yield picture(figure, f"several-{name}", f"{title} by round{over}", f"{title}, at the end: {', '.join(ends)}")


def _by_price(rows: Rows, metric: str, unit: str) -> Iterator[Picture]:
    """The mean over what was spent until then; of rows that spend nothing their last mean, as a level line."""
    name, label, word = PRICES[unit]
    figure, axes = new_figure(4.4, 3.2)
    shown, free = [], []
    for index, (row, runs) in enumerate(rows.runs.items()):
        spent = np.mean([run.spent(unit) for run in runs if len(run.rounds) == len(runs[0].rounds)], 0)
        rounds, means = runs[0].curve(f"{GLOBAL}.mean")
        if len(spent) and spent[-1] and rounds:
            of_seeds = [run.curve(f"{GLOBAL}.mean")[1] for run in runs]
            values = np.mean(of_seeds, 0) if len(set(map(len, of_seeds))) == 1 else means
            axes.plot(spent[np.asarray(rounds) - 1], values, **look(index), label=row)
            shown.append(f"{row} {spent[-1]:.2f} {unit}")
        elif len(spent) and rounds:
            ends = [run.curve(f"{GLOBAL}.mean")[1][-1:] for run in runs]
            free.append((row, look(index)["color"], float(np.mean([end[0] for end in ends if end]))))
    for row, colour, end in free if shown else ():
        axes.axhline(end, color=colour, linestyle=(0, (4, 3)), linewidth=1.2, label=f"{row}, 0 {unit}")
        shown.append(f"{row} 0 {unit}")
    if shown:
        axes.set(xlabel=f"{label} (less is better)", ylabel=f"{metric} ({HIGHER})")
        legend(axes)
        title = f"Mean {metric} by {word}"
        yield picture(figure, f"several-{name}", title, f"{word} by the end: {', '.join(shown)}")


def draw_differences(comparison: Comparison) -> Iterator[Picture]:
    """Yield the differences of methods with their intervals, one below the other; none where nothing is compared."""
    found = {name: gap for name, gap in comparison.differences.items() if np.isfinite((gap.low, gap.high)).all()}
    if not found:
        return
    figure, axes = new_figure(4.8, 0.9 + 0.36 * len(found))
    colours = {name: look(index)["color"] for index, name in enumerate(comparison.results)}
    for place, (name, gap) in enumerate(reversed(found.items())):
        ends = [[gap.mean - gap.low], [gap.high - gap.mean]]
        axes.errorbar([gap.mean], [place], xerr=ends, fmt="o", color=colours[name], capsize=4)
        said = gap.verdict if gap.seeds > 1 else "one seed: not tested"
        axes.annotate(said, (1, place), (6, 0), ("axes fraction", "data"), "offset points", va="center", fontsize=8)
    axes.axvline(0, color=LINES[7], linewidth=0.9)
    axes.set_yticks(range(len(found)), [f"{name} − {gap.reference}" for name, gap in reversed(found.items())])
    axes.set(xlabel="difference of means (right of zero is better)", ylim=(-0.6, len(found) - 0.4))
    over = "seeds" if len(comparison.seeds) > 1 else "clients of one seed"
    words = [f"{n} − {g.reference} {g.mean:+.3f} [{g.low:+.3f}, {g.high:+.3f}]" for n, g in found.items()]
    title = f"Differences of methods, with 95 % intervals over {over}"
    yield picture(figure, "differences", title, f"{title}: {'; '.join(words)}")


def look(index: int) -> dict[str, Any]:
    """Return how the line of the index-th row looks: colours first, then dashes."""
    dashes = ("-", "--", ":", "-.")[index // len(LINES) % 4]
    return {"color": LINES[index % len(LINES)], "linestyle": dashes, "marker": "o", "markersize": 2.5}
