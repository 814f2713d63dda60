"""JSON lines, plain or compressed, and Parquet: each row is a document. Large files are read in stretches, and those of
the Hugging Face Hub as streams."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, Annotated, Any, cast

import pydantic

from bedplate.core.errors import DataError, UsageError
from bedplate.core.json import load_json
from bedplate.data.corpus.readers import parts
from bedplate.data.corpus.readers.parts import FilePiece, RawDocument, Read, SourcePart, SourceSettings, Unread
from bedplate.data.tables import arrow

JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".ndjson")


class Rows(SourceSettings):
    """Rows with a text in `text`: JSON lines, plain or compressed (.gz, .zst), or Parquet. path: a file, or a folder of
    such."""

    path: str
    text: str = "text"
    id: str | None = None


class Hub(SourceSettings):
    """A data set of the Hugging Face Hub, `hf:owner/name[@revision]`, read as a stream from its Parquet or JSON-lines
    files that `pattern` selects."""

    data: Annotated[str, pydantic.Field(pattern=r"^hf:[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?$")]
    pattern: str = "**"
    text: str = "text"
    id: str | None = None


class JsonReader:
    """kind: jsonl."""

    settings = Rows

    def plan(self, source: Rows, directory: Path, part_bytes: int) -> list[SourcePart]:
        root, files = parts.source_files(source, directory, JSON_LINES)
        pieces = (piece for path in files for piece in _stretches(path, part_bytes))
        return parts.grouped(source, root, pieces, part_bytes)

    def read(self, source: Rows, part: SourcePart) -> Iterator[Read]:
        for piece in part.pieces:
            name = parts.relative(piece.path, part.root)
            with opened(piece.path) as stream:
                yield from json_lines(stream, name, source.text, source.id, piece.start, piece.stop)


class ParquetReader:
    """kind: parquet."""

    settings = Rows

    def plan(self, source: Rows, directory: Path, part_bytes: int) -> list[SourcePart]:
        root, files = parts.source_files(source, directory, (".parquet",))
        return parts.grouped(source, root, (piece for path in files for piece in _row_groups(path)), part_bytes)

    def read(self, source: Rows, part: SourcePart) -> Iterator[Read]:
        for piece in part.pieces:
            name = parts.relative(piece.path, part.root)
            yield from parquet_rows(piece.path, name, source.text, source.id, range(piece.start, piece.stop or 0))


class HubReader:
    """kind: hub. A part is some of the data set's files, at the revision that the plan found."""

    settings = Hub

    def plan(self, source: Hub, directory: Path, part_bytes: int) -> list[SourcePart]:
        from bedplate.hub.huggingface import files

        repository, commit, listed = files(source.data, source.pattern)
        pieces = [
            FilePiece(file.path, file.size, f"{commit}:{file.stamp}")
            for file in listed
            if file.path.endswith((".parquet", *JSON_LINES))
        ]
        if not pieces:
            raise DataError(
                f"source {source.name!r}: {source.data} has no Parquet or JSON-lines file that fits {source.pattern!r};"
                f" it has {', '.join(file.path for file in listed[:8]) or 'none at all'}"
            )
        return parts.grouped(source, f"{repository}@{commit}", pieces, part_bytes)

    def read(self, source: Hub, part: SourcePart) -> Iterator[Read]:
        from bedplate.hub.huggingface import stream

        for piece in part.pieces:
            with stream(part.root, piece.path) as remote:
                if piece.path.endswith(".parquet"):
                    groups = arrow().ParquetFile(remote).metadata.num_row_groups
                    yield from parquet_rows(remote, piece.path, source.text, source.id, range(groups))
                else:
                    with opened(piece.path, remote) as lines:
                        yield from json_lines(lines, piece.path, source.text, source.id)


@contextlib.contextmanager
def opened(path: str, raw: IO[bytes] | None = None) -> Generator[IO[bytes]]:
    """A file's bytes, decompressed where its name says that they are compressed."""
    with contextlib.ExitStack() as stack:
        stream: IO[bytes] = stack.enter_context(parts.stream_of(path)) if raw is None else raw
        if path.endswith(".gz"):
            stream = cast("IO[bytes]", stack.enter_context(gzip.GzipFile(fileobj=stream)))
        elif path.endswith(".zst"):
            stream = cast("IO[bytes]", stack.enter_context(io.BufferedReader(_Frames(stream))))
        yield stream


