"""The mathematics: pure functions of tensors, each naming its equation. No processes, no files, no randomness of its own."""
