"""Remote sources: data sets of the Hugging Face Hub, read as streams, and releases of the package index as source code,
each file a document. Nothing of a release is run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bedplate.core.errors import DataError
from bedplate.core.files import sha256_file
from bedplate.data.corpus.readers.part import FilePiece, Read, SourcePart, grouped, unicode_text
from bedplate.data.corpus.readers.tables import JSON_LINES, json_lines, opened, parquet_rows
from bedplate.data.corpus.readers.text import as_code, checked, is_own, language_of
from bedplate.data.corpus.recipe import Hub, PyPI
from bedplate.data.table_files import arrow


class HubReader:
    """kind: hub. A part is some of the data set's files, at the revision that the plan found."""

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
                f"source {source.name!r}: {source.data} has no Parquet or JSON-lines file that fits "
                f"{source.pattern!r}; "
                f"it has {', '.join(file.path for file in listed[:8]) or 'none at all'}"
            )
        return grouped(source, f"{repository}@{commit}", pieces, part_bytes)

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


class PyPIReader:
    """kind: pypi. A part is one release."""

    def plan(self, source: PyPI, directory: Path, part_bytes: int) -> list[SourcePart]:
        from bedplate.hub.index import release

        checked(source, source.languages)
        parts: list[SourcePart] = []
        for requirement in source.packages:
            archive = release(requirement)
            piece = FilePiece(str(archive), archive.stat().st_size, sha256_file(archive))
            parts.append(SourcePart(source.name, len(parts), requirement, (piece,)))
        return parts

    def read(self, source: PyPI, part: SourcePart) -> Iterator[Read]:
        from bedplate.hub.index import members

        languages = checked(source, source.languages)
        for piece in part.pieces:
            for name, content in members(Path(piece.path)):
                if language_of(name) in languages and is_own(name):
                    yield as_code(unicode_text(f"{part.root}/{name}"), content)
