"""Image classification: files and arrays read, decoded, transformed. Nothing of who gets which image."""
