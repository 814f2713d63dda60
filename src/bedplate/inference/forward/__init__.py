"""One forward pass of a batch, and the caches that it reads and writes."""
