"""The forward pass of a batch (torch or native kernel), the caches that it reads and writes, and the adapters that it
applies."""
