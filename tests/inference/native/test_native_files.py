"""Where the compiled kernel comes from, and files and folders that are not as they should be.

The detector is used for it: it compiles in a moment, and takes the same way as the kernel of every level.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bedplate.inference.native import compiler
from bedplate.inference.native.compiler import ELF_MACHINES, BuiltKernel, build, find_compiler, opened, source_digest
from bedplate.inference.native.levels import LEVELS, features_of, machine, runs
from bedplate.inference.native.library import features

pytestmark = pytest.mark.skipif(
    find_compiler() is None or machine() not in ELF_MACHINES, reason="no C++ compiler, or no levels here"
)
CROSS = "aarch64-linux-gnu-g++"


def loaded_features(built: BuiltKernel) -> frozenset[str]:
    function = ctypes.CDLL(str(built.path)).bedplate_features
    function.restype = ctypes.c_uint64
    return features_of(function(), machine())


def compiled() -> BuiltKernel:
    built = build(None)
    assert isinstance(built, BuiltKernel), built
    return built


def absence_message(home: Path, *, prefix: tuple[str, ...] = (), **environment: str) -> str:
    """What a new process without torch says of a kernel that it cannot have: one line."""
    script = "from bedplate.inference.native.library import native_absent; print(native_absent())"
    process = subprocess.run(
        [*prefix, sys.executable, "-S", "-c", script],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(Path(compiler.__file__).parents[3]),
            "BEDPLATE_HOME": str(home),
            "BEDPLATE_KERNEL_LEVEL": "plain",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    (line,) = process.stdout.splitlines()
    return line


LOST = ". Bases run on torch, which is slower, and in int8 or int4 only if asked for"


def test_that_the_kernel_is_compiled_is_said_where_nobody_sees_a_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    detector = compiled().path

    def copied(command: object, unit: object, target: Path) -> None:
        shutil.copy(detector, target)

    monkeypatch.setenv("BEDPLATE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(compiler, "run_compiler", copied)
    assert compiled().path != detector
    assert capfd.readouterr().err == ""  # what takes a moment is not worth a line
    for said in ("compiling the CPU kernel (plain), once on this machine: about a minute\n", ""):
        assert isinstance(build(LEVELS["plain"]), BuiltKernel)
        assert capfd.readouterr().err == said


@pytest.mark.parametrize("damage", ["half", "empty", "no hash", "hash is no text", "foreign"])
def test_a_file_that_is_not_whole_or_foreign_is_built_again(damage: str) -> None:
    built = compiled()
    whole, digest_file = built.path.read_bytes(), built.path.with_suffix(".sha256")
    built.path.unlink()  # a loaded file that is overwritten in place would take its process down
    if damage == "half":
        built.path.write_bytes(whole[: len(whole) // 2])
    elif damage == "empty":
        built.path.touch()
    elif damage == "foreign":  # as it stands in a folder that was copied from another machine, hash and all
        foreign = bytearray(whole)
        foreign[18:20] = (ELF_MACHINES["aarch64" if machine() == "x86_64" else "x86_64"]).to_bytes(2, "little")
        built.path.write_bytes(foreign)
        digest_file.write_text(hashlib.sha256(foreign).hexdigest())
    else:
        built.path.write_bytes(whole)
        digest_file.write_bytes(b"\xff\xfe") if damage == "hash is no text" else digest_file.unlink()
    rebuilt = compiled()
    assert rebuilt == built
    assert rebuilt.path.read_bytes() == whole
    assert digest_file.read_text() == hashlib.sha256(whole).hexdigest()
    assert opened(None, loaded_features) == features()


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    home = tmp_path / "file"
    home.touch()
    line = absence_message(home)
    assert line.startswith("no native kernel: ")
    assert str(home) in line
    assert line.endswith(LOST)


def test_no_compiler_and_nothing_shipped_is_said(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert (
        absence_message(tmp_path / "home", PATH=str(empty))
        == f"no native kernel: no C++ compiler (c++, g++, clang++){LOST}"
    )
    expected = f"no native kernel: $CXX names 'no-such-compiler', which is not there{LOST}"
    assert absence_message(tmp_path / "home", CXX="no-such-compiler") == expected


def test_a_folder_that_is_mounted_noexec_is_said(tmp_path: Path) -> None:
    unshare, home = shutil.which("unshare"), tmp_path / "home"
    home.mkdir()
    mount = f"mount -t tmpfs -o noexec none '{home}' && exec \"$@\""
    prefix = (str(unshare), "--map-root-user", "--mount", "sh", "-c", mount, "sh")
    if unshare is None or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("NOEXEC NOT TESTED: this process may not mount a file system")
    line = absence_message(home, prefix=prefix)
    assert line.startswith(f"no native kernel: the kernel {home}/native/")
    assert line.endswith(f"its folder is mounted noexec; move BEDPLATE_HOME to one that is not{LOST}")


def test_a_compiler_for_another_architecture_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if machine() == "aarch64" or shutil.which(CROSS) is None:
        pytest.skip(f"needs {CROSS}")
    monkeypatch.setattr(compiler, "BASELINE", {})  # its flags it would refuse
    monkeypatch.setenv("CXX", CROSS)
    monkeypatch.setenv("BEDPLATE_HOME", str(tmp_path))
    assert build(None) == f"{CROSS} compiles for another architecture than this machine's ({machine()})"
    assert not [path for path in (tmp_path / "native").iterdir() if path.suffix != ".lock"]


# What a wheel brought


def ship(folder: Path, content: bytes, source: str, sha256: str | None = None) -> None:
    (folder / machine()).mkdir(exist_ok=True)
    (folder / machine() / "detect.so").unlink(missing_ok=True)  # one that is loaded keeps its pages until the end
    (folder / machine() / "detect.so").write_bytes(content)
    files = {"detect.so": sha256 or hashlib.sha256(content).hexdigest()}
    (folder / machine() / "manifest.json").write_text(json.dumps({"source": source, "files": files}))


def test_what_was_shipped_is_taken_if_it_is_whole_and_of_these_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = compiled()
    content = built.path.read_bytes()
    monkeypatch.setattr(compiler, "PREBUILT", tmp_path)
    ship(tmp_path, content, source_digest())
    shipped = compiled()
    assert shipped == BuiltKernel(tmp_path / machine() / "detect.so", hashlib.sha256(content).hexdigest(), shipped=True)
    assert opened(None, loaded_features) == features()
    ship(tmp_path, content, "0" * 64)  # sources that were changed since
    assert compiled() == built
    ship(tmp_path, content[:1000], source_digest(), hashlib.sha256(content).hexdigest())
    assert compiled() == built
    (tmp_path / machine() / "manifest.json").write_text('{"source": ')
    assert compiled() == built


def test_what_was_shipped_and_does_not_load_is_built_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "PREBUILT", tmp_path)
    ship(tmp_path, b"as if for a newer system", source_digest())
    assert opened(None, loaded_features) == features()
    monkeypatch.setenv("CXX", "no-such-compiler")
    reason = opened(None, loaded_features)
    assert isinstance(reason, str)
    assert str(tmp_path / machine() / "detect.so") in reason
    assert reason.endswith("; install the package again")


def test_no_level_asks_a_compiler_for_more_than_it_asks_a_processor_for() -> None:
    for arch, expected in (("x86_64", ("plain",)), ("aarch64", ("plain",)), ("riscv64", ("plain",))):
        assert runs(frozenset(), arch) == expected
    for level in LEVELS.values():
        flags = compiler.unit_of(level, level.machine or machine()).flags
        assert not any("native" in flag for flag in flags)
        if level.machine == "x86_64":
            assert {flag.removeprefix("-m") for flag in level.flags} == set(level.needs)
        elif level.machine == "aarch64":
            extensions = level.flags[0].split("+")
            assert extensions[0] == "-march=armv8-a"
            assert {{"dotprod": "asimddp"}.get(name, name) for name in extensions[1:]} == set(level.needs)
