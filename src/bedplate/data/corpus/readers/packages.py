"""Packages of the package index as source code: each file of a release is a document. Nothing of them is run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bedplate.core.files import sha256_file
from bedplate.data.corpus.readers.part import FilePiece, Read, SourcePart, unicode_text
from bedplate.data.corpus.readers.text import as_code, checked, is_own, language_of
from bedplate.data.corpus.recipe import PyPI


class PyPIReader:
    """kind: pypi. A part is one release."""

    def plan(self, source: PyPI, directory: Path, part_bytes: int) -> list[SourcePart]:
        from bedplate.hub.releases import release

        checked(source, source.languages)
        parts: list[SourcePart] = []
        for requirement in source.packages:
            archive = release(requirement)
            piece = FilePiece(str(archive), archive.stat().st_size, sha256_file(archive))
            parts.append(SourcePart(source.name, len(parts), requirement, (piece,)))
        return parts

    def read(self, source: PyPI, part: SourcePart) -> Iterator[Read]:
        from bedplate.hub.releases import members

        languages = checked(source, source.languages)
        for piece in part.pieces:
            for name, content in members(Path(piece.path)):
                if language_of(name) in languages and is_own(name):
                    yield as_code(unicode_text(f"{part.root}/{name}"), content)
