"""Files of the package index that pip is configured with, checked by sha256: named files, and releases by version.

pip's own download would run the build code of a source distribution; reading the simple repository API (PEP 503, PEP
691) runs nothing.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pypi_simple
import requests
import requests.adapters
import urllib3

from bedplate.core.errors import HashMismatchError, HubError, UnreachableError
from bedplate.core.files import DISK_FULL, bedplate_home, file_lock, unwritable
from bedplate.core.progress import Progress
from bedplate.hub.archive import DAMAGED, files

_CHUNK = 1 << 18
_MEGABYTE = 1e6
TIMEOUT = (15, 60)  # seconds to connect, and between two chunks


@dataclass(frozen=True)
class IndexSettings:
    """Where pip would look: index addresses in order, folders of files, the certificate bundle."""

    indexes: tuple[str, ...]
    folders: tuple[Path, ...]
    certificates: str | None


def pip_settings() -> IndexSettings:
    """pip's settings: the environment (PIP_INDEX_URL, PIP_FIND_LINKS, PIP_CERT, …) over its configuration files."""
    files = _pip_files()
    settings = {**files.get("global", {}), **files.get("download", {})}
    for name in ("index-url", "extra-index-url", "find-links", "no-index", "cert"):
        if value := os.environ.get("PIP_" + name.upper().replace("-", "_")):
            settings[name] = value
    indexes: list[str] = []
    if settings.get("no-index", "").lower() not in {"1", "true", "yes", "on"}:
        indexes = [settings.get("index-url") or pypi_simple.PYPI_SIMPLE_ENDPOINT]
        indexes += settings.get("extra-index-url", "").split()
    folders = [_folder(link) for link in settings.get("find-links", "").split()]
    return IndexSettings(tuple(indexes), tuple(f for f in folders if f is not None), settings.get("cert"))


def _pip_files() -> Mapping[str, Mapping[str, str]]:
    """`pip config list` by section; empty where there is no pip."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    sections: dict[str, dict[str, str]] = {}
    for line in subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines():
        name, equals, value = line.partition("=")
        section, dot, key = name.partition(".")
        if equals and dot and not name.startswith(":env:"):
            try:
                sections.setdefault(section, {})[key] = str(ast.literal_eval(value))
            except (ValueError, SyntaxError):
                continue
    return sections


def _folder(link: str) -> Path | None:
    """A --find-links entry as a local folder; None for a page on the network."""
    parts = urlsplit(link)
    if parts.scheme in {"", "file"}:
        return Path(unquote(parts.path) if parts.scheme else link).expanduser()
    return None


def fetch(
    requirement: str, filename: str, destination: Path, *, sha256: str, size_bytes: int, quiet: bool = False
) -> None:
    """Download `filename` of `requirement` ("name==version") to `destination`. Raises UnreachableError (no index
    answers), HubError (not offered there), HashMismatchError (the file is removed)."""
    settings = pip_settings()
    for folder in settings.folders:
        candidate = folder / filename
        if candidate.is_file():
            with candidate.open("rb") as file:
                chunks = iter(lambda: file.read(_CHUNK), b"")
                write_checked(chunks, destination, sha256, size_bytes, str(candidate), quiet)
            return
    project, _, version = requirement.partition("==")
    offered: list[str] = []
    with session(settings) as client:
        for page in pages(client, settings, project, version):
            for package in page:
                if package.filename == filename:
                    download(client, package.url, destination, filename, sha256, size_bytes, quiet)
                    return
            offered += sorted({p.version for p in page if p.version})
    if not settings.indexes:
        raise UnreachableError(f"pip is set to no-index, and no find-links folder has {filename}; put the file there")
    availability = f"it offers {', '.join(offered)}" if offered else "it does not know the project"
    raise HubError(f"the configured package index has no {filename} ({project} {version}): {availability}")


def download(
    client: requests.Session,
    url: str,
    destination: Path,
    filename: str,
    sha256: str,
    size_bytes: int | None,
    quiet: bool,
) -> None:
    """A file of an index, checked. size_bytes: by default what the server says. Raises UnreachableError where it breaks
    off, HashMismatchError, UsageError where the disk is full; either way nothing is left."""
    try:
        with client.get(url, stream=True, timeout=TIMEOUT) as response:
            response.raise_for_status()
            size = int(response.headers.get("Content-Length") or 0) if size_bytes is None else size_bytes
            source = f"{filename} from {_shown(url)}"
            write_checked(response.iter_content(_CHUNK), destination, sha256, size, source, quiet)
    except requests.RequestException as error:
        destination.unlink(missing_ok=True)
        problem = f"the download from {_shown(url)} broke off ({_cause(error)})"
        raise UnreachableError(f"{filename}: {problem}; run the command again") from error


def session(settings: IndexSettings) -> requests.Session:
    """For one or more requests to the indexes."""
    client = requests.Session()
    # a dropped connection is tried again; an index that is not there fails within seconds
    retry = urllib3.Retry(total=2, backoff_factor=0.3, status_forcelist=(429, 502, 503, 504))
    for scheme in ("https://", "http://"):
        client.mount(scheme, requests.adapters.HTTPAdapter(max_retries=retry))
    if settings.certificates:
        client.verify = settings.certificates
    return client


def pages(
    client: requests.Session, settings: IndexSettings, project: str, version: str
) -> Iterator[list[pypi_simple.DistributionPackage]]:
    """What each index offers of a project, in their order. UnreachableError at the end where one could not be asked;
    it names the version, which is what was wanted."""
    problems: list[str] = []
    for index in settings.indexes:
        simple = pypi_simple.PyPISimple(endpoint=index, session=client)
        try:
            packages = simple.get_project_page(project, timeout=TIMEOUT).packages
        except pypi_simple.NoSuchProjectError:
            continue
        except requests.RequestException as error:
            problems.append(f"{_shown(index)}: {_cause(error)}")
            continue
        except (pypi_simple.UnsupportedContentTypeError, pypi_simple.UnsupportedRepoVersionError, ValueError) as error:
            problems.append(f"{_shown(index)}: not a package index: {_without_password(str(error))}")
            continue
        yield packages
    if problems:
        raise UnreachableError(
            f"the package index cannot be reached, so {project} {version} cannot be pulled ({'; '.join(problems)}); "
            "check the network and pip's index-url (PIP_INDEX_URL), or put the file into a find-links folder"
        )


def write_checked(
    chunks: Iterable[bytes], destination: Path, sha256: str, size_bytes: int, source: str, quiet: bool
) -> None:
    digest = hashlib.sha256()
    try:
        with (
            Progress(destination.name, size_bytes / _MEGABYTE, "MB", quiet=quiet) as bar,
            destination.open("wb") as out,
        ):
            for chunk in chunks:
                digest.update(chunk)
                out.write(chunk)
                bar.advance(len(chunk) / _MEGABYTE)
    except BaseException as error:
        destination.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise unwritable(destination, error) from error
        raise
    if digest.hexdigest() != sha256:
        destination.unlink()
        raise HashMismatchError(
            f"{source}: its sha256 is {digest.hexdigest()}, and must be {sha256}; the file was removed unused. "
            "A damaged download: run the command again. The same again: the index serves another file; do not use it"
        )


def _shown(url: str) -> str:
    """An address without the user name and password that may stand in it."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return parts._replace(netloc=host if parts.port is None else f"{host}:{parts.port}").geturl()


