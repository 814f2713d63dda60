"""How much memory this process may still take: what the machine has left, or the control group that it is in. And
giving back what it has freed."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

from bedplate.core.control_groups import Group, lines, own_groups, text

HEAPS = 2
_M_ARENA_MAX = -8
"""As malloc.h has it."""


def free_bytes(root: Path = Path("/")) -> int | None:
    """Memory that may still be taken, or None where the system does not say."""
    return min(_left(root), default=None)


def give_back() -> None:
    """Gives the system what this process has freed and its allocator keeps: of glibc the free pages in the midst of its
    heaps too, which it otherwise keeps for good (malloc_trim(3)). Other C libraries are left to themselves. Takes the
    lock of one heap at a time, and not the interpreter's."""
    trim = _trim()
    if trim is not None:
        trim(0)


def share_heaps() -> None:
    """Lets this process's threads allocate from `HEAPS` heaps, where glibc would give each of them its own, up to eight
    for every processor (M_ARENA_MAX of mallopt(3)). What a thread has freed is then used by the others; a heap that
    only one of many threads uses keeps pages that hold next to nothing. For a process of many threads, before they are
    started. Whoever set MALLOC_ARENA_MAX or GLIBC_TUNABLES has chosen already."""
    if not {"MALLOC_ARENA_MAX", "GLIBC_TUNABLES"} & os.environ.keys():
        with contextlib.suppress(OSError, TypeError, AttributeError):  # no glibc
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, HEAPS)


@lru_cache(maxsize=1)
def _trim() -> Callable[[int], int] | None:
    try:
        found = ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):  # no glibc; Windows has no such handle
        return None
    found.argtypes, found.restype = [ctypes.c_size_t], ctypes.c_int
    return found


def _left(root: Path) -> Iterator[int]:
    available = _named(root / "proc/meminfo", "MemAvailable:")
    if available is not None:
        yield available * 1024
    for group in own_groups("memory", root):
        left = _left_of(group)
        if left is not None:
            yield left


def _left_of(group: Group) -> int | None:
    """What a group's limit leaves. Pages of files that are not in use are let go of before the limit is reached."""
    limit, used, unused = (
        ("memory.max", "memory.current", "inactive_file")
        if group.version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    most, now = (_number(text(group.directory / name)) for name in (limit, used))
    if most is None or now is None:
        return None
    return max(most - now + (_named(group.directory / "memory.stat", unused) or 0), 0)


def _named(path: Path, name: str) -> int | None:
    found = (line.split() for line in lines(path))
    return next((_number(words[1]) for words in found if len(words) > 1 and words[0] == name), None)


def _number(value: str | None) -> int | None:
    return int(value) if value is not None and value.isdecimal() else None
