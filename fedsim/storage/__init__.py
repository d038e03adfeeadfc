"""What is written and read again: run folders, caches, tensors as bytes, curves. Nothing of how it came to be."""