def _without_password(text: str) -> str:
    """What others say of an address, without the user name and password that may stand in it."""
    return re.sub(r"//[^/@\s]+@", "//", text)


def _cause(error: BaseException) -> str:
    """The innermost reason, which says "Connection refused" where the outer one prints a stack of objects."""
    reason: BaseException = error
    while True:
        inner = getattr(reason, "reason", None) or reason.__cause__ or reason.__context__
        if not isinstance(inner, BaseException):
            inner = next((a for a in reason.args if isinstance(a, Exception)), None)
        if inner is None or inner is reason:
            return _without_password(str(reason).rpartition(">: ")[2]) or type(reason).__name__
        reason = inner


_SUFFIXES = (".tar.gz", ".zip", "-none-any.whl", ".whl")
"""Ends of names, best first: sources, then what is for any machine."""


def release(requirement: str, *, quiet: bool = False) -> Path:
    """The archive of `name==version` on disk, fetched if it is not there and checked against the index's sha256. Raises
    UnreachableError, HubError (not offered, or without a hash), HashMismatchError, UsageError (a full disk)."""
    project, _, version = requirement.partition("==")
    folder = bedplate_home() / "hub" / "releases" / f"{_normal(project)}-{version}"
    with file_lock(folder.parent / f".{folder.name}.lock"):
        archive = _best([path for path in folder.glob("*") if not path.name.endswith(".part")])
        if archive is None:
            folder.mkdir(exist_ok=True)
            archive = _fetch(project, version, folder, quiet)
    return archive


def _fetch(project: str, version: str, folder: Path, quiet: bool) -> Path:
    settings = pip_settings()
    for place in settings.folders:
        names = [path for path in place.glob("*") if _is_of(path.name, project, version)] if place.is_dir() else []
        archive = _best(names)
        if archive is not None:
            return archive
    with session(settings) as client:
        fitting = (
            [package for package in page if package.version == version and package.filename.endswith(_SUFFIXES)]
            for page in pages(client, settings, project, version)
        )
        offered = next(filter(None, fitting), None)
        if offered is None:
            raise HubError(f"the configured package index has no archive of {project} {version}; give another version")
        package = min(offered, key=lambda package: _rank(package.filename))
        sha256 = (package.digests or {}).get("sha256")
        if sha256 is None:
            raise HubError(f"{package.filename}: the index gives no sha256, so it cannot be checked; it is not used")
        part = folder / f"{package.filename}.part"
        download(client, package.url, part, package.filename, sha256, None, quiet)
    return part.rename(folder / package.filename)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _is_of(filename: str, project: str, version: str) -> bool:
    """PEP 625 and PEP 427: the name's and the version's hyphens are underscores in file names."""
    start = re.match(r"(.+?)-([0-9][^-]*?)(?:\.tar\.gz|\.zip|-.*\.whl)$", filename)
    return start is not None and _normal(start[1]) == _normal(project) and start[2] == version


def _rank(filename: str) -> tuple[int, str]:
    """The best first."""
    return next(rank for rank, suffix in enumerate(_SUFFIXES) if filename.endswith(suffix)), filename


def _best(paths: list[Path]) -> Path | None:
    archives = [path for path in paths if path.name.endswith(_SUFFIXES)]
    return min(archives, key=lambda path: _rank(path.name)) if archives else None


def members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """The plain files of an archive with their content, in its order. HubError where it is damaged."""
    try:
        for name, stream in files(archive, lambda _: True):
            if stream is not None:
                yield name, stream.read()
    except (*DAMAGED, OSError) as error:
        raise HubError(f"{archive}: cannot be unpacked: {error}; remove it, to have it fetched again") from error
