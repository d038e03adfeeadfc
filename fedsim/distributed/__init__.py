"""The processes of a run: start, exchange, signals, who trains whom. All collectives, nothing of what is trained."""
