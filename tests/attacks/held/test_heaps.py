"""The threads of a server share a few of the C library's heaps, so that what one has freed serves the others."""

from __future__ import annotations

import platform
import re
import subprocess
import sys

import pytest

from bedplate.core.memory import HEAPS

THREADS = 12
# Each thread allocates something, and stays until all have; then glibc says what heaps there are (malloc_info(3)).
COUNT = f"""
import ctypes, sys, threading
from bedplate.core.memory import share_heaps
if sys.argv[1] == "shared":
    share_heaps()
libc, all_, said = ctypes.CDLL(None), threading.Barrier({THREADS} + 1), threading.Event()
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.fdopen.restype, libc.fdopen.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_char_p]
libc.malloc_info.argtypes, libc.fflush.argtypes = [ctypes.c_int, ctypes.c_void_p], [ctypes.c_void_p]

def work():
    held = [libc.malloc(size) for size in (100, 5_000, 50_000)]
    all_.wait(20)
    said.wait(20)

for _ in range({THREADS}):
    threading.Thread(target=work, daemon=True).start()
all_.wait(20)
out = libc.fdopen(1, b"w")
libc.malloc_info(0, out)
libc.fflush(out)
said.set()
"""


def heaps(how: str) -> int:
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    line = [sys.executable, "-c", COUNT, how]
    process = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=60, check=True)
    return len(re.findall(r"<heap nr=", process.stdout))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library shares its heaps in its own way")
def test_many_threads_have_few_heaps():
    assert 1 <= heaps("shared") <= HEAPS < heaps("apart")
