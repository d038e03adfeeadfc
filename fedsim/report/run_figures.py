"""Figures of one run, from its tables: curves, clients, tiers, costs. Clusters are in cluster_figures.py."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedsim.report.drawing import LINES, Picture, legend, new_figure, picture
from fedsim.report.how_to_read import HIGHER, LOWER
from fedsim.report.reading import EVALUATIONS, GLOBAL, PERSONAL, PRICES, Run, number
from fedsim.report.summary import EPSILONS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMED = 40
"""Clients up to which a figure bears their ids."""
UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}


def draw_run(run: Run) -> Iterator[Picture]:
    """Yield the figures for which a run has numbers; call it inside `drawing()`."""
    if not run.rounds:
        return
    yield from curves(run)
    yield from losses(run)
    yield from prices(run)
    yield from clients(run)
    yield from participation(run)
    yield from tiers(run)
    yield from costs(run)


def curves(run: Run) -> Iterator[Picture]:
    """Yield, for each metric, mean, 10th percentile and worst client by round, and the mean of personal models."""
    for metric in run.metrics:
        of = "" if metric == run.metrics[0] else f".{metric}"
        rounds, means = run.curve(f"{GLOBAL}{of}.mean")
        trained, personal = run.curve(f"{PERSONAL}{of}.mean")
        if not rounds and not trained:
            continue
        figure, axes = new_figure()
        if rounds:
            p10, worst = (run.curve(f"{GLOBAL}{of}.{name}")[1] for name in ("p10", "worst"))
            axes.fill_between(rounds, p10, means, color=LINES[0], alpha=0.25, linewidth=0, label="mean to p10")
            axes.fill_between(rounds, worst, p10, color=LINES[0], alpha=0.1, linewidth=0, label="p10 to worst")
            axes.plot(rounds, means, "-o", color=LINES[0], markersize=3, label="mean of global models")
        if trained:
            axes.plot(trained, personal, "--", color=LINES[1], label="mean of personal models")
        axes.set(xlabel="round", ylabel=f"{metric} ({HIGHER})")
        legend(axes)
        stage_lines(axes, run)
        name = metric.lower().replace("_", "-")
        last = _from_to(rounds or trained, means or personal)
        words = f"{metric} over clients by round: mean {last}, with the band down to the 10th percentile and the worst"
        yield picture(figure, f"curve-{name}", f"{metric.capitalize()} by round", words)


def losses(run: Run) -> Iterator[Picture]:
    """Yield the mean training loss by round."""
    rounds, loss = run.curve("train_loss")
    if not rounds or not np.isfinite(loss).any():
        return
    figure, axes = new_figure()
    axes.plot(rounds, loss, "-o", color=LINES[1], markersize=3)
    axes.set(xlabel="round", ylabel=f"training loss ({LOWER})")
    stage_lines(axes, run)
    yield picture(figure, "loss", "Training loss by round", f"mean training loss by round: {_from_to(rounds, loss)}")


def prices(run: Run) -> Iterator[Picture]:
    """Yield the headline's mean over what it cost: MB sent, and time where devices were simulated."""
    rounds, means = run.curve(f"{GLOBAL}.mean")
    for unit, (name, label, word) in PRICES.items():
        spent = run.spent(unit)
        if not rounds or not spent or not spent[-1]:
            continue
        figure, axes = new_figure()
        at = [spent[index - 1] for index in rounds]
        axes.plot(at, means, "-o", color=LINES[0], markersize=3)
        axes.set(xlabel=f"{label} (less is better)", ylabel=f"{run.metrics[0]} ({HIGHER})")
        ends = [f"{means[end]:.4g} after {at[end]:.4g} {unit}" for end in (0, -1)]
        words = f"mean {run.metrics[0]} {' to '.join(ends)}"
        yield picture(figure, f"curve-by-{name}", f"Mean {run.metrics[0]} by {word}", words)


