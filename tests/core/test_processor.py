"""Machines as their /proc and /sys describe them: made-up trees in the kernel's own layout."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bedplate.core.processor import cpu_list, processor, processor_kind, processor_name, read_processor

CPU = "sys/devices/system/cpu"
X86 = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd40\n"


def write_file(root: Path, name: str, content: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content + "\n")


def machine(root: Path, cores: int, *, threads: int = 1, sockets: int = 1, siblings: str = "core_cpus_list") -> Path:
    """Hyperthreads are numbered as on Intel servers: a core's second one comes after all cores' first ones."""
    write_file(root, "proc/cpuinfo", X86)
    write_file(root, f"{CPU}/online", f"0-{cores * threads - 1}")
    for cpu in range(cores * threads):
        core = cpu % cores
        topology = f"{CPU}/cpu{cpu}/topology"
        write_file(root, f"{topology}/{siblings}", ",".join(str(core + cores * i) for i in range(threads)))
        write_file(root, f"{topology}/physical_package_id", str(core * sockets // cores))
        write_file(root, f"{topology}/core_id", str(core))
    for node in range(sockets):
        mine = [cpu for cpu in range(cores * threads) if (cpu % cores) * sockets // cores == node]
        write_file(root, f"sys/devices/system/node/node{node}/cpulist", ",".join(map(str, mine)))
    return root


@pytest.mark.parametrize(("cores", "threads", "sockets"), [(1, 1, 1), (2, 1, 1), (8, 2, 1), (64, 2, 2), (128, 2, 2)])
def test_cores_are_counted_once_whatever_their_hyperthreads(
    tmp_path: Path, cores: int, threads: int, sockets: int
) -> None:
    detected = read_processor(machine(tmp_path, cores, threads=threads, sockets=sockets), range(cores * threads))
    assert (detected.online, detected.allowed) == (cores * threads, cores * threads)
    assert (detected.cores, detected.threads, detected.quota) == (cores, cores, None)
    assert (detected.sockets, detected.nodes) == (sockets, sockets)


def test_only_what_the_affinity_mask_allows(tmp_path: Path) -> None:
    machine(tmp_path, 8, threads=2, sockets=2)
    assert read_processor(tmp_path, {0, 8}).threads == 1  # both hyperthreads of one core
    assert read_processor(tmp_path, {0, 1, 8}).cores == 2
    second_socket = read_processor(tmp_path, {4, 5, 6, 7})  # the second socket
    assert (second_socket.cores, second_socket.sockets, second_socket.nodes, second_socket.online) == (4, 1, 1, 16)


def test_the_older_name_of_siblings_and_none_at_all(tmp_path: Path) -> None:
    assert read_processor(machine(tmp_path / "old", 4, threads=2, siblings="thread_siblings_list"), range(8)).cores == 4
    bare = tmp_path / "bare"
    machine(bare, 4, threads=2, siblings="unknown_list")  # package and core number say the same
    assert read_processor(bare, range(8)).cores == 4
    empty = read_processor(tmp_path / "nothing", {0, 1, 2})
    assert (empty.cores, empty.threads, empty.quota, empty.sockets, empty.nodes) == (3, 3, None, 1, 1)
    assert dict(empty.caches) == {}


@pytest.mark.parametrize(
    ("limit", "quota", "threads"),
    [("max 100000", None, 8), ("50000 100000", 0.5, 1), ("250000 100000", 2.5, 2), ("6400000 100000", 64.0, 8)],
)
def test_quotas_of_version_2(tmp_path: Path, limit: str, quota: float | None, threads: int) -> None:
    machine(tmp_path, 8)
    write_file(tmp_path, "proc/self/cgroup", "0::/work.slice/job.scope")
    write_file(tmp_path, "sys/fs/cgroup/work.slice/job.scope/cpu.max", limit)
    detected = read_processor(tmp_path, range(8))
    assert (detected.quota, detected.threads) == (quota, threads)


def test_the_smallest_quota_on_the_way_up_holds(tmp_path: Path) -> None:
    machine(tmp_path, 8)
    write_file(tmp_path, "proc/self/cgroup", "0::/a/b/c")
    write_file(tmp_path, "sys/fs/cgroup/a/b/c/cpu.max", "400000 100000")
    write_file(tmp_path, "sys/fs/cgroup/a/cpu.max", "300000 100000")
    write_file(tmp_path, "sys/fs/cgroup/a/b/cpu.max", "damaged")
    assert read_processor(tmp_path, range(8)).quota == 3.0


def test_inside_a_container_the_mount_begins_with_its_own_group(tmp_path: Path) -> None:
    machine(tmp_path, 8)
    write_file(tmp_path, "proc/self/cgroup", "0::/")
    write_file(tmp_path, "sys/fs/cgroup/cpu.max", "150000 100000")
    assert read_processor(tmp_path, range(8)).threads == 1


@pytest.mark.parametrize("path", ["/docker/abc", "/"])
@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_quotas_of_version_1(tmp_path: Path, path: str, mount: str) -> None:
    """In a container the path is the host's, and not there."""
    machine(tmp_path, 8)
    write_file(tmp_path, "proc/self/cgroup", f"12:memory:{path}\n4:cpu,cpuacct:{path}\n1:name=systemd:{path}\n0::/")
    write_file(tmp_path, f"sys/fs/cgroup/{mount}/cpu.cfs_quota_us", "50000")
    write_file(tmp_path, f"sys/fs/cgroup/{mount}/cpu.cfs_period_us", "100000")
    detected = read_processor(tmp_path, range(8))
    assert (detected.quota, detected.threads) == (0.5, 1)
    write_file(tmp_path, f"sys/fs/cgroup/{mount}/cpu.cfs_quota_us", "-1")
    assert read_processor(tmp_path, range(8)).quota is None


