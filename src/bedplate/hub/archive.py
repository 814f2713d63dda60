"""Unpacks chosen members of a wheel, zip or tar.gz. Nothing of it is run; links and paths that lead out are refused."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from bedplate.core.errors import DataError, HubError
from bedplate.core.files import safe_join

DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)
"""What reading an archive raises that cannot be unpacked. (zipfile: RuntimeError for one with a password or an unknown
compression.)"""


def extract(archive: Path, members: Sequence[str], destination: Path) -> list[Path]:
    """Unpack `members` (files, or folders with a trailing slash) into `destination`. A file lands under its own name, a
    folder's files under their paths inside it; with several folders each keeps its last name. Raises HubError when a
    member is missing, is a link, leads out, or the archive is damaged."""
    folders = [m for m in members if m.endswith("/")]
    written: list[Path] = []
    matched_members: set[str] = set()
    try:
        for name, stream in files(archive, lambda name: _is_member(name, members)):
            if stream is None:
                problem = f"{name} is a symbolic link or a device, not a plain file"
                raise HubError(f"{archive.name}: {problem}; only plain files are unpacked")
            member = next(m for m in members if name == m or (m.endswith("/") and name.startswith(m)))
            relative = name[len(member) :] if member.endswith("/") else name.rpartition("/")[2]
            if member.endswith("/") and len(folders) > 1:
                relative = f"{member.rstrip('/').rpartition('/')[2]}/{relative}"
            target = safe_join(destination, relative)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as out:
                shutil.copyfileobj(stream, out, 1 << 20)
            written.append(target)
            matched_members.add(member)
    except (*DAMAGED, DataError, FileExistsError) as error:
        raise HubError(f"{archive.name}: cannot be unpacked: {error}") from error
    missing = [m for m in members if m not in matched_members]
    if missing:
        raise HubError(f"{archive.name}: has no {', '.join(missing)}; the catalogue row and the file do not fit")
    return written


def _is_member(name: str, members: Sequence[str]) -> bool:
    return any(name == m or (m.endswith("/") and name.startswith(m) and not name.endswith("/")) for m in members)


def files(archive: Path, selects: Callable[[str], bool]) -> Iterator[tuple[str, IO[bytes] | None]]:
    """What an archive holds under the names that are wanted, in its order, without folders: each with a stream of its
    content, until the next is asked for; None for a link or a device. Raises one of DAMAGED, or OSError."""
    if archive.suffix in {".whl", ".zip"}:
        with zipfile.ZipFile(archive) as zipped:
            for zip_member in zipped.infolist():
                if zip_member.is_dir() or not selects(zip_member.filename):
                    continue
                if (zip_member.external_attr >> 16) & 0o170000 == 0o120000:
                    yield zip_member.filename, None
                    continue
                with zipped.open(zip_member) as stream:
                    yield zip_member.filename, stream
        return
    with tarfile.open(archive, "r:*") as tarred:
        for tar_member in tarred:
            if tar_member.isdir() or not selects(tar_member.name):
                continue
            stream = tarred.extractfile(tar_member) if tar_member.isfile() else None
            yield tar_member.name, stream
            if stream is not None:
                stream.close()
