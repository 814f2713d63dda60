"""The processor that this process may use: its cores, not hyperthreads, and what the quota of its control groups, which
limit containers and services, leaves of them.

Everything is read from Linux's own files under a root (`/` by default, another in tests); what is not there is left
out. Where the files lie:
https://www.kernel.org/doc/html/latest/admin-guide/cputopology.html (cores), …/cgroup-v2.html (`cpu.max`),
…/scheduler/sched-bwc.html (`cpu.cfs_quota_us`, version 1).
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bedplate.core.files import sha256_json

_CPUS = Path("sys/devices/system/cpu")
_NODES = Path("sys/devices/system/node")
_TELLS_APART = (
    *("vendor_id", "cpu family", "model", "stepping", "flags"),
    *("CPU implementer", "CPU variant", "CPU part", "CPU revision", "Features"),
)
"""Fields of /proc/cpuinfo, of x86 and of ARM."""
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_BUSY = 1.5
"""A load average of so many times the processors is more than what computes here makes by itself."""


@dataclass(frozen=True)
class Processor:
    """What this process may use of its machine.

    allowed: logical processors in the affinity mask; online: those of the machine. cores: physical ones among the
    allowed. quota: cores' worth of time that control groups grant (0.5: half of one core's), None: no limit. sockets,
    nodes: packages and NUMA nodes that the allowed ones are on. caches: bytes of one "L1d", "L2", "L3" as the first
    allowed processor sees them, where known. load: processes that ran or waited over the last minute.
    """

    name: str
    architecture: str
    online: int
    allowed: int
    cores: int
    quota: float | None
    sockets: int
    nodes: int
    caches: Mapping[str, int]
    load: float | None

    @property
    def threads(self) -> int:
        """How many threads compute fastest here: one for each core, within the quota's whole cores, at least one.

        A second hyperthread shares its core's multipliers. A quota of 2.5 gives two: threads that wait for each other
        at every product all stop when the quota is spent.
        """
        return self.cores if self.quota is None else max(1, min(self.cores, int(self.quota + 1e-6)))

    def to_json(self) -> dict[str, Any]:
        """For reports."""
        return {**asdict(self), "caches": dict(self.caches), "threads": self.threads}


@cache
def processor() -> Processor:
    """This machine's, as this process found it when it first asked."""
    return read_processor()


def read_processor(root: Path = Path("/"), allowed: Collection[int] | None = None) -> Processor:
    """The processor of the machine whose /proc and /sys lie under `root`; `allowed`: the affinity mask's logical
    processors (default: this process's own)."""
    online = cpu_list(text(root / _CPUS / "online") or "") or set(range(os.cpu_count() or 1))
    if allowed is None:
        allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else online
    mask = sorted(allowed) or [0]
    quotas = (_group_quota(group) for group in own_groups("cpu", root))  # also of the groups above this process's
    nodes = [cpu_list(text(path / "cpulist") or "") for path in (root / _NODES).glob("node[0-9]*")]
    packages = {text(root / _CPUS / f"cpu{cpu}" / "topology" / "physical_package_id") or "0" for cpu in mask}
    return Processor(
        name=processor_name(root),
        architecture=platform.machine(),
        online=max(len(online), 1),
        allowed=len(mask),
        cores=len({_core(root, cpu) for cpu in mask}),
        quota=min((quota for quota in quotas if quota is not None), default=None),
        sockets=len(packages),
        nodes=max(sum(not cpus.isdisjoint(mask) for cpus in nodes), 1),
        caches=_caches(root, mask[0]),
        load=load_average(),
    )


_ARM = 0x41
_NEOVERSE = {0xD0C: "N1", 0xD40: "V1", 0xD49: "N2", 0xD4F: "V2", 0xD83: "V3AE", 0xD84: "V3", 0xD8E: "N3"}
"""Parts of /proc/cpuinfo → cores of servers, from Linux's arch/arm64/include/asm/cputype.h."""


def processor_name(root: Path = Path("/")) -> str:
    """The processor's name as the system gives it, such as "AMD EPYC 9654"; for ARM, whose systems give none, that of a
    server's core, or the numbers of its design."""
    fields = _first(root)
    for key in ("model name", "cpu model", "cpu"):
        if fields.get(key):
            return fields[key]
    implementer, part = _number(fields.get("CPU implementer")), _number(fields.get("CPU part"))
    if implementer is not None and part is not None:
        core = _NEOVERSE.get(part) if implementer == _ARM else None
        return f"ARM implementer {implementer:#x}, part {part:#x}" if core is None else f"ARM Neoverse-{core}"
    return platform.processor() or platform.machine() or "unknown"


