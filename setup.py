"""The build step that pyproject.toml cannot say: a wheel holds the native kernel, compiled for every level of one
architecture.

BEDPLATE_WHEEL_MACHINE (x86_64, aarch64; default: this machine's) says which; asked for by name, nothing may be missing.
Without a compiler the wheel holds no kernel and fits every machine. Editable installs compile nothing: there the kernel
is compiled on first use.
"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))
from bedplate.inference.native.compiler import ELF_MACHINES
from bedplate.inference.native.levels import machine
from bedplate.inference.native.prebuild import compiler_for, platform_tag, prebuild


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


setup(cmdclass={"bdist_wheel": WheelWithKernels})
