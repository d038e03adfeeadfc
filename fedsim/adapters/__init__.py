"""What is trained: where adapters sit, who holds which copy, and how they enter a linear map."""
