"""The wheel's kernels: built, installed, chosen and run where there is no compiler, and under emulated processors."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from setup import platform_tag
from tests.inference.native.native_builds import STRICT, compile_driver, shared_folder
from tests.inference.native.native_record import read_output
from tests.inference.native.test_native_arm import BOUNDS, EXACT, FIRST, SPEC, record, relative

from bedplate.inference.native.compiler import ELF_MACHINES, find_compiler
from bedplate.inference.native.levels import levels_of, machine

ROOT = Path(__file__).parents[3]
QEMU = "qemu-x86_64"
BUILD = "from setuptools import build_meta; build_meta.{}('dist', {{'--global-option': ['-q']}})"
pytestmark = pytest.mark.timeout(900)
_CAN_BUILD = find_compiler() is not None and machine() in ELF_MACHINES and sys.platform.startswith("linux")


def whole_wheel(test: Any) -> Any:
    """Marks what needs every level compiled: `make kernels` runs it."""
    test = pytest.mark.slow(test)
    reason = "THE WHEEL'S KERNELS NOT TESTED: that needs Linux on x86-64 or ARM, and a C++ compiler"
    return pytest.mark.skipif(not _CAN_BUILD, reason=reason)(test)


def checkout(to: Path) -> None:
    """What the build reads, without what this checkout may have built before."""
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, to / name)
    shutil.copytree(ROOT / "src", to / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "prebuilt"))


def build_wheel(folder: Path, hook: str = "build_wheel", **environment: str) -> tuple[Path | None, str]:
    """The wheel that the build backend makes (None where it fails), and what it says."""
    shutil.rmtree(folder / "dist", ignore_errors=True)
    process = subprocess.run(
        [sys.executable, "-c", BUILD.format(hook)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": "", **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    wheels = list((folder / "dist").glob("*.whl"))
    assert (process.returncode == 0) == (len(wheels) == 1), process.stderr
    return (wheels[0] if wheels else None), process.stderr


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as file:
        return {name.rpartition("prebuilt/")[2] for name in file.namelist() if "/prebuilt/" in name}


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder with `wheel`, the wheel's file, and `site`, where pip installed it. Every level, warnings as errors."""

    def install(folder: Path) -> None:
        (folder / "checkout").mkdir()
        checkout(folder / "checkout")
        strict = " ".join([*(find_compiler() or []), *STRICT])
        wheel, _ = build_wheel(folder / "checkout", CXX=strict, BEDPLATE_WHEEL_MACHINE=machine())
        assert wheel is not None
        (folder / "wheel").mkdir()
        shutil.move(wheel, folder / "wheel" / wheel.name)
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-compile", "--quiet"]
        pip += ["--disable-pip-version-check", "--root-user-action=ignore"]
        target = ["--target", str(folder / "site"), str(folder / "wheel" / wheel.name)]
        subprocess.run([*pip, *target], check=True, timeout=120)

    return shared_folder(tmp_path_factory, worker_id, "wheel", install)


