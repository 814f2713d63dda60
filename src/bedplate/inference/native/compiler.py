"""Finds the native kernel of a level: as it was shipped, or built on first use with the machine's own C++ compiler.

A built one is kept once per source, compiler, flags and architecture, with the hash of its bytes beside it: a file that
was cut off or comes from elsewhere is built again, not loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bedplate.core.errors import UsageError
from bedplate.core.files import atomic_write, bedplate_home, file_lock
from bedplate.inference.native.levels import Level, machine

COMPILERS = ("c++", "g++", "clang++")
FLAGS = (
    "-O3",
    "-std=c++17",
    "-shared",
    "-fPIC",
    "-pthread",
    "-fvisibility=hidden",
    "-ffp-contract=off",
)
"""No contraction of a·b + c by the compiler's own choice: it could differ between a vector loop and its remainder."""
PREBUILT = Path(__file__).parent / "prebuilt"
"""What a wheel ships, in a folder per architecture, with manifest.json: source hash, and each file's hash."""
_KERNEL, _DETECTOR = "decoder.cpp", "detect.cpp"
_SECONDS = 300


@dataclass(frozen=True)
class Built:
    """A compiled file: where it is, and the hash of everything it was made from."""

    path: Path
    digest: str


def sources() -> tuple[Path, ...]:
    """The kernel's files, the one that is compiled among them."""
    here = Path(__file__).parent
    return tuple(sorted(path for path in here.iterdir() if path.suffix in (".cpp", ".h")))


def find_compiler() -> list[str] | None:
    """The command of $CXX, or the first of c++, g++ and clang++ on the path."""
    chosen = os.environ.get("CXX", "").strip()
    if chosen:
        command = shlex.split(chosen)
        return command if shutil.which(command[0]) else None
    return next(([name] for name in COMPILERS if shutil.which(name)), None)


def build(level: Level) -> Built | str:
    """The kernel compiled for a level, or the reason why there is none."""
    flags = [*FLAGS, *level.flags, *(f"-D{name}" for name in level.defines), f'-DBEDPLATE_LEVEL="{level.name}"']
    return _shipped(level.name) or _compiled(_KERNEL, flags)


def build_detector() -> Built | str:
    """What tells this processor's features, or the reason why it cannot be had."""
    return _shipped("detect") or _compiled(_DETECTOR, list(FLAGS))


def source_digest() -> str:
    """Names the content of the kernel's files."""
    content = hashlib.sha256()
    for path in sources():
        content.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return content.hexdigest()


def _shipped(name: str) -> Built | None:
    """The file that came with the package, where it was made from these sources and is whole."""
    folder = PREBUILT / machine()
    try:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        path, sha256 = folder / f"{name}.so", manifest["files"][f"{name}.so"]
        whole = manifest["source"] == source_digest() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Built(path, sha256) if whole and platform.system() == "Linux" else None


@cache
def _version(command: tuple[str, ...]) -> str:
    return subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout


def _compiled(source: str, flags: Sequence[str]) -> Built | str:
    """Results lie in $BEDPLATE_HOME/native; processes that want the same one wait for the first."""
    command = find_compiler()
    if command is None:
        asked = os.environ.get("CXX", "").strip()
        return f"$CXX names {asked!r}, which is not there" if asked else f"no C++ compiler ({', '.join(COMPILERS)})"
    try:
        version = _version(tuple(command))
    except (OSError, subprocess.SubprocessError) as error:
        return f"the C++ compiler {shlex.join(command)} does not run ({error})"
    content = hashlib.sha256()
    for part in (*command, version, *flags, source, machine(), source_digest()):
        content.update(part.encode() + b"\0")
    digest = content.hexdigest()
    target = bedplate_home() / "native" / f"{digest}.so"
    try:
        if not _is_whole(target):
            with file_lock(target.with_suffix(".lock")):
                if not _is_whole(target):  # whoever held the lock before may have built it
                    reason = _compile(command, flags, source, target)
                    if reason is not None:
                        return reason
    except UsageError as error:
        return str(error)
    return Built(target, digest)


def _is_whole(target: Path) -> bool:
    """A file that was cut off would end the process when its pages are touched."""
    try:
        return hashlib.sha256(target.read_bytes()).hexdigest() == target.with_suffix(".sha256").read_text("utf-8")
    except OSError:
        return False


def _cpu() -> str:
    """What tells one kind of processor from another: a home directory may be shared by machines of different kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def cpu_name() -> str:
    """The processor's name, as the system gives it."""
    for line in _cpu().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _compile(command: Sequence[str], flags: Sequence[str], source: str, target: Path) -> str | None:
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    try:
        done = subprocess.run(
            [*command, *flags, str(Path(__file__).parent / source), "-o", str(temporary)],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or [""]
            return f"{shlex.join(command)} failed on the kernel: {lines[0].strip()}"
        sha256 = hashlib.sha256(temporary.read_bytes()).hexdigest()
        temporary.replace(target)
        atomic_write(target.with_suffix(".sha256"), sha256)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{shlex.join(command)} failed on the kernel: {error}"
    finally:
        temporary.unlink(missing_ok=True)
    return None
