"""The number of compute threads: the cores that this process may use, unless the environment sets another."""

from __future__ import annotations

import os

import torch

from bedplate.core.processor import processor

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""What a user sets to say how many; torch reads them when it starts."""


def use_cores() -> None:
    """Sets torch's threads to this process's cores (torch itself counts the machine's, whatever a container's quota or
    an affinity mask leaves of them). Only for processes that are ours: the command line's."""
    if not threads_are_set():
        torch.set_num_threads(processor().threads)


def engine_threads() -> int:
    """The native kernel's default: as many as torch's, and no more than there are cores unless that was asked for."""
    threads = torch.get_num_threads()
    return threads if threads_are_set() else min(threads, processor().threads)


def threads_are_set() -> bool:
    """Whether the environment says how many threads there are to be."""
    return any(os.environ.get(name, "").strip() for name in _THREAD_VARIABLES)
