# %% [markdown]
# # 101 · A first run
#
# You train one method on the embedded data, from Python, and read what it says.
# You need fedsim and nothing else: no network, no GPU. It takes about half a minute.
#
# The data are handwritten digits, drawn in six styles. Every client has digits of one style. The backbone is a small
# ViT that has learnt plain digits. It stays frozen: clients train LoRA adapters and the classifier.

# %%
import fedsim
from fedsim.data.builtin.digits import DigitStyles
from fedsim.models.digits_vit import DigitsViT
from fedsim.randomness import numpy_generator

digits = DigitStyles(clients_per_style=2, train_per_client=24, test_per_client=12, alpha=10)
data = digits.federation(numpy_generator(0, "data"))
backbone = DigitsViT().backbone(digits)  # trained once, in seconds, and kept in ~/.cache/fedsim
print(f"{data.n_clients} clients, of which {sorted(data.unseen)} take no part in training")

# %% [markdown]
# ## Train
#
# `simulate` runs a method on these data. A round is: the server sends each client its adapters, each client trains them
# on its own samples, the server merges what comes back. Here HiLoRA does so in three stages: one adapter for all, one
# for each learnt cluster of clients, one for each client.

# %%
result = fedsim.simulate(
    method=fedsim.HiLoRA(lora_rank=4),
    backbone=backbone,
    data=data,
    local=fedsim.LocalTraining(epochs=2, batch_size=12, learning_rate=3e-3),
    rounds=6,
    out="runs/first",
)

# %% [markdown]
# ## Read the result
#
# `result.summary` has flat names. `global.mean` is the mean accuracy over seen clients, each on its own test samples,
# with the model that it holds after the last aggregation. `global.p10` is the 10th percentile over clients: how well
# the clients in the tail are served. `unseen.untuned.mean` is that of clients that never trained. All names are
# explained in [output columns](../reference/columns.md).

# %%
for name in ("global.mean", "global.p10", "unseen.untuned.mean", "bytes.up"):
    print(f"{name:22} {result.summary[name]:.3f}")

# %% [markdown]
# The digest is a hash of the final state. Run this file again with another number of workers, and it is the same: see
# [determinism](../concepts/determinism.md).

# %%
print("digest", result.digest)

# %% [markdown]
# ## The same from the command line
#
# Everything that a recipe can do is one command. This one has 24 clients and 20 rounds, and takes a minute or two:
#
# ```bash
# python recipes/quickstart.py --methods hilora --rounds 20 --out runs/first
# python -m fedsim.report runs/first
# ```
#
# Next: [your own images](102_own_images.md), or [how to read all results](302_read_results.md).
