"""Trees of source code, the interpreter's own standard library and releases of the package index: each file is a
document."""

from __future__ import annotations

import io
import os
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated

import pydantic

from bedplate.core.errors import ConfigError, DataError
from bedplate.core.files import on_closed, sha256_file
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.data.corpus.readers import parts
from bedplate.data.corpus.readers.parts import FilePiece, RawDocument, Read, SourcePart, Unread, WholeFiles
from bedplate.data.stdlib import INSTALLED, NOT_LIBRARY, library_files, library_root

LANGUAGES: dict[str, str] = {
    ".py": "Python", ".pyi": "Python", ".pyx": "Cython", ".c": "C", ".h": "C", ".cc": "C++", ".cpp": "C++",
    ".cxx": "C++", ".hh": "C++", ".hpp": "C++", ".cu": "CUDA", ".cs": "C#", ".java": "Java", ".kt": "Kotlin",
    ".scala": "Scala", ".go": "Go", ".rs": "Rust", ".swift": "Swift", ".js": "JavaScript", ".jsx": "JavaScript",
    ".mjs": "JavaScript", ".ts": "TypeScript", ".tsx": "TypeScript", ".rb": "Ruby", ".php": "PHP", ".pl": "Perl",
    ".pm": "Perl", ".lua": "Lua", ".r": "R", ".jl": "Julia", ".hs": "Haskell", ".ml": "OCaml", ".mli": "OCaml",
    ".ex": "Elixir", ".exs": "Elixir", ".erl": "Erlang", ".clj": "Clojure", ".dart": "Dart", ".sh": "Shell",
    ".bash": "Shell", ".sql": "SQL", ".f90": "Fortran", ".f": "Fortran", ".m": "Objective-C", ".vhd": "VHDL",
    ".v": "Verilog", ".sv": "Verilog", ".asm": "Assembly", ".s": "Assembly", ".zig": "Zig", ".nim": "Nim",
    ".tcl": "Tcl", ".proto": "Protocol Buffer", ".cmake": "CMake", ".tex": "TeX", ".html": "HTML", ".css": "CSS",
    ".scss": "CSS", ".vue": "Vue", ".yaml": "YAML", ".yml": "YAML", ".toml": "TOML", ".md": "Markdown",
    ".rst": "reStructuredText",
}  # fmt: skip
"""Suffix → language; a file of any other is no source code."""
NAMED: dict[str, str] = {"Makefile": "Makefile", "Dockerfile": "Dockerfile", "CMakeLists.txt": "CMake"}
PROSE = frozenset(("Markdown", "reStructuredText"))
"""Languages of a tree of code that are prose."""
NOT_OWN = frozenset(
    (".git", ".hg", ".svn", "node_modules", "__pycache__", "site-packages", "dist-packages", "vendor", "third_party",
     ".venv", "venv", ".tox", ".mypy_cache", ".idea", "target", "bower_components")
)  # fmt: skip
"""Folders of a tree that hold what others wrote, or what programs did."""


class Files(parts.SourceSettings):
    """Text files: each a document. path: a file or a folder, read below for `pattern`."""

    path: str
    pattern: str | None = None


class Code(parts.SourceSettings):
    """A tree of source code: each file a document, without what is generated, vendored or no code. languages: by
    default all that are known."""

    path: str
    languages: tuple[str, ...] | None = None


class StandardLibrary(parts.SourceSettings):
    """The running interpreter's own standard library: each module a document. everything: its tests, tables and what
    programs wrote as well, as the tree lies there; without packages that were installed beside it."""

    everything: bool = False
    licence: str | None = "PSF-2.0"


class PyPI(parts.SourceSettings):
    """Source code of packages of the package index that pip is configured with; nothing of them is run. packages:
    `name==version` each."""

    packages: tuple[Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+_-]+$")], ...]
    languages: tuple[str, ...] | None = None

    @pydantic.model_validator(mode="after")
    def _no_limit(self) -> PyPI:
        if self.limit is not None:
            raise ValueError("limit does not go with kind pypi: name fewer packages")
        return self


class CodeReader(WholeFiles):
    """kind: code."""

    def __init__(self) -> None:
        super().__init__(Code, (), as_code)

    def plan(self, source: Code, directory: Path, part_bytes: int) -> list[SourcePart]:
        root = directory / Path(source.path).expanduser()
        if not root.is_dir():
            raise DataError(f"source {source.name!r}: {root} is not a folder")
        pieces = list(_tree(source, root, checked(source, source.languages)))
        if not pieces:
            raise DataError(f"source {source.name!r}: {root} holds no source code of the languages asked for")
        return parts.grouped(source, root, pieces, part_bytes)

    def read(self, source: Code, part: SourcePart) -> Iterator[Read]:
        yield from super().read(source, part)
        if part.number == 0:
            languages = checked(source, source.languages)
            files = sorted(path for path in Path(part.root).rglob("*") if language_of(path.name) in languages)
            names = (parts.relative(str(path), part.root) for path in files if path.is_file() and not path.is_symlink())
            yield from filter(None, (_skipped(name, NOT_OWN) for name in names))


