"""Training on several processes with torch.distributed: which ranks do what, and how models are given out to them."""
