# %% [markdown]
# # 301 · Several workers, and a cluster
#
# You run one recipe with one worker and with two, get the same bits, and learn the command for a cluster. A worker is a
# process with one device: a GPU, or one CPU core.
#
# ## A recipe
#
# A recipe is a frozen dataclass, whose fields become the command line, and a function. This one is small.

# %%
from pathlib import Path

Path("small.py").write_text('''
"""HiLoRA on a few digits."""

from dataclasses import dataclass, field

import fedsim
from fedsim.data.builtin.digits import DigitStyles
from fedsim.experiments import Experiment, run_experiment
from fedsim.models.digits_vit import DigitsViT


@dataclass(frozen=True, kw_only=True)
class Small(Experiment):
    """HiLoRA on a few digits."""

    rounds: int = 3
    """Rounds in all."""
    method: fedsim.HiLoRA = field(default_factory=lambda: fedsim.HiLoRA(lora_rank=4))
    """HiLoRA's settings."""
    data: DigitStyles = DigitStyles(clients_per_style=2, train_per_client=24, test_per_client=12, alpha=10)
    """The federation."""
    model: DigitsViT = DigitsViT()
    """The backbone."""


if __name__ == "__main__":
    fedsim.cli(Small, run_experiment)
''')

# %% [markdown]
# ## One worker, then two
#
# `python small.py` is one worker. `fabric run small.py --devices 2` starts two. They train half of the clients each,
# and the results are the same bits: see [determinism](../concepts/determinism.md).

# %%
import subprocess
import sys

fabric = str(Path(sys.executable).parent / "fabric")
port = str(20000 + int.from_bytes(Path.cwd().name.encode()[-4:]) % 20000)  # PET_STANDALONE=1 takes a free one
commands = {
    "one": [sys.executable, "small.py"],
    "two": [fabric, "run", "small.py", "--accelerator", "cpu", "--devices", "2", "--main-port", port],
}
digests = {}
for name, command in commands.items():
    done = subprocess.run([*command, "--out", f"runs/{name}"], capture_output=True, text=True, check=True)
    digests[name] = done.stdout.splitlines()[-1]
    print(f"{name} worker(s): {digests[name]}")

# %%
assert digests["one"] == digests["two"]

# %% [markdown]
# ## Stop, and go on
#
# Ctrl-C lets the round finish, prints the command that goes on, and leaves with exit code 75. The same command takes
# more rounds where the method does not depend on their number:
#
# ```bash
# python recipes/quickstart.py --methods fedit --rounds 2 --out runs/fedit
# python recipes/quickstart.py --resume runs/fedit --rounds 4
# ```
#
# ## SLURM
#
# One job script for every recipe. Give each worker some CPU cores and memory, and the job your partition:
#
# ```bash
# sbatch --nodes 1 --gpus-per-node 8 --cpus-per-task 64 --mem 256G --time 8:00:00 \
#     slurm/fabric.sbatch recipes/hilora_cifar100.py
# ```
#
# [Clusters](../guide/cluster.md) says what the job does before its time is up, and what goes where.
