"""The numbers that every method has by default, so that a change of one is a decision and not a slip.

They are the paper's where it has one. Ours, since the paper names none or tunes it by data set: Ditto's λ, FedProx's μ
among those that it tries, FedTreeLoRA's τ, window and rate of θ, HiLoRA's shares, γ and τ, Clustered FedAvg's.
"""

import dataclasses

import fedsim
from fedsim import methods

NUMBERS = {
    "ClusteredFedAvg": (0.2, 4, 8, 10),
    "DepthFedIT": (0, 6, 9, 12, 16),
    "Ditto": (0.1, 8),
    "Exclusive": (0, 6, 9, 12, 16),
    "FDLoRA": (0.01, 0.05, 0.1, 0.1, 0.5, 0.5, 0.7, 0.9, 5, 8),
    "FFALoRA": (0, 8, 16.0),
    "FLoRA": (0, 2, 4, 6, 16.0),
    "FedALT": (0, 1.0, 8),
    "FedDPA": (0.0, 0.5, 0.5, 5, 8),
    "FedExLoRA": (0, 8, 16.0),
    "FedHeLLo": (0, 1, 2, 3, 6, 9, 12, 16, 50, 50),
    "FedIT": (8,),
    "FedLEASE": (4, 5, 8),
    "FedMomentum": (0, 8, 16.0),
    "FedProx": (0.01, 8),
    "FedRA": (0, 6, 9, 12, 16),
    "FedRotLoRA": (1.0, 8),
    "FedSALoRA": (8,),
    "FedSB": (0, 0.0001, 1, 32),
    "FedSVD": (0, 1, 8, 16.0),
    "FedTreeLoRA": (0.05, 0.05, 0.5, 3, 5, 8),
    "FlexLoRA": (0, 2, 4, 6, 16.0),
    "HetLoRA": (0, 0.005, 0.99, 2, 4, 6, 16.0),
    "HiLoRA": (0.05, 0.1, 0.1, 0.3, 0.4, 0.9, 8, 10, 10),
    "ILoRA": (0, 0.0001, 1.0, 2, 4, 6, 16.0),
    "LoRAFAIR": (0, 0.01, 8, 16.0),
    "Local": (8,),
    "PF2LoRA": (1.0, 2, 8),
    "RaFLoRA": (0, 2, 4, 6, 16.0),
    "Ravan": (4, 8),
    "RoLoRA": (8,),
    "SCAFFOLD": (8,),
    "Straggler": (0, 6, 9, 12, 16),
}
"""In ascending order, so that fields may have other names or lie in other dataclasses."""


def numbers(value: object) -> list[float]:
    """All numbers of a dataclass and of those inside it; what is on or off is none."""
    if dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, list | tuple):
        return [number for part in value for number in numbers(part)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def test_every_method_has_the_numbers_that_were_decided_on_by_default():
    assert {name: tuple(sorted(numbers(getattr(fedsim, name)()))) for name in methods.__all__} == NUMBERS
