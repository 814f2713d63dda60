"""Free memory, from the files of made-up machines; and whether what is freed is kept, by the kernel's own count."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from bedplate.core.memory import free_bytes

STAT = "anon 5\ninactive_file 300\ntotal_inactive_file 200\n"


def write_files(root: Path, files: dict[str, str]) -> None:
    for name, value in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(value)


def test_here_it_is_a_number_of_bytes() -> None:
    available = free_bytes()
    assert available is None or available > 1_000_000


def test_nothing_is_known_of_other_systems(tmp_path: Path) -> None:
    assert free_bytes(tmp_path) is None


@pytest.mark.parametrize(
    ("groups", "free"),
    [
        ({"a/b/memory.max": "max", "a/b/memory.current": "900"}, 8192),
        ({"a/b/memory.max": "2000", "a/b/memory.current": "900", "a/b/memory.stat": STAT}, 2000 - 900 + 300),
        ({"a/memory.max": "1000", "a/memory.current": "400", "a/b/memory.max": "5000"}, 600),
        ({"a/b/memory.max": "1000", "a/b/memory.current": "1200"}, 0),
        ({"memory.max": "4000", "memory.current": "1000"}, 3000),  # in a container the path is the host's
        ({"a/b/memory.max": "damaged", "a/b/memory.current": "1"}, 8192),
    ],
)
def test_what_a_group_may_take_is_less_than_what_the_machine_has(
    tmp_path: Path, groups: dict[str, str], free: int
) -> None:
    write_files(tmp_path, {"proc/meminfo": "MemTotal: 99 kB\nMemAvailable: 8 kB\n", "proc/self/cgroup": "0::/a/b"})
    write_files(tmp_path, {f"sys/fs/cgroup/{name}": value for name, value in groups.items()})
    assert free_bytes(tmp_path) == free


def test_groups_of_version_1(tmp_path: Path) -> None:
    write_files(tmp_path, {"proc/meminfo": "MemAvailable: 8 kB", "proc/self/cgroup": "5:cpu:/\n4:memory:/job\n0::/"})
    group = "sys/fs/cgroup/memory/job/memory."
    write_files(tmp_path, {f"{group}limit_in_bytes": "3000", f"{group}usage_in_bytes": "1000", f"{group}stat": STAT})
    assert free_bytes(tmp_path) == 2200
    write_files(tmp_path, {f"{group}limit_in_bytes": "9223372036854771712"})
    assert free_bytes(tmp_path) == 8192


_ROUNDS = """
import resource
import numpy as np
from bedplate.core.memory import keeping

def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [np.full(size, 1.0) for size in (400_000,) * 12]  # 3.2 MB each, which numpy asks no larger pages for
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def held() -> int:
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

print(min(faults() for _ in range(4)))
with keeping():
    faults()
    with keeping():
        faults()
    print(max(faults() for _ in range(4)), held())
print(held())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left to themselves")
def test_memory_that_is_kept_needs_no_new_pages_and_is_given_back_at_the_end() -> None:
    completed = subprocess.run([sys.executable, "-c", _ROUNDS], capture_output=True, text=True, check=True)
    usual, reused, resident, after = map(int, completed.stdout.split())
    pages = 12 * 3_200_000 // 4096
    assert usual > 0.5 * pages
    assert reused < 0.02 * pages
    assert resident - after > 0.5 * 12 * 3_200_000
