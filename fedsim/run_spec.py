"""What to simulate: the parts of a run, checked against each other before anything starts."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from inspect import isclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedsim.adapters.bank import NEVER, Bank
from fedsim.adapters.layout import Layout, Slot
from fedsim.costs.availability import Availability
from fedsim.costs.devices import Clock, DeviceProfiles
from fedsim.costs.profiler import profile
from fedsim.costs.step_cost import MIB, Profile, by_layers, table
from fedsim.data.federated import FederatedData
from fedsim.data.index_tables import IndexTables
from fedsim.distributed.launch import check_precision, has_gpu
from fedsim.errors import OnNan
from fedsim.models.frozen import check_apart
from fedsim.models.sites import QUERY_VALUE, check_classes, find_sites, site_weights
from fedsim.options import LocalTraining, check_options, check_run, refuse
from fedsim.parts.downlink import Downlink
from fedsim.parts.privacy import Privacy
from fedsim.parts.privacy_loss import Mechanism, Sampling
from fedsim.parts.schedule import Schedule, older
from fedsim.parts.server_optimizer import ServerOptimizer
from fedsim.parts.uplink import Uplink, kept_back
from fedsim.plan import Method, Plan, starting_values
from fedsim.plan_checks import check_merges_middle, check_plans_alike, check_private, check_takes_steps
from fedsim.randomness import generator
from fedsim.round import Horizon, Population, ServerState
from fedsim.storage.loggers import Wandb, check_wandb
from fedsim.storage.provenance import fingerprint

PLAIN = (
    "rounds",
    "seed",
    "cohort_size",
    "cohort_sampling",
    "sites",
    "head",
    "evaluate_every",
    "evaluate_clients",
    "engine",
    "block_size",
    "static_shapes",
    "compile",
    "cuda_graphs",
    "deterministic",
    "tf32",
    "on_nan",
)
"""Fields of a setting that are numbers or words."""


@dataclass(frozen=True)
class RunSpec:
    """What to simulate. Building one checks that its parts fit; raises ValueError, with nothing started or written.

    `backbone` is any `nn.Module` from inputs to logits; it is frozen, and adapters go to its linear maps whose
    names match `sites`; `head` is the path of its classifier ("" looks under the usual names). `cohort_size` is the
    number of clients sampled in a round (None: all), `cohort_sampling` whether it is that number always or, each
    client taking part by itself, on average (Poisson sampling), `evaluate_every` the rounds between evaluations of
    all seen clients, or of `evaluate_clients` of them, drawn once, until the last round, which evaluates all,
    `block_size` the number of clients that the batched engine trains together (None: automatic), `static_shapes`
    whether it pads them to few shapes (None: on a GPU), `bank` where worker 0 holds clients' own copies, `compile`
    whether the backbone goes through torch.compile, `cuda_graphs` whether training passes are recorded as CUDA
    graphs, which needs static shapes on a GPU, `deterministic` and `tf32` how a GPU computes: without algorithms
    that round at random, fp32 products in TF32, `on_nan` what becomes of a client whose numbers are no longer
    finite: the run stops, or it skips the client's update. `devices_profile` are the clients' simulated devices,
    `availability` says when they are there, `schedule` when the server steps, `server` is its optimiser, `uplink`
    how what clients send is encoded, `downlink` how what they receive is, `privacy` how what they send is clipped
    and noised, and `wandb` says whether Weights & Biases gets the curves too.
    """

    method: Method
    backbone: nn.Module
    data: FederatedData
    rounds: int
    local: LocalTraining = field(default_factory=LocalTraining)
    cohort_size: int | None = None
    cohort_sampling: Sampling = "fixed"
    seed: int = 0
    sites: str = QUERY_VALUE
    head: str = ""
    evaluate_every: int = 1
    evaluate_clients: int | None = None
    engine: Literal["batched", "sequential"] = "batched"
    block_size: int | None = None
    static_shapes: bool | None = None
    bank: Literal["memory", "disk"] = "memory"
    compile: bool = False
    cuda_graphs: bool = False
    deterministic: bool = False
    tf32: bool = False
    on_nan: OnNan = "stop"
    devices_profile: DeviceProfiles = field(default_factory=DeviceProfiles)
    availability: Availability = field(default_factory=Availability)
    schedule: Schedule = field(default_factory=Schedule)
    server: ServerOptimizer = field(default_factory=ServerOptimizer)
    uplink: Uplink = field(default_factory=Uplink)
    downlink: Downlink = field(default_factory=Downlink)
    privacy: Privacy = field(default_factory=Privacy)
    wandb: Wandb | None = None
    clock: Clock | None = field(init=False)

    def __post_init__(self) -> None:
        check_precision()
        if isclass(self.method) or not callable(getattr(self.method, "plan", None)):
            raise ValueError(f"method is {self.method!r}; it must be an object, such as fedsim.methods.HiLoRA().")
        check_options(self)
        check_run(self)
        check_wandb(self.wandb)
        self._check_graphs()
        if self.local.sample_clip is not None:
            check_apart(self.backbone)
        alpha = self.method.lora_alpha
        if alpha is not None and not alpha > 0:
            raise ValueError(f"lora_alpha is {alpha}; it must be positive, or None for α = R (--method.lora-alpha).")
        check_cohort_size(self.cohort_size, self.population)
        plan = self.method.plan(self.state(0), self.population)  # what does not fit says so
        self._check_somebody_trains(plan)
        check_merges_middle(plan, self.method, self.layout.shapes)
        if self.server.optimizer != "none":
            check_takes_steps(plan, self.method, self.layout.shapes)
        check_private(plan, self.method, self.layout.shapes, self.privacy, self.local.sample_clip is not None)
        check_classes(self.layout.sites, self.data.n_classes)
        calendar = self.availability.calendar(self.seed)
        object.__setattr__(self, "clock", self.devices_profile.clock(self.profile, self.seed, calendar))
        self._check_schedule()

    def _check_somebody_trains(self, plan: Plan) -> None:
        """Raise ValueError when no client that takes part can train any depth."""
        if plan.allocations is not None and not any(plan.allocations[client] for client in self.population.seen):
            memory, n, name = self.state(0).memory, len(self.layout.adapted), type(self.method).__name__
            raise ValueError(
                f"Under {name} no client that takes part trains any of the {n} depths; the last one alone needs "
                f"{memory[1]:.1f} MiB, all need {memory[-1]:.1f} (--method.capabilities.*)."
            )

    def _check_schedule(self) -> None:
        """Raise ValueError where simulated time is asked for and there is none, or a schedule does not fit."""
        schedule, n = self.schedule, len(self.population.seen)
        asks = {
            f"--schedule is {schedule.kind}": not schedule.is_rounds,
            "--availability.* is given": self.availability.is_given,
        }
        problems = [
            f"{what}, which needs simulated devices (--devices-profile.*)"
            for what, is_so in asks.items()
            if is_so and self.clock is None
        ]
        if not schedule.is_rounds:
            check_plans_alike(self.method, self.state(0), self.population)
            if self.devices_profile.deadline is not None:
                problems.append(f"a deadline belongs to rounds; with --schedule {schedule.kind} leave it out")
            asked = {"--schedule.concurrency": schedule.at_work(self.n_together), "--schedule.buffer": self.n_cohort}
            problems += [f"{name} is {k}; {n} clients take part in training" for name, k in asked.items() if k > n]
        refuse(problems + list(self._sampled_otherwise()))

    def _sampled_otherwise(self) -> Iterator[str]:
        """What is wrong where clients are not a round's sample, or send what is mostly noise."""
        is_private, is_poisson = not self.privacy.is_off, self.cohort_sampling == "poisson"
        if not self.schedule.is_rounds and (is_private or is_poisson):
            what = "--privacy.* counts" if is_private else "--cohort-sampling poisson draws"
            yield f"{what} samples of clients by round, and --schedule {self.schedule.kind} takes those who arrive"
        if self.availability.is_given and is_private:
            yield "--privacy.* counts on samples of all clients, and with --availability.* some are not there"
        if self.privacy.local and self.uplink.feedback:
            yield "with --privacy.local what a client keeps back is mostly noise; leave out --uplink.feedback"

    def _check_graphs(self) -> None:
        """Raise ValueError when CUDA graphs are asked for and nothing can be recorded."""
        if self.cuda_graphs and (self.engine != "batched" or self.static_shapes is False):
            where = "--engine batched, --static-shapes True"
            raise ValueError(f"cuda_graphs needs the batched engine with static shapes ({where}; or no --cuda-graphs).")
        if self.cuda_graphs and self.local.sample_clip is not None:
            raise ValueError("cuda_graphs records whole batches (no --cuda-graphs, or --local.sample-clip None).")
        if self.cuda_graphs and not has_gpu():
            raise ValueError("cuda_graphs needs a GPU, and there is none, or --accelerator is cpu (--cuda-graphs).")

    @cached_property
    def population(self) -> Population:
        """Who takes part."""
        return population_of(self.data)

    @cached_property
    def layout(self) -> Layout:
        """Where trainable tensors live."""
        found = find_sites(self.backbone, self.sites, self.head)
        method, mixing = self.method, getattr(self.method, "mixing", None)
        middle = tuple(getattr(method, "middle_tiers", ()))
        return Layout(found, method.tiers, method.lora_rank, method.head_policy, mixing, middle)

    @cached_property
    def profile(self) -> Profile:
        """What a sample costs on the backbone, of texts a longest one; raises ValueError where it cannot take one."""
        data = self.data
        longest = 0 if data.pad_token is None else int(data.lengths.argmax())
        inputs, _ = data.batch(torch.tensor([longest]), device=next(self.backbone.parameters()).device)
        try:
            return profile(self.backbone, self.layout.sites, inputs)
        except RuntimeError as error:
            raise ValueError(f"The backbone cannot take the data's inputs {tuple(inputs.shape)}: {error}.") from error

    def state(
        self, round_index: int, initial: dict[Slot, Tensor] | None = None, folder: Path | None = None
    ) -> ServerState:
        """Return the state with which a round begins, but for what was learnt and trained before it.

        With the slots' initial values it is worker 0's, whose bank holds nothing else yet; it may use the run's folder.
        """
        costs = by_layers(self.profile, self.layout, self.local)
        memory = tuple(cost.memory / MIB for cost in costs)
        layout, seed = self.layout, self.seed
        horizon = Horizon(self.rounds, is_read=self.privacy.epsilon is not None)  # the noise is found for them
        state = ServerState(
            round_index, horizon, depths=layout.depths, adapted=layout.adapted, memory=memory, seed=seed
        )
        if initial is None:
            return state
        bank = Bank(initial, folder=folder if self.bank == "disk" else None)
        return replace(state, bank=bank, last_seen=torch.full((self.population.n_clients,), NEVER))

    def costs(self) -> dict[str, list[float]]:
        """Return what a local step costs that trains the last k depths, in columns by k = 0 … D."""
        return table(by_layers(self.profile, self.layout, self.local))

    def initial_slots(self) -> dict[Slot, Tensor]:
        """Return the value with which every slot starts, a function of the seed and the pretrained weights."""
        weights = site_weights(self.backbone, self.layout.sites)
        start = starting_values(self.method, self.layout, generator(self.seed, "initial"), weights)
        beside = {kept_back(slot): torch.zeros_like(value) for slot, value in start.items() if self.uplink.feedback}
        beside |= {older(slot): value for slot, value in start.items() if not self.schedule.is_rounds}
        return self.server.with_moments(start) | beside

    @property
    def n_together(self) -> int:
        """Clients that are sampled together: those of a round, or by default those at work at a time."""
        return self.cohort_size or len(self.population.seen)

    @property
    def n_cohort(self) -> int:
        """Clients in a round (under Poisson sampling on average), or those at work whose updates a step takes."""
        return self.schedule.per_step(self.n_together)

    @property
    def mechanism(self) -> Mechanism:
        """How a client's data enter what it gives away in a round."""
        return Mechanism(len(self.population.seen), self.n_cohort, self.cohort_sampling, self.privacy.local)

    def is_static(self, device: torch.device) -> bool:
        """Whether the batched engine has static shapes on a device."""
        return device.type == "cuda" if self.static_shapes is None else self.static_shapes

    def describe(self) -> dict[str, Any]:
        """Return what recipe.json records of a run without a recipe: what its results depend on, but for tensors."""
        method = {"name": type(self.method).__name__, **vars(self.method)}
        dataclasses = "local", "devices_profile", "availability", "schedule", "server", "uplink", "downlink", "privacy"
        parts = {name: vars(getattr(self, name)) for name in dataclasses}
        plain = {name: getattr(self, name) for name in PLAIN}
        n_parameters = sum(parameter.numel() for parameter in self.backbone.parameters())
        backbone = f"{type(self.backbone).__name__}, {n_parameters} parameters"
        return {"method": method, "backbone": backbone, **parts, **plain}

    def fingerprint(self) -> dict[str, str]:
        """Return SHA-256 sums, in hexadecimal, of what was loaded: one over the backbone's weights, four over data."""
        data = self.data
        weights = [*self.backbone.state_dict(keep_vars=True).values(), *self.backbone.buffers()]  # adapters rename them
        task = {name: value for name, value in vars(data.task).items() if isinstance(value, bool | int | float | str)}
        return {
            "backbone": fingerprint(weights),
            "inputs": fingerprint(data.inputs),
            "targets": fingerprint([data.targets, data.class_names, type(data.task).__name__, task]),
            "split": fingerprint([data.train, data.test, data.unseen, data.domains, data.proxy]),
            "transforms": fingerprint([data.transform, data.augment, data.n_draws, data.pad_token]),
        }


def population_of(data: FederatedData) -> Population:
    """Return who there is; raises ValueError when no client that takes part has a training sample."""
    seen = tuple(client for client in range(data.n_clients) if client not in data.unseen and client != data.proxy)
    samples = tuple(IndexTables.of(data.train).sizes.tolist())
    if not sum(samples[client] for client in seen):
        raise ValueError("No client that takes part in training has a training sample.")
    return Population(data.n_clients, seen, tuple(sorted(data.unseen)), samples, data.domains, data.proxy)


def check_cohort_size(cohort_size: int | None, population: Population) -> None:
    """Raise ValueError when fewer clients than `cohort_size` take part; None means all of them."""
    if cohort_size is not None and not 1 <= cohort_size <= len(population.seen):
        raise ValueError(
            f"cohort_size is {cohort_size}; it must lie in 1 … {len(population.seen)}, the clients that take part in "
            f"training ({len(population.unseen)} of {population.n_clients} are held out as unseen) (--cohort-size)."
        )
