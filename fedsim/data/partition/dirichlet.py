"""Label skew: ways to split labelled samples such that clients differ in their labels. Domains are skewed inside.

Train and test of a client share its label proportions. Every split is disjoint and complete: each sample of the two
pools has exactly one client.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from fedsim.data.partition.dealing import Pools, Split, check_alpha, deal


def dirichlet(pools: Pools, alpha: float, rng: np.random.Generator, min_share: float = 0.0) -> Split:
    """Deal every class over the clients by proportions drawn from Dir(α), the same for train and test.

    A proportion below `min_share` is raised to it, and all are normalised again (ILoRA's floor is 0.001).
    """
    check_alpha(alpha)

    def draw() -> np.ndarray:
        shares = rng.dirichlet(np.full(pools.n_clients, alpha), size=pools.n_classes).clip(min_share)
        return shares / shares.sum(1, keepdims=True) if min_share else shares

    return deal(f"Dirichlet({alpha})", pools, draw, rng)


def pathological(
    pools: Pools,
    classes_per_client: int,
    rng: np.random.Generator,
    alpha: float | None = None,
    min_share: float = 0.0,
) -> Split:
    """Give each client `classes_per_client` classes, the least held first, each split evenly among its holders.

    With `alpha` a holder gets `min_share` of the class (at most an even share), and the rest goes by Dir(α). Classes
    without a training sample do not count. Raises ValueError when the classes do not go round.
    """
    check_alpha(1.0 if alpha is None else alpha)
    present, n_clients = np.unique(pools.train), pools.n_clients
    given = f"classes_per_client is {classes_per_client} (--data.classes-per-client)"
    if not 1 <= classes_per_client <= len(present):
        raise ValueError(f"{given}; it must lie in 1 … {len(present)}.")
    if n_clients * classes_per_client < len(present):
        raise ValueError(f"{given}; {n_clients} clients (--data.n-clients) cannot hold {len(present)} classes so.")

    def draw() -> np.ndarray:
        shares, held = np.zeros((len(present), n_clients)), np.zeros(len(present), int)
        for client in range(n_clients):
            chosen = np.argsort(held + rng.random(len(present)))[:classes_per_client]
            shares[chosen, client] = 1
            held[chosen] += 1  # by how many clients; counting them anew for each took minutes for a thousand
        for label in range(len(present)) if alpha is not None else ():
            holders = np.flatnonzero(shares[label])
            least = min(min_share, 1 / len(holders))
            shares[label, holders] = least + (1 - least * len(holders)) * rng.dirichlet(np.full(len(holders), alpha))
        of_all = np.full((pools.n_classes, n_clients), 1 / n_clients)
        of_all[present] = shares / shares.sum(1, keepdims=True)
        return of_all

    return deal(f"split of {classes_per_client} classes per client", pools, draw, rng)


def superclass_dirichlet(pools: Pools, superclass: Sequence[int], alpha: float, rng: np.random.Generator) -> Split:
    """SC-Dir(α): each client has one or two super-classes, whose fine classes are split over their holders by Dir(α).

    HiLoRA (arXiv 2603.02785) describes this in words only; the construction is ours: super-classes are dealt evenly,
    and about half of the clients get a second one. `superclass` maps a class to its super-class, or to -1 where it has
    no training sample; its test samples are dealt evenly.
    """
    check_alpha(alpha)
    of_class, n_clients = np.asarray(superclass), pools.n_clients
    present = np.unique(of_class[of_class >= 0])
    if n_clients < len(present):
        raise ValueError(f"{n_clients} clients cannot hold {len(present)} super-classes (--data.n-clients).")

    def draw() -> np.ndarray:
        shares = np.full((len(of_class), n_clients), 1 / n_clients)
        shares[of_class >= 0] = 0
        first = rng.permutation(present[np.arange(n_clients) % len(present)])
        second = np.where(rng.random(n_clients) < 0.5, rng.permutation(first), first)
        for label in np.flatnonzero(of_class >= 0):
            holders = np.flatnonzero((first == of_class[label]) | (second == of_class[label]))
            shares[label, holders] = rng.dirichlet(np.full(len(holders), alpha))
        return shares

    return deal(f"SC-Dir({alpha})", pools, draw, rng)


def superclass_of(targets: np.ndarray, domains: np.ndarray, n_labels: int) -> tuple[int, ...]:
    """Return the super-class of each of `n_labels` classes, read off training samples; -1 where a class has none.

    Raises ValueError when a class has two.
    """
    found = [np.unique(domains[targets == label])[:5].tolist() for label in range(n_labels)]
    for label, of_label in enumerate(found):
        if len(of_label) > 1:
            raise ValueError(
                f"Class {label} has the super-classes {of_label}, and must have one (--data.domain-column)."
            )
    return tuple(of_label[0] if of_label else -1 for of_label in found)


def by_domain(
    pools: Pools,
    domains: tuple[np.ndarray, np.ndarray],
    alpha: float,
    rng: np.random.Generator,
    names: Sequence[str] = (),
    lacking: str = "--data.domain-column says which there are",
) -> tuple[Split, tuple[int, ...]]:
    """Give every domain `pools.n_clients` clients of its own and split inside it by Dir(α) over labels.

    `domains` are those of the two pools' samples; `names` are what messages call them, which advise `lacking` where one
    has no samples. Returns the tables and each client's domain. Raises ValueError when a domain lacks training or test
    samples, or has too few for its clients.
    """
    tables: Split = ([], [])
    for domain in range(int(max(of_pool.max(initial=-1) for of_pool in domains)) + 1):
        name = names[domain] if names else f"Domain {domain}"
        rows = [np.flatnonzero(of_pool == domain) for of_pool in domains]
        if not all(map(len, rows)):
            found = f"{len(rows[0])} training and {len(rows[1])} test samples"
            raise ValueError(f"{name} has {found}, and needs some of both: {lacking}.")
        own = replace(pools, train=pools.train[rows[0]], test=pools.test[rows[1]])
        try:
            split = dirichlet(own, alpha, rng)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        for table, inside, of_pool in zip(tables, split, rows, strict=True):
            table += [torch.from_numpy(of_pool)[index] for index in inside]
    return tables, tuple(k // pools.n_clients for k in range(len(tables[0])))


def choose_unseen(domains: Sequence[int], fraction: float, rng: np.random.Generator) -> frozenset[int]:
    """Hold out a fraction of the clients, spread over the domains as evenly as the number allows."""
    if not 0 <= fraction < 1:
        raise ValueError(f"unseen_fraction is {fraction}; it must lie in [0, 1) (--data.unseen-fraction).")
    wanted = round(fraction * len(domains))
    chosen: list[int] = []
    left = {domain: list(rng.permutation(np.flatnonzero(np.asarray(domains) == domain))) for domain in set(domains)}
    order = list(rng.permutation(sorted(left)))
    while len(chosen) < wanted:
        for domain in order:
            if left[domain] and len(chosen) < wanted:
                chosen.append(int(left[domain].pop()))
    return frozenset(chosen)
