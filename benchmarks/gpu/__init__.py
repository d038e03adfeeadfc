"""The sections of gpu_check.py: what is measured of fedsim on a GPU, with random weights and random samples."""
