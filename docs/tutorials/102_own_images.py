# %% [markdown]
# # 102 · Your own images
#
# You train on a folder of images as it lies on your disk. To have such a folder, this page first writes one: digits as
# JPEG files, in a folder for each class. Skip that part if you have your own.

# %%
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

import fedsim

pixels, labels = load_digits(return_X_y=True)
for number, (image, label) in enumerate(zip(pixels[:420], labels[:420], strict=True)):
    folder = Path("digits") / f"digit {label}"
    folder.mkdir(parents=True, exist_ok=True)
    grey = Image.fromarray((image.reshape(8, 8) * 15.9).astype("uint8"))
    grey.resize((32, 32)).save(folder / f"{number}.jpg")
print(sorted(path.name for path in Path("digits").iterdir())[:3])

# %% [markdown]
# ## Find the images
#
# `ImageOptions` finds them. It needs the path and no more. `digits/<class>/*.jpg` has no test images, so a fifth of
# each class is held out, and the notes say so. Other layouts are in [your own data](../guide/own_data.md): by split, by
# domain, or a table.

# %%
from fedsim.data.images.images import ImageOptions, find_images

images = ImageOptions(path=Path("digits"), image_size=32)
found = find_images(images)
print(found.n_classes, "classes;", "training and test images:", found.sizes, dict(found.notes))

# %% [markdown]
# ## Make clients of them
#
# `Clients` puts a split behind a source. `Skew` gives clients unequal shares of the classes: `gl-dir` draws each
# class's shares from a Dirichlet distribution with concentration α. A small α makes clients differ more. All ways are
# in [partitions](../reference/partitions.md).

# %%
from fedsim.data.protocols import Clients, Skew
from fedsim.models.backbones import TimmModel
from fedsim.randomness import numpy_generator

model = TimmModel(name="vit_tiny_patch16_224", pretrained=False)  # random weights: no download on this page
clients = Clients(source=images, split=Skew(n_clients=5, alpha=1.0)).federations(model)
data = clients.federation(numpy_generator(0, "data"))
print("training images of each client:", [data.train_size(client) for client in range(data.n_clients)])

# %% [markdown]
# ## Train
#
# The backbone is any ViT or Swin of timm. This page starts from random weights, so do not expect it to learn much.
# Leave out `pretrained=False` to start from pre-trained ones, which are downloaded once.

# %%
result = fedsim.simulate(
    method=fedsim.FedIT(lora_rank=4),
    backbone=model.backbone(clients),
    data=data,
    local=fedsim.LocalTraining(epochs=1, batch_size=16, learning_rate=3e-3),
    rounds=2,
    out="runs/images",
)
print(f"accuracy {result.summary['global.mean']:.3f}, by chance 0.1")

# %% [markdown]
# ## The same from the command line
#
# Recipes for images take `--data.path`. A folder by class needs nothing else; say how many clients you want:
#
# ```bash
# python recipes/hilora_cifar100.py --data.path digits --data.n-clients 5 --dry-run
# fabric run recipes/hilora_cifar100.py --devices 8 --data.path digits --data.n-clients 5
# ```
