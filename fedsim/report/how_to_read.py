"""How each figure of a page is read, in a sentence or two for those who see it for the first time."""

HIGHER, LOWER = "higher is better", "lower is better"
"""What axes say of their numbers."""
HOW = {
    "differences": (
        "A mark is the mean of one method minus that of the other, its line the 95 % interval. Right of zero the "
        "first one is better. Where the line crosses zero, these runs do not tell which one is."
    ),
    "several-mean": (
        "A line for each method: the mean over clients of the model that they hold after aggregation. With several "
        "seeds, the band is their range."
    ),
    "several-p10": ("A line for each method: nine of ten clients are better served than this."),
    "several-personal": (
        "A line for each method: the mean over clients just after their own training, before the server merges. "
        "Methods that share much fall back from here when it does."
    ),
    "several-loss": (
        "A line for each method: the mean over clients of their training loss. A low loss beside a low accuracy: "
        "clients learn their own samples by heart."
    ),
    "several-bytes": (
        "The mean accuracy against what was sent until then: higher and further left is better. A dashed level "
        "line is a method that sends nothing."
    ),
    "several-time": ("The mean accuracy against simulated time: higher and further left is better."),
    "curve-by": ("The mean over clients against what was spent until then: higher and further left is better."),
    "curve": (
        "The line is the mean over clients. The darker band goes down to the 10th percentile, the paler one to the "
        "worst client. Dashed: just after the clients' own training. An upright line begins a stage of the method."
    ),
    "loss": ("The mean over clients of their training loss. It may rise where a stage begins to train something new."),
    "clients": ("One place for each client, seen ones first, sorted. A thin line joins two models of the same client."),
    "participation": (
        "Clients sorted by how many of their updates the server has taken. A steep line: some clients shape the model "
        "more than others, since they are faster or more often there."
    ),
    "tiers": ("What seen clients held when a stage had ended. Each stage of the method adds a tier to those before."),
    "clusters": ("Numbers are clients. One number in each row and column means that the method found the domains."),
    "similarity": (
        "Bright is alike. Clients are sorted by cluster: bright squares along the diagonal are clusters that hold "
        "together."
    ),
    "bytes": ("What all clients sent (up) and received (down) in a round."),
    "epsilon": (
        "What one client's data can have changed so far: no outcome is more than e^ε times as likely with them as "
        "without, but for δ. It grows with every round; below 1 is strong, above 10 says little."
    ),
    "sample_epsilon": (
        "What one training sample can have changed so far, of the client where that is most: no outcome is more than "
        "e^ε times as likely with it as without, or with another one, but for δ."
    ),
    "seconds": ("Real time of each round on the machine that ran it."),
    "utilisation": (
        "The busiest worker's load over the mean load of workers. 1 is even; 2 means that half of the time was waiting."
    ),
    "run-split": (
        "Above, samples of each client; below, a column is a client and a row a class: the darker, the more "
        "training samples. Unseen clients are marked."
    ),
    "run-tree": (
        "Clients that join low in the tree are alike. c* is the number of groups at a depth, where the silhouette "
        "φ of a cut is largest; one group is kept where none exceeds τ. λ is how much a client weighs its own "
        "group against the mean of all outsiders: 1 is its group alone."
    ),
    "run-allocations": (
        "Dark is often: which layers each client trained, and how many of a round's clients trained each. Fed- "
        "HeLLo's stages are gd-hla (a fixed pattern of layers by capability), rgd-hla (layers drawn anew by a "
        "pattern) and fim-hla (drawn by Fisher scores)."
    ),
    "run-fisher": (
        "How much the loss depends on each layer, as a share of all. Fed-HeLLo draws layers with a high score more "
        "often."
    ),
}
"""By how a figure's name begins."""


def how_to_read(name: str) -> str:
    """Return how the figure of this name is read; "" of one that nobody has described."""
    return HOW[max(found, key=len)] if (found := [start for start in HOW if name.startswith(start)]) else ""
