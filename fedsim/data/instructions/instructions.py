"""Instruction data as a federation of clients that learn to answer: tables of texts, tasks, clients, prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.data.builtin.toy_instructions import ToyInstructions
from fedsim.data.client_options import check_data_options
from fedsim.data.federated import FederatedData
from fedsim.data.instructions.prompts import Tokenizer
from fedsim.data.instructions.samples import Texts, Wording, federation
from fedsim.data.instructions.tables import InstructionSource, read_texts
from fedsim.data.partition.dealing import Pools
from fedsim.data.partition.dirichlet import by_domain, choose_unseen
from fedsim.data.proxy import with_drawn_proxy
from fedsim.data.sources.listing import evenly_marked

SIZES = "--data.clients-per-task, --data.min-train, --data.min-test"
LACKING = "leave it out (--data.tasks), or hold out another share (--data.test-share)"
"""What to change where a kind of task does not go round."""


@dataclass(frozen=True, kw_only=True)
class Instructions(Wording, InstructionSource):
    """Instructions and answers, who has them, and how they are put to the model."""

    clients_per_task: int = 2
    """Clients of each kind of task, where the data name none."""
    alpha: float = 10.0
    """Dirichlet concentration of the shares that the clients of one kind get of it."""
    min_train: int = 4
    """Least training samples of a client of one kind of task, before `train_per_client` and `proxy_samples`."""
    min_test: int = 2
    """Least test samples of a client of one kind of task, before `test_per_client`."""
    train_per_client: int | None = None
    """Keep at most so many training samples of a client."""
    test_per_client: int | None = None
    """Keep at most so many test samples of a client."""
    test_share: float = 0.1
    """Share of each client's samples, or of each kind of task's, held out where the data have no test split."""
    unseen_fraction: float = 0.0
    """Share of the clients that do not take part in training."""
    proxy_samples: int = 0
    """Training samples that the server keeps, at random; their clients train without them."""

    def __post_init__(self) -> None:
        check_data_options(self)

    def embedded(self) -> ToyInstructions:
        """Return the federations of the embedded instructions, with as many proxy samples."""
        return ToyInstructions(proxy_samples=self.proxy_samples)

    def federations(self, model: Any, dry_run: bool = False) -> "InstructionFederations":
        """Return the federations of these data, to be read by the tokenizer of `model`."""
        return InstructionFederations(self, model.load_tokenizer())


@dataclass(frozen=True)
class InstructionFederations:
    """Instructions and their tokenizer, which a backbone has to fit, and the federation of each generator."""

    options: Instructions
    tokenizer: Tokenizer

    def federation(self, rng: np.random.Generator) -> FederatedData:
        """Return the data of all clients."""
        clients = instruction_clients(self.options, self.tokenizer, rng)
        return with_drawn_proxy(clients, self.options.proxy_samples, rng)


def instruction_clients(options: Instructions, tokenizer: Tokenizer, rng: np.random.Generator) -> FederatedData:
    """Return the federation whose domains are the kinds of task; a client's samples are drawn without replacement.

    Raises ValueError when the data are not to be had, lack a column, or do not go round.
    """
    options = options.resolved()
    texts = read_texts(options)
    owners = texts.task if texts.client is None else np.unique(texts.client, return_inverse=True)[1]
    is_test = texts.is_test if texts.is_test is not None else evenly_marked(owners, options.test_share)
    pools = [np.flatnonzero(~is_test), np.flatnonzero(is_test)]
    if texts.client is None:
        (train, test), domains = dealt(options, texts, pools, rng)
    else:
        names, client = np.unique(texts.client, return_inverse=True)
        train, test = ([pool[client[pool] == k] for k in range(len(names))] for pool in pools)
        domains = tuple(int(np.bincount(texts.task[client == k]).argmax()) for k in range(len(names)))
    train = [sampled(rows, options.train_per_client, rng) for rows in train]
    test = [sampled(rows, options.test_per_client, rng) for rows in test]
    unseen = choose_unseen(domains, options.unseen_fraction, rng)
    return federation(options, texts, tokenizer, train, test, unseen=unseen, domains=domains)


def dealt(
    options: Instructions, texts: Texts, pools: Sequence[np.ndarray], rng: np.random.Generator
) -> tuple[list[list[np.ndarray]], tuple[int, ...]]:
    """Give each kind of task its clients: their rows of the two pools, and each one's kind.

    Raises ValueError when a kind has too few samples for them.
    """
    alike = (np.zeros(len(pool), int) for pool in pools)
    own = Pools(*alike, options.clients_per_task, options.min_train, options.min_test, SIZES)
    kinds, names = (texts.task[pools[0]], texts.task[pools[1]]), [f"Kind of task '{name}'" for name in texts.task_names]
    split, domains = by_domain(own, kinds, options.alpha, rng, names, LACKING)
    return [[pool[rows.numpy()] for rows in tables] for pool, tables in zip(pools, split, strict=True)], domains


def sampled(rows: np.ndarray, most: int | None, rng: np.random.Generator) -> np.ndarray:
    """Return at most so many of the rows, in ascending order."""
    return rows if most is None or len(rows) <= most else np.sort(rng.permutation(rows)[:most])
