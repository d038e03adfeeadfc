"""The federations that papers make of labelled data: by domain, by owner, IID, and with skewed labels or sizes.

Each is a set of options and a function from options and data. `Clients` puts such a split behind a source of samples.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Generic, Literal, TypeVar

import numpy as np
import torch
from tyro.conf import arg

from fedsim.data.client_options import ClientOptions
from fedsim.data.federated import FederatedData
from fedsim.data.partition.by_owner import by_owner
from fedsim.data.partition.dealing import Pools, Split
from fedsim.data.partition.dirichlet import (
    by_domain,
    choose_unseen,
    dirichlet,
    pathological,
    superclass_dirichlet,
    superclass_of,
)
from fedsim.data.partition.equal import iid, quantity_skew
from fedsim.data.partition.flower import flower_dirichlet
from fedsim.data.partition.sized import sized_dirichlet
from fedsim.data.proxy import split_off_proxy, with_proxy
from fedsim.data.sources.labelled import Labelled, joined

Splits = tuple[Labelled, Labelled]
Arrays = tuple[np.ndarray, np.ndarray]
Partition = Literal["gl-dir", "sc-dir", "patho", "sized-dir", "iid", "quantity", "flower-dir", "owner"]
LEAST = {"owner": (1, 1), "flower-dir": (10, 0)}
ALPHA = {"gl-dir": 0.3, "sc-dir": 3.0}
"""Where they differ from 4 training and 2 test samples, and from 0.5."""


@dataclass(frozen=True, kw_only=True)
class Domains(ClientOptions):
    """Every domain has its own clients, with Dirichlet label skew inside it."""

    clients_per_domain: int = 15
    """Clients in each domain."""
    alpha: float = 0.6
    """Dirichlet concentration over labels inside a domain."""
    min_train: int = 4
    """The least training samples of a client."""
    min_test: int = 2
    """The least test samples of a client."""

    def federation(self, splits: Splits, rng: np.random.Generator) -> FederatedData:
        """Return the clients of these samples; see `domain_clients`."""
        return domain_clients(self, splits, rng)


@dataclass(frozen=True, kw_only=True)
class Skew(ClientOptions):
    """Clients differ in their labels, in their sizes, in neither, or as the owners of the data do."""

    partition: Partition = "gl-dir"
    """Dirichlet over all classes (gl-dir, or flower-dir: index for index as flwr-datasets deals); one or two
    super-classes a client (sc-dir); a fixed number of classes a client (patho); clients of given sizes whose label
    proportions are Dirichlet (sized-dir); alike in labels, with Dirichlet sizes (quantity) or equal ones (iid); each
    domain of the data, such as a writer, a client (owner)."""
    n_clients: int = 100
    """Clients in all; of owner at most, the largest."""
    alpha: float | None = None
    """Dirichlet concentration; default 3 for sc-dir, 0.3 for gl-dir, even shares for patho, else 0.5."""
    min_train: int | None = None
    """The least training samples of a client; default 4, of owner 1, of flower-dir 10; not of sized-dir."""
    min_test: int | None = None
    """The least test samples of a client; default 2, of owner 1, of flower-dir 0; not of sized-dir."""
    flower_seed: int | None = None
    """Of flower-dir: its partitioner's seed (42 is its default); default one of this run's own."""
    min_share: float = 0.0
    """Of gl-dir, and of patho with alpha: the least share of a class that a client gets (that has it)."""
    classes_per_client: int = 10
    """Of patho."""
    train_per_client: int = 1000
    """Of sized-dir."""
    test_per_client: int = 200
    """Of sized-dir."""

    def federation(self, splits: Splits, rng: np.random.Generator) -> FederatedData:
        """Return the clients of these samples; see `skewed_clients`."""
        return skewed_clients(self, splits, rng)


SomeSource = TypeVar("SomeSource", bound=Any)
SomeSplit = TypeVar("SomeSplit", Domains, Skew)


@dataclass(frozen=True, kw_only=True)
class Clients(Generic[SomeSource, SomeSplit]):
    """Samples and who has them: a source, such as `ImageOptions`, and a split. On the command line they are one."""

    source: Annotated[SomeSource, arg(name="")]
    """Which samples."""
    split: Annotated[SomeSplit, arg(name="")]
    """Who has which."""

    def embedded(self) -> Any:
        """Return the federations of embedded data of the same kind."""
        return self.source.embedded(self.split)

    def federations(self, model: Any, dry_run: bool = False) -> "Federations":
        """Return the federations of these data, which have been found; nothing is decoded or tokenised yet."""
        return Federations(self.source.find(model), self.split, dry_run)


@dataclass(frozen=True)
class Federations:
    """Samples that are there, which a backbone has to fit, and the federation that each generator makes of them."""

    found: Any
    split: Domains | Skew
    dry_run: bool = False

    @cached_property
    def splits(self) -> Splits:
        """Both splits, read when they are first asked for; in a dry run only their labels."""
        return self.found.load(self.dry_run)

    def federation(self, rng: np.random.Generator) -> FederatedData:
        """Return the data of all clients."""
        return self.split.federation(self.splits, rng)


def domain_clients(options: Domains, splits: Splits, rng: np.random.Generator) -> FederatedData:
    """Return a federation whose domains are those of the data; raises ValueError when the data have none."""
    train, test = splits
    if train.domains is None or test.domains is None:
        raise ValueError("The data have no domains; say which column holds them (--data.domain-column).")
    proxy, rest = split_off_proxy(train.targets.numpy(), options.proxy_samples, rng)
    pools = Pools(
        train.targets[rest].numpy(),
        test.targets.numpy(),
        options.clients_per_domain,
        options.min_train,
        options.min_test,
        "--data.clients-per-domain, --data.min-train, --data.min-test",
    )
    tables, domains = by_domain(pools, (train.domains[rest].numpy(), test.domains.numpy()), options.alpha, rng)
    return _federation(splits, tables, domains, proxy, rest, options.unseen_fraction, rng)


def skewed_clients(options: Skew, splits: Splits, rng: np.random.Generator) -> FederatedData:
    """Return a federation by one of the partitions; a client's domain is its owner, or in SC-Dir its main super-class.

    Raises ValueError when there are no owners or super-classes to work with or the split cannot be made.
    """
    train, test = splits
    proxy, rest = split_off_proxy(train.targets.numpy(), options.proxy_samples, rng)
    targets, owners = (train.targets[rest].numpy(), test.targets.numpy()), None
    if train.domains is not None and test.domains is not None:
        owners = train.domains[rest].numpy(), test.domains.numpy()
    tables, domains = _tables(options, targets, owners, rng)
    return _federation(splits, tables, domains, proxy, rest, options.unseen_fraction, rng)


def _tables(
    options: Skew, targets: Arrays, domains: Arrays | None, rng: np.random.Generator
) -> tuple[Split, tuple[int, ...] | None]:
    """Tables of the two pools, and each client's domain where the partition goes by domains."""
    alpha = ALPHA.get(options.partition, 0.5) if options.alpha is None else options.alpha
    default = LEAST.get(options.partition, (4, 2))
    min_train = default[0] if options.min_train is None else options.min_train
    min_test = default[1] if options.min_test is None else options.min_test
    pools = Pools(*targets, options.n_clients, min_train, min_test)
    match options.partition:
        case "gl-dir":
            return dirichlet(pools, alpha, rng, options.min_share), None
        case "patho":
            return pathological(pools, options.classes_per_client, rng, options.alpha, options.min_share), None
        case "sized-dir":
            given = replace(pools, min_train=options.train_per_client, min_test=options.test_per_client)
            return sized_dirichlet(given, alpha, rng), None
        case "iid":
            return iid(pools, rng), None
        case "quantity":
            return quantity_skew(pools, alpha, rng), None
        case "flower-dir":
            own = rng if options.flower_seed is None else np.random.default_rng(options.flower_seed)
            return flower_dirichlet(pools, alpha, own), None
    if domains is None:
        what = "owners" if options.partition == "owner" else "super-classes"
        raise ValueError(f"The data have no {what}; say which column holds them (--data.domain-column).")
    if options.partition == "owner":
        return by_owner(*domains, options.n_clients, min_train, min_test)
    if min_train < 1:
        raise ValueError(
            "min_train is 0; a client of sc-dir needs a training sample, to be of a super-class (--data.min-train)."
        )
    superclass = superclass_of(pools.train, domains[0], pools.n_classes)
    tables = superclass_dirichlet(pools, superclass, alpha, rng)
    return tables, tuple(int(torch.from_numpy(domains[0])[rows].mode().values) for rows in tables[0])


def _federation(
    splits: Splits,
    tables: Split,
    domains: tuple[int, ...] | None,
    proxy: torch.Tensor,
    rest: torch.Tensor,
    unseen_fraction: float,
    rng: np.random.Generator,
) -> FederatedData:
    """Clients train on these tables of the `rest` of the training split, the proxy on its own rows."""
    train, test = splits
    inputs, targets = joined(train, test)
    data = FederatedData(
        inputs=inputs,
        targets=targets,
        train=[rest[rows] for rows in tables[0]],
        test=[rows + len(train.targets) for rows in tables[1]],
        class_names=train.class_names,
        unseen=choose_unseen(domains or (0,) * len(tables[0]), unseen_fraction, rng),
        domains=domains,
        domain_names=train.domain_names if domains else (),
        **train.presented,
    )
    return with_proxy(data, proxy)
