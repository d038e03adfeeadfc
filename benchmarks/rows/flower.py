"""Flower's simulation runtime at its best: one actor that keeps its model, and only what is trained travels.

Flower drives its own rounds. So that they can take turns with those of other rows, the strategy waits at the beginning
of a round until it is asked for one; nothing is timed meanwhile.
"""

from functools import cache
from threading import Semaphore, Thread

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import Tensor
from workloads import FOREVER, WORKLOADS, Workload

from rows.plain import PlainModel, new_optimizer, train

client_app = ClientApp()


@cache
def resident(name: str) -> tuple[Workload, PlainModel]:
    """Return a workload and its model; every process builds them once."""
    torch.set_num_threads(1)
    return WORKLOADS[name], PlainModel(WORKLOADS[name])


@client_app.train()
def fit(message: Message, context: Context) -> Message:
    """Train one client from the arrays that it was sent."""
    config, client = message.content["config"], int(context.node_config["partition-id"])
    workload, model = resident(config["workload"])
    load(model, message.content["arrays"])
    optimizer = new_optimizer(model.trained.values(), workload)
    train(model, optimizer, workload.batches(client, config["server-round"] - 1), workload)
    metrics = MetricRecord({"num-examples": workload.data.train_size(client)})
    return Message(RecordDict({"arrays": pack(model), "metrics": metrics}), reply_to=message)


def pack(model: PlainModel) -> ArrayRecord:
    """Return what is trained as NumPy arrays."""
    return ArrayRecord([parameter.detach().cpu().numpy() for parameter in model.trained.values()])


@torch.no_grad()
def load(model: PlainModel, arrays: ArrayRecord) -> None:
    """Undo `pack`."""
    for parameter, array in zip(model.trained.values(), arrays.to_numpy_ndarrays(), strict=True):
        parameter.copy_(torch.from_numpy(array))


class SteppedFedAvg(FedAvg):
    """Federated averaging whose rounds wait to be asked for."""

    def __init__(self, clients: int):
        super().__init__(fraction_evaluate=0.0, min_available_nodes=clients)
        self.asked, self.finished, self.is_over, self.failure = Semaphore(0), Semaphore(0), False, ""
        self.arrays = ArrayRecord()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Wait, then send the arrays to everyone."""
        self.asked.acquire()
        if self.is_over:
            raise EOFError("no more rounds")
        return list(super().configure_train(server_round, arrays, config, grid))

    def aggregate_train(
        self, server_round: int, replies: list[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average, and say that the round is over."""
        replies = list(replies)
        self.failure = next((reply.error.reason for reply in replies if reply.has_error()), "")
        self.arrays, metrics = super().aggregate_train(server_round, replies)
        self.finished.release()
        return self.arrays, metrics


class Flower:
    """A simulation with one virtual client at a time, on all cores that Ray may have."""

    def __init__(self, workload: Workload):
        self.model, self.strategy = PlainModel(workload), SteppedFedAvg(workload.clients)
        server_app, config = ServerApp(), ConfigRecord({"workload": workload.name})

        @server_app.main()
        def serve(grid: Grid, context: Context) -> None:
            self.strategy.start(grid, pack(self.model), num_rounds=FOREVER, train_config=config)

        one_actor = {
            "init_args": {"num_cpus": 1, "include_dashboard": False, "log_to_driver": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        }
        self.thread = Thread(target=run_simulation, args=(server_app, client_app, workload.clients, "ray", one_actor))
        self.thread.start()

    def round(self) -> None:
        """Let the next round happen."""
        self.strategy.asked.release()
        while not self.strategy.finished.acquire(timeout=1):
            if not self.thread.is_alive():
                raise RuntimeError("Flower's simulation has ended")
        if self.strategy.failure:
            raise RuntimeError(self.strategy.failure)

    def weights(self) -> dict[str, Tensor]:
        """Return the server's arrays."""
        load(self.model, self.strategy.arrays)
        return self.model.weights()

    def close(self) -> None:
        """End the simulation, and Ray with it."""
        self.strategy.is_over = True
        self.strategy.asked.release()
        self.thread.join(timeout=60)
