"""What recipes have in common: options, and the way from them to a printed result."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from fedsim.data.builtin.digits import DigitStyles, digit_styles, pretraining_set
from fedsim.data.builtin.topics import PAD, TOPICS, VOCABULARY, topic_texts
from fedsim.data.builtin.toy_instructions import ToyInstructions, toy_instructions
from fedsim.data.federated import FederatedData
from fedsim.data.images.images import find_images
from fedsim.data.instructions.instructions import Instructions, instruction_clients
from fedsim.data.instructions.prompts import ByteTokenizer
from fedsim.data.protocols import DomainClients, SkewedClients
from fedsim.data.proxy import with_drawn_proxy
from fedsim.data.sources.labelled import Labelled
from fedsim.data.texts.texts import TextOptions, find_texts
from fedsim.experiments.command_line import RunOptions
from fedsim.experiments.comparison import check_names, compare
from fedsim.experiments.dry_run_table import print_costs
from fedsim.experiments.tuning import Grid
from fedsim.local_training import LocalTraining
from fedsim.models.adapted import start_from_adapter
from fedsim.models.backbones import TimmModel, timm_backbone, timm_statistics
from fedsim.models.causal import CausalModel, causal_backbone, causal_tokenizer, check_length, random_llama
from fedsim.models.digits_vit import pretrained_digits_vit
from fedsim.models.text import TextModel, embedded_text_backbone, text_backbone, text_tokenizer
from fedsim.plan import Method
from fedsim.randomness import numpy_generator
from fedsim.report.comparison import print_comparison
from fedsim.report.progress import show_pretraining
from fedsim.report.table import print_result
from fedsim.simulation import simulate

Split = Callable[[Any, tuple[Labelled, Labelled], np.random.Generator], FederatedData]
Methods = Method | Mapping[str, Method | Grid]
"""One method, or several by name, which are then compared on one split a seed and one backbone."""
Federation = Callable[[int], FederatedData]
"""From a seed to the data of all clients."""


@dataclass(frozen=True, kw_only=True)
class ImageExperiment(RunOptions):
    """A method on images with a timm backbone; a recipe adds the fields `method` and `data`."""

    model: TimmModel = field(default_factory=TimmModel)
    """The backbone."""
    local: LocalTraining = field(default_factory=LocalTraining)
    """Local training."""
    embedded: bool = False
    """Try it anywhere: the embedded digits and a small backbone instead of `data` and `model`."""


@dataclass(frozen=True, kw_only=True)
class TextExperiment(RunOptions):
    """A method on texts with a sequence classifier of transformers; a recipe adds the fields `method` and `data`."""

    model: TextModel = field(default_factory=TextModel)
    """The backbone and its tokenizer."""
    local: LocalTraining = field(default_factory=LocalTraining)
    """Local training."""
    embedded: bool = False
    """Try it anywhere: made-up texts and a small backbone instead of `data` and `model`."""


@dataclass(frozen=True, kw_only=True)
class InstructionExperiment(RunOptions):
    """A method on instructions with a causal language model; a recipe adds the fields `method` and `data`."""

    model: CausalModel = field(default_factory=CausalModel)
    """The backbone and its tokenizer."""
    local: LocalTraining = field(default_factory=LocalTraining)
    """Local training."""
    embedded: bool = False
    """Try it anywhere: toy instructions and a small random LLaMA instead of `data` and `model`."""


Experiment = ImageExperiment | TextExperiment | InstructionExperiment


def run_image_experiment(
    recipe: ImageExperiment, methods: Methods, images: DomainClients | SkewedClients, split: Split
) -> None:
    """Find data and weights, split over clients by `split(images, (train, test), rng)`, simulate and print.

    Raises ValueError when data or weights are not to be had, before anything is decoded or written.
    """
    if recipe.embedded:
        federation = digits(images.proxy_samples)
        run(recipe, methods, federation, pretrained_digits_vit(*pretraining_set(), show_pretraining))
        return
    model = recipe.model
    if images.mean is None and images.std is None and images.normalise == "backbone":
        images = replace(images, **timm_statistics(model.name))
    found = find_images(images)
    pretrained = model.pretrained and not recipe.dry_run  # what it costs does not depend on weights
    backbone = timm_backbone(model.name, found.n_classes, images.image_size, model.weights, pretrained)
    run(recipe, methods, by_seed(split, images, found.placeholder() if recipe.dry_run else found.decode()), backbone)


def run_text_experiment(recipe: TextExperiment, methods: Methods, texts: TextOptions, split: Split) -> None:
    """Find data and weights, split over clients by `split(texts, (train, test), rng)`, simulate and print.

    Raises ValueError when data or weights are not to be had, before anything is tokenised or written.
    """
    if recipe.embedded:
        backbone = embedded_text_backbone(len(TOPICS), VOCABULARY, PAD)
        scoring = texts.resolved().scoring(len(TOPICS))
        train, test = (replace(part, presented={**part.presented, **scoring}) for part in topic_texts())
        run(recipe, methods, by_seed(split, texts, (train, test)), backbone)
        return
    found, tokenizer = find_texts(texts), text_tokenizer(recipe.model)
    model = replace(recipe.model, pretrained=recipe.model.pretrained and not recipe.dry_run)
    backbone = text_backbone(model, found.n_classes, tokenizer)
    splits = found.placeholder(tokenizer.pad_token_id) if recipe.dry_run else found.tokenise(tokenizer)
    run(recipe, methods, by_seed(split, texts, splits), backbone)


def run_instruction_experiment(recipe: InstructionExperiment, methods: Methods, instructions: Instructions) -> None:
    """Find tokenizer, data and weights, make clients of the instructions, simulate and print.

    Raises ValueError when one of them is not to be had, before anything is written.
    """
    model = recipe.model
    if recipe.embedded:
        backbone = random_llama(ByteTokenizer.n_tokens, ByteTokenizer.stop)
        data = toy_clients(instructions.proxy_samples)
        run(recipe, methods, data, backbone)
        return
    tokenizer = causal_tokenizer(model.name, model.stop)
    backbone = causal_backbone(model.name, model.bits, pretrained=not recipe.dry_run)
    check_length(backbone, instructions.max_length, instructions.max_new_tokens)

    def federation(seed: int) -> FederatedData:
        rng = numpy_generator(seed, "data")
        return with_drawn_proxy(instruction_clients(instructions, tokenizer, rng), instructions.proxy_samples, rng)

    run(recipe, methods, federation, backbone)


def toy_clients(proxy_samples: int) -> Federation:
    """Return the function from a seed to the embedded instructions."""

    def federation(seed: int) -> FederatedData:
        rng = numpy_generator(seed, "data")
        return with_drawn_proxy(toy_instructions(ToyInstructions(), rng), proxy_samples, rng)

    return federation


def digits(proxy_samples: int = 0) -> Federation:
    """Return the function from a seed to the embedded digits."""
    return lambda seed: digit_styles(DigitStyles(proxy_samples=proxy_samples), numpy_generator(seed, "data"))


def by_seed(split: Split, options: Any, splits: tuple[Labelled, Labelled]) -> Federation:
    """Return the function from a seed to the federation that it makes of the samples."""
    return lambda seed: split(options, splits, numpy_generator(seed, "data"))


def run(recipe: Experiment, methods: Methods, data: Federation, backbone: nn.Module) -> None:
    """Simulate and print: one method, or several methods or seeds compared; under `--dry-run` only what they cost."""
    backbone = start_from_adapter(backbone, recipe.model.adapter)
    common = {"backbone": backbone, "sites": recipe.model.sites, "local": recipe.local, **recipe.arguments()}
    seed = common.pop("seed")
    seeds, several = recipe.seeds or (seed,), methods if isinstance(methods, Mapping) else None
    if several is None and recipe.seeds:
        several = {type(methods).__name__.lower(): methods}
    check_names(several or {"it": methods}, seeds, recipe.reference)
    if recipe.dry_run:
        print_costs(several or {type(methods).__name__.lower(): methods}, data, seeds, **common)
    elif several is not None:
        if found := compare(several, data, seeds=seeds, reference=recipe.reference, **common):
            print_comparison(found)
    elif result := simulate(method=methods, data=data(seed), seed=seed, **common):
        print_result(result)
