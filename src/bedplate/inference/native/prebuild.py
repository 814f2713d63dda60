"""What a wheel ships: the kernel for every level of one architecture, and what chooses among them.

Only the build step (setup.py) and the tests run this. The files need the C library alone: the compiler's own libraries
are linked in, so that none of them has to be there, or is taken from another package in the same process.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bedplate.core.errors import UsageError
from bedplate.inference.native.compiler import (
    ELF_MACHINES,
    find_compiler,
    is_foreign,
    run_compiler,
    source_digest,
    unit_of,
)
from bedplate.inference.native.levels import levels_of, machine

_LINKED_IN = (
    *("-static-libstdc++", "-static-libgcc", "-ffunction-sections", "-s"),
    "-Wl,--exclude-libs,ALL,--gc-sections,--as-needed",
)
_OLDEST = (2, 17)
"""The oldest C library that is asked for, that of manylinux2014 (https://peps.python.org/pep-0599/)."""


def compiler_for(arch: str) -> list[str] | None:
    """The command that compiles for an architecture: $CXX, or the machine's own, or Debian's cross compiler's name."""
    if arch == machine() or os.environ.get("CXX", "").strip():
        return find_compiler()
    name = f"{arch}-linux-gnu-g++"
    return [name] if shutil.which(name) else None


def prebuild(folder: Path, arch: str, command: Sequence[str]) -> Mapping[str, str]:
    """Compiles everything into `folder`, with manifest.json, and returns the reasons of what failed, by name. Raises
    UsageError for an architecture that has no levels, and for a compiler of another one."""
    if arch not in ELF_MACHINES:
        raise UsageError(f"there is no kernel for {arch!r}; use one of {', '.join(ELF_MACHINES)}")
    folder.mkdir(parents=True, exist_ok=True)
    units = [unit_of(level, arch) for level in (*levels_of(arch), None)]
    targets = [folder / f"{unit.name}.so" for unit in units]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reasons = pool.map(lambda unit, target: run_compiler(command, unit, target, _LINKED_IN), units, targets)
        failed = {unit.name: reason for unit, reason in zip(units, reasons, strict=True) if reason is not None}
    built = [target for target, unit in zip(targets, units, strict=True) if unit.name not in failed]
    if any(is_foreign(target, arch) for target in built):
        raise UsageError(f"{shlex.join(command)} compiles for another architecture than {arch}; set CXX to one for it")
    files = {target.name: hashlib.sha256(target.read_bytes()).hexdigest() for target in built}
    manifest = {"source": source_digest(), "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
    return failed


def platform_tag(folder: Path, arch: str) -> str:
    """The oldest manylinux platform (https://peps.python.org/pep-0600/) that has what the files in `folder` ask for. It
    follows from the versions of the C library's functions that they name: built on an older system, it is older."""
    versions = {_OLDEST}
    for path in folder.glob("*.so"):
        names = re.findall(rb"GLIBC_(\d+)\.(\d+)", path.read_bytes())
        versions |= {(int(major), int(minor)) for major, minor in names}
    return "manylinux_{}_{}_{}".format(*max(versions), arch)
