"""fedsim itself: the round loop of `simulate` without recording and evaluation."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor
from workloads import Workload

from fedsim.adapters.layout import Slot
from fedsim.distributed.launch import arithmetic, launch
from fedsim.distributed.workers import Workers
from fedsim.report.progress import LiveProgress
from fedsim.server.aggregator import Aggregator
from fedsim.server.turns import turns_of
from fedsim.server.workload import Workload as ClientWorkload
from fedsim.simulation import RunSpec, Simulation, prepare_engine


class RoundLoop:
    """One worker that goes on for as long as it is asked for rounds; `initial` is what all slots start from."""

    def __init__(self, spec: RunSpec, initial: dict[Slot, Tensor] | None = None):
        workers, fabric = Workers(), launch()
        initial = spec.initial_slots() if initial is None else initial
        prepared = prepare_engine(spec, fabric, initial, workers)
        asked = ClientWorkload(spec.method, spec.population, spec.layout, initial, spec.local)
        aggregator = Aggregator(asked, workers, prepared.block_size)
        progress = LiveProgress("", spec.rounds, 0, is_shown=False)
        codecs = spec.uplink, spec.downlink
        turns = turns_of(asked, spec.schedule, spec.n_together, spec.seed, *codecs, spec.clock, spec.cohort_sampling)
        self.simulation = Simulation(spec, aggregator, turns, prepared, progress, recorder=None)
        self.state = spec.state(0, initial)

    def round(self) -> None:
        """Run one round."""
        with self.computing():
            self.state = self.simulation.run_round(self.state)

    def evaluate(self) -> None:
        """Evaluate every client on its own test split."""
        with self.computing():
            self.simulation.evaluate(self.state, self.simulation.aggregator.population.seen)

    def computing(self) -> AbstractContextManager[None]:
        """What has a GPU compute as in a run."""
        spec, device = self.simulation.spec, self.simulation.engine.module.device
        is_one_shape = spec.engine == "batched" and spec.is_static(device) and spec.data.pad_token is None
        return arithmetic(spec.deterministic, spec.tf32, has_cudnn_attention=is_one_shape)


class Simulated(RoundLoop):
    """The round loop on a workload of the benchmark, with the given engine."""

    def __init__(self, workload: Workload, engine: str):
        setting = workload.setting(engine)
        super().__init__(setting, workload.initial(setting))

    def step_size(self) -> int:
        """Samples of a pass: those of the clients of one block."""
        spec = self.simulation.spec
        n_blocks = -(-spec.n_cohort // self.simulation.engine.block_size)
        return -(-spec.n_cohort // n_blocks) * spec.local.batch_size

    def weights(self) -> dict[str, Tensor]:
        """Return the copy that all clients share."""
        bank, everyone = self.state.bank, torch.tensor([0])
        return {str(slot): bank.read(slot, everyone)[0] for slot in bank.initial}
