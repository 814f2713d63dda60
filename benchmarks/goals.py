"""What is to be reached against the peers, by kind of processor: the ratios that a benchmark's rows are held to."""

from __future__ import annotations

from collections.abc import Mapping

WORK = (
    "prefill",
    "prefill_transformers",
    "decode",
    "batch16",
    "batch16_transformers",
    "lora16",
    "lora16_base",
    "constrained",
    "tune",
)
GOALS: Mapping[str, Mapping[str, float | None]] = {
    "avx512_bf16": dict(zip(WORK, (6.0, 2.0, 2.0, 4.0, 4.0, 10.0, 0.65, 0.9, 3.0), strict=True)),
    "avx512_vnni": dict(zip(WORK, (4.0, 1.3, 1.5, 3.0, 3.0, 6.0, 0.6, 0.9, 3.0), strict=True)),
    "avx2": dict(zip(WORK, (2.0, None, 1.2, 2.0, 2.0, 3.0, 0.5, 0.9, 2.5), strict=True)),
}
"""By the level of our kernel. Levels that are not here are held to none."""


OF_BASES: Mapping[str, Mapping[str, float | None]] = {
    "gemma3-270m": {"prefill": 3.0, "decode": 1.3, "batch16": 3.0},
}
"""Where a base has goals of its own against llama.cpp, at every level; what is not here is held to none."""

EXPERTS: Mapping[str, float] = {"decode": 1.2, "batch16": 2.0}
"""A mixture's, against llama.cpp, at every level."""

FIRST_TOKEN: Mapping[str, float] = {"smollm2-135m": 2.0}
"""Seconds from the start of `bedplate generate` on a base never seen before to its first token, at every level."""


def of_base(level: str, base: str) -> Mapping[str, float | None]:
    """The goals of a base: of the one that the levels' goals are for, unless it has its own."""
    return of(level) if base not in OF_BASES else dict.fromkeys(WORK) | OF_BASES[base]


def of(level: str) -> Mapping[str, float | None]:
    """The goals of a level, under each name that a kernel gives it (`avx512_vnni_bf16`, `avx2_vnni`); `amx` has none
    of its own yet."""
    if level.startswith(("avx512", "amx")):
        return GOALS["avx512_bf16" if level in ("avx512", "amx") or "bf16" in level else "avx512_vnni"]
    if level.startswith("avx2"):
        return GOALS["avx2"]
    return dict.fromkeys(WORK)
