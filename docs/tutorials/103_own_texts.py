# %% [markdown]
# # 103 · Your own texts
#
# You train a text classifier on a table with two columns, a text and a label. This page writes a small table first.
# Skip that part if you have your own.

# %%
import csv
import random
from pathlib import Path

import fedsim

WORDS = {
    "weather": ["rain", "sun", "wind", "snow", "cloud", "storm"],
    "music": ["song", "drum", "choir", "flute", "chord", "tune"],
}
random.seed(0)
with Path("notes.csv").open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["text", "topic"])
    for _ in range(400):
        topic = random.choice(list(WORDS))
        writer.writerow([" ".join(random.choices(WORDS[topic] + ["the", "a", "loud", "grey"], k=8)), topic])

# %% [markdown]
# ## A backbone and its tokenizer
#
# Any sequence classifier of transformers takes adapters: `TextModel(name="FacebookAI/roberta-base")` downloads one. So
# that this page needs no network, it makes a tiny BERT in a folder and starts from random weights.

# %%
from transformers import BertConfig, BertTokenizerFast

vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "loud", "grey", *sum(WORDS.values(), [])]
Path("tiny-bert").mkdir(exist_ok=True)
Path("tiny-bert/vocab.txt").write_text("\n".join(vocabulary))
BertTokenizerFast("tiny-bert/vocab.txt").save_pretrained("tiny-bert")
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
BertConfig(vocab_size=len(vocabulary), **sizes).save_pretrained("tiny-bert")

# %% [markdown]
# ## Find the texts and make clients of them
#
# Of a table of two columns, one called `text`, the other one holds the labels. Where your columns have other names,
# give `text_columns` and `label_column`. The table has no test split, so a fifth of each class is held out. Texts are
# tokenised once and kept in the cache folder.

# %%
from fedsim.data.protocols import Clients, Skew
from fedsim.data.texts.texts import TextOptions
from fedsim.models.text import TextModel
from fedsim.randomness import numpy_generator

model = TextModel(name="tiny-bert", pretrained=False)
texts = TextOptions(path=Path("notes.csv"), max_length=16)
clients = Clients(source=texts, split=Skew(n_clients=6, alpha=1.0)).federations(model)
data = clients.federation(numpy_generator(0, "data"))
print(data.class_names, dict(data.notes))

# %% [markdown]
# ## Train

# %%
result = fedsim.simulate(
    method=fedsim.FedIT(lora_rank=4),
    backbone=model.backbone(clients),
    data=data,
    local=fedsim.LocalTraining(epochs=2, batch_size=16, learning_rate=1e-2),
    rounds=4,
    out="runs/texts",
)
print(f"accuracy {result.summary['global.mean']:.3f}, by chance 0.5")

# %% [markdown]
# ## The same from the command line
#
# The recipe is for QNLI, so say that the data are your own:
#
# ```bash
# fabric run recipes/ilora_text.py --devices 3 --data.task own --data.path notes.csv --data.n-clients 6
# ```
#
# To train language models that write answers, see [language models](../guide/language_models.md).
