# %% [markdown]
# # 202 · Compare fairly
#
# Which method is better, by how much, and is it real? You compare two methods over several seeds, tune both alike, and
# read the verdict. What is tested and why is in [statistics](../concepts/statistics.md).

# %%
import fedsim
from fedsim.data.builtin.digits import DigitStyles
from fedsim.models.digits_vit import DigitsViT
from fedsim.randomness import numpy_generator

digits = DigitStyles(clients_per_style=2, train_per_client=24, test_per_client=12, alpha=10)


def split(seed):
    """A seed's federation: all methods get the same one."""
    return digits.federation(numpy_generator(seed, "data"))


# %% [markdown]
# ## Tune every method alike
#
# A `Grid` names values for a few fields of a method or of local training. Every method must have the same number of
# trials. Trials are scored on a fifth of each client's *training* samples of the first seed, so test samples are not
# touched.

# %%
rates = {"local.learning_rate": (1e-3, 3e-3)}
found = fedsim.compare(
    {"local": fedsim.Grid(fedsim.Local(lora_rank=4), rates), "fedit": fedsim.Grid(fedsim.FedIT(lora_rank=4), rates)},
    split,
    backbone=DigitsViT().backbone(digits),
    local=fedsim.LocalTraining(epochs=2, batch_size=12),
    rounds=3,
    seeds=(0, 1, 2),
    reference="fedit",
    out="runs/compared",
)

# %% [markdown]
# ## Read the verdict
#
# The seed is the unit: clients of one seed share a split and a model, so they are not independent. The test is paired,
# over the means of seeds. The verdict is better, worse, no difference, or undecided with the number of seeds that would
# decide it.

# %%
difference = found.differences["local"]
print(f"local − fedit: {difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]: {difference.verdict}")
print(found.chosen)

# %% [markdown]
# The same as a picture, which the report begins with: a point for each difference, with its 95 % interval.

# %%
from fedsim.report.drawing import drawing
from fedsim.report.several import draw_differences

with drawing():
    (forest,) = draw_differences(found)
forest

# %% [markdown]
# The table is in `runs/compared/comparison.md`, all numbers in `comparison.csv`, a LaTeX table in `comparison.tex`.
#
# ## The same from the command line
#
# ```bash
# fabric run recipes/compare_cifar100.py --devices 8 --seeds 0 1 2 --tune
# fabric run recipes/compare_cifar100.py --devices 8 --seeds 0 1 2 --dry-run
# ```
#
# The second command trains nothing. It says what the first one would cost.
