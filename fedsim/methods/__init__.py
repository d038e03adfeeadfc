"""One file per paper: a frozen dataclass of hyper-parameters whose `plan` states how it departs from FedAvg."""

from fedsim.methods.fedit import FedIT
from fedsim.methods.hilora import HiLoRA
from fedsim.methods.ilora import ILoRA
from fedsim.methods.local import Local

__all__ = ["FedIT", "HiLoRA", "ILoRA", "Local"]
