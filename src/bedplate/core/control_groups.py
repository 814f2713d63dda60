"""Finds the control groups of this process, which limit containers and services.

Read from Linux's own files under a root (`/` by default, another in tests); what is not there is left out:
https://www.kernel.org/doc/html/latest/admin-guide/cgroup-v2.html, …/cgroup-v1/cgroups.html.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

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
