"""The one number that a held-out text is followed by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def target_of(held: Mapping[str, Any]) -> str:
    """What its losses are counted by: token, or pair."""
    return held.get("target", "token")


def measure_of(held: Mapping[str, Any]) -> tuple[str, float]:
    """Bits a byte; where there are none, since no text is said, nats a target."""
    bits = held["bits_per_byte"]
    return ("bits a byte", bits) if bits is not None else (f"nats a {target_of(held)}", held["nats_per_token"])
