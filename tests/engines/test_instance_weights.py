"""Tiers that each test sample weighs by itself: against plain backbones with every sample's own weights merged in."""

from copy import deepcopy
from functools import cache

import pytest
import timm
import torch
import torch.nn.functional as F
from language_models import tiny_llama
from lightning.fabric import Fabric
from test_engines_agree_on_tokens import SIZES, assignments, federation, written

import fedsim
from fedsim.adapters.layout import MIX_TIER, Layout, Slot
from fedsim.adapters.mixing import InstanceWeights
from fedsim.adapters.single import single_adapter
from fedsim.data.instructions.prompts import ByteTokenizer
from fedsim.engines.batched import BatchedEngine
from fedsim.engines.sequential import SequentialEngine
from fedsim.models.client_module import ClientModule
from fedsim.models.sites import find_sites
from fedsim.options import IGNORED
from fedsim.plan import Plan
from fedsim.randomness import generator
from fedsim.round import Population

SEED, LARGEST, IN_TRAINING = 7, 0.8, (0.7, 0.3)
TIERS = ("global", "local")


def images() -> fedsim.FederatedData:
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 3, 8, 8, generator=random)
    targets = torch.randint(0, 3, (60,), generator=random)
    tables = torch.randperm(60, generator=random).split([*SIZES, 5, 9, 0, 20, 8])
    return fedsim.FederatedData(inputs, targets, tables[: len(SIZES)], tables[len(SIZES) :], ["a", "b", "c"])


def vit() -> torch.nn.Module:
    torch.manual_seed(0)
    size = dict(img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=3)
    return timm.create_model("vit_tiny_patch16_224", **size).eval()


PARTS = {"vit": (vit, images), "llama": (lambda: tiny_llama(258).eval(), lambda: federation(ByteTokenizer()))}


def engines(kind: str, weighing: InstanceWeights):
    build, data = PARTS[kind]
    backbone, data = build(), data()
    layout = Layout(find_sites(backbone), TIERS, 3, "global", weighing)
    module, fabric = ClientModule(backbone, layout.sites, mixing=weighing), Fabric(accelerator="cpu", devices=1)
    plan = Plan(population=Population(len(SIZES), tuple(range(len(SIZES))), (), SIZES))
    both = {
        "sequential": SequentialEngine(fabric, module, data, SEED),
        "batched": BatchedEngine(fabric, module, data, SEED, len(SIZES)),
        "in threes": BatchedEngine(fabric, module, data, SEED, 3),
    }
    block = assignments(layout)
    for assignment in block:
        for slot in [slot for slot in assignment.tensors if slot.tier == MIX_TIER]:
            assignment.tensors[slot].copy_(torch.tensor(IN_TRAINING))
    return plan, data, block, both


def merged(backbone: torch.nn.Module, tensors, of_tier: dict[str, float]) -> torch.nn.Module:
    """A plain copy with Σ w_t B_t A_t added to its weights, and the change of its classifier."""
    backbone, sites = deepcopy(backbone), find_sites(backbone)
    for site in sites:
        weight = backbone.get_submodule(site.module).weight
        if site.is_head:
            weight += tensors[Slot("head", site.name, "W")]
            backbone.get_submodule(site.module).bias.data += tensors[Slot("head", site.name, "b")]
            continue
        for tier, w in of_tier.items():
            part = weight[slice(*(site.rows or (None,)))]
            part += w * tensors[Slot(tier, site.name, "B")] @ tensors[Slot(tier, site.name, "A")]
    return backbone


def prompt_of(data, row: int) -> torch.Tensor:
    return data.inputs[row, : int((data.targets[row] != IGNORED).int().argmax()) + 1].long()


def state_of(kind: str, model: torch.nn.Module, data, row: int) -> torch.Tensor:
    if kind == "vit":
        return model.forward_head(model.forward_features(data.inputs[row][None]), pre_logits=True)[0]
    return model(prompt_of(data, row)[None], output_hidden_states=True).hidden_states[-1][0, -1]


def local_weight(kind: str, backbone, data, tensors, client: int, row: int, weighing: InstanceWeights) -> float:
    """How much the local tier counts for one test sample, spelt out."""
    table = data.train[client]
    random = generator(SEED, "references", client=client)
    chosen = table[torch.randperm(len(table), generator=random)[: weighing.n_references]].tolist()
    if not chosen:
        return IN_TRAINING[1]
    alone = merged(backbone, tensors, {"local": 1.0})
    state = state_of(kind, alone, data, row)
    cosines = [F.cosine_similarity(state, state_of(kind, alone, data, near), dim=0) for near in chosen]
    w = LARGEST * float(sum(cosines)) / len(cosines)
    return w if weighing.weighed == "local" else 1 - w


