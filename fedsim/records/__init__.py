"""What a run folder says of a run, written and read again: rounds, the model, where a resumed run starts."""
