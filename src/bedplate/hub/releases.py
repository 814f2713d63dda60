"""A release of the package index as an archive: its source distribution, or else a wheel. Nothing of it is run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pypi_simple

from bedplate.core.errors import HubError
from bedplate.core.files import file_lock
from bedplate.hub import index
from bedplate.hub.archive import DAMAGED, files
from bedplate.hub.cache import cache_directory

_SUFFIXES = (".tar.gz", ".zip", "-none-any.whl", ".whl")
"""Ends of names, best first: sources, then what is for any machine."""


def release(requirement: str, *, quiet: bool = False) -> Path:
    """The archive of `name==version` on disk, fetched if it is not there and checked against the index's sha256.

    Raises UnreachableError, HubError (not offered, or without a hash), HashMismatchError, UsageError (a full
    disk).
    """
    project, _, version = requirement.partition("==")
    folder = cache_directory() / "releases" / f"{_normal(project)}-{version}"
    with file_lock(folder.parent / f".{folder.name}.lock"):
        archive = _best([path for path in folder.glob("*") if not path.name.endswith(".part")])
        if archive is None:
            folder.mkdir(exist_ok=True)
            archive = _fetch(project, version, folder, quiet)
    return archive


def _fetch(project: str, version: str, folder: Path, quiet: bool) -> Path:
    settings = index.pip_settings()
    for place in settings.folders:
        names = [path for path in place.glob("*") if _is_of(path.name, project, version)] if place.is_dir() else []
        archive = _best(names)
        if archive is not None:
            return archive
    with index.session(settings) as session:
        offered: list[pypi_simple.DistributionPackage] = []
        for page in index.pages(session, settings, project, version):
            offered = [
                candidate
                for candidate in page
                if candidate.version == version and candidate.filename.endswith(_SUFFIXES)
            ]
            if offered:
                break
        if not offered:
            raise HubError(f"the configured package index has no archive of {project} {version}; give another version")
        package = min(offered, key=lambda candidate: (_rank(candidate.filename), candidate.filename))
        sha256 = (package.digests or {}).get("sha256")
        if sha256 is None:
            raise HubError(f"{package.filename}: the index gives no sha256, so it cannot be checked; it is not used")
        part = folder / f"{package.filename}.part"
        name = package.filename
        index.download(session, package.url, part, name, sha256=sha256, size_bytes=None, quiet=quiet)
    return part.rename(folder / package.filename)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _is_of(filename: str, project: str, version: str) -> bool:
    """PEP 625 and PEP 427: the name's and the version's hyphens are underscores in file names."""
    start = re.match(r"(.+?)-([0-9][^-]*?)(?:\.tar\.gz|\.zip|-.*\.whl)$", filename)
    return start is not None and _normal(start[1]) == _normal(project) and start[2] == version


def _rank(filename: str) -> int:
    return next((rank for rank, suffix in enumerate(_SUFFIXES) if filename.endswith(suffix)), len(_SUFFIXES))


def _best(paths: list[Path]) -> Path | None:
    archives = [path for path in paths if path.name.endswith(_SUFFIXES)]
    return min(archives, key=lambda path: (_rank(path.name), path.name)) if archives else None


def members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """The plain files of an archive with their content, in its order. HubError where it is damaged."""
    try:
        for name, stream in files(archive, lambda _: True):
            if stream is not None:
                yield name, stream.read()
    except (*DAMAGED, OSError) as error:
        raise HubError(f"{archive}: cannot be unpacked: {error}; remove it, to have it fetched again") from error
