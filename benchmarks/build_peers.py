"""Builds llama.cpp for a lower kind of processor than this one, beside the installed one, of the same sources; or with
OpenBLAS, which multiplies a prompt's activations in float32 where llama.cpp itself rounds them to 8 bits.

llama.cpp decides when it is compiled which instructions it uses, and its bindings are built for this very machine. The
sources are those of the installed bindings' version from the package index; the library lands in .peers/llama-LEVEL,
where a benchmark with that mask looks for it. Some minutes each.

usage: build_peers.py [LEVEL ...]        all levels by default
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import masks
from comparison import need

PACKAGE = "llama-cpp-python"
BELOW = ("SSE42", "AVX", "AVX2", "BMI2", "FMA", "F16C")
FLAGS = {
    "avx2": ("NATIVE=OFF", *(f"{name}=ON" for name in BELOW)),
    "avx512_vnni": ("NATIVE=OFF", *(f"{name}=ON" for name in (*BELOW, "AVX512", "AVX512_VNNI"))),
    "avx512_bf16": ("NATIVE=OFF", *(f"{name}=ON" for name in (*BELOW, "AVX512", "AVX512_VNNI", "AVX512_BF16"))),
    "blas": ("NATIVE=ON", "BLAS=ON", "BLAS_VENDOR=OpenBLAS"),
}
"""By the name of what is built: llama.cpp's own settings."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("levels", nargs="*", metavar="LEVEL", help=", ".join(FLAGS))
    levels: list[str] = parser.parse_args().levels or list(FLAGS)
    unknown = [level for level in levels if level not in FLAGS]
    if unknown:
        parser.error(f"{unknown[0]} is not one of {', '.join(FLAGS)}")
    requirement = f"{PACKAGE}=={need('llama_cpp', PACKAGE)}"
    missing = [level for level in levels if _built(level) != requirement]
    if not missing:
        print(f"{', '.join(levels)}: built already")
        return
    for tool in ("cmake", "ninja"):
        if shutil.which(tool) is None:
            sys.exit(f"building llama.cpp takes {tool}, which is not installed (apt install {tool}, or pip install it)")
    with tempfile.TemporaryDirectory() as scratch:
        source = _source(requirement, Path(scratch))
        for level in missing:
            _build(source, Path(scratch) / level, level, requirement)


def _built(level: str) -> str | None:
    file = masks.llama_place(level) / "version"
    return file.read_text("utf-8").strip() if file.is_file() else None


def _source(requirement: str, scratch: Path) -> Path:
    """llama.cpp's own sources, as the bindings' source distribution carries them."""
    options = ["--quiet", "--no-deps", "--no-binary", PACKAGE, "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "download", *options, "-d", str(scratch), requirement], check=True)
    [archive] = scratch.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(scratch / "source", filter="data")
    [root] = (scratch / "source").iterdir()
    return root / "vendor" / "llama.cpp"


def _build(source: Path, build: Path, level: str, requirement: str) -> None:
    flags = [f"GGML_{setting}" for setting in FLAGS[level]]
    parts = [f"LLAMA_BUILD_{part}=OFF" for part in ("COMMON", "TESTS", "EXAMPLES", "TOOLS", "SERVER")]
    general = ["CMAKE_BUILD_TYPE=Release", "BUILD_SHARED_LIBS=ON", "CMAKE_BUILD_RPATH_USE_ORIGIN=ON", "LLAMA_CURL=OFF"]
    general += ["CMAKE_BUILD_WITH_INSTALL_RPATH=ON", "CMAKE_INSTALL_RPATH=$ORIGIN"]
    options = [f"-D{option}" for option in (*general, *flags, *parts)]
    subprocess.run(["cmake", "-G", "Ninja", "-S", str(source), "-B", str(build), *options], check=True)
    jobs = str(len(os.sched_getaffinity(0)))
    subprocess.run(["cmake", "--build", str(build), "--target", "llama", "-j", jobs], check=True)
    place = masks.llama_place(level)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for library in (build / "bin").glob("*.so*"):
        shutil.copy2(library, place)  # links become files: few, and they can be moved about
    (place / "version").write_text(requirement + "\n", "utf-8")
    print(f"{level}: {place}")


if __name__ == "__main__":
    main()
