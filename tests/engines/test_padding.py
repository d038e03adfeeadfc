"""What passes are padded with: few shapes, and nothing of one client in another's part."""

import torch
from lightning.fabric import Fabric
from test_engines_agree import CLIENTS, LAYOUT, SIZES, assignments, backbone
from test_engines_agree import federation as images

import fedsim
from fedsim.engines.batched import BatchedEngine
from fedsim.engines.padding import length_step, padded_samples, padded_size
from fedsim.models.client_module import ClientModule
from fedsim.options import IGNORED
from fedsim.plan import Plan
from fedsim.round import Population

CPU = torch.device("cpu")


def texts(length: int = 100) -> fedsim.FederatedData:
    """Eight sequences of 1, 2, 3, … tokens, of at most `length`."""
    tokens = (torch.arange(length) <= torch.arange(8).unsqueeze(1)).int()
    rows = torch.arange(8)
    return fedsim.FederatedData(tokens, rows, [rows], [rows[:0]], list("abcdefgh"), pad_token=0)


def test_the_number_of_clients_is_the_block_s_or_halved():
    assert [padded_size(n, 10) for n in range(1, 11)] == [1, 2, 3, 5, 5, 10, 10, 10, 10, 10]
    assert padded_size(1, 1) == 1


def test_padding_has_a_client_s_own_first_row_and_no_target():
    data = images()
    picks = [(torch.tensor([5, 6, 7]), torch.rand(3, 1)), (torch.tensor([9]), torch.rand(1, 1))]
    samples = padded_samples(picks, [0, 0, 11], 3, CPU)
    assert samples.rows.tolist() == [5, 6, 7, 9, -10, -10, -12, -12, -12]
    assert samples.draws.flatten().tolist() == [*picks[0][1].flatten().tolist(), float(picks[1][1]), 0, 0, 0, 0, 0]
    assert (samples.clients.sizes, samples.clients.n_rows) == ((3, 1, 0), 9)
    inputs, targets = data.batch(samples.rows)
    real, labels = data.batch(torch.tensor([5, 6, 7, 9, 9, 9, 11, 11, 11]))
    assert torch.equal(inputs, real)
    assert targets.tolist() == [*labels[:4].tolist(), *[IGNORED] * 5]
    assert data.batch(torch.arange(4))[1].tolist() == data.targets[:4].tolist(), "the data themselves stay"


def test_texts_have_at_most_eight_lengths_that_are_multiples_of_eight():
    data = texts()
    step = length_step(data)
    assert (step, length_step(images())) == (16, 1)
    lengths = {data.batch(torch.tensor([row]), length_step=step)[0].shape[1] for row in range(8)}
    assert lengths == {16}
    assert texts(20).batch(torch.tensor([7]), length_step=24)[0].shape == (1, 20), "no longer than all are"


def test_a_block_of_uneven_clients_has_few_shapes(monkeypatch):
    seen: dict[bool, set] = {False: set(), True: set()}
    real = ClientModule.training_step

    def training_step(self, batch, batch_index=0):
        seen[is_static].add(batch[0].shape)
        return real(self, batch, batch_index)

    monkeypatch.setattr(ClientModule, "training_step", training_step)
    plan = Plan(population=Population(CLIENTS, tuple(range(CLIENTS)), (), SIZES))
    for is_static in seen:
        module = ClientModule(backbone(), LAYOUT.sites)
        engine = BatchedEngine(Fabric(accelerator="cpu", devices=1), module, images(), 7, CLIENTS, is_static=is_static)
        engine.local_update(plan, [assignments()])
    assert seen[True] == {(24, 3, 8, 8), (12, 3, 8, 8), (8, 3, 8, 8)}, "six clients, three or two, of four samples"
    assert len(seen[False]) > 4
