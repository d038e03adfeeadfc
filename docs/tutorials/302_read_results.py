# %% [markdown]
# # 302 · Read the results
#
# A run leaves a folder. You make one here, read its files with the standard library, and write the report.

# %%
import csv
import json
from pathlib import Path

import fedsim
from fedsim.data.builtin.digits import DigitStyles
from fedsim.models.digits_vit import DigitsViT
from fedsim.randomness import numpy_generator

digits = DigitStyles(clients_per_style=2, train_per_client=24, test_per_client=12, alpha=10)
fedsim.simulate(
    method=fedsim.HiLoRA(lora_rank=4),
    backbone=DigitsViT().backbone(digits),
    data=digits.federation(numpy_generator(0, "data")),
    local=fedsim.LocalTraining(epochs=1, batch_size=12, learning_rate=3e-3),
    rounds=4,
    out="runs/read",
)
run = Path("runs/read")
print(sorted(path.name for path in run.iterdir()))

# %% [markdown]
# ## The summary
#
# `result.json` has the summary and the digest. `recipe.json` has every option, package versions and hashes of data and
# weights.

# %%
summary = json.loads((run / "result.json").read_text())
print(f"accuracy {summary['global.mean']:.3f} ± {summary['global.std']:.3f} over {summary['global.clients']} clients")

# %% [markdown]
# ## Round by round, client by client
#
# `metrics.csv` has a row for each round, `clients.csv` for each client and evaluation, `costs.csv` for each client and
# round. Each column is explained in [output columns](../reference/columns.md).

# %%
with (run / "metrics.csv").open() as file:
    for row in csv.DictReader(file):
        print(row["round"], row["stage"], f"{float(row['global.mean']):.3f}", row["bytes.up"])

# %%
with (run / "clients.csv").open() as file:
    last = {row["client"]: float(row["accuracy"]) for row in csv.DictReader(file) if row["evaluation"] == "global"}
print("worst client:", min(last, key=last.get), f"{min(last.values()):.3f}")

# %% [markdown]
# ## What the method found out
#
# `events.jsonl` has an object for each event: stages, clusters, overlaps of tiers, discarded energy.

# %%
for line in (run / "events.jsonl").read_text().splitlines():
    event = json.loads(line)
    if "next_stage" in event:
        print("round", event["round"], "→ stage", event["next_stage"], "clusters:", event.get("k_star", "–"))

# %% [markdown]
# ## The report
#
# One page of HTML, which loads nothing from elsewhere. Several runs, or a comparison, go into one page too.
#
# ```bash
# python -m fedsim.report runs/read
# ```

# %%
from fedsim.report.page import write_report

print(write_report([run], Path("report.html")))

# %% [markdown]
# Each of its figures can be had alone. A notebook shows it where it is a cell's last line; `save` writes SVG and PDF.

# %%
from fedsim.report.drawing import drawing
from fedsim.report.reading import read_run
from fedsim.report.run_figures import draw_run

with drawing():
    curve, *others = draw_run(read_run(run, "read"))
print("there are also", ", ".join(picture.name for picture in others))
curve
