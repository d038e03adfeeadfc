"""Which rule finds the number of HiLoRA's clusters, and leaves IID clients together: adjusted Rand index, by rule.

    python benchmarks/cluster_rules.py

Reads the distances that benchmarks/cluster_distances.py has kept, and plants subspaces of its own. Takes seconds,
trains nothing and knows no accuracy. Rewrites the section of RESULTS.md.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

import torch
import tyro
from cluster_distances import FEDERATIONS, Cell, cell_path, read
from results import markdown, provenance, show, write
from sklearn.metrics import adjusted_rand_score

from fedsim.parts.cluster_count import RULES, Rule, clusters_by
from fedsim.parts.clustering import Clusters, column_basis, subspace_distances
from fedsim.randomness import generator

K_MAX = 10
OUTPUTS, RANK, SITES = 64, 4, 12
PLANTED = {"planted": ((3, 12), (6, 24)), "planted-iid": ((1, 12), (1, 24))}
"""Groups and clients."""
NOISE, SEEDS = (1.0, 2.0), (100, 101)
"""What each client adds to its group's basis, in the norm of that basis's columns."""


def planted(n_groups: int, n_clients: int, noise: float, seed: int) -> Cell:
    """Return clients of equal groups, each with its group's subspace and noise of its own at every site."""
    groups = torch.arange(n_clients) % n_groups
    draw = generator(seed, f"planted/{n_groups}/{n_clients}/{noise}")
    bases = []
    for _ in range(SITES):
        centres = column_basis(torch.randn(n_groups, OUTPUTS, RANK, generator=draw))
        own = torch.randn(n_clients, OUTPUTS, RANK, generator=draw) / OUTPUTS**0.5
        bases.append(column_basis(centres[groups] + noise * own))
    name = "planted-iid" if n_groups == 1 else "planted"
    return Cell(name, seed, subspace_distances(bases), groups.tolist())


def cells() -> Iterator[Cell]:
    """Yield planted cells, then all that were trained and kept."""
    for settings in PLANTED.values():
        yield from (planted(*setting, noise, seed) for setting in settings for noise in NOISE for seed in SEEDS)
    for name, federation in FEDERATIONS.items():
        yield from (read(name, seed) for seed in federation.seeds if cell_path(name, seed).exists())


def family(cell: Cell) -> str:
    """Return what a cell counts under: the data that it was made of."""
    return cell.federation.split("-")[0]


def is_control(cell: Cell) -> bool:
    """Whether there are no groups to be found."""
    return len(set(cell.groups)) == 1


def agreement(cell: Cell, found: Clusters) -> float:
    """Return the adjusted Rand index of what was found against the groups."""
    return float(adjusted_rand_score(cell.groups, found.labels))


def table(found: dict[Rule, list[tuple[Cell, Clusters]]]) -> tuple[list[str], list[list[str]]]:
    """Return a line for each rule: mean ARI by data, their mean, and IID controls that were split."""
    kinds = list(dict.fromkeys(family(cell) for cell, _ in next(iter(found.values())) if not is_control(cell)))
    rows = []
    for rule, results in found.items():
        grouped = [(family(cell), agreement(cell, clusters)) for cell, clusters in results if not is_control(cell)]
        by_kind = [mean(index for kind, index in grouped if kind == wanted) for wanted in kinds]
        controls = [(cell, clusters.n_clusters > 1) for cell, clusters in results if is_control(cell)]
        split, real = [is_split for _, is_split in controls], [s for c, s in controls if family(c) != "planted"]
        counts = [f"{sum(split) - sum(real)} of {len(split) - len(real)}", f"{sum(real)} of {len(real)}"]
        rows.append([rule, *(f"{value:.2f}" for value in by_kind), f"{mean(by_kind):.2f}", *counts])
    return ["rule", *(f"ARI, {kind}" for kind in kinds), "mean", "planted IID split", "trained IID split"], rows


def numbers(found: dict[Rule, list[tuple[Cell, Clusters]]]) -> tuple[list[str], list[list[str]]]:
    """Return a line for each trained cell: its groups, and the clusters and the ARI of every rule."""
    rows = []
    for index, (cell, _) in enumerate(next(iter(found.values()))):
        if family(cell) != "planted":
            results = [results[index][1] for results in found.values()]
            words = [str(clusters.n_clusters) for clusters in results]
            if not is_control(cell):
                words = [f"{k} ({agreement(cell, r):.2f})" for k, r in zip(words, results, strict=True)]
            rows.append([f"{cell.federation}, seed {cell.seed}", str(len(set(cell.groups))), *words])
    return ["", "groups", *found], rows


def one_cluster(results: Sequence[tuple[Cell, Clusters]]) -> str:
    """Return what calibrates the score of one cluster: the best score of a division, in controls and in the others."""
    best = {True: [0.0], False: [0.0]}
    for cell, clusters in results:
        best[is_control(cell)].append(max(score for k, score in clusters.scores.items() if k > 1))
    least = min(best[False][1:])
    return f"largest score of a division: in IID controls at most {max(best[True]):.3f}, elsewhere at least {least:.3f}"


def main(out: Path | None = None) -> None:
    """Compare, print and write."""
    all_cells = list(cells())
    found: dict[Rule, list[tuple[Cell, Clusters]]] = {rule: [] for rule in RULES}
    for cell in all_cells:
        for rule, results in found.items():
            results.append((cell, clusters_by(rule, cell.distances, None, K_MAX)))
        counts = ", ".join(f"{rule} {results[-1][1].n_clusters}" for rule, results in found.items())
        print(f"{cell.federation}, seed {cell.seed}: {len(set(cell.groups))} groups; {counts}", flush=True)
    columns, rows = table(found)
    show("Rules for the number of clusters", columns, rows)
    calibrated = [f"- {rule}: {one_cluster(found[rule])}" for rule in ("silhouette", "stability")]
    text = [provenance(1), markdown(columns, rows), *calibrated, markdown(*numbers(found))]
    block = "\n\n".join([text[0], text[1], "\n".join(calibrated), text[-1]])
    print(block)
    if out:
        out.write_text(block + "\n")
    else:
        write("cluster_rules", block, "HiLoRA: how many clusters")


if __name__ == "__main__":
    tyro.cli(main)
