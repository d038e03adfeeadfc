"""Finds adapter sites in a backbone by the names of its linear maps."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from torch import Tensor, nn

from fedsim.adapters.layout import Site
from fedsim.adapters.linear import TieredLinear

QUERY_VALUE = r"(?P<fused>qkv|c_attn)|q_proj|v_proj|query|value|q_lin|v_lin|wq|wv"
"""Query and value of every attention block, in the spellings of timm and transformers; matched on a module's last name.

A name caught by the group `fused` is one linear map of query, key and value: its first and last third of rows carry
adapters.
"""


def find_sites(backbone: nn.Module, pattern: str = QUERY_VALUE, head: str = "") -> tuple[Site, ...]:
    """Return the LoRA sites whose last name matches `pattern` whole, then the head sites (every linear map in `head`).

    `head` is the path of the classifier ("" guesses it among head, classifier, score, fc). A language model has none:
    its `lm_head` stays frozen. Raises ValueError when the pattern is invalid or matches no `nn.Linear`, or the head is
    not there.
    """
    if not isinstance(pattern, str):
        raise ValueError(f"sites is {pattern!r}; it must be one regular expression, such as 'q_proj|v_proj'.")
    try:
        matcher = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"The site pattern '{pattern}' is no regular expression: {error} (--model.sites).") from None
    head = head or ("" if is_language_model(backbone) else guess_head(backbone))
    linears = _linears(backbone)
    in_head = {path for path in linears if is_in_head(path, head)}
    if head and not in_head:
        raise ValueError(f"The backbone has no linear map at its classifier's path '{head}' (head=…).")
    sites: list[Site] = []
    depths = _block_depths(backbone)
    for path, linear in linears.items():
        if path not in in_head and (match := matcher.fullmatch(path.rpartition(".")[2])):
            sites += _lora_sites(path, linear, _depth(path, depths, sites), bool(match.groupdict().get("fused")))
    if not sites:
        names = sorted({path.rpartition(".")[2] for path in linears})
        raise ValueError(
            f"The site pattern '{pattern}' matches none of the backbone's linear maps, whose names are {names} "
            "(--model.sites)."
        )
    depth = max(site.depth for site in sites) + 1
    return (*sites, *(_head_site(path, linears[path], depth) for path in linears if path in in_head))


def site_weights(backbone: nn.Module, sites: Sequence[Site]) -> dict[str, Tensor]:
    """Return the frozen weight (O, I) of every LoRA site, a view of the backbone's own."""
    weights = {site.name: backbone.get_submodule(site.module).weight for site in sites if not site.is_head}
    return {site.name: weights[site.name][slice(*(site.rows or (None,)))] for site in sites if site.name in weights}


def last_map(backbone: nn.Module, sites: Sequence[Site]) -> nn.Module:
    """Return the map whose input is the last hidden state: the classifier's first, or a language model's output."""
    heads = [site.module for site in sites if site.is_head]
    return backbone.get_submodule(heads[0] if heads else "lm_head")


def check_classes(sites: Sequence[Site], n_classes: int) -> None:
    """Raise ValueError when the classifier's last linear map does not have one output per class.

    A language model, without a classifier, goes with data without classes.
    """
    outputs = [site.out_features for site in sites if site.is_head][-1:]
    if bool(outputs) != bool(n_classes):
        has = "a classifier" if outputs else "none, being a language model"
        raise ValueError(f"The data have {n_classes} classes to tell apart, and the backbone has {has}.")
    if outputs and outputs[0] != n_classes:
        raise ValueError(
            f"The backbone's classifier has {outputs[0]} outputs and the data have {n_classes} classes; "
            f"build the backbone with num_classes={n_classes}."
        )


def is_language_model(backbone: nn.Module) -> bool:
    """Whether the backbone's outputs are tokens: it has transformers' `lm_head`."""
    return isinstance(getattr(backbone, "lm_head", None), nn.Linear)


def is_in_head(path: str, head: str) -> bool:
    """Whether a module belongs to the classifier at `head`: itself, inside it, or DistilBERT's layer before it."""
    return path in (head, f"pre_{head}") or path.startswith(f"{head}.")


def guess_head(backbone: nn.Module) -> str:
    """Return the path of the classifier by its usual names; raises ValueError when there is none."""
    for name in ("head", "classifier", "score", "fc"):
        module = getattr(backbone, name, None)
        if module is not None and any(isinstance(part, nn.Linear) for part in module.modules()):
            return name
    raise ValueError(
        "The backbone has no linear map under head, classifier, score or fc; say where its classifier is (head=…)."
    )


def _linears(backbone: nn.Module) -> dict[str, nn.Linear]:
    """Linear maps by path; one that carries adapters from an earlier run stands for the map it wraps."""
    wrapped = {path: module.base for path, module in backbone.named_modules() if isinstance(module, TieredLinear)}
    plain = {
        path: module
        for path, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and path.removesuffix(".base") not in wrapped
    }
    order = {path: index for index, (path, _) in enumerate(backbone.named_modules())}
    return dict(sorted((wrapped | plain).items(), key=lambda entry: order[entry[0]]))


def _block_depths(backbone: nn.Module) -> dict[str, int]:
    """The blocks by path, numbered from the input: modules called block, layer, … and a number, with none inside.

    In a Swin transformer these are the blocks of all stages, not the stages.
    """
    blocks = [
        path for path, _ in backbone.named_modules() if re.fullmatch(r"(?:.*\.)?(?:blocks?|layers?|h)\.\d+", path)
    ]
    around = {outer for outer, inner in pairwise(blocks) if inner.startswith(f"{outer}.")}
    return {path: depth for depth, path in enumerate(path for path in blocks if path not in around)}


def _depth(path: str, depths: dict[str, int], before: list[Site]) -> int:
    """The number of the block that the path is in; without one, sites are numbered by their parent module."""
    for block, depth in depths.items():
        if path.startswith(f"{block}."):
            return depth
    numbers = re.findall(r"\.(\d+)\.", f".{path}.")
    if numbers:
        return int(numbers[0])
    parents = list(dict.fromkeys([*(site.module.rpartition(".")[0] for site in before), path.rpartition(".")[0]]))
    return parents.index(path.rpartition(".")[0])


def _lora_sites(path: str, linear: nn.Linear, depth: int, is_fused: bool) -> Iterator[Site]:
    if not is_fused:
        yield Site(path, path, linear.in_features, linear.out_features, depth)
        return
    width, rest = divmod(linear.out_features, 3)
    if rest:
        raise ValueError(
            f"'{path}' has {linear.out_features} outputs, which are no query, key and value of one width; write the "
            "pattern without the group 'fused' (--model.sites)."
        )
    for part, start in (("q", 0), ("v", 2 * width)):
        yield Site(f"{path}.{part}", path, linear.in_features, width, depth, rows=(start, start + width))


def _head_site(path: str, linear: nn.Linear, depth: int) -> Site:
    return Site(
        path, path, linear.in_features, linear.out_features, depth, is_head=True, has_bias=linear.bias is not None
    )
