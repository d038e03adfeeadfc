"""Who gets which sample. Nothing of what a sample is."""
