"""The modules of the running interpreter's own standard library: real code, always there, nothing to download."""

from __future__ import annotations

import ast
import contextlib
import io
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path

LICENCE = "PSF-2.0"
RETRIES = 3

INSTALLED = frozenset(("site-packages", "dist-packages"))
NOT_LIBRARY = INSTALLED | {"test", "tests", "idlelib", "lib2to3", "pydoc_data", "encodings"}
"""Folders of what is not the library itself, or is written by programs."""


def read_modules() -> Iterator[tuple[str, str]]:
    """Each module's file, relative to the library, and its text; what Python cannot parse is passed over."""
    root = library_root()
    for path in library_files():
        try:
            text = _parsed(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue
        yield path.relative_to(root).as_posix(), text


def library_root() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def library_files(without: frozenset[str] = NOT_LIBRARY) -> list[Path]:
    """Files of the library's source, sorted, without those in folders of these names."""
    root = library_root()
    return sorted(p for p in root.rglob("*.py") if not without & set(p.relative_to(root).parts[:-1]))


def _parsed(content: bytes) -> str:
    """A module's text. SyntaxError, ValueError for what is none."""
    encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    text = content.decode(encoding).replace("\r\n", "\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the code that is read, not of ours
        for _ in range(RETRIES):
            # CPython 3.11 counts the depth of trees in one place for all threads, and raises this where two of them
            # parse at once (python/cpython#106905): it says nothing of the text.
            with contextlib.suppress(SystemError):
                ast.parse(text)
                return text
        ast.parse(text)
    return text
