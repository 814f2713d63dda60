"""Lower kinds of processor, played on a higher one: what each library is told not to use. No heavy imports.

Ours by BEDPLATE_KERNEL_LEVEL, torch by ATEN_CPU_CAPABILITY, its oneDNN by ONEDNN_MAX_CPU_ISA, its MKL by
MKL_ENABLE_INSTRUCTIONS; llama.cpp by a build of its own (`make peers`), for it decides when it is compiled.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VARIABLES = ("BEDPLATE_KERNEL_LEVEL", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
MASKS: Mapping[str, Mapping[str, str]] = {
    "avx512_bf16": dict(zip(VARIABLES, ("avx512_bf16", "avx512", "AVX512_CORE_BF16", "AVX512_E2"), strict=True)),
    "avx512_vnni": dict(zip(VARIABLES, ("avx512_vnni", "avx512", "AVX512_CORE_VNNI", "AVX512_E1"), strict=True)),
    "avx2": dict(zip(VARIABLES, ("avx2", "avx2", "AVX2", "AVX2"), strict=True)),
}
"""By the name of the level that is left: the variables that leave it."""
BEYOND: Mapping[str, frozenset[str]] = {
    "avx512_bf16": frozenset({"AMX_INT8"}),
    "avx512_vnni": frozenset({"AVX512_BF16", "AMX_INT8"}),
    "avx2": frozenset({"AVX512", "AVX512_VNNI", "AVX512_VBMI", "AVX512_BF16", "AVX_VNNI", "AMX_INT8"}),
}
"""What llama.cpp, in its own names, must not have been compiled with to play that level."""
HAS: Mapping[str, str] = {
    "avx2": "AVX2",
    "avx512f": "AVX512",
    "avx512_vnni": "AVX512_VNNI",
    "avx512_bf16": "AVX512_BF16",
}
"""The system's names of instructions, and llama.cpp's."""
CHOSEN = "BEDPLATE_BENCH_MASK"


def chosen() -> str | None:
    """The mask that this process wears."""
    return os.environ.get(CHOSEN) or None


def wear(name: str | None) -> None:
    """Starts this script again with the mask's variables, which libraries read when they are loaded; returns where it
    is worn already, or where there is none."""
    if name is None or chosen() == name:
        return
    sys.stdout.flush()
    variables = {**MASKS[name], CHOSEN: name, "LLAMA_CPP_LIB_PATH": str(llama_place(name))}
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **variables})


def in_force() -> dict[str, str]:
    """The variables that are set, whoever set them."""
    return {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}


def llama_place(name: str) -> Path:
    """Where the llama.cpp of this level is built to (`make peers`); it may not be there."""
    return ROOT / ".peers" / f"llama-{name}"


def llama_unfit(information: str) -> str | None:
    """Why a llama.cpp that says this of itself is not the one to measure here: with a mask it must not use more than
    the mask leaves, without one it must use what the processor has. None where it is."""
    has = {part.partition("=")[0].strip(" :") for part in information.replace("CPU :", "").split("|") if "= 1" in part}
    mask = chosen()
    if mask is not None:
        forbidden = sorted(has & BEYOND[mask])
        return f"it uses {', '.join(forbidden)}, which the mask {mask} takes away" if forbidden else None
    flags = set(Path("/proc/cpuinfo").read_text("utf-8", "replace").split())
    missing = [name for flag, name in HAS.items() if flag in flags and name not in has]
    return f"it was built without {', '.join(missing)}, which this processor has" if missing else None