@cache
@torch.no_grad()
def by_hand(kind: str, weighed: str) -> dict[int, list[tuple[float, tuple[int, ...]]]]:
    """Each client's test samples in order: loss, and the class or the tokens that are most likely, one by one."""
    weighing = InstanceWeights(TIERS, IN_TRAINING, weighed=weighed, seen_by="local", largest=LARGEST)
    _, data, block, _ = engines(kind, weighing)
    backbone, told = PARTS[kind][0](), {}
    for assignment in block:
        client, tensors = assignment.client, assignment.tensors
        told[client] = []
        for row in data.test[client].tolist():
            w = local_weight(kind, backbone, data, tensors, client, row, weighing)
            model = merged(backbone, tensors, {"global": 1 - w, "local": w})
            if kind == "vit":
                logits, target = model(data.inputs[row][None]), data.targets[row][None]
                told[client].append((float(F.cross_entropy(logits, target)), (int(logits.argmax()),)))
                continue
            logits, targets = model(data.inputs[row][None].long()).logits[0], data.targets[row].long()
            loss = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
            tokens = prompt_of(data, row)
            for _ in range(data.task.max_new_tokens):
                tokens = torch.cat([tokens, model(tokens[None]).logits[0, -1].argmax()[None]])
            told[client].append((float(loss), tuple(tokens[len(prompt_of(data, row)) :].tolist())))
    return told


@pytest.mark.parametrize("engine", ["sequential", "batched", "in threes"])
@pytest.mark.parametrize("weighed", TIERS)
@pytest.mark.parametrize("kind", PARTS)
def test_every_sample_is_tested_with_its_own_weights_merged_in(kind, weighed, engine):
    weighing = InstanceWeights(TIERS, IN_TRAINING, weighed=weighed, seen_by="local", largest=LARGEST)
    plan, data, block, both = engines(kind, weighing)
    logs = {update.client: update.logs for update in both[engine].evaluate(plan, [block])}
    for client, samples in by_hand(kind, weighed).items():
        if not samples:
            assert not logs[client]
            continue
        n = len(samples) if kind == "vit" else int((data.targets[data.test[client]] != IGNORED).sum())
        assert logs[client]["global.loss"] == pytest.approx(sum(loss for loss, _ in samples) / n, rel=1e-4)
        if kind == "vit":
            rows = data.test[client].tolist()
            right = [said == (int(data.targets[row]),) for row, (_, said) in zip(rows, samples, strict=True)]
            assert logs[client]["global.accuracy"] == pytest.approx(sum(right) / n)


@pytest.mark.parametrize("engine", ["sequential", "batched"])
def test_a_language_model_writes_with_the_weights_of_its_prompt(engine):
    weighing = InstanceWeights(TIERS, IN_TRAINING, weighed="local", seen_by="local", largest=LARGEST)
    plan, data, block, both = engines("llama", weighing)
    heard = written(both[engine], plan, [block])
    for client, samples in by_hand("llama", "local").items():
        for row, (_, tokens) in zip(data.test[client].tolist(), samples, strict=True):
            until = tokens.index(data.task.stop) if data.task.stop in tokens else len(tokens)
            assert tuple(heard[tuple(prompt_of(data, row).tolist())][:until]) == tokens[:until]


def test_weights_differ_from_sample_to_sample_and_matter():
    """Else the tests above would pass without any."""
    weighing = InstanceWeights(TIERS, IN_TRAINING, weighed="local", seen_by="local", largest=LARGEST)
    backbone, (_, data, block, _) = vit(), engines("vit", weighing)
    with torch.no_grad():
        weights = [
            local_weight("vit", backbone, data, block[0].tensors, 0, row, weighing) for row in data.test[0].tolist()
        ]
    assert max(weights) - min(weights) > 0.05
    losses = [[loss for loss, _ in by_hand("vit", weighed)[0]] for weighed in TIERS]
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) > 0.01


def test_with_beams_every_beam_has_its_prompts_weights():
    weighing = InstanceWeights(TIERS, IN_TRAINING, weighed="local", seen_by="local", largest=LARGEST)
    build, _ = PARTS["llama"]
    backbone, data = build(), federation(ByteTokenizer(), beams=3)
    layout = Layout(find_sites(backbone), TIERS, 3, "global", weighing)
    module, fabric = ClientModule(backbone, layout.sites, mixing=weighing), Fabric(accelerator="cpu", devices=1)
    plan = Plan(population=Population(len(SIZES), tuple(range(len(SIZES))), (), SIZES))
    block = assignments(layout)
    alone = written(SequentialEngine(fabric, module, data, SEED), plan, [block])
    assert written(BatchedEngine(fabric, module, data, SEED, len(SIZES)), plan, [block]) == alone


def test_no_adapter_can_say_what_differs_from_sample_to_sample():
    weighing = InstanceWeights(TIERS, IN_TRAINING, weighed="local", seen_by="local")
    _, _, block, _ = engines("vit", weighing)
    sites = find_sites(vit())
    with pytest.raises(ValueError, match="sample by sample"):
        single_adapter(sites, {site.module: site.out_features for site in sites}, block[0].tensors, {}, weighing)