def stage_lines(axes: "Axes", run: Run) -> None:
    """Draw a line where a stage begins, with its name; whole numbers on the axis of rounds."""
    names = [row["stage"] for row in run.rounds]
    starts = [index for index in range(len(names)) if not index or names[index] != names[index - 1]]
    if 1 < len(starts) <= 8:
        for index in starts:
            if index:
                axes.axvline(index + 0.5, color=LINES[7], linewidth=0.8, linestyle=(0, (4, 3)))
            place = (index + (0.5 if index else 1), 1.0)
            axes.annotate(
                names[index], place, (2, 2), axes.get_xaxis_transform(), "offset points", fontsize=7, color=LINES[7]
            )
    axes.get_xaxis().get_major_locator().set_params(integer=True)


def clients(run: Run) -> Iterator[Picture]:
    """Yield every client's own value at the end: seen clients sorted, then unseen ones."""
    metric = run.metrics[0]
    values = {name: {c: number(row, metric) for c, row in run.latest(name).items()} for name in EVALUATIONS}
    parts = [_sorted(values, GLOBAL, PERSONAL), _sorted(values, "unseen.tuned", "unseen.untuned")]
    order = [client for part in parts for client in part]
    if not order:
        return
    is_named = len(order) <= NAMED
    figure, axes = new_figure(4.2 if not is_named or len(order) <= 24 else 7.2)
    place = {client: index for index, client in enumerate(order)}
    axes.set_xticks([])
    if is_named:
        axes.set_xticks(
            range(len(order)), [str(client) for client in order], fontsize=7, rotation=90 * (len(order) > 16)
        )
    _strips(axes, values, place)
    if parts[0] and parts[1]:
        axes.axvline(len(parts[0]) - 0.5, color=LINES[7], linewidth=0.8)
    axes.set(xlabel="client" if is_named else f"{len(order)} clients, sorted", ylabel=f"{metric} ({HIGHER})")
    legend(axes)
    words = f"{metric} of each of {len(order)} clients, sorted; " + "; ".join(
        f"{title} {min(of.values()):.3f} to {max(of.values()):.3f}"
        for n, title in EVALUATIONS.items()
        if (of := values[n])
    )
    yield picture(
        figure, "clients", f"{metric.capitalize()} of every client at the end", words, not is_named or len(order) > 24
    )


def participation(run: Run) -> Iterator[Picture]:
    """Yield how many updates of each client were taken, where that differs between clients that were sampled."""
    counts = Counter[str]()
    for row in run.clients:
        if row["evaluation"] in (GLOBAL, PERSONAL):
            counts[row["client"]] += row["evaluation"] == PERSONAL
    taken = np.sort(list(counts.values()))
    if not len(taken) or taken[0] == taken[-1]:
        return
    figure, axes = new_figure(height=2.2)
    axes.step(np.arange(len(taken)), taken, where="mid", color=LINES[0])
    axes.set(xlabel=f"{len(taken)} seen clients, sorted", ylabel="updates taken")
    axes.set_ylim(bottom=0)
    axes.get_yaxis().get_major_locator().set_params(integer=True)
    words = f"updates taken of each of {len(taken)} seen clients: {taken[0]} to {taken[-1]}, mean {taken.mean():.3g}"
    yield picture(figure, "participation", "How often each client took part", words)


def _strips(axes: "Axes", values: Mapping[str, Mapping[int, float]], place: Mapping[int, int]) -> None:
    """A mark for each client and evaluation, and a line from one evaluation to the other."""
    looks = {
        GLOBAL: ("o", 0),
        PERSONAL: ("^", 1),
        "unseen.untuned": ("s", 3),
        "unseen.tuned": ("D", 2),
    }
    for low, high in ((GLOBAL, PERSONAL), ("unseen.untuned", "unseen.tuned")):
        both = [c for c in place if c in values[low] and c in values[high]]
        ends = [[values[name][c] for c in both] for name in (low, high)]
        axes.vlines([place[c] for c in both], *ends, color=LINES[7], linewidth=0.7, alpha=0.6)
    size = 4.5 if len(place) <= NAMED else 2.5
    for name, (mark, colour) in looks.items():
        shown = [c for c in place if c in values[name]]
        if shown:
            axes.plot(
                [place[c] for c in shown], [values[name][c] for c in shown], mark,
                color=LINES[colour], markersize=size, label=EVALUATIONS[name],
                fillstyle="none" if name == PERSONAL else "full",
            )  # fmt: skip


