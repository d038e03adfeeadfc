"""What a client's training costs: memory, FLOPs, seconds on simulated devices. Nothing measured on this machine."""