def run_python(installed: Path, home: Path, script: str, *options: str, under: tuple[str, ...] = ()) -> str:
    """What a script prints with the installed package, no compiler, and an empty BEDPLATE_HOME, which stays empty."""
    empty = home / "empty"
    empty.mkdir(exist_ok=True)
    process = subprocess.run(
        [*under, sys.executable, *options, "-c", script],
        env={
            "PYTHONPATH": str(installed / "site"),
            "PATH": str(empty),
            "CXX": "no-such-compiler",
            "BEDPLATE_HOME": str(empty),
            "OMP_NUM_THREADS": "1",
        },
        cwd=home,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert not list(empty.iterdir()), "something was compiled"
    return process.stdout


@whole_wheel
def test_the_wheel_holds_every_level_and_says_what_it_needs(installed: Path) -> None:
    (wheel,) = (installed / "wheel").iterdir()
    assert re.fullmatch(rf"bedplate-[\d.]+-py3-none-manylinux_2_\d+_{machine()}\.whl", wheel.name)
    levels = {f"{level.name}.so" for level in levels_of(machine())} | {"detect.so"}
    assert names_in(wheel) == {f"{machine()}/{name}" for name in (*levels, "manifest.json")}
    folder = installed / "site" / "bedplate" / "inference" / "native" / "prebuilt" / machine()
    assert wheel.name.endswith(f"{platform_tag(folder, machine())}.whl")
    assert set(json.loads((folder / "manifest.json").read_text())["files"]) == levels
    for path in folder.glob("*.so"):  # the C library's own files only
        needed = set(re.findall(rb"\b(lib[\w+-]+|ld-linux[\w-]*)\.so\.\d+\b", path.read_bytes()))
        assert needed <= {b"libc", b"libm", b"libpthread", b"libdl", b"ld-linux-x86-64", b"ld-linux-aarch64"}, path


RUN = """
import torch
from bedplate.inference.native.compiler import build
from bedplate.inference.native.packed_weights import NativeDecoder
from bedplate.inference.native.levels import LEVELS
from bedplate.inference.native.library import load, native_absent
from bedplate.models.build import build as build_model
from bedplate.models.inputs import Inputs
from bedplate.models.specs.transformer import Rope, TransformerSpec
spec = TransformerSpec.from_fields(
    kind="decoder", vocab_size=331, hidden_size=64, layers=2, heads=2, kv_heads=1, head_dim=32, feedforward_size=96,
    context_length=64, rope=Rope(10_000.0),
)
model = build_model(spec).eval().requires_grad_(False)
native = NativeDecoder(model, "float32", threads=1)
keys, values = ([torch.zeros(1, 1, 16, 32) for _ in range(2)] for _ in range(2))
out = native.forward([5, 6, 7], [0, 0, 0], [0, 1, 2], keys, values, range(3)).logits_WV
wanted = model.head(model(Inputs(torch.tensor([[5, 6, 7]]))).hidden[0])
print(build(LEVELS[load().level]).path, native_absent(), float((out - wanted).norm() / wanted.norm()) < 1e-5)
"""


@whole_wheel
def test_an_installed_wheel_runs_without_a_compiler(installed: Path, tmp_path: Path) -> None:
    path, absent, agrees = run_python(installed, tmp_path, RUN).split()
    assert Path(path).is_relative_to(installed / "site")
    assert (absent, agrees) == ("None", "True")


CHOOSE = """
import os
from bedplate.core.errors import UsageError
from bedplate.inference.native.compiler import build
from bedplate.inference.native.levels import LEVELS
from bedplate.inference.native.library import Library, load
chosen = load()
print(chosen.level, build(LEVELS[chosen.level]).path)
for name in LEVELS:
    os.environ["BEDPLATE_KERNEL_LEVEL"] = name
    try:
        asked = load().level == name
    except UsageError as error:
        asked = "does not run" not in str(error)
    print(name, isinstance(load(name), Library), asked)
"""


@whole_wheel
@pytest.mark.skipif(machine() != "x86_64", reason="the emulated processors are x86")
@pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"BASELINE NOT TESTED: no {QEMU}; apt-get install qemu-user")
@pytest.mark.parametrize(("processor", "level"), [("Nehalem", "plain"), ("Haswell", "avx2")])
def test_an_emulated_processor_gets_what_it_runs_and_no_more(
    installed: Path, processor: str, level: str, tmp_path: Path
) -> None:
    under = (str(shutil.which(QEMU)), "-cpu", processor)
    first, *level_lines = run_python(installed, tmp_path, CHOOSE, "-S", under=under).splitlines()
    chosen, kernel = first.split()
    assert chosen == level
    assert Path(kernel).is_relative_to(installed / "site")
    lower = ("plain", level)
    for name, loads, runnable in (line.split() for line in level_lines):
        assert loads == runnable == str(name in lower), name
    compile_driver(find_compiler() or [], tmp_path / "driver")
    for weights in ("float32", "int8"):
        expected = record(tmp_path / "case", torch.float32, weights)
        command = [*under, str(tmp_path / "driver"), kernel, str(tmp_path / "case"), str(tmp_path / "out")]
        subprocess.run(command, check=True, timeout=600)
        replayed = read_output(tmp_path / "out", SPEC.vocab_size)
        for ours, theirs in zip(replayed, expected, strict=True):
            if theirs.logits_WV is not None:
                assert relative(ours.logits_WV, theirs.logits_WV) < BOUNDS[weights]
        assert expected[0].logits_WV is not None
        assert relative(replayed[0].logits_WV[:FIRST], expected[0].logits_WV[:FIRST]) < EXACT
    # And the emulator would have noticed:
    if level == "plain":
        command[-3] = str(Path(kernel).with_name("avx2.so"))
        assert subprocess.run(command, check=False, timeout=600).returncode == -signal.SIGILL


# The build step, with compilers that only copy


def a_compiler(folder: Path, binary: Path) -> str:
    script = folder / "compiler"
    script.write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\ncp {binary} "$2"\n')
    script.chmod(0o755)
    return str(script)


def elf(path: Path, arch: str) -> Path:
    head = b"\x7fELF\x02\x01\x01".ljust(18, b"\0") + ELF_MACHINES[arch].to_bytes(2, "little")
    path.write_bytes(head + b"\0GLIBC_2.31\0GLIBC_2.4\0")
    return path


@pytest.mark.slow
def test_the_build_step(tmp_path: Path) -> None:
    checkout(tmp_path)
    for arch in ("x86_64", "aarch64"):  # the second finds what the first left in build/
        compiler = a_compiler(tmp_path, elf(tmp_path / "made", arch))
        wheel, _ = build_wheel(tmp_path, CXX=compiler, BEDPLATE_WHEEL_MACHINE=arch)
        assert wheel is not None
        assert wheel.name.endswith(f"-py3-none-manylinux_2_31_{arch}.whl")
        assert {name.partition("/")[0] for name in names_in(wheel)} == {arch}
    wheel, stderr = build_wheel(tmp_path, CXX=compiler, BEDPLATE_WHEEL_MACHINE="x86_64")
    assert wheel is None
    assert f"{compiler} compiles for another architecture than x86_64" in stderr
    wheel, stderr = build_wheel(tmp_path, CXX="false", BEDPLATE_WHEEL_MACHINE="x86_64")
    assert wheel is None
    assert "error: " in stderr
    for compiler in ("no-such-compiler", "false"):
        wheel, stderr = build_wheel(tmp_path, CXX=compiler)
        assert wheel is not None
        assert wheel.name.endswith("-py3-none-any.whl")
        assert not names_in(wheel)
        assert len([line for line in stderr.splitlines() if "the wheel holds no kernel" in line]) == 1


def test_an_editable_install_compiles_nothing(tmp_path: Path) -> None:
    checkout(tmp_path)
    wheel, stderr = build_wheel(tmp_path, "build_editable", CXX=str(tmp_path / "would-fail"))
    assert wheel is not None
    assert "kernel" not in stderr
    assert not list(tmp_path.rglob("*.so"))
