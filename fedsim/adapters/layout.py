"""Where trainable tensors live: tiers, sites and slots. No values, no training.

Shape legend, used in every docstring of fedsim:

    C  clients of the population        K  clients trained together      G  groups (holders of one copy)
    B  samples of a batch               T  tokens                        I/O  in and out features of a site
    R  LoRA rank                        D  depth (number of blocks)      N  classes

A LoRA site adds  ΔW = scale · B @ A  with A (R, I) and B (O, R), or  scale · B @ H @ A  where its tier has a middle
factor H (R, R). A head site adds a full ΔW = W (O, I) and b (O,) to the backbone's own classifier, so a head is
trained, shared and counted exactly as an adapter is: tier by tier.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

HeadPolicy = Literal["frozen", "global", "tier", "local"]
"""Who trains the classifier: nobody; everybody one shared copy; the tier in training; every client its own."""

HEAD_TIER = "head"
"""The tier that holds the classifier when `head_policy` is global or local; under `tier` each tier holds its share."""

MIX_TIER = "mix"
"""The tier that holds what weighs the other tiers, where a method mixes them."""


MIDDLE = "H"
"""The factor between B and A, of the tiers that have one."""

HALVES = (torch.float16, torch.bfloat16)
"""Types in which a backbone's weights may be stored; they are used in fp32, or as autocast says."""
RANK_AXIS = {"A": -2, "B": -1, MIDDLE: -1}
"""An axis of a factor that is as long as its LoRA rank; H has two of them."""


class Slot(NamedTuple):
    """The place of one tensor: which tier, at which site, which factor (A, B, H; W or b for a head; a mixing's own)."""

    tier: str
    site: str
    factor: str

    def __str__(self) -> str:
        return "/".join(self)


def parse_slot(text: str) -> Slot:
    """Return the slot that `str(slot)` wrote; raises ValueError when it is none."""
    parts = text.split("/")
    if len(parts) != 3:
        raise ValueError(f"'{text}' is not a slot; a slot is written tier/site/factor.")
    return Slot(*parts)


def is_not_a(slot: Slot) -> bool:
    """Whether a slot is anything but an A: what is trained where every A stays as it is."""
    return slot.factor != "A"


def group_slots(slots: Iterable[Slot]) -> dict[str, dict[str, dict[str, Slot]]]:
    """Return slots as site -> tier -> factor -> slot, tiers in the slots' order, without what mixes tiers."""
    grouped: dict[str, dict[str, dict[str, Slot]]] = {}
    for slot in slots:
        if slot.tier != MIX_TIER:
            grouped.setdefault(slot.site, {}).setdefault(slot.tier, {})[slot.factor] = slot
    return grouped


@dataclass(frozen=True)
class Site:
    """A linear map, or a row slice of a fused one, that carries adapters.

    `module` is its path in the backbone, `rows` the (start, stop) of a slice of a fused projection (None: all rows),
    `depth` its block number from the input, `is_head` whether it is part of the classifier.
    """

    name: str
    module: str
    in_features: int
    out_features: int
    depth: int
    rows: tuple[int, int] | None = None
    is_head: bool = False
    has_bias: bool = True


class Mixing(Protocol):
    """How a method weighs its tiers; what there is of it is in adapters/mixing.py."""

    @property
    def tiers(self) -> tuple[str, ...]:
        """The tiers that it weighs."""

    @property
    def is_tokenwise(self) -> bool:
        """Whether weights differ from token to token."""

    def slot(self, site: Site) -> Slot:
        """Where the trained value lies that weighs the tiers of a site."""

    def shape(self, site: Site) -> tuple[int, ...]:
        """The value's shape."""

    def start(self, site: Site, generator: torch.Generator) -> Tensor:
        """The value with which every client starts."""

    def weights(self, value: Tensor, x: Tensor, n_tiers: int) -> Tensor:
        """The weights (..., M or 1, n_tiers) of the first tiers for inputs x (..., M, I)."""


