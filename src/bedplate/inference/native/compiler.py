"""Finds the native kernel of a level: as it was shipped, or built on first use with the machine's own C++ compiler.

A built one is kept once per source, compiler, flags and architecture, with the hash of its bytes beside it: a file that
was cut off or is for another architecture is built again, not loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from bedplate.core.errors import UsageError
from bedplate.core.files import atomic_write, bedplate_home, file_lock
from bedplate.core.progress import notice
from bedplate.inference.native.levels import BASELINE, Level, machine

COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-O3", "-std=c++20", "-shared", "-fPIC", "-pthread", "-fvisibility=hidden", "-ffp-contract=off", "-Wno-psabi")
"""No contraction of a·b + c by the compiler's own choice: it could differ between a vector loop and its remainder. No
remarks on how vectors are passed to functions: no function that others call takes one."""
KERNEL = Path(__file__).parent / "kernel"
PREBUILT = Path(__file__).parent / "prebuilt"
"""What a wheel ships, in a folder per architecture, with manifest.json: source hash, and each file's hash."""
ELF_MACHINES = {"x86_64": 62, "aarch64": 183}
"""Numbers of architectures in ELF headers (https://refspecs.linuxfoundation.org/elf/gabi4+/ch4.eheader.html)."""
DETECT = "detect"
"""The name of the unit that tells a processor's features; it compiles in a second."""
_SECONDS = 300

T = TypeVar("T")


@dataclass(frozen=True)
class Unit:
    """What one shared library is made of. Named as it is shipped; the flags hold no path."""

    name: str
    source: str
    flags: tuple[str, ...]


@dataclass(frozen=True)
class BuiltKernel:
    """A compiled file: where it is, the hash of everything it was made from, and whether it came with the package."""

    path: Path
    digest: str
    shipped: bool = False


def unit_of(level: Level | None, arch: str) -> Unit:
    """The kernel for a level, or (None) what tells a processor's features, to be compiled for an architecture."""
    baseline = BASELINE.get(arch, ())
    if level is None:
        return Unit(DETECT, "detect.cpp", (*FLAGS, *baseline))
    defines = (*(f"-DBEDPLATE_{name}" for name in level.defines), f'-DBEDPLATE_LEVEL="{level.name}"')
    return Unit(level.name, "decoder.cpp", (*FLAGS, *baseline, *level.flags, *defines))


def sources() -> tuple[Path, ...]:
    """The kernel's files, the one that is compiled among them."""
    return tuple(sorted(path for path in KERNEL.rglob("*") if path.suffix in (".cpp", ".h")))


def find_compiler() -> list[str] | None:
    """The command of $CXX, or the first of c++, g++ and clang++ on the path."""
    chosen = os.environ.get("CXX", "").strip()
    if chosen:
        try:
            command = shlex.split(chosen)
        except ValueError:  # a quotation without its end
            return None
        return command if command and shutil.which(command[0]) else None
    return next(([name] for name in COMPILERS if shutil.which(name)), None)


def build(level: Level | None) -> BuiltKernel | str:
    """The kernel for a level (None: what tells this processor's features), or the reason why there is none."""
    unit = unit_of(level, machine())
    return _shipped(unit.name) or compiled(unit)


def opened(level: Level | None, load: Callable[[BuiltKernel], T]) -> T | str:
    """What `load` makes of the kernel for a level, or the reason why it cannot be had. load may raise OSError or
    AttributeError. A shipped file that this system does not load is built here instead."""
    unit, reason = unit_of(level, machine()), ""
    for find in (lambda: _shipped(unit.name), lambda: compiled(unit)):
        built = find()
        if isinstance(built, str):
            return reason or built
        if built is not None:
            try:
                return load(built)
            except (OSError, AttributeError) as error:
                reason = _unloadable(built, error)
    return reason


def _unloadable(built: BuiltKernel, error: Exception) -> str:
    if "failed to map segment" in str(error) or "Operation not permitted" in str(error):
        location = "the package" if built.shipped else "BEDPLATE_HOME"
        reason = f"its folder is mounted noexec; move {location} to one that is not"
        return f"the kernel {built.path} cannot be loaded: {reason}"
    hint = "install the package again" if built.shipped else "delete it to have it built again"
    return f"the kernel {built.path} cannot be loaded ({error}); {hint}"


