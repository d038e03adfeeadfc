# %% [markdown]
# # 303 · Give an adapter to a colleague
#
# You export what one client holds as a PEFT adapter, and load it as your colleague would, without fedsim. Nothing is
# pickled: an adapter folder is safetensors and JSON, and a model card says where it comes from.

# %%
import csv
from pathlib import Path

import torch

import fedsim
from fedsim.data.builtin.digits import DigitStyles
from fedsim.models.digits_vit import DigitsViT
from fedsim.randomness import numpy_generator

digits = DigitStyles(clients_per_style=2, train_per_client=24, test_per_client=12, alpha=10)
data = digits.federation(numpy_generator(0, "data"))
fedsim.simulate(
    method=fedsim.Local(lora_rank=4),
    backbone=DigitsViT().backbone(digits),
    data=data,
    local=fedsim.LocalTraining(epochs=2, batch_size=12, learning_rate=3e-3),
    rounds=5,
    out="runs/given",
)
fedsim.export_adapter("runs/given", "client-1", client=1)
print(sorted(path.name for path in Path("client-1").iterdir()))

# %% [markdown]
# ## Load it
#
# PEFT puts the adapter on the plain backbone: the same timm or transformers model that the run had.

# %%
from peft import PeftModel

plain = DigitsViT().backbone(digits)
rows = data.test[1]
inputs, targets = data.batch(rows)
with torch.no_grad():
    before = (plain(inputs).argmax(1) == targets).float().mean().item()
    adapted = PeftModel.from_pretrained(plain, "client-1").eval()
    after = (adapted(inputs).argmax(1) == targets).float().mean().item()
print(f"client 1's test digits: {before:.2f} without the adapter, {after:.2f} with it")

# %% [markdown]
# That is the accuracy which the run has written for this client:

# %%
with open("runs/given/clients.csv") as file:
    rows = [row for row in csv.DictReader(file) if row["client"] == "1" and row["evaluation"] == "global"]
assert abs(float(rows[-1]["accuracy"]) - after) < 1e-6

# %% [markdown]
# ## The same from the command line
#
# ```bash
# python -m fedsim.export runs/given --client 1 --to client-1
# ```
#
# A cluster's part (`--cluster`), the part that all share, and weights merged into the backbone (`--merged`) leave the
# program the same way: see [adapters](../guide/adapters.md).
