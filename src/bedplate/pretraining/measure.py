"""The one number that a held-out text is followed by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def target_of(score: Mapping[str, Any]) -> str:
    """What its losses are counted by: token, or pair."""
    return score.get("target", "token")


def measure_of(score: Mapping[str, Any]) -> tuple[str, float]:
    """Bits a byte; where there are none, since no text is said, nats a target."""
    bits = score["bits_per_byte"]
    return ("bits a byte", bits) if bits is not None else (f"nats a {target_of(score)}", score["nats_per_token"])
