"""The mathematics: pure functions of tensors, each naming its equation. No processes, files or hidden randomness."""
