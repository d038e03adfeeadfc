"""One file per paper: a frozen dataclass of hyper-parameters whose `plan` states how it departs from FedAvg."""

from fedsim.methods.clustered_fedavg import ClusteredFedAvg
from fedsim.methods.depth_fedit import DepthFedIT
from fedsim.methods.ditto import Ditto
from fedsim.methods.exclusive import Exclusive
from fedsim.methods.fdlora import FDLoRA
from fedsim.methods.fed_sb import FedSB
from fedsim.methods.fedalt import FedALT
from fedsim.methods.feddpa import FedDPA
from fedsim.methods.fedex_lora import FedExLoRA
from fedsim.methods.fedhello import FedHeLLo
from fedsim.methods.fedit import FedIT
from fedsim.methods.fedlease import FedLEASE
from fedsim.methods.fedmomentum import FedMomentum
from fedsim.methods.fedprox import FedProx
from fedsim.methods.fedra import FedRA
from fedsim.methods.fedrot_lora import FedRotLoRA
from fedsim.methods.fedsa_lora import FedSALoRA
from fedsim.methods.fedsvd import FedSVD
from fedsim.methods.fedtreelora import FedTreeLoRA
from fedsim.methods.ffa_lora import FFALoRA
from fedsim.methods.flexlora import FlexLoRA
from fedsim.methods.flora import FLoRA
from fedsim.methods.hetlora import HetLoRA
from fedsim.methods.hilora import HiLoRA
from fedsim.methods.ilora import ILoRA
from fedsim.methods.local import Local
from fedsim.methods.lora_fair import LoRAFAIR
from fedsim.methods.pf2lora import PF2LoRA
from fedsim.methods.raflora import RaFLoRA
from fedsim.methods.ravan import Ravan
from fedsim.methods.rolora import RoLoRA
from fedsim.methods.scaffold import SCAFFOLD
from fedsim.methods.straggler import Straggler

__all__ = [
    "SCAFFOLD",
    "ClusteredFedAvg",
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
    "FlexLoRA",
    "HetLoRA",
    "HiLoRA",
    "ILoRA",
    "LoRAFAIR",
    "Local",
    "PF2LoRA",
    "RaFLoRA",
    "Ravan",
    "RoLoRA",
    "Straggler",
]