class _Frames(io.RawIOBase):
    """What is compressed in one frame of Zstandard after the other. The library's own reader ends without a word where
    a file is cut off, and after the first frame."""

    def __init__(self, stream: IO[bytes]) -> None:
        import zstandard

        self._stream, self._library = stream, zstandard
        self._frame: Any = None
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        waiting = b""
        while not self._ready:
            waiting = waiting or self._stream.read(1 << 16)
            if not waiting:
                if self._frame is not None:
                    raise EOFError("the file is cut off")
                return 0
            self._frame = self._frame or self._library.ZstdDecompressor().decompressobj()
            try:
                self._ready, waiting = self._frame.decompress(waiting), b""
            except self._library.ZstdError as error:
                raise OSError(str(error)) from error
            if self._frame.eof:
                waiting, self._frame = self._frame.unused_data, None
        if waiting:
            self._stream.seek(-len(waiting), io.SEEK_CUR)
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count


def _stretches(path: Path, part_bytes: int) -> Iterator[FilePiece]:
    """A plain file in stretches of bytes: a line belongs to the one that it begins in."""
    piece = parts.whole(path)
    if path.suffix in {".gz", ".zst"} or piece.size <= part_bytes:
        yield piece
        return
    for start in range(0, piece.size, part_bytes):
        stop = min(piece.size, start + part_bytes)
        yield FilePiece(piece.path, stop - start, piece.stamp, start, stop)


def json_lines(
    stream: IO[bytes], name: str, column: str, id: str | None, start: int = 0, stop: int | None = None
) -> Iterator[Read]:
    """The documents of lines that begin from byte `start` to before `stop`. A line is named by its column `id`, or by
    the byte that it begins at."""
    at = start
    if start:
        stream.seek(start - 1)
        at = start - 1 + len(stream.readline())  # the line that began before is another stretch's
    try:
        while stop is None or at < stop:
            line = stream.readline()
            if not line:
                return
            if line.strip():
                yield _line(line if at else line.removeprefix(codecs.BOM_UTF8), f"{name}@{at}", column, id, name)
            at += len(line)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{name}: damaged after byte {at} of its text: {error}; fetch the file again") from error


def _line(line: bytes, place: str, column: str, id: str | None, name: str) -> Read:
    try:
        row = load_json(line)
    except ValueError as error:
        return Unread(place, "not_json", parts.unicode_text(str(error)))
    if not isinstance(row, dict):
        return Unread(place, "not_json", f"a {type(row).__name__}, not an object")
    return document(row, place, column, id, name)


def document(row: dict[str, Any], place: str, column: str, id: str | None, name: str) -> Read:
    """A row's text and name."""
    if id is not None and row.get(id) is not None:
        place = parts.unicode_text(f"{name}#{row[id]}")
    text = row.get(column)
    if not isinstance(text, str):
        columns = parts.unicode_text(", ".join(map(str, row))[:200])
        problem = f"is {type(text).__name__}" if column in row else "is not there"
        return Unread(place, "no_text", f"{column!r} {problem}; there are {columns}")
    about = {key: row[key] for key in ("url", "language") if isinstance(row.get(key), str)}
    return RawDocument(place, text, {"url": about["url"]} if "url" in about else {})


def _row_groups(path: Path) -> Iterator[FilePiece]:
    piece = parts.whole(path)
    try:
        metadata = arrow().ParquetFile(path).metadata
    except UsageError:
        raise
    except Exception as error:  # pyarrow's own errors have no common base but this
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error
    for number in range(metadata.num_row_groups):
        size = metadata.row_group(number).total_byte_size
        yield FilePiece(piece.path, size, piece.stamp, number, number + 1)


def parquet_rows(file: Any, name: str, column: str, id: str | None, groups: range) -> Iterator[Read]:
    """The documents of some row groups. DataError for a column that is missing, and for what is damaged."""
    parquet = arrow().ParquetFile(file, page_checksum_verification=True)
    available = parquet.schema_arrow.names
    columns = [column, *([id] if id else []), *(["url"] if "url" in available and column != "url" else [])]
    for field in columns:
        if field not in available:
            raise DataError(f"{name}: no column {field!r}; the columns are {', '.join(available)}")
    for group in groups:
        number = sum(parquet.metadata.row_group(i).num_rows for i in range(group))
        for row in _rows(parquet, name, group, list(dict.fromkeys(columns))):
            yield document(row, f"{name}@{number}", column, id, name)
            number += 1


def _rows(parquet: Any, name: str, group: int, columns: list[str]) -> Iterator[dict[str, Any]]:
    """A row group's rows. DataError where its pages are damaged, or hold no UTF-8."""
    try:
        for batch in parquet.iter_batches(row_groups=[group], columns=columns, batch_size=1000):
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError, and so is text that cannot be decoded
        raise DataError(f"{name}: its row group {group} is damaged: {error}; fetch the file again") from error
