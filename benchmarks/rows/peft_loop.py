"""What one writes without a simulator: one resident PEFT model whose state is swapped from client to client."""

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from workloads import Workload

from rows.plain import new_optimizer, train


class PeftLoop:
    """Federated averaging over the state dictionaries of a PEFT model."""

    def __init__(self, workload: Workload):
        setting = workload.setting()
        self.workload, self.round_index = workload, 0
        names = {site.name.rpartition(".")[2] for site in setting.layout.sites if not site.is_head}
        rank = workload.lora_rank
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=sorted(names), modules_to_save=["classifier"])
        self.model = get_peft_model(setting.backbone, config).eval()
        self.shared = self._state()
        initial = {str(slot): value for slot, value in workload.initial(setting).items()}
        self.start = {slot: self.shared[_key(slot)] for slot in initial if slot[-1] in "Wb"}
        factors = {slot: value for slot, value in initial.items() if slot[-1] in "AB"}
        self.shared |= {_key(slot): value for slot, value in factors.items()}
        self.slots = [*factors, *self.start]

    def _state(self) -> dict[str, Tensor]:
        """A copy of what the model holds now."""
        return {name: t.detach().clone() for name, t in get_peft_model_state_dict(self.model).items()}

    def round(self) -> None:
        """Train every client from the shared state, then average by samples."""
        states, sizes = [], []
        for client in range(self.workload.clients):
            set_peft_model_state_dict(self.model, self.shared)
            optimizer = new_optimizer((p for p in self.model.parameters() if p.requires_grad), self.workload)
            train(self.model, optimizer, self.workload.batches(client, self.round_index), self.workload)
            states.append(self._state())
            sizes.append(self.workload.data.train_size(client))
        weights = torch.tensor(sizes) / sum(sizes)
        self.shared = {
            name: sum(w * state[name] for w, state in zip(weights.tolist(), states, strict=True)) for name in states[0]
        }
        self.round_index += 1

    def weights(self) -> dict[str, Tensor]:
        """Return the shared state by slot."""
        return {slot: (self.shared[_key(slot)] - self.start.get(slot, 0)).cpu() for slot in self.slots}


def _key(slot: str) -> str:
    """PEFT's name of a slot, written tier/site/factor."""
    _, site, factor = slot.split("/")
    suffix = {"A": "lora_A.weight", "B": "lora_B.weight", "W": "weight", "b": "bias"}[factor]
    return f"base_model.model.{site}.{suffix}"