@cache
def processor_kind(root: Path = Path("/")) -> str:
    """What measurements are kept under: the name, and a digest of what tells processors of one name apart. Virtual
    machines call several generations, with and without products of bfloat16, just "AMD EPYC"."""
    fields = _first(root)
    return f"{processor_name(root)} {sha256_json([fields.get(key) for key in _TELLS_APART])[:8]}"


def load_average() -> float | None:
    """Processes that ran or waited for a processor, of the whole machine, averaged over the last minute; None where the
    system does not say."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def is_busy(load: float, processors: int | None = None) -> bool:
    """Whether at such a load average a process that computes on every processor has to share them with others.
    processors: those of another machine."""
    return load > _BUSY * (processors or processor().online)


def _first(root: Path) -> dict[str, str]:
    """What /proc/cpuinfo says of the first processor."""
    fields: dict[str, str] = {}
    for line in lines(root / "proc/cpuinfo"):
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields


# --- cores


def _core(root: Path, cpu: int) -> object:
    """What hyperthreads of one core have in common; a processor of its own where the system does not say."""
    topology = root / _CPUS / f"cpu{cpu}" / "topology"
    for name in ("core_cpus_list", "thread_siblings_list"):  # the second is the older name
        siblings = cpu_list(text(topology / name) or "")
        if cpu in siblings:
            return frozenset(siblings)
    package, core = text(topology / "physical_package_id"), text(topology / "core_id")
    return (package, core) if core else cpu


def cpu_list(text: str) -> set[int]:
    """The numbers of a list such as "0-3,8"; nothing for what is none."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        ends = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if ends is None:
            return set()
        cpus |= set(range(int(ends[1]), int(ends[2] or ends[1]) + 1))
    return cpus


# --- caches


def _caches(root: Path, cpu: int) -> dict[str, int]:
    cache_sizes: dict[str, int] = {}
    for index in _children(root / _CPUS / f"cpu{cpu}" / "cache"):
        cache_type, level, size = (text(index / name) for name in ("type", "level", "size"))
        bytes_ = _bytes(size or "")
        if bytes_ and level and cache_type in ("Data", "Unified"):
            cache_sizes["L1d" if level == "1" else f"L{level}"] = bytes_
    return dict(sorted(cache_sizes.items()))


def _bytes(text: str) -> int | None:
    match = re.fullmatch(r"(\d+)([KMG]?)", text.strip())
    return None if match is None else int(match[1]) * _UNITS.get(match[2], 1)


# --- quotas


def _group_quota(group: ControlGroup) -> float | None:
    """Microseconds of every period → cores; None for "max", −1 and damaged files."""
    if group.version == 2:
        quota, _, period = (text(group.directory / "cpu.max") or "max").partition(" ")
    else:
        quota, period = (text(group.directory / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period"))
    try:
        time, span = int(quota), int(period or "100000")
    except ValueError:
        return None
    return time / span if time > 0 and span > 0 else None


# --- files


def _number(text: str | None) -> int | None:
    try:
        return None if text is None else int(text, 0)
    except ValueError:
        return None


def _children(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError:
        return []


# --- control groups

_MOUNT = Path("sys/fs/cgroup")


class ControlGroup(NamedTuple):
    """One group, by the version of the interface, in whose directory its files are."""

    version: Literal[1, 2]
    directory: Path


def own_groups(controller: str, root: Path = Path("/")) -> Iterator[ControlGroup]:
    """This process's group of a controller ("cpu", "memory") and all above it, in both versions."""
    for line in lines(root / "proc/self/cgroup"):
        number, _, remainder = line.partition(":")
        controllers, _, path = remainder.partition(":")
        if number == "0" and not controllers:
            for mount in (_MOUNT, _MOUNT / "unified"):  # the second where both versions are mounted
                yield from (ControlGroup(2, directory) for directory in _upwards(root / mount, path))
        elif controller in controllers.split(","):
            for mount in sorted({controllers, controller, "cpu,cpuacct"} if controller == "cpu" else {controllers}):
                yield from (ControlGroup(1, directory) for directory in _upwards(root / _MOUNT / mount, path))


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """A group and all above it. In a container the path may be the host's, which is not there: its mount then begins
    with the container's own group."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    for depth in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:depth])


def text(path: Path) -> str | None:
    """A file of the system's, None where there is none."""
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return None


def lines(path: Path) -> list[str]:
    """A file's lines, none where there is no file."""
    return (text(path) or "").splitlines()
