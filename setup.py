"""The build step that pyproject.toml cannot say: a wheel holds the native kernel, compiled for every level of one
architecture.

BEDPLATE_WHEEL_MACHINE (x86_64, aarch64; default: this machine's) says which; asked for by name, nothing may be missing.
Without a compiler the wheel holds no kernel and fits every machine. Editable installs compile nothing: there the kernel
is compiled on first use.

The files need the C library alone: the compiler's own libraries are linked in, so that none of them has to be there, or
is taken from another package in the same process.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))
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


class WheelWithKernels(bdist_wheel):
    """Compiles into the build folder, and names the platform that the files need."""

    kernels_for: str | None = None

    def run(self) -> None:
        self.run_command("build")
        self.skip_build = True
        package = Path(self.get_finalized_command("build").build_lib) / "bedplate"
        self.kernels_for = self._compile(package / "inference" / "native" / "prebuilt")
        if self.kernels_for is not None:
            self.root_is_pure = False
            # setuptools then takes it as it takes extension modules
            self.distribution.has_ext_modules = lambda: True
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        """No part of it depends on Python's version or its C interface."""
        return super().get_tag() if self.kernels_for is None else ("py3", "none", self.kernels_for)

    def _compile(self, folder: Path) -> str | None:
        """The platform of what was compiled, or None."""
        shutil.rmtree(folder, ignore_errors=True)  # the build folder may hold another architecture's
        asked = os.environ.get("BEDPLATE_WHEEL_MACHINE", "").strip()
        arch = asked or machine()
        if not asked and (arch not in ELF_MACHINES or not sys.platform.startswith("linux")):
            return self._without(f"none is built for {sys.platform} on {arch}")
        command = compiler_for(arch)
        if command is None:
            return self._without(f"no C++ compiler for {arch}")
        failed = prebuild(folder / arch, arch, command)
        if failed and asked:
            raise SystemExit("error: " + "; ".join(f"{name}: {reason}" for name, reason in failed.items()))
        if "detect" in failed or "plain" in failed:
            shutil.rmtree(folder)
            return self._without(next(iter(failed.values())))
        for name, reason in failed.items():
            print(f"warning: the wheel lacks the kernel for {name}: {reason}", file=sys.stderr)
        return platform_tag(folder / arch, arch)

    @staticmethod
    def _without(reason: str) -> None:
        print(f"warning: the wheel holds no kernel ({reason}); it is compiled where it is first used", file=sys.stderr)


if __name__ == "__main__":  # not where tests import it
    setup(cmdclass={"bdist_wheel": WheelWithKernels})
