"""Which reader each kind of source has."""

from __future__ import annotations

from bedplate.data.corpus.readers.part import Reader
from bedplate.data.corpus.readers.remote import HubReader, PyPIReader
from bedplate.data.corpus.readers.tables import JsonReader, ParquetReader
from bedplate.data.corpus.readers.text import CodeReader, FilesReader, StandardLibraryReader
from bedplate.data.corpus.readers.web import HtmlReader, WarcReader

READERS: dict[str, Reader] = {
    "files": FilesReader(),
    "code": CodeReader(),
    "stdlib": StandardLibraryReader(),
    "jsonl": JsonReader(),
    "parquet": ParquetReader(),
    "html": HtmlReader(),
    "warc": WarcReader(),
    "pypi": PyPIReader(),
    "hub": HubReader(),
}
