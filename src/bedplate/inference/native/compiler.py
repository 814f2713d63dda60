"""Builds the native kernel on first use with the machine's own C++ compiler, once per source, compiler and CPU."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bedplate.core.errors import UsageError
from bedplate.core.files import bedplate_home, file_lock

COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread", "-ffp-contract=off")
"""No contraction of a·b + c by the compiler's own choice: it could differ between a vector loop and its remainder."""
_SOURCE = "decoder.cpp"
_SECONDS = 300


@dataclass(frozen=True)
class Built:
    """A compiled kernel: where it is, and the hash of everything it was made from."""

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


def build(defines: Sequence[str] = ()) -> Built | str:
    """The compiled kernel, or the reason why there is none.

    `defines` are preprocessor names to set. Results lie in $BEDPLATE_HOME/native; processes that want the same one
    wait for the first.
    """
    command = find_compiler()
    if command is None:
        asked = os.environ.get("CXX", "").strip()
        return f"$CXX names {asked!r}, which is not there" if asked else f"no C++ compiler ({', '.join(COMPILERS)})"
    try:
        version = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"the C++ compiler {shlex.join(command)} does not run ({error})"
    flags = [*FLAGS, *(f"-D{name}" for name in defines)]
    digest = _digest(command, version, flags)
    target = bedplate_home() / "native" / f"{digest}.so"
    try:
        if not target.is_file():
            with file_lock(target.with_suffix(".lock")):
                if not target.is_file():  # whoever held the lock before may have built it
                    reason = _compile(command, flags, target)
                    if reason is not None:
                        return reason
    except UsageError as error:
        return str(error)
    return Built(target, digest)


def _digest(command: Sequence[str], version: str, flags: Sequence[str]) -> str:
    content = hashlib.sha256()
    for part in (*command, version, *flags, platform.machine(), _cpu()):
        content.update(part.encode() + b"\0")
    for path in sources():
        content.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return content.hexdigest()


def _cpu() -> str:
    """What `-march=native` depends on: a home directory may be shared by machines of different kinds."""
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


def _compile(command: Sequence[str], flags: Sequence[str], target: Path) -> str | None:
    source = Path(__file__).parent / _SOURCE
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    try:
        done = subprocess.run(
            [*command, *flags, str(source), "-o", str(temporary)],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or [""]
            return f"{shlex.join(command)} failed on the kernel: {lines[0].strip()}"
        temporary.replace(target)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{shlex.join(command)} failed on the kernel: {error}"
    finally:
        temporary.unlink(missing_ok=True)
    return None
