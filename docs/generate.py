"""Make the pages that zensical builds: `python docs/generate.py FOLDER [--without-outputs]`.

Pages are those of docs/, with what the code knows (methods, options, columns, data sets) put in where they say
`<!-- generated: … -->`, the first use of each term of the glossary linked, and the tutorials made of their files. These
run once, two at a time, and show what they print and draw; build/tutorials keeps that until they or fedsim change.
"""

import ast
import csv
import dataclasses
import hashlib
import importlib
import inspect
import re
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
NOTEBOOKS = ("101_first_run", "202_compare_fairly")
"""Tutorials that are notebooks, too."""
REPOSITORY_PAGES = {"results.md": "RESULTS.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
NOT_LINKED = ("glossary.md", "python.md", *REPOSITORY_PAGES)
"""Pages on which terms of the glossary are not linked."""
FIGURES = {
    "report.png": "The report's first page.",
    "demo-differences.svg": "Each method's difference from the best of the others. Right of zero is better.",
    "demo-mean.svg": "Mean accuracy of global models by round, a line for each method. Higher is better.",
    "demo-bytes.svg": "Mean accuracy by megabytes sent. Higher and further left is better. Local sends nothing.",
    "demo-clusters.svg": "HiLoRA's clusters against the styles of the digits: here each cluster is one style.",
    "demo-similarity.svg": "Who is like whom: how much the subspaces of two clients' updates overlap.",
    "demo-split.svg": "The split: how many samples of each class each client has.",
}
"""Pictures in docs/images, and what they show."""


def table(header: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def read(name: str) -> Any:
    """Return what a dotted name of fedsim names."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


# options


def documented(kind: type) -> dict[str, str]:
    """Return the fields of a dataclass, those of its bases too, and the sentences under them."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            (node,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
            assert isinstance(node, ast.ClassDef)
            for line, below in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                    is_said = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                    found[line.target.id] = " ".join(str(below.value.value).split()) if is_said else ""
    return found


def options_of(kind: type, prefix: str) -> list[tuple[object, ...]]:
    """Return (option, default, what it is) of every field; those of dataclasses inside it by their dotted names."""
    rows: list[tuple[object, ...]] = []
    said = documented(kind)
    for field in dataclasses.fields(kind):
        if field.name not in said:
            continue
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        name = f"{prefix}{field.name.replace('_', '-')}"
        if dataclasses.is_dataclass(default):
            rows += options_of(type(default), f"{name}.")
        else:
            shown = {dataclasses.MISSING: "required", None: "none", (): "none", "": "empty"}.get(default, default)
            rows.append((f"`--{name}`", f"`{shown}`", said[field.name]))
    return rows


PARTS = {
    "Every recipe": ("fedsim.RunOptions", ""),
    "Local training": ("fedsim.LocalTraining", "local."),
    "Images": ("fedsim.data.images.images.ImageOptions", "data."),
    "Texts": ("fedsim.data.texts.texts.TextOptions", "data."),
    "Instructions": ("fedsim.data.instructions.instructions.Instructions", "data."),
    "The embedded digits": ("fedsim.data.builtin.digits.DigitStyles", "data."),
    "Clients by skew": ("fedsim.data.protocols.Skew", "data."),
    "Clients by domain": ("fedsim.data.protocols.Domains", "data."),
    "Backbones of timm": ("fedsim.models.backbones.TimmModel", "model."),
    "Classifiers of transformers": ("fedsim.models.text.TextModel", "model."),
    "Language models of transformers": ("fedsim.models.causal.CausalModel", "model."),
}
"""Headings of the page of options, the dataclass under each, and what its options begin with."""


def options(titles: tuple[str, ...] = tuple(PARTS)) -> str:
    """Return tables of options under these titles."""
    found = []
    for title in titles:
        name, prefix = PARTS[title]
        rows = options_of(read(name), prefix)
        found.append(f"## {title}\n\n" + table(("option", "default", "what it is"), rows))
    return "\n".join(found)


# methods


def methods() -> str:
    """Return README's table of methods, and for each method what its file says and its options."""
    import fedsim.methods

    section = (ROOT / "README.md").read_text().split("## Methods\n")[1].split("\n## ")[0]
    rows = "\n".join(line for line in section.splitlines() if line.startswith("|"))
    rows = re.sub(r"\[(`methods/[a-z0-9_]+\.py`)\]\([^)]*\)", r"\1", rows)
    parts = [rows, ""]
    for name in fedsim.methods.__all__:
        kind = getattr(fedsim.methods, name)
        head = inspect.getdoc(sys.modules[kind.__module__]) or ""
        head = re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", head)
        head = re.sub(r"(?m)^    (.*)", r"    \1", head)
        parts.append(
            f"## {name}\n\n{head}\n\n" + table(("option", "default", "what it is"), options_of(kind, "method."))
        )
    return "\n".join(parts)


# columns


FEW = {
    "mean": "mean over clients",
    "weighted_mean": "mean over clients, weighed by training samples",
    "std": "standard deviation over n clients, √(Σ(x − x̄)² / n)",
    "worst": "least over clients",
    "p10": "10th percentile over clients, interpolated linearly",
}
"""Statistics."""
MODELS = {
    "personal": "each trained client's model after its own local training, on its own test samples",
    "global": "what each seen client holds after aggregation, on its own test samples",
    "unseen.untuned": "each unseen client's model as handed out, on its own test samples",
    "unseen.tuned": "each unseen client's model after five epochs of its own, on its own test samples",
}
MEANING = {
    "round": "number of the round, from 1; what follows the last round (unseen clients) has the number after it",
    "stage": "what the method trains in this round",
    "clients": "clients that trained",
    "client": "number of the client, from 0",
    "diverged_clients": "clients whose update was not finite and was left out (`--on-nan skip`)",
    "train_loss": "mean over clients of the mean training loss of their local steps",
    "bytes.up": "bytes from clients to the server, summed over clients",
    "bytes.down": "bytes from the server to clients, summed over clients",
    "discarded_energy": "what a cut to LoRA rank R leaves out: 1 − Σ(r ≤ R) σᵣ² / Σ σᵣ², mean over sites and groups",
    "relative_change": "‖ΔW′ − ΔW‖ / ‖ΔW‖ of the merged adapters, before and after this round",
    "utilisation": "the busiest worker's load over the mean load of workers; 1 is even",
    "simulated_seconds": "seconds that the round would take simulated devices",
    "dropped": "clients that missed the deadline or went away (in costs.csv: 1 for such a client)",
    "staleness": "server steps since clients received their model, mean over those whose updates were taken",
    "epsilon": "ε of (ε, δ)-differential privacy of clients after the round (`--privacy.*`)",
    "sample_epsilon": "the same of one sample, of the client where it is largest (`--local.sample-clip`)",
    "delta": "δ of both",
    "evaluated_clients": "clients behind `global.*`, 0 without an evaluation (only with `--evaluate-clients`)",
    "domain": "number of the client's domain, where the data have domains",
    "evaluation": "which model: `personal`, `global`, `unseen.untuned`, `unseen.tuned`",
    "accuracy": "share of right test samples",
    "loss": "mean cross-entropy of test samples, in nats",
    "macro_f1": "mean over classes of F1 = 2TP / (2TP + FP + FN)",
    "global.macro_f1": "macro F1 of all seen clients' test samples together",
    "global.micro_f1": "F1 of all seen clients' test samples together, hits of all classes added up",
    "rouge1": "F1 of words that the answer and the reference share (ROUGE-1), mean over test samples",
    "rougeL": "F1 of their longest common subsequence of words (ROUGE-L), mean over test samples",
    "exact_match": "share of answers that equal the reference",
    "perplexity": "e to the mean cross-entropy of a reference's tokens, in nats",
    "train_samples": "training samples of the client",
    "bytes_down": "bytes from the server to the client",
    "bytes_up": "bytes from the client to the server",
    "local_steps": "steps of the client's optimiser",
    "seconds_down": "simulated seconds of the download, bytes / (bytes per second)",
    "seconds_compute": "simulated seconds of training, FLOPs / (FLOP per second)",
    "seconds_up": "simulated seconds of the upload",
    "seconds": "in costs.csv: simulated seconds, the sum of the three; in timing.csv: real seconds of the round",
    "clients_per_second": "clients that trained / real seconds of the round",
    "rounds": "rounds of the run",
    "metric": "the headline metric",
    "digest": "SHA-256 of the final state",
    "clusters.count": "clusters of seen clients that a method found",
    "clusters.ari": "adjusted Rand index of clusters against domains: 1 where they agree, 0 by chance",
    "unseen.routing_agreement": "share of seen clients whom a newcomer's probe would place in their own cluster, each "
    "client's own direction left out of it",
    "unseen.routing_agreement_with_own": "the same with the client's own direction (or training) in its cluster",
}
OTHER_TASKS = ("macro_f1", "global.macro_f1", "global.micro_f1", "rouge1", "rougeL", "exact_match", "perplexity")
"""Columns of runs that are not scored by accuracy alone."""
OF_COMPARISON = {
    "method": "the method, by its name in the comparison",
    "number": "a name of result.json; then `difference from …`: its mean, interval, p and verdict",
    "mean": "mean over seeds",
    "sd": "standard deviation over n seeds, √(Σ(x − x̄)² / (n − 1))",
    "seed 0": "the number of that seed's run; a column for each seed",
    "difference from …: p": "p of the paired t-test on means of seeds",
    "difference from …: p_holm": "the same, Holm-corrected over all pairs",
    "difference from …: p_same": "p of two one-sided tests that the difference is within ±.01",
}
"""Columns of comparison.csv, and the less plain of its rows."""
COMPARED = {
    "difference [95 %]": "the method's mean minus the other's, over seeds, with Student's 95 % interval",
    "p (Holm)": "p of the paired t-test on means of seeds, Holm-corrected",
    "verdict": "better, worse, no difference (within ±.01), or undecided with the seeds that would decide",
    "MB": "MB up plus MB down",
}


def meaning(name: str) -> str:
    """Return what a column or a number of the summary is; KeyError where nobody has said it."""
    if name in MEANING:
        return MEANING[name]
    if name.startswith("stage."):
        _, stage, statistic = name.split(".")
        if statistic == "clients":
            return f"clients that were evaluated after the last round of the stage {stage} (`--evaluate-clients`)"
        return f"{FEW[statistic]}; {MODELS['global']}, after the last round of the stage {stage}"
    model = max((model for model in MODELS if name.startswith(f"{model}.")), key=len)
    rest = name.removeprefix(f"{model}.")
    if rest == "clients":
        return f"clients that were evaluated so: {MODELS[model]}"
    special = {"best.mean": "best mean of any round", "best.round": "round of the best mean"}
    special |= {"best.clients": "clients that were evaluated in that round (`--evaluate-clients`)"}
    special |= {"last.mean": "mean of the last evaluated round"}
    metric, _, statistic = rest.rpartition(".")
    said = special.get(rest) or f"{f'{metric}: ' if metric else ''}{FEW[statistic]}"
    return f"{said}; {MODELS[model]}"


def columns() -> str:
    """Return tables of all columns that a small private run with simulated devices writes, and of a comparison's."""
    from fedsim.report.comparison import SHOWN, SUMS

    parts = []
    with tempfile.TemporaryDirectory() as folder:
        summary = small_run(Path(folder) / "run")
        for name in ("metrics.csv", "clients.csv", "costs.csv", "timing.csv"):
            with (Path(folder) / "run" / name).open() as file:
                header = next(csv.reader(file))
            parts.append(f"## {name}\n\n" + table(("column", "what it is"), [(f"`{c}`", meaning(c)) for c in header]))
    rows = [(f"`{name}`", meaning(name)) for name in OTHER_TASKS]
    parts.append("## Of other tasks, in clients.csv and metrics.csv\n\n" + table(("column", "what it is"), rows))
    rows = [(f"`{name}`", said) for name, said in OF_COMPARISON.items()]
    parts.append("## comparison.csv\n\n" + table(("column", "what it is"), rows))
    rows = [(f"`{name}`", meaning(name)) for name in summary]
    parts.append("## result.json\n\n" + table(("name", "what it is"), rows))
    names = {**SHOWN, **SUMS}
    shown = [(column, f"`{key}`, mean over seeds: {meaning(key)}") for column, key in names.items()]
    parts.append("## Comparison\n\n" + table(("column", "what it is"), [*shown, *COMPARED.items()]))
    return "\n".join(parts)


def small_run(folder: Path) -> list[str]:
    """Run HiLoRA on random numbers, and return the names of the summary."""
    import json

    import torch
    from torch import nn

    import fedsim
    from fedsim.costs.devices import DeviceProfiles
    from fedsim.parts.privacy import Privacy

    torch.manual_seed(0)
    inputs = torch.randn(240, 8)
    owner = torch.arange(240) % 12
    targets = (inputs[:, 0] * (1 - 2 * (owner % 2)) > 0).long()
    data = fedsim.from_tensors(inputs, targets, owner, unseen=[10, 11])
    data = dataclasses.replace(data, domains=tuple(k % 2 for k in range(12)), domain_names=("even", "odd"))
    net = nn.Sequential()
    net.add_module("query", nn.Linear(8, 8))
    net.add_module("classifier", nn.Linear(8, 2))
    fedsim.simulate(
        method=fedsim.HiLoRA(lora_rank=2),
        backbone=net,
        sites="query",
        data=data,
        rounds=4,
        evaluate_clients=8,
        out=folder,
        devices_profile=DeviceProfiles(gflops=1, mbps_down=10, mbps_up=10),
        privacy=Privacy(clip=1.0, noise_multiplier=0.01, local=True),
        local=fedsim.LocalTraining(sample_clip=1.0, sample_noise=1.0),
    )
    return list(json.loads((folder / "result.json").read_text()))


# data sets, Python, figures


def data_sets() -> str:
    """Return where each known set is found, and what its columns are called."""
    from fedsim.data.instructions.registry import INSTRUCTION_SETS
    from fedsim.data.sources.registry import IMAGE_SETS, LEFT_OUT, TEXT_SETS

    rows: list[tuple[object, ...]] = []
    for option, sets in (("dataset", IMAGE_SETS), ("task", TEXT_SETS), ("dataset", INSTRUCTION_SETS)):
        for name, entry in sets.items():
            hub = " ".join(filter(None, (entry.get("hub", "a folder"), entry.get("subset"))))
            named = entry if sets is INSTRUCTION_SETS else {"label_column": LEFT_OUT["label_column"], **entry}
            columns = "; ".join(
                f"{key.partition('_column')[0]} {_words(named[key])}" for key in named if "_column" in key
            )
            rows.append((f"`--data.{option} {name}`", hub, columns, entry.get("test_split", "held out")))
    return table(("option", "on the hub", "columns", "test split"), rows)


def _words(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else ", ".join(value)


def python() -> str:
    """Return a directive for each public name, which mkdocstrings fills in."""
    import fedsim

    methods = set(importlib.import_module("fedsim.methods").__all__)
    return "\n".join(f"::: fedsim.{name}\n" for name in fedsim.__all__ if name not in methods)


def gallery() -> str:
    """Return the pictures of docs/images that are figures, each with what it shows."""
    return "\n".join(f"![{says}](images/{name})\n\n{says}\n" for name, says in FIGURES.items())


GENERATED = {
    "methods": methods,
    "options": options,
    "columns": columns,
    "data sets": data_sets,
    "partitions": lambda: options(("Clients by skew", "Clients by domain")).replace("## ", "### "),
    "python": python,
    "gallery": gallery,
}


def filled(text: str) -> str:
    """Return a page with what the code knows in its places."""
    return re.sub(r"<!-- generated: ([a-z ]+) -->\n", lambda found: GENERATED[found[1]](), text)


# tutorials


def cells(text: str) -> Iterator[tuple[bool, str]]:
    """Yield (is Markdown, text) of each cell of a file in percent format."""
    for part in re.split(r"(?m)^# %%", text)[1:]:
        kind, _, body = part.partition("\n")
        is_text = "[markdown]" in kind
        yield is_text, re.sub(r"(?m)^# ?", "", body).strip() if is_text else body.strip()


@cache
def state_of_fedsim() -> str:
    """Return the SHA-256 of all of fedsim's source."""
    files = sorted((ROOT / "fedsim").rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def outputs_of(path: Path) -> Path:
    """Return where a tutorial is kept with its outputs, once it has run with fedsim as it is."""
    key = hashlib.sha256(path.read_bytes() + state_of_fedsim().encode()).hexdigest()[:16]
    return ROOT / "build" / "tutorials" / f"{path.stem}-{key}.ipynb"


def executed(path: Path) -> Any:
    """Return a tutorial as a notebook with its outputs; raises nbclient's CellExecutionError where a cell fails."""
    import jupytext
    from nbclient import NotebookClient

    kept = outputs_of(path)
    if kept.exists():
        return jupytext.read(kept)
    notebook = jupytext.read(path, fmt="py:percent")
    with tempfile.TemporaryDirectory() as folder:
        place = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=1800, startup_timeout=600, kernel_name="python3", resources=place).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    kept.parent.mkdir(parents=True, exist_ok=True)
    for old in kept.parent.glob(f"{path.stem}-*.ipynb"):
        old.unlink()
    jupytext.write(notebook, kept)
    return notebook


def with_outputs(notebook: Any, to: Path, stem: str) -> Any:
    """Return a notebook for a page: behind each cell a further one with what it printed; pictures are files in `to`."""
    from nbformat.v4 import new_markdown_cell

    page, pictures = notebook.copy(), 0
    page.cells = []
    for cell in notebook.cells:
        page.cells.append(cell)
        printed, drawn = "", []
        for output in cell.get("outputs", ()):
            data = output.get("data", {"text/plain": output.get("text", "")})
            if svg := data.get("image/svg+xml"):
                pictures += 1
                (to / f"{stem}-{pictures}.svg").write_text(svg)
                drawn.append(f"![{output.metadata['image/svg+xml']['alt']}]({stem}-{pictures}.svg)")
            else:
                printed += data["text/plain"].rstrip("\n") + "\n"
        fence = [f"```text\n{printed.strip(chr(10))}\n```"] if printed.strip() else []
        if fence or drawn:
            page.cells.append(new_markdown_cell("\n\n".join([*fence, *drawn])))
    return page


def tutorials(to: Path, outputs: bool = True) -> None:
    """Write the tutorials' pages and notebooks."""
    import jupytext

    paths = sorted((DOCS / "tutorials").glob("[0-9]*.py"))
    with ThreadPoolExecutor(2) as two:
        read = executed if outputs else (lambda path: jupytext.read(path, fmt="py:percent"))
        notebooks = list(two.map(read, paths))
    for path, notebook in zip(paths, notebooks, strict=True):
        page = jupytext.writes(with_outputs(notebook, to, path.stem), fmt="md")
        page = re.sub(r"\A---\n.*?\n---\n+", "", page, flags=re.DOTALL)  # what jupytext says of itself
        source = f"*This page is a file that runs: `python docs/tutorials/{path.name}`.*"
        (to / f"{path.stem}.md").write_text(page.replace("\n", f"\n\n{source}\n", 1))
        if path.stem in NOTEBOOKS:
            jupytext.write(notebook, to / f"{path.stem}.ipynb")


# the glossary


def terms() -> dict[str, str]:
    """Return each term of the glossary, in lower case, and its anchor."""
    names = re.findall(r"(?m)^## (.+)$", (DOCS / "glossary.md").read_text())
    return {name.lower(): re.sub(r"[^\w]+", "-", name.lower()).strip("-") for name in names}


def linked(text: str, glossary: str) -> str:
    """Return a page whose first use of each term, outside headings, code, tables and links, goes to the glossary."""
    left = terms()
    kept = re.compile(
        r"(```.*?```|^#.*?$|^\|.*?$|^    .*?$|`[^`]*`|!?\[[^\]]*\]\([^)]*\)|<[^>]*>|\$[^$]*\$)", re.S | re.M
    )
    pieces = kept.split(text)
    for term in sorted(left, key=len, reverse=True):
        forms = f"{re.escape(term[:-1])}(?:y|ies)" if term.endswith("y") else f"{re.escape(term)}s?"
        word = re.compile(rf"(?<![\w/-])({forms})(?![\w/-])", re.I)
        for index in range(0, len(pieces), 2):
            if found := word.search(pieces[index]):
                link = f"[{found[1]}]({glossary}#{left[term]})"
                pieces[index : index + 1] = [pieces[index][: found.start()], link, pieces[index][found.end() :]]
                break
    return "".join(pieces)


def main(to: Path, outputs: bool = True) -> None:
    """Write all pages into an empty folder; without `outputs` no tutorial runs, and pages show their code alone."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(DOCS, to, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for name, source in REPOSITORY_PAGES.items():
        shutil.copy(ROOT / source, to / name)
    tutorials(to / "tutorials", outputs)
    for path in sorted(to.rglob("*.md")):
        text = filled(path.read_text())
        if path.name not in NOT_LINKED:
            text = linked(text, "../" * (len(path.relative_to(to).parts) - 1) + "glossary.md")
        path.write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--without-outputs" not in sys.argv[2:])
