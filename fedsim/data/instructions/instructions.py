"""Instruction data as a federation of clients that learn to answer: tables of texts, tasks, clients, prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedsim.data.client_options import check_data_options
from fedsim.data.federated import FederatedData
from fedsim.data.instructions.generation_task import Generation
from fedsim.data.instructions.prompts import TEMPLATES, TemplateName, Tokenizer, tokens_of
from fedsim.data.instructions.registry import INSTRUCTION_SETS, InstructionSetName
from fedsim.data.instructions.tables import Texts, read_texts
from fedsim.data.partition.dealing import Pools
from fedsim.data.partition.dirichlet import by_domain, choose_unseen
from fedsim.data.proxy import with_drawn_proxy
from fedsim.data.sources.listing import evenly_marked
from fedsim.data.sources.registry import filled

SIZES = "--data.clients-per-task, --data.min-train, --data.min-test"
LACKING = "leave it out (--data.tasks), or hold out another share (--data.test-share)"
"""What to change where a kind of task does not go round."""


@dataclass(frozen=True, kw_only=True)
class Instructions:
    """Instructions and answers, who has them, and how they are put to the model."""

    dataset: InstructionSetName = "own"
    """A known data set, which sets `hub` and the columns where they are left out; or your own."""
    path: Path | None = None
    """File or folder of parquet, JSON lines, JSON or CSV, as such or inside $FEDSIM_DATA; default: the set's name
    there, then the hub and its cache."""
    hub: str = ""
    """Name of the data set on the hub."""
    instruction_column: str = ""
    """Column of the instructions; of your own data `instruction`."""
    input_column: str = ""
    """Column of what an instruction is about; empty for none."""
    answer_column: str = ""
    """Column of the answers; of your own data `output`."""
    task_column: str = ""
    """Column of the kind of task; empty for one kind."""
    client_column: str = ""
    """Column of the client; empty: every kind of task has clients of its own."""
    split_column: str = ""
    """Column of `train` and `test`; empty: by the names of files, folders or splits, else some are held out."""
    tasks: tuple[str, ...] = ()
    """Keep only these kinds of task, by the beginning of their names; all if none is named."""
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
    template: TemplateName = "alpaca-short"
    """The wording of a prompt."""
    max_length: int = 512
    """Tokens that prompt and answer may take together when a model reads them."""
    max_new_tokens: int = 80
    """Tokens that an answer may take when a model writes it."""
    beams: int = 1
    """Beams of the search for an answer; 1 for greedy."""

    def __post_init__(self) -> None:
        check_data_options(self)

    def resolved(self) -> "Instructions":
        """Return the options with those of the known data set wherever one was left out."""
        return replace(self, **filled(vars(self), INSTRUCTION_SETS.get(self.dataset, {})))

    def embedded(self) -> Any:
        """Return the federations of the embedded instructions, with as many proxy samples."""
        from fedsim.data.builtin.toy_instructions import ToyInstructions

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


def federation(
    options: Instructions,
    texts: Texts,
    tokenizer: Tokenizer,
    train: Sequence[np.ndarray],
    test: Sequence[np.ndarray],
    **clients: Any,
) -> FederatedData:
    """Return the federation of clients that train and test on these rows of the texts; only they are tokenised."""
    kept, places = np.unique(np.concatenate([*train, *test]), return_inverse=True)
    template = TEMPLATES[options.template]
    prompts = [template.prompt(texts.instructions[row], texts.inputs[row]) for row in kept]
    tokens = tokens_of(prompts, [texts.answers[row] for row in kept], tokenizer, options.max_length)
    tables = torch.from_numpy(places).split([len(rows) for rows in (*train, *test)])
    return FederatedData(
        inputs=tokens.inputs,
        targets=tokens.targets,
        train=tables[: len(train)],
        test=tables[len(train) :],
        class_names=(),
        domain_names=texts.task_names,
        pad_token=tokenizer.stop,
        task=Generation(tokenizer.decode, tokenizer.stop, options.max_new_tokens, options.beams),
        notes=tokens.notes | {"samples_without_answer": texts.n_without_answer},
        **clients,
    )


def sampled(rows: np.ndarray, most: int | None, rng: np.random.Generator) -> np.ndarray:
    """Return at most so many of the rows, in ascending order."""
    return rows if most is None or len(rows) <= most else np.sort(rng.permutation(rows)[:most])