def test_caches(tmp_path: Path) -> None:
    machine(tmp_path, 2)
    caches = [("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2048K"), ("3", "Unified", "33M")]
    for number, (level, cache_type, size) in enumerate(caches):
        for name, value in (("level", level), ("type", cache_type), ("size", size)):
            write_file(tmp_path, f"{CPU}/cpu1/cache/index{number}/{name}", value)
    assert dict(read_processor(tmp_path, {1}).caches) == {"L1d": 48 << 10, "L2": 2 << 20, "L3": 33 << 20}
    assert dict(read_processor(tmp_path, {0}).caches) == {}


def test_names(tmp_path: Path) -> None:
    write_file(tmp_path / "x86", "proc/cpuinfo", X86)
    write_file(tmp_path / "arm", "proc/cpuinfo", ARM)
    assert processor_name(tmp_path / "x86") == "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"
    assert processor_name(tmp_path / "arm") == "ARM Neoverse-V1"
    write_file(tmp_path / "a55", "proc/cpuinfo", ARM.replace("0xd40", "0xd05"))
    assert processor_name(tmp_path / "a55") == "ARM implementer 0x41, part 0xd05"
    assert processor_name(tmp_path / "none")


def test_processors_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    cpuinfo = "model name\t: AMD EPYC\ncpu MHz\t\t: 2595.1\ncpu family\t: 25\nmodel\t\t: 1\nflags\t\t: fpu avx2\n"
    newer = cpuinfo.replace("model\t\t: 1\n", "model\t\t: 17\n")
    able = cpuinfo.replace("avx2", "avx2 avx512_bf16")
    for name, content in (
        ("one", cpuinfo),
        ("newer", newer),
        ("able", able),
        ("again", cpuinfo.replace("2595", "3100")),
    ):
        write_file(tmp_path / name, "proc/cpuinfo", content)
    original, newer, able, reclocked = (processor_kind(tmp_path / name) for name in ("one", "newer", "able", "again"))
    assert len({original, newer, able}) == 3
    assert reclocked == original  # a clock that goes up and down
    assert original.startswith("AMD EPYC ")
    assert processor_kind(tmp_path / "nothing")


def test_lists() -> None:
    assert cpu_list("0-3,8,10-11") == {0, 1, 2, 3, 8, 10, 11}
    assert cpu_list("5") == {5}
    assert cpu_list("") == cpu_list("a-b") == cpu_list("1,,2") == set()


def test_this_machine() -> None:
    detected = processor()
    assert 1 <= detected.threads <= detected.cores <= detected.allowed <= (os.cpu_count() or 1)
    assert detected.to_json()["threads"] == detected.threads
    assert detected.name
