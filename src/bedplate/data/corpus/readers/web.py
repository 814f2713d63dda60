"""Web pages: the main article is extracted by trafilatura (Barbaresi, ACL 2021), as in datatrove."""

from __future__ import annotations

import gzip
import logging
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, ClassVar, cast

from bedplate.core.errors import DataError
from bedplate.data.corpus.readers import parts
from bedplate.data.corpus.readers.parts import RawDocument, Read, SourcePart, SourceSettings, Unread

_CHARSET = re.compile(rb"""<meta[^>]{0,200}charset=["']?([A-Za-z0-9_-]+)""", re.I)
_PAGES = ("text/html", "application/xhtml+xml")
NOTHING: Mapping[str, str] = {}


class Pages(SourceSettings):
    """Pages, from which the article is extracted: HTML, or web archives (.warc, .warc.gz; .wet holds text already)."""

    needs: ClassVar[tuple[str, ...]] = ("trafilatura", "warcio")
    path: str


class WarcReader:
    """kind: warc."""

    settings = Pages

    def plan(self, source: Pages, directory: Path, part_bytes: int) -> list[SourcePart]:
        root, files = parts.source_files(source, directory, (".warc", ".warc.gz", ".wet", ".wet.gz"))
        return parts.grouped(source, root, map(parts.whole, files), part_bytes)

    def read(self, source: Pages, part: SourcePart) -> Iterator[Read]:
        records, failure = _warcio()
        for piece in part.pieces:
            with parts.stream_of(piece.path) as stream:
                try:
                    for record in records(_Whole(stream, piece.path)):
                        record_id = record.rec_headers.get_header("WARC-Record-ID") or "the last record"
                        length = record.rec_headers.get_header("Content-Length") or ""
                        if not (length.isascii() and length.isdigit()):  # as when the file ends in its headers
                            raise _damaged(piece.path, f"{record_id} has no Content-Length")
                        yield from _record(record, parts.relative(piece.path, part.root))
                        while record.raw_stream.read(1 << 16):
                            pass
                        if missing := record.raw_stream.limit:
                            end = f"{missing:,} bytes before its end, of {int(length):,}"
                            raise _damaged(piece.path, f"{record_id} is cut off {end}")
                except failure as error:
                    raise _damaged(piece.path, str(error)) from error


class _Whole:
    """The text of a web archive, decompressed where it is compressed. warcio's own reader takes the end of a file that
    is cut off for the end of the archive."""

    def __init__(self, stream: IO[bytes], path: str) -> None:
        compressed = stream.read(2) == b"\x1f\x8b"
        stream.seek(0)
        self._stream = cast("IO[bytes]", gzip.GzipFile(fileobj=stream)) if compressed else stream
        self._path = path

    def read(self, size: int = -1) -> bytes:
        """DataError where it is damaged. (An EOFError would be an end to warcio.)"""
        try:
            return self._stream.read(size)
        except (EOFError, OSError, zlib.error) as error:
            raise _damaged(self._path, str(error)) from error


def _damaged(path: str, why: str) -> DataError:
    return DataError(f"{path}: damaged web archive: {why}; fetch the file again")


def _warcio() -> tuple[Any, type[Exception]]:
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    return ArchiveIterator, ArchiveLoadFailed


def _record(record: Any, name: str) -> Iterator[Read]:
    """A page's article; what is no page (requests, metadata) is no document, and other media are said to be so."""
    if record.rec_type not in {"response", "conversion"}:
        return
    headers = record.rec_headers
    url = headers.get_header("WARC-Target-URI") or ""
    id = f"{name}#{headers.get_header('WARC-Record-ID') or url}"
    http = record.http_headers.get_header("Content-Type") if record.http_headers else None
    media_type = headers.get_header("WARC-Identified-Payload-Type") or http or ""
    content = record.content_stream().read()
    about = {"url": url} if url else {}
    if record.rec_type == "conversion":
        text = content.decode("utf-8", "replace")
        yield RawDocument(id, text, about) if text.strip() else Unread(id, "no_article", "the record is empty")
    elif record.http_headers and not str(record.http_headers.get_statuscode()).startswith("2"):
        yield Unread(id, "no_page", f"HTTP status {record.http_headers.get_statuscode()}")
    elif media_type and media_type.split(";")[0].strip().lower() not in _PAGES:
        yield Unread(id, "no_page", f"of the type {media_type.split(';')[0].strip()}")
    else:
        yield article(id, content, about, media_type)


def article(id: str, content: bytes, about: Mapping[str, str] = NOTHING, content_type: str = "") -> Read:
    """The main text of a page."""
    html = decoded(content, content_type)
    if html is None:
        return Unread(id, "not_utf8", "the page is in no encoding that it names")
    from trafilatura import extract

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # what it says of each page is in the fate
    try:
        # not `deduplicate`: what it leaves out depends on the pages before, so on how the work is divided
        text = extract(html, favor_precision=True, include_comments=False, deduplicate=False)
    except Exception as error:  # the parser's, on a page that is none
        return Unread(id, "no_article", f"{type(error).__name__}: {error}")
    return RawDocument(id, text, about) if text and text.strip() else Unread(id, "no_article", "no main text was found")


def decoded(content: bytes, content_type: str) -> str | None:
    """As the protocol says, as the page says, as UTF-8, or as Windows calls Latin-1; None where none of them can be."""
    charset = re.search(r"charset=[\"']?([\w-]+)", content_type)
    inside = _CHARSET.search(content[:4096])
    names = [charset[1] if charset else None, inside[1].decode("ascii") if inside else None, "utf-8", "cp1252"]
    for name in filter(None, names):
        try:
            return content.decode(name)
        except (UnicodeError, LookupError):
            continue
    return None
