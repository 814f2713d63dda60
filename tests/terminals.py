"""What a command shows on a terminal."""

from __future__ import annotations

import os


def shown_on(ours: int) -> str:
    """Everything that comes to our end of a pseudo-terminal until nobody holds the other one; ours is closed then."""
    shown = b""
    while True:
        try:
            chunk = os.read(ours, 1 << 16)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not chunk:
            break
        shown += chunk
    os.close(ours)
    return shown.decode("utf-8", "replace")