def _sorted(values: Mapping[str, Mapping[int, float]], first: str, second: str) -> list[int]:
    """Clients by their value of the first evaluation, or of the second where there is none."""
    known = {**values[second], **values[first]}
    return sorted(known, key=lambda client: (known[client], client))


def tiers(run: Run) -> Iterator[Picture]:
    """Yield what seen clients held at the end of each stage, where there is more than one."""
    stages = stages_of(run)
    if len(stages) < 2:
        return
    figure, axes = new_figure()
    for index, (label, key) in enumerate((("mean ± std", "mean"), ("10th percentile", "p10"), ("worst", "worst"))):
        values = [run.summary[f"stage.{stage}.{key}"] for stage in stages]
        if index:
            axes.plot(values, ("v", "x")[index - 1] + "--", color=LINES[index], linewidth=0.8, label=label)
        else:
            spread = [run.summary[f"stage.{stage}.std"] for stage in stages]
            axes.errorbar(range(len(stages)), values, spread, fmt="-o", color=LINES[0], capsize=4, label=label)
    axes.set_xticks(range(len(stages)), stages)
    axes.set(ylabel=f"{run.metrics[0]} ({HIGHER})", xlim=(-0.4, len(stages) - 0.6), xlabel="at the end of stage")
    legend(axes)
    parts = ", ".join(f"{stage} {run.summary[f'stage.{stage}.mean']:.3f}" for stage in stages)
    yield picture(figure, "tiers", "What each stage adds", f"mean {run.metrics[0]} at the end of each stage: {parts}")


def stages_of(run: Run) -> list[str]:
    """Return the stages after which seen clients were evaluated, in order."""
    return [key[6:-5] for key in run.summary if key.startswith("stage.") and key.endswith(".mean")]


def costs(run: Run) -> Iterator[Picture]:
    """Yield bytes, seconds, utilisation and, under differential privacy, ε by round."""
    up, down = run.curve("bytes.up"), run.curve("bytes.down")
    unit = next((u for u, s in reversed(UNITS.items()) if max([*up[1], *down[1], 1]) >= s), "B")
    seconds = [(int(row["round"]), number(row, "seconds")) for row in run.timing if row.get("clients_per_second")]
    panels = {
        "bytes": ("Bytes by round", f"{unit} of all clients", {"up": up, "down": down}, UNITS[unit]),
        "seconds": ("Seconds by round", "seconds", {"": tuple(zip(*seconds, strict=True)) or ((), ())}, 1),
        "utilisation": ("Utilisation", "busiest worker / mean (1 is best)", {"": run.curve("utilisation")}, 1),
    }
    told = {key: title for key, title in EPSILONS.items() if key in run.summary}
    panels |= {key: (f"{title} by round", f"{title} ({LOWER})", {"": run.curve(key)}, 1) for key, title in told.items()}
    for name, (title, label, lines, scale) in panels.items():
        if not any(len(rounds) for rounds, _ in lines.values()):
            continue
        figure, axes = new_figure(height=2.2)
        for index, (line, (rounds, values)) in enumerate(lines.items()):
            look = ("-", "--")[index]
            axes.plot(rounds, np.asarray(values) / scale, look, drawstyle="steps-mid", color=LINES[index], label=line)
        axes.set(xlabel="round", ylabel=label)
        axes.set_ylim(bottom=0)
        axes.get_xaxis().get_major_locator().set_params(integer=True)
        if len(lines) > 1:
            legend(axes)
        words = "; ".join(f"{line} {_from_to(*points)}".strip() for line, points in lines.items() if len(points[0]))
        yield picture(figure, name, title, f"{title}: {words}")


def _from_to(rounds: Sequence[int], values: Sequence[float]) -> str:
    return f"{values[0]:.4g} in round {rounds[0]} to {values[-1]:.4g} in round {rounds[-1]}"
