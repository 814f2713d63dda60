"""The kernel's tests once more, in a process whose kernels AddressSanitizer and UndefinedBehaviorSanitizer watch
(https://github.com/google/sanitizers): at every level that this processor runs, with all formats of weights."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from tests.inference.native.native_builds import EMULATED

from bedplate.inference.native.compiler import find_compiler

ROOT = Path(__file__).parents[3]
PLUGIN = "tests.inference.native.sanitized"
FILES = ("", "_blocks", "_encoders", "_experts", "_families", "_head", "_rows")
BUILDING = "not build and not built and not process and not compiler"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@cache
def run_times() -> tuple[str, ...]:
    """What must be in a process before everything else: the sanitizer, and the library whose exceptions it watches."""
    command = find_compiler() or ["g++"]
    names = ("libasan.so", "libstdc++.so.6")
    lookups = (
        subprocess.run([*command, f"-print-file-name={n}"], capture_output=True, text=True, check=False) for n in names
    )
    return tuple(str(Path(process.stdout.strip()).resolve()) for process in lookups)


def _missing() -> str | None:
    if find_compiler() is None:
        return "no C++ compiler"
    absent = [path for path in run_times() if not Path(path).is_file()]
    return f"no {Path(absent[0]).name} beside the compiler" if absent else None


def watched(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with the sanitizers in it."""
    options = "detect_leaks=0:abort_on_error=0:exitcode=99"  # the interpreter itself leaks
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
            "LD_PRELOAD": ":".join(run_times()),
            "ASAN_OPTIONS": options,
            "UBSAN_OPTIONS": "print_stacktrace=1:exitcode=99",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=1700,
        check=False,
    )


needs = pytest.mark.skipif(_missing() is not None, reason=f"SANITIZERS NOT RUN: {_missing()}")


@needs
@pytest.mark.parametrize("tests", [(), ("-m", "slow or not slow", "-k", f"{EMULATED.name} and {BUILDING}")])
def test_the_kernels_tests_pass(tests: tuple[str, ...]) -> None:
    names = [f"tests/inference/native/test_native{name}.py" for name in FILES]
    # The first test of a level compiles it, which takes the sanitizers minutes on a machine that others use.
    how = ("-q", "-s", "-x", "-n0", "--timeout=1500", "-p", "no:cacheprovider", "-p", PLUGIN, "-k", BUILDING, *tests)
    process = watched("-m", "pytest", *how, *names)
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-6000:]


BEYOND = """
import tests.inference.native.sanitized
from tests.inference.native.native_specs import spec_of
from tests.inference.native.native_models import Cache, make
from bedplate.inference.native.packed_weights import NativeDecoder
spec = spec_of()
native, cache = NativeDecoder(make(spec), "int4", threads=1), Cache(spec, rows=4)
native._check = lambda *_: None
for row in (3, 4):
    print(row, flush=True)
    native.forward([1] * 8, [row] * 8, range(8), cache.keys, cache.values, [7])
"""


@needs
def test_the_sanitizer_sees_what_the_kernel_writes() -> None:
    """A row that the cache does not have, past the check that would refuse it."""
    process = watched("-c", BEYOND)
    assert (process.returncode, process.stdout) == (99, "3\n4\n"), process.stderr[-3000:]
    assert "heap-buffer-overflow" in process.stderr
