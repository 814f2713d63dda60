"""What a recipe says of any source, a unit of work of a build (some files of a source, or a stretch of one), and what
reading it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Annotated, Any, ClassVar, Literal, Protocol

import pydantic

from bedplate.core.config import Strict
from bedplate.core.errors import ConfigError, DataError
from bedplate.core.files import check_folders

SKIPPED, UNREADABLE = "skipped", "unreadable"
Name = Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Preset = Literal["prose", "code", "mixed", "none"]


class SourceSettings(Strict):
    """What every source may say. preset: the curation of this source, by default the recipe's. limit: only the first so
    many documents. kind: which row of READERS reads it. needs: modules of the extra `data` that its reader imports."""

    needs: ClassVar[tuple[str, ...]] = ()

    name: Name
    weight: float | None = pydantic.Field(default=None, ge=0)
    licence: str | None = None
    preset: Preset | None = None
    limit: int | None = pydantic.Field(default=None, ge=1)
    kind: str


@dataclass(frozen=True)
class FilePiece:
    """A file, from byte (of Parquet: from row group) `start` to `stop`, or all of it. stamp: what changes when the file
    does."""

    path: str
    size: int
    stamp: str = ""
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class SourcePart:
    """What one job reads. root: ids of documents are relative to it."""

    source: str
    number: int
    root: str
    pieces: tuple[FilePiece, ...]

    @property
    def name(self) -> str:
        return f"{self.source}-{self.number:05}"

    @property
    def size(self) -> int:
        return sum(piece.size for piece in self.pieces)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SourcePart:
        pieces: Any = tuple(FilePiece(**piece) for piece in values["pieces"])
        return cls(**{**values, "pieces": pieces})


@dataclass(frozen=True)
class RawDocument:
    """A text as its source has it. about: what else is known: `language` (of code), `url`."""

    id: str
    text: str
    about: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Unread:
    """What the source holds but no text can be made of. why: a short word for the rule it falls under; detail: more.
    rule: SKIPPED for a file that was not opened, because it lies in a folder that is left out."""

    id: str
    why: str
    detail: str
    rule: str = UNREADABLE


Read = RawDocument | Unread


class Reader(Protocol):
    """A reader of one kind of source. settings: what a recipe says of such a source. `plan` names its parts without
    reading text; `read` yields every document of a part, or says why not: nothing is left out silently."""

    @property
    def settings(self) -> type[SourceSettings]: ...
    def plan(self, source: Any, directory: Path, part_bytes: int) -> Iterable[SourcePart]: ...
    def read(self, source: Any, part: SourcePart) -> Iterator[Read]: ...


def grouped(source: SourceSettings, root: Path | str, pieces: Iterable[FilePiece], part_bytes: int) -> list[SourcePart]:
    """Pieces in parts of about so many bytes, in order."""
    parts: list[SourcePart] = []
    waiting: list[FilePiece] = []
    size = 0
    for piece in pieces:
        if waiting and size + piece.size > part_bytes:
            parts.append(SourcePart(source.name, len(parts), str(root), tuple(waiting)))
            waiting, size = [], 0
        waiting.append(piece)
        size += piece.size
    if waiting:
        parts.append(SourcePart(source.name, len(parts), str(root), tuple(waiting)))
    return parts


def source_files(
    source: Any, directory: Path, suffixes: Sequence[str], pattern: str | None = None
) -> tuple[Path, list[Path]]:
    """The root and the files of a source's path: the file itself, or all below the folder that end in `suffixes` or fit
    `pattern`, sorted. Links are not followed. DataError where there are none."""
    place = directory / Path(source.path).expanduser()
    if place.is_file():
        return place.parent, [place]
    if not place.is_dir():
        raise DataError(f"source {source.name!r}: {place} does not exist")
    check_folders(place, f"source {source.name!r}: ")
    wildcards = "*" if pattern is None else pattern
    components = Path(wildcards).parts
    if not wildcards or ".." in components:
        raise ConfigError(f"source {source.name!r}: pattern {pattern!r} must fit files below {place}, as in '*.txt'")
    try:
        if any("**" in part and part != "**" for part in components):  # Python 3.13 takes it for one *
            raise ValueError("** can only be an entire path component")
        names = list(place.rglob(wildcards))
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(f"source {source.name!r}: pattern {pattern!r}: {error}; write it as in '*.txt'") from error
    matches = [p for p in names if p.is_file() and (pattern or p.name.lower().endswith(tuple(suffixes)))]
    files = sorted(p for p in matches if not p.is_symlink())
    if not files:
        criterion = f"fits {pattern!r}" if pattern else f"ends in {', '.join(suffixes)}"
        links = f" but {len(matches)} symbolic links, which are not followed" if matches else ""
        raise DataError(f"source {source.name!r}: no file below {place} {criterion}{links}")
    return place, files


def whole(path: Path) -> FilePiece:
    """All of a file."""
    state = path.stat()
    return FilePiece(str(path), state.st_size, f"{state.st_size}-{state.st_mtime_ns}")


def stream_of(path: str) -> IO[bytes]:
    """A file's bytes. DataError where it may not be read: what a source has is not passed over."""
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; make it readable, or take it out") from error


def relative(path: str, root: str) -> str:
    """A file's name in ids."""
    return unicode_text(Path(path).relative_to(root).as_posix())


def unicode_text(text: str) -> str:
    """Lone surrogates (of a file's name that is not UTF-8, or as JSON may spell them) as escapes, so that the text can
    be written."""
    return text.encode("utf-8", "backslashreplace").decode()


class WholeFiles:
    """A reader of files that are a document each. suffixes: of those below a source's folder; document: what the
    content of one is, by its id."""

    def __init__(
        self, settings: type[SourceSettings], suffixes: Sequence[str], document: Callable[[str, bytes], Read]
    ) -> None:
        self.settings, self._suffixes, self._document = settings, suffixes, document

    def plan(self, source: Any, directory: Path, part_bytes: int) -> list[SourcePart]:
        root, files = source_files(source, directory, self._suffixes, getattr(source, "pattern", None))
        return grouped(source, root, map(whole, files), part_bytes)

    def read(self, source: Any, part: SourcePart) -> Iterator[Read]:
        for piece in part.pieces:
            with stream_of(piece.path) as stream:
                yield self._document(relative(piece.path, part.root), stream.read())