def source_digest() -> str:
    """Names the content of the kernel's files."""
    content = hashlib.sha256()
    for path in sources():
        content.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return content.hexdigest()


def _shipped(name: str) -> BuiltKernel | None:
    """The file that came with the package, where it was made from these sources and is whole."""
    folder = PREBUILT / machine()
    try:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        path, sha256 = folder / f"{name}.so", manifest["files"][f"{name}.so"]
        whole = manifest["source"] == source_digest() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return BuiltKernel(path, sha256, shipped=True) if whole and platform.system() == "Linux" else None


@cache
def _version(command: tuple[str, ...]) -> str:
    return subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout


def compiled(unit: Unit) -> BuiltKernel | str:
    """Results lie in $BEDPLATE_HOME/native; processes that want the same one wait for the first."""
    command = find_compiler()
    if command is None:
        named = os.environ.get("CXX", "").strip()
        return f"$CXX names {named!r}, which is not there" if named else f"no C++ compiler ({', '.join(COMPILERS)})"
    try:
        version = _version(tuple(command))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return f"the C++ compiler {shlex.join(command)} does not run ({error})"
    content = hashlib.sha256()
    for part in (*command, version, *unit.flags, unit.source, machine(), source_digest()):
        content.update(part.encode() + b"\0")
    digest = content.hexdigest()
    target = bedplate_home() / "native" / f"{digest}.so"
    try:
        if not _is_whole(target):
            with file_lock(target.with_suffix(".lock")):
                if not _is_whole(target):  # whoever held the lock before may have built it
                    if unit.name != DETECT:
                        notice(f"compiling the CPU kernel ({unit.name}), once on this machine: about a minute")
                    reason = _compile_into(command, unit, target)
                    if reason is not None:
                        return reason
    except UsageError as error:
        return str(error)
    return BuiltKernel(target, digest)


def _is_whole(target: Path) -> bool:
    """A file that was cut off would end the process when its pages are touched."""
    try:
        content = target.read_bytes()
        expected_digest = target.with_suffix(".sha256").read_text("utf-8")
    except (OSError, ValueError):
        return False
    return hashlib.sha256(content).hexdigest() == expected_digest and not is_foreign(target, machine())


def is_foreign(path: Path, arch: str) -> bool:
    """Whether a shared library is known to be for another architecture than `arch`."""
    with path.open("rb") as file:
        head = file.read(20)
    elf_machine = ELF_MACHINES.get(arch)
    return elf_machine is not None and head[:4] == b"\x7fELF" and int.from_bytes(head[18:20], "little") != elf_machine


def _compile_into(command: Sequence[str], unit: Unit, target: Path) -> str | None:
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    try:
        reason = run_compiler(command, unit, temporary)
        if reason is not None:
            return reason
        if is_foreign(temporary, machine()):
            return f"{shlex.join(command)} compiles for another architecture than this machine's ({machine()})"
        sha256 = hashlib.sha256(temporary.read_bytes()).hexdigest()
        temporary.replace(target)
        atomic_write(target.with_suffix(".sha256"), sha256)
    except OSError as error:
        return f"the kernel cannot be kept in {target.parent}: {error}"
    finally:
        temporary.unlink(missing_ok=True)
    return None


def run_compiler(command: Sequence[str], unit: Unit, target: Path, extra_flags: Sequence[str] = ()) -> str | None:
    """Compiles to `target`, with `extra_flags` flags; returns the reason where that fails."""
    try:
        arguments = [*command, *unit.flags, *extra_flags, str(KERNEL / unit.source), "-o", str(target)]
        process = subprocess.run(arguments, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{shlex.join(command)} failed on the kernel: {error}"
    if process.returncode:
        lines = [line for line in process.stderr.splitlines() if "error" in line] or process.stderr.splitlines() or [""]
        return f"{shlex.join(command)} failed on the kernel: {lines[0].strip()}"
    return None
