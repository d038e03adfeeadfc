"""The embedded instructions: four toy tasks on short words, in bytes, without any file."""

from dataclasses import dataclass

import numpy as np

from fedsim.data.federated import FederatedData
from fedsim.data.instructions.prompts import ByteTokenizer
from fedsim.data.instructions.samples import Texts, Wording, federation
from fedsim.data.proxy import with_drawn_proxy

TASKS = ("repeat", "reverse", "first letter", "upper case")
ANSWERS = {
    "repeat": lambda word: word,
    "reverse": lambda word: word[::-1],
    "first letter": lambda word: word[0],
    "upper case": lambda word: word.upper(),
}
CONSONANTS, VOWELS = "bdklmnprst", "aeiou"


@dataclass(frozen=True, kw_only=True)
class ToyInstructions:
    """How many clients have how many words."""

    clients_per_task: int = 2
    """Clients of each of the four tasks."""
    train_per_client: int = 40
    """Training words of a client."""
    test_per_client: int = 8
    """Test words of a client."""
    proxy_samples: int = 0
    """Training words that the server keeps, at random."""
    tokenizer = ByteTokenizer()

    def federation(self, rng: np.random.Generator) -> FederatedData:
        """Return the data of all clients; see `toy_instructions`."""
        return with_drawn_proxy(toy_instructions(self, rng), self.proxy_samples, rng)


def toy_instructions(options: ToyInstructions, rng: np.random.Generator) -> FederatedData:
    """Return the federation; a client does one thing to its words, and no two words of it are equal."""
    words = [a + b + c + d for a in CONSONANTS for b in VOWELS for c in CONSONANTS for d in VOWELS]
    n_words = options.train_per_client + options.test_per_client
    domains = tuple(np.repeat(np.arange(len(TASKS)), options.clients_per_task).tolist())
    chosen = [word for _ in domains for word in rng.choice(words, n_words, replace=False)]
    task = np.repeat(domains, n_words)
    texts = Texts(
        instructions=[TASKS[kind] for kind in task],
        inputs=chosen,
        answers=[ANSWERS[TASKS[kind]](word) for kind, word in zip(task, chosen, strict=True)],
        task=task,
        task_names=TASKS,
        client=None,
        is_test=None,
        n_without_answer=0,
    )
    rows = np.arange(len(task)).reshape(len(domains), n_words)
    train, test = rows[:, : options.train_per_client], rows[:, options.train_per_client :]
    wording = Wording(template="plain", max_length=64, max_new_tokens=8)
    return federation(wording, texts, ByteTokenizer(), list(train), list(test), domains=domains)
