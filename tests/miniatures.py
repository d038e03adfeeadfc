"""Data sets in miniature, whose images have the colour of their class."""

from pathlib import Path

import datasets
import pyarrow.parquet as pq
import torch
from PIL import Image

from fedsim.data.sources.labelled import Labelled

COLOURS = {"bird": (255, 0, 0), "tea_pot": (0, 255, 0), "zebra": (0, 0, 255)}


def picture(class_name: str, mode: str = "RGB") -> Image.Image:
    return Image.new("RGB", (20, 10), COLOURS[class_name]).convert(mode)


def write_lists(folder: Path, train: dict[str, int], domains: tuple[str, ...] = ("clipart", "sketch")) -> None:
    """DomainNet in miniature: `train` images of each class in each domain, two for testing."""
    for domain in domains:
        for split, counts in (("train", train), ("test", dict.fromkeys(train, 2))):
            lines = []
            for label, (name, count) in enumerate(counts.items()):
                for number in range(count):
                    relative = f"{domain}/{name}/{domain}_{label:03d}_{split}_{number:06d}.jpg"
                    (folder / relative).parent.mkdir(parents=True, exist_ok=True)
                    picture(name).save(folder / relative, quality=95)
                    lines.append(f"{relative} {label}\n")
            (folder / f"{domain}_{split}.txt").write_text("".join(lines))


def table(labels: list[int] | list[str], **columns: object) -> datasets.Dataset:
    names = list(COLOURS)
    images = [picture(label if isinstance(label, str) else names[label % 3]) for label in labels]
    features = datasets.Features({"image": datasets.Image()})
    features["label"] = datasets.Value("string") if isinstance(labels[0], str) else datasets.ClassLabel(names=names)
    for name, values in columns.items():
        features[name] = datasets.Value("string" if isinstance(values[0], str) else "int64")
    return datasets.Dataset.from_dict({"image": images, "label": labels, **columns}, features=features)


def write_parquet(path: Path, labels: list[int] | list[str], **columns: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    embedded = table(labels, **columns).with_format("arrow").map(datasets.table.embed_table_storage, batched=True)
    pq.write_table(embedded[:], path)


def colours(images: torch.Tensor) -> list[str]:
    """The class that each image's colour stands for."""
    return [list(COLOURS)[int(image.float().mean((1, 2)).argmax())] for image in images]


def names(split: Labelled) -> list[str]:
    return [split.class_names[target] for target in split.targets]
