"""Training on several processes with torch.distributed: which ranks do what, and how models are given out to them."""

from bedplate.training.parallel.apply import parallelised, whole_state
from bedplate.training.parallel.launch import launched
from bedplate.training.parallel.mesh import ParallelConfig

__all__ = ["ParallelConfig", "launched", "parallelised", "whole_state"]
