"""The server's half of a round: cohort, workload, hand-out, merge. Nothing of how clients are trained."""
