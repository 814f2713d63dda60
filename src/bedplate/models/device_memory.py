"""How much memory is free where a model computes."""

from __future__ import annotations

import torch

from bedplate.core.memory import free_bytes


def free_on(device: torch.device) -> int | None:
    """Bytes that may still be taken there, or None where that is not known. What torch holds of a CUDA device without
    using it is free."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    return free_bytes() if device.type == "cpu" else None