class StandardLibraryReader(WholeFiles):
    """kind: stdlib. Without the tests and what is not the library itself, unless everything is asked for."""

    def __init__(self) -> None:
        super().__init__(StandardLibrary, (), as_code)

    def plan(self, source: StandardLibrary, directory: Path, part_bytes: int) -> list[SourcePart]:
        paths = library_files(INSTALLED if source.everything else NOT_LIBRARY)
        if not paths:
            raise DataError(f"{library_root()} holds no source code; this Python comes without its library's source")
        return parts.grouped(source, library_root(), map(parts.whole, paths), part_bytes)

    def read(self, source: StandardLibrary, part: SourcePart) -> Iterator[Read]:
        yield from super().read(source, part)
        if part.number == 0:
            left_out = INSTALLED if source.everything else NOT_LIBRARY
            names = (parts.relative(str(path), part.root) for path in library_files(frozenset()))
            yield from filter(None, (_skipped(name, left_out) for name in names))


class PyPIReader:
    """kind: pypi. A part is one release; nothing of it is run."""

    settings = PyPI

    def plan(self, source: PyPI, directory: Path, part_bytes: int) -> list[SourcePart]:
        from bedplate.hub.index import release

        checked(source, source.languages)
        planned: list[SourcePart] = []
        for requirement in source.packages:
            archive = release(requirement)
            piece = FilePiece(str(archive), archive.stat().st_size, sha256_file(archive))
            planned.append(SourcePart(source.name, len(planned), requirement, (piece,)))
        return planned

    def read(self, source: PyPI, part: SourcePart) -> Iterator[Read]:
        from bedplate.hub.index import members

        languages = checked(source, source.languages)
        for piece in part.pieces:
            for name, content in members(Path(piece.path)):
                if language_of(name) in languages:
                    id = parts.unicode_text(f"{part.root}/{name}")
                    yield _skipped(id, NOT_OWN) or as_code(id, content)


def checked(source: parts.SourceSettings, languages: Sequence[str] | None) -> frozenset[str]:
    """The languages asked for, or all. ConfigError for one that is not known."""
    all_languages = frozenset((*LANGUAGES.values(), *NAMED.values()))
    for name in languages or ():
        if name not in all_languages:
            hint = did_you_mean(nearest(name, all_languages)) or f"there are {', '.join(sorted(all_languages))}"
            raise ConfigError(f"source {source.name!r}: no language {name!r} is known; {hint}")
    return frozenset(languages) if languages else all_languages


def language_of(name: str) -> str | None:
    """The language that a file's name says it is in."""
    path = PurePosixPath(name)
    return NAMED.get(path.name) or LANGUAGES.get(path.suffix.lower())


def _tree(source: parts.SourceSettings, root: Path, languages: frozenset[str]) -> Iterator[FilePiece]:
    for folder, inner, names in os.walk(root, onerror=on_closed(f"source {source.name!r}: ")):
        inner[:] = sorted(name for name in inner if name not in NOT_OWN)
        for name in sorted(names):
            path = Path(folder) / name
            if language_of(name) in languages and path.is_file() and not path.is_symlink():
                yield parts.whole(path)


def _skipped(name: str, folders: frozenset[str]) -> Unread | None:
    """A file that lies in one of these folders, which are not read; None for any other."""
    folder = next((step for step in PurePosixPath(name).parts[:-1] if step in folders), None)
    return None if folder is None else Unread(name, folder, "folders of this name are not read", parts.SKIPPED)


def as_text(id: str, content: bytes) -> Read:
    """A file's text in UTF-8, line ends made one kind."""
    if b"\0" in content:
        return Unread(id, "binary", "holds a NUL byte")
    try:
        return RawDocument(id, content.decode("utf-8-sig").replace("\r\n", "\n"))
    except UnicodeDecodeError as error:
        return Unread(id, "not_utf8", f"byte {error.start} (0x{content[error.start]:02x})")


def as_code(id: str, content: bytes) -> Read:
    """As `as_text`, Python in the encoding that it declares; with its language."""
    language = language_of(id)
    if language == "Python" and b"coding" in content[:200]:
        try:
            encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
            content = content.decode(encoding).encode("utf-8")
        except (SyntaxError, UnicodeError, LookupError) as error:
            return Unread(id, "not_utf8", f"not in the encoding it declares: {error}")
    read = as_text(id, content)
    return read if isinstance(read, Unread) or language is None else RawDocument(id, read.text, {"language": language})
