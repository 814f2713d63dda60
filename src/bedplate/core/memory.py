"""How much memory this machine has left."""

from __future__ import annotations

from pathlib import Path


def free_bytes() -> int | None:
    """Memory that may still be taken, or None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None
