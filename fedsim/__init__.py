"""fedsim simulates federated LoRA fine-tuning. `simulate` runs a federation; a recipe is a configuration of it."""

from fedsim.data.federated import FederatedData, from_tensors
from fedsim.data.proxy import split_off_proxy, with_proxy
from fedsim.experiments.command_line import RunOptions, cli
from fedsim.experiments.comparison import compare
from fedsim.experiments.export import export_adapter
from fedsim.experiments.tuning import Grid
from fedsim.methods import (
    SCAFFOLD,
    ClusteredFedAvg,
    DepthFedIT,
    Ditto,
    Exclusive,
    FDLoRA,
    FedALT,
    FedDPA,
    FedExLoRA,
    FedHeLLo,
    FedIT,
    FedLEASE,
    FedMomentum,
    FedProx,
    FedRA,
    FedRotLoRA,
    FedSALoRA,
    FedSB,
    FedSVD,
    FedTreeLoRA,
    FFALoRA,
    FlexLoRA,
    FLoRA,
    HetLoRA,
    HiLoRA,
    ILoRA,
    Local,
    LoRAFAIR,
    PF2LoRA,
    RaFLoRA,
    Ravan,
    RoLoRA,
    Straggler,
)
from fedsim.models.adapted import start_from_adapter
from fedsim.options import LocalTraining
from fedsim.parts.capabilities import Capabilities
from fedsim.parts.ranks import LoraRanks
from fedsim.plan import Method, Plan
from fedsim.report.comparison import Comparison
from fedsim.report.summary import Result
from fedsim.round import Assignment, ClientUpdate, Outcome, Population, ServerState
from fedsim.simulation import simulate

__all__ = [
    "SCAFFOLD",
    "Assignment",
    "Capabilities",
    "ClientUpdate",
    "ClusteredFedAvg",
    "Comparison",
    "DepthFedIT",
    "Ditto",
    "Exclusive",
    "FDLoRA",
    "FFALoRA",
    "FLoRA",
    "FedALT",
    "FedDPA",
    "FedExLoRA",
    "FedHeLLo",
    "FedIT",
    "FedLEASE",
    "FedMomentum",
    "FedProx",
    "FedRA",
    "FedRotLoRA",
    "FedSALoRA",
    "FedSB",
    "FedSVD",
    "FedTreeLoRA",
    "FederatedData",
    "FlexLoRA",
    "Grid",
    "HetLoRA",
    "HiLoRA",
    "ILoRA",
    "LoRAFAIR",
    "Local",
    "LocalTraining",
    "LoraRanks",
    "Method",
    "Outcome",
    "PF2LoRA",
    "Plan",
    "Population",
    "RaFLoRA",
    "Ravan",
    "Result",
    "RoLoRA",
    "RunOptions",
    "ServerState",
    "Straggler",
    "cli",
    "compare",
    "export_adapter",
    "from_tensors",
    "simulate",
    "split_off_proxy",
    "start_from_adapter",
    "with_proxy",
]