@dataclass(frozen=True)
class Layout:
    """All slots of a method on a backbone, with their shapes at the largest LoRA rank."""

    sites: tuple[Site, ...]
    tiers: tuple[str, ...]
    lora_rank: int
    head_policy: HeadPolicy = "frozen"
    mixing: Mixing | None = None
    middle_tiers: tuple[str, ...] = ()
    """The tiers with a middle factor H."""

    def __post_init__(self) -> None:
        problems = []
        if self.lora_rank < 1:
            problems.append(f"lora_rank is {self.lora_rank}; it must be 1 or more (--method.lora-rank)")
        if not any(not site.is_head for site in self.sites):
            problems.append("no adapter site was found in the backbone; change the pattern (--model.sites)")
        if len(set(self.tiers)) != len(self.tiers) or {HEAD_TIER, MIX_TIER} & set(self.tiers):
            problems.append(f"tiers {self.tiers} must be distinct names other than '{HEAD_TIER}' and '{MIX_TIER}'")
        if unknown := set(self.middle_tiers) - set(self.tiers):
            problems.append(f"middle_tiers names {sorted(unknown)}; the tiers are {self.tiers}")
        for site in self.sites:
            if not site.is_head and self.lora_rank > min(site.in_features, site.out_features):
                width = min(site.in_features, site.out_features)
                problems.append(f"lora_rank {self.lora_rank} exceeds the width {width} of site '{site.name}'")
                break
        if problems:
            raise ValueError("; ".join(problems) + ".")

    @property
    def shapes(self) -> dict[Slot, torch.Size]:
        """Every slot with its shape, in a fixed order: tiers outermost, then sites, then factors; mixing last."""
        shapes: dict[Slot, torch.Size] = {}
        for tier in (*self.tiers, HEAD_TIER):
            for site in self.sites:
                for factor, shape in self._factors(tier, site):
                    shapes[Slot(tier, site.name, factor)] = torch.Size(shape)
        if self.mixing is not None:
            shapes |= {slot: torch.Size(self.mixing.shape(site)) for slot, site in self.mixed.items()}
        return shapes

    @property
    def mixed(self) -> dict[Slot, Site]:
        """The slots of the mixing, each with a site that it belongs to."""
        return {self.mixing.slot(site): site for site in self.sites if not site.is_head} if self.mixing else {}

    @property
    def depths(self) -> dict[str, int]:
        """The depth of every name that a slot's `site` may have."""
        return {site.name: site.depth for site in self.sites} | {s.site: site.depth for s, site in self.mixed.items()}

    @property
    def adapted(self) -> tuple[int, ...]:
        """The depths that carry adapters, ascending."""
        return tuple(sorted({site.depth for site in self.sites if not site.is_head}))

    def _factors(self, tier: str, site: Site) -> list[tuple[str, tuple[int, ...]]]:
        inputs, outputs, rank = site.in_features, site.out_features, self.lora_rank
        if not site.is_head:
            middle = [(MIDDLE, (rank, rank))] if tier in self.middle_tiers else []
            return [("A", (rank, inputs)), ("B", (outputs, rank)), *middle] if tier != HEAD_TIER else []
        holder = {"frozen": False, "tier": tier != HEAD_TIER}.get(self.head_policy, tier == HEAD_TIER)
        if not holder:
            return []
        return [("W", (outputs, inputs))] + ([("b", (outputs,))] if site.has_bias else [])


def fit_rank(tensor: Tensor, factor: str, lora_rank: int) -> Tensor:
    """Return the leading `lora_rank` rows of an A, columns of a B or both of an H; a head's tensors pass through."""
    axis = RANK_AXIS.get(factor)
    if axis is None or tensor.shape[axis] <= lora_rank:
        return tensor
    rows = tensor if factor == "B" else tensor[..., :lora_rank, :]
    return rows if factor == "A" else rows[..., :lora_rank]


def pad_rank(tensor: Tensor, factor: str, lora_rank: int) -> Tensor:
    """Return an A with zero rows, a B with zero columns or an H with both up to `lora_rank`; a head's pass through.

    The product B @ A, or B @ H @ A, stays the same, so this is how adapters of unequal LoRA ranks meet.
    """
    axis = RANK_AXIS.get(factor)
    if axis is None or tensor.shape[axis] == lora_rank:
        return tensor
    missing = lora_rank - tensor.shape[axis]
    assert missing > 0, "padding does not cut"
    return F.pad(tensor, {"A": (0, 0, 0, missing), "B": (0, missing)}.get(factor, (0, missing, 0, missing)))


def left_factor(factors: Mapping[str, Tensor]) -> Tensor:
    """Return what is left of A in a tier's change: B (..., O, R), or B @ H where the tier has an H.

    The product with an H that is the identity is B, bit for bit.
    """
    return factors["B"] @ factors[MIDDLE] if MIDDLE in factors else factors["B"]


def byte_count(tensors: Iterable[Tensor]) -> int:
    """Bytes that these tensors take on the wire and in memory."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def widened(tensor: Tensor) -> Tensor:
    """Return in fp32 what is stored in half precision, and anything else as it is."""
    return tensor.float() if tensor.dtype in HALVES else tensor
