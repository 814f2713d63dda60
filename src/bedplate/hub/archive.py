"""Unpack chosen members of a wheel, zip or tar.gz: nothing of it is run, links and paths that lead out are refused."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from bedplate.core.errors import DataError, HubError
from bedplate.core.files import safe_join


def extract(archive: Path, members: Sequence[str], destination: Path) -> list[Path]:
    """Unpack `members` (files, or folders with a trailing slash) into `destination`.

    A file lands under its own name, a folder's files under their paths inside it; with several folders each keeps its
    last name. Raises HubError when a member is missing, is a link, leads out, or the archive is damaged.
    """
    folders = [m for m in members if m.endswith("/")]
    written: list[Path] = []
    found: set[str] = set()
    try:
        for name, stream in _files(archive, members):
            member = next(m for m in members if name == m or (m.endswith("/") and name.startswith(m)))
            relative = name[len(member) :] if member.endswith("/") else name.rpartition("/")[2]
            if member.endswith("/") and len(folders) > 1:
                relative = f"{member.rstrip('/').rpartition('/')[2]}/{relative}"
            target = safe_join(destination, relative)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as out:
                shutil.copyfileobj(stream, out, 1 << 20)
            written.append(target)
            found.add(member)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, DataError, FileExistsError) as error:
        raise HubError(f"{archive.name}: cannot be unpacked: {error}") from error
    missing = [m for m in members if m not in found]
    if missing:
        raise HubError(f"{archive.name}: has no {', '.join(missing)}; the catalogue row and the file do not fit")
    return written


def _files(archive: Path, members: Sequence[str]) -> Iterator[tuple[str, IO[bytes]]]:
    """The regular files of the archive that the members select, each with a stream of its content."""

    def wanted(name: str) -> bool:
        return any(name == m or (m.endswith("/") and name.startswith(m) and not name.endswith("/")) for m in members)

    if archive.suffix in {".whl", ".zip"}:
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                if wanted(info.filename):
                    if (info.external_attr >> 16) & 0o170000 == 0o120000:
                        raise HubError(
                            f"{archive.name}: {info.filename} is a symbolic link; only plain files are unpacked"
                        )
                    with zipped.open(info) as stream:
                        yield info.filename, stream
        return
    with tarfile.open(archive, "r:*") as tarred:
        for entry in tarred:
            if wanted(entry.name) and not entry.isdir():
                stream = tarred.extractfile(entry) if entry.isfile() else None
                if stream is None:
                    raise HubError(f"{archive.name}: {entry.name} is not a plain file; only plain files are unpacked")
                with stream:
                    yield entry.name, stream
