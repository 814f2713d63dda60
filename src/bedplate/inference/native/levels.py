"""The instruction sets that the kernel is built for, and what a processor must offer to run them. One source, compiled
once for each level that is wanted; `detection` chooses among them at run time."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass

TILES = ("amx-tile", "amx-int8", "amx-bf16")
"""Features that take the system's permission besides the processor's support (`tiles_refused` in library.py)."""
_X86 = (
    *("fma", "f16c", "avx2", "avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512vnni", "avxvnni", "avx512bf16"),
    *TILES,
)
_ARM = ("asimddp", "i8mm")
FEATURES: Mapping[str, tuple[str, ...]] = {"x86_64": _X86, "aarch64": _ARM}
"""Names of the bits that detect.cpp reports, by architecture."""

BASELINE: Mapping[str, tuple[str, ...]] = {"x86_64": ("-march=x86-64",), "aarch64": ("-march=armv8-a",)}
"""Flags that keep a compiler to what every processor of an architecture runs, whatever its own default is."""


@dataclass(frozen=True)
class Level:
    """needs: features (see FEATURES) of `machine`; None: any. flags: for the compiler, no more than what `needs` allows
    (so Armv8.0, not the later version that brought them). defines: see simd.h. chosen: whether it is taken without
    being asked for. What nobody could run yet is not."""

    name: str
    machine: str | None = None
    needs: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    defines: tuple[str, ...] = ()
    chosen: bool = True


_AVX2, _AVX2_FLAGS = ("fma", "f16c", "avx2"), ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512vnni")
_AVX512_FLAGS = (*_AVX2_FLAGS, *(f"-m{name}" for name in _AVX512[3:]))
_BF16, _BF16_FLAGS = (*_AVX512, "avx512bf16"), (*_AVX512_FLAGS, "-mavx512bf16")
_AMX_FLAGS = (*_BF16_FLAGS, *(f"-m{name}" for name in TILES))

LEVELS: Mapping[str, Level] = {
    level.name: level
    for level in (
        Level("amx", "x86_64", (*_BF16, *TILES), _AMX_FLAGS, ("AVX512", "BF16", "TILES", "AMX")),
        Level("avx512_bf16", "x86_64", _BF16, _BF16_FLAGS, ("AVX512", "BF16")),
        Level("avx512_vnni", "x86_64", _AVX512, _AVX512_FLAGS, ("AVX512",)),
        Level("avx2_vnni", "x86_64", (*_AVX2, "avxvnni"), (*_AVX2_FLAGS, "-mavxvnni"), ("AVX2", "VNNI"), chosen=False),
        Level("avx2", "x86_64", _AVX2, _AVX2_FLAGS, ("AVX2",)),
        Level("neon_i8mm", "aarch64", ("asimddp", "i8mm"), ("-march=armv8-a+dotprod+i8mm",), ("NEON", "I8MM")),
        Level("neon_dotprod", "aarch64", ("asimddp",), ("-march=armv8-a+dotprod",), ("NEON",)),
        Level("plain"),
    )
}
"""Best first."""


def machine() -> str:
    """This process's architecture, as in FEATURES."""
    name = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def features_of(bits: int, arch: str) -> frozenset[str]:
    """The names of what detect.cpp reports on a processor of an architecture."""
    return frozenset(name for i, name in enumerate(FEATURES.get(arch, ())) if bits >> i & 1)


def levels_of(arch: str) -> tuple[Level, ...]:
    return tuple(level for level in LEVELS.values() if level.machine in (None, arch))


def runs(cpu_features: frozenset[str], arch: str) -> tuple[str, ...]:
    """The levels that a processor with these features runs, best first."""
    return tuple(level.name for level in levels_of(arch) if cpu_features.issuperset(level.needs))
