"""READERS: one for each kind of source, with the settings that a recipe gives for it."""

from __future__ import annotations

from bedplate.data.corpus.readers.parts import Reader, WholeFiles
from bedplate.data.corpus.readers.tables import HubReader, JsonReader, ParquetReader
from bedplate.data.corpus.readers.text import CodeReader, Files, PyPIReader, StandardLibraryReader, as_text
from bedplate.data.corpus.readers.web import Pages, WarcReader, article
from bedplate.data.documents import TEXT_FILES

READERS: dict[str, Reader] = {
    "files": WholeFiles(Files, TEXT_FILES, as_text),
    "code": CodeReader(),
    "stdlib": StandardLibraryReader(),
    "jsonl": JsonReader(),
    "parquet": ParquetReader(),
    "html": WholeFiles(Pages, (".html", ".htm", ".xhtml"), article),
    "warc": WarcReader(),
    "pypi": PyPIReader(),
    "hub": HubReader(),
}
