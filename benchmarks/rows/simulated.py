"""fedsim itself: the round loop of `simulate` without recording and evaluation."""

from dataclasses import replace

import torch
from torch import Tensor
from workloads import FOREVER, Workload

from fedsim.adapters.bank import NEVER, Bank
from fedsim.distributed.launch import launch
from fedsim.distributed.workers import Workers
from fedsim.report.progress import LiveProgress
from fedsim.round import Horizon, ServerState
from fedsim.server.aggregator import Aggregator
from fedsim.server.workload import Workload as ClientWorkload
from fedsim.simulation import Simulation, prepare_engine


class Simulated:
    """One worker with the given engine."""

    def __init__(self, workload: Workload, engine: str):
        setting, workers, fabric = workload.setting(engine), Workers(), launch()
        initial = workload.initial(setting)
        prepared = prepare_engine(setting, fabric, initial, workers)
        asked = ClientWorkload(setting.method, setting.population, setting.layout, initial, setting.local)
        aggregator = Aggregator(asked, workers, prepared.block_size)
        progress = LiveProgress("", FOREVER, 0, is_shown=False)
        self.simulation = Simulation(setting, aggregator, prepared, progress, recorder=None)
        never = torch.full((workload.clients,), NEVER)
        self.state = replace(ServerState(0, Horizon(FOREVER)), bank=Bank(initial), last_seen=never)

    def round(self) -> None:
        """Run one round."""
        self.state = self.simulation.run_round(self.state)

    def step_size(self) -> int:
        """Samples of a pass: those of the clients of one block."""
        spec = self.simulation.spec
        n_blocks = -(-spec.n_cohort // self.simulation.engine.block_size)
        return -(-spec.n_cohort // n_blocks) * spec.local.batch_size

    def evaluate(self) -> None:
        """Evaluate every client on its own test split."""
        self.simulation.evaluate(self.state, self.simulation.aggregator.population.seen)

    def weights(self) -> dict[str, Tensor]:
        """Return the copy that all clients share."""
        bank, everyone = self.state.bank, torch.tensor([0])
        return {str(slot): bank.read(slot, everyone)[0] for slot in bank.initial}
