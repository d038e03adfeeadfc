"""Data sets as index tables over resident tensors, and the ways to split them over clients."""
