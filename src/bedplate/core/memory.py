"""Free memory of this process, within its machine and control group; memory that is taken as it is written; whether
the allocator keeps what was freed; and the garbage collector, which is kept out of the process's start."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from bedplate.core.processor import ControlGroup, lines, own_groups, text

HEAPS = 2
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8
"""glibc's numbers of what mallopt(3) sets."""
_MIB = 1 << 20
_NO_RESERVE = 0x4000 if sys.platform == "linux" else 0
"""MAP_NORESERVE, which Python names from 3.13 on: pages that are never written do not count as memory."""
_KEEPING = ((_TRIM_THRESHOLD, -1), (_MMAP_MAX, 0))
"""Nothing is given back, and no block is mapped by itself, which would be given back when it is freed."""
_USUAL = ((_TRIM_THRESHOLD, 64 * _MIB), (_MMAP_THRESHOLD, 32 * _MIB), (_MMAP_MAX, 65_536))
"""How far glibc moves its thresholds by itself, which it no longer does once one is set, and its own number of maps."""


class _Keepers:
    """How many want memory to be kept; the first and the last of them change the allocator."""

    def __init__(self) -> None:
        self._lock, self._count = threading.Lock(), 0

    def change(self, by: int) -> None:
        with self._lock:
            before, self._count = self._count, self._count + by
            if not before:
                _set(_KEEPING)
            elif not self._count:
                _set(_USUAL)
                give_back()


_keepers = _Keepers()


def free_bytes(root: Path = Path("/")) -> int | None:
    """Memory that may still be taken, or None where the system does not say."""
    available = _named(root / "proc/meminfo", "MemAvailable:")
    remaining = [None if available is None else available * 1024, *map(_left_of, own_groups("memory", root))]
    return min((size for size in remaining if size is not None), default=None)


def give_back() -> None:
    """Gives the system what this process has freed and its allocator keeps: of glibc the free pages in the midst of its
    heaps too, which it otherwise keeps for good (malloc_trim(3)). Other C libraries are left to themselves. Takes the
    lock of one heap at a time, and not the interpreter's."""
    trim = _glibc("malloc_trim", ctypes.c_size_t)
    if trim is not None:
        trim(0)


def share_heaps() -> None:
    """Lets this process's threads allocate from `HEAPS` heaps, where glibc would give each of them its own, up to eight
    for every processor. What a thread has freed is then used by the others; a heap that only one of many threads uses
    keeps pages that hold next to nothing. For a process of many threads, before they are started. Whoever set
    MALLOC_ARENA_MAX or GLIBC_TUNABLES has chosen already. Other C libraries are left to themselves."""
    if not {"MALLOC_ARENA_MAX", "GLIBC_TUNABLES"} & os.environ.keys():
        _set(((_ARENA_MAX, HEAPS),))


@contextmanager
def keeping() -> Generator[None]:
    """What this process frees stays with its allocator while it is open, and is what it gets when it asks for memory;
    at the end it is given back.

    For work that frees and asks for the same large blocks again and again: glibc gives them back, and the system has to
    clear each page of the next ones, which takes longer than most operations on them do. Only the heap that the main
    thread uses keeps blocks of more than 64 MiB. Other C libraries are left to themselves.
    """
    _keepers.change(1)
    try:
        yield
    finally:
        _keepers.change(-1)


def _set(values: Iterable[tuple[int, int]]) -> None:
    mallopt = _glibc("mallopt", ctypes.c_int, ctypes.c_int)
    if mallopt is not None:
        for name, value in values:
            mallopt(name, value)


@lru_cache
def _glibc(name: str, *argument_types: type) -> Callable[..., int] | None:
    """A function of the allocator that returns an int; None where the C library has none of this name."""
    try:
        function = getattr(ctypes.CDLL(None), name)
    except (OSError, TypeError, AttributeError):  # no glibc; Windows has no such handle
        return None
    function.argtypes, function.restype = list(argument_types), ctypes.c_int
    return function


def _left_of(group: ControlGroup) -> int | None:
    """What a group's limit leaves. Pages of files that are not in use are let go of before the limit is reached."""
    limit, used, unused = (
        ("memory.max", "memory.current", "inactive_file")
        if group.version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    max_bytes, used_bytes = (_number(text(group.directory / name)) for name in (limit, used))
    if max_bytes is None or used_bytes is None:
        return None
    return max(max_bytes - used_bytes + (_named(group.directory / "memory.stat", unused) or 0), 0)


def _named(path: Path, name: str) -> int | None:
    rows = (line.split() for line in lines(path))
    return next((_number(words[1]) for words in rows if len(words) > 1 and words[0] == name), None)


def _number(value: str | None) -> int | None:
    return int(value) if value is not None and value.isdecimal() else None


def forget_pages(address: int, size: int) -> None:
    """Lets the system take back the whole pages within these bytes: of a mapped file that nobody has changed, which is
    read again where it is needed again, or of `zeros_on_demand`. Nothing where the system has no such call."""
    begin, end = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE, (address + size) // mmap.PAGESIZE * mmap.PAGESIZE
    advise = _glibc("madvise", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if end > begin and advise is not None and hasattr(mmap, "MADV_DONTNEED"):
        advise(begin, end - begin, mmap.MADV_DONTNEED)


def zeros_on_demand(size: int) -> mmap.mmap:
    """So many zero bytes outside of the allocator's heaps, of which the system provides each page when it is written
    first. They may be more than there is memory. MemoryError where the system limits addresses."""
    try:
        region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
    except OSError as error:
        raise MemoryError(f"{size:,} bytes of addresses are not available: {error}") from error
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with suppress(OSError):  # a kernel without huge pages; with them, the first byte would take two million
            region.madvise(mmap.MADV_NOHUGEPAGE)
    return region


@contextmanager
def without_collections() -> Generator[None]:
    """No garbage is looked for while it is open: going through some hundred thousand new objects that are all in use
    holds every thread for a third of a second, again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def left_alone() -> Generator[None]:
    """Nothing is looked for while it is open, and not later either among what is there at its end.

    For the start of a process of ours: imports make some hundred thousand objects that stay, and going through them
    again and again takes a tenth of the start. It takes a third of a second each time, for which every thread of a
    server waits. What is frozen is not looked through at the process's end either.
    """
    with without_collections():
        try:
            yield
        finally:
            gc.freeze()
