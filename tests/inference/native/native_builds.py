"""Compiled kernels and drivers that several tests share, made once for all workers of a run."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bedplate.core.files import file_lock
from bedplate.inference.native import compiler
from bedplate.inference.native.levels import Level

CPP = Path(__file__).parent / "cpp"
STRICT = ("-Wall", "-Wextra", "-Werror")
EMULATED = Level("amx_emulated", defines=("BF16", "TILES", "TILES_FROM=3"))
"""The products of the level `amx` with tiles in plain C++, for tests alone; those of bytes are by tiles from three
tokens on."""


def shared_folder(factory: pytest.TempPathFactory, worker: str, name: str, fill: Callable[[Path], None]) -> Path:
    """The folder that `fill` fills; whoever comes first makes it, the others wait."""
    base_folder = factory.getbasetemp()
    folder = (base_folder if worker == "master" else base_folder.parent) / name
    with file_lock(folder.with_suffix(".lock")):
        if not (folder / "made").exists():
            folder.mkdir(exist_ok=True)
            fill(folder)
            (folder / "made").touch()
    return folder


def compile_driver(command: Sequence[str], to: Path) -> None:
    """native_driver.cpp, with warnings as errors."""
    source, headers = CPP / "native_driver.cpp", compiler.KERNEL
    flags = ["-std=c++17", "-O1", "-Wno-psabi", *STRICT, f"-I{headers}", str(source), "-o", str(to), "-ldl"]
    subprocess.run([*command, *flags], check=True, timeout=250)


def build_beside(home: str, compiler_path: str, barrier: Any, queue: Any) -> None:
    """In a process of its own: builds, once another is as far, and puts what was built and when into the queue."""
    os.environ |= {"BEDPLATE_HOME": home, "CXX": compiler_path}
    barrier.wait(240)
    built = compiler.build(None)
    queue.put(built if isinstance(built, str) else (str(built.path), built.path.stat().st_mtime_ns))
