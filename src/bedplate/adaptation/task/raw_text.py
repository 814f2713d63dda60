"""Raw text of a task's domain, without labels: what `continued_pretrain` trains a base on before it is adapted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from bedplate.core.config import Strict
from bedplate.core.errors import DataError
from bedplate.core.files import read_text, sha256_bytes
from bedplate.evaluation.examples import Example
from bedplate.evaluation.suites.text import Document, Documents, read_documents

TEXT_FILES = (".txt", ".md")


class RawText(Strict):
    """source: a data set or a .jsonl, .csv or .tsv file with a column `text` (rows with one `document` belong
    together), a .txt or .md file, or a directory of such files, each of which is a document. tokens: at most so many
    are trained on."""

    source: Annotated[str, Field(min_length=1)]
    tokens: Annotated[int, Field(ge=1)] | None = None


def read_raw_text(spec: RawText, directory: Path) -> Documents:
    """The documents, relative files taken from `directory`. DataError where there are none, or a file cannot be
    read."""
    place = directory / Path(spec.source).expanduser()
    if place.is_dir():
        files = sorted(one for one in place.rglob("*") if one.suffix.lower() in TEXT_FILES and one.is_file())
        return _documents(spec.source, place, files)
    if place.suffix.lower() in TEXT_FILES:
        return _documents(spec.source, place.parent, [place])
    found = read_documents(spec.source, directory)
    if not found.documents:
        raise DataError(f"{spec.source}: every text in it is empty")
    return found


def inputs_in(text: Documents, examples: Sequence[Example]) -> int:
    """How many examples have an input that stands in the text word for word, white space apart: a child that has read
    what it is judged on knows more than it will of new rows."""
    whole = "\n".join(" ".join(one.text.split()) for one in text.documents)
    return sum(any(" ".join(i.split()) in whole for i in e.texts.values() if i.strip()) for e in examples)


def _documents(source: str, root: Path, files: list[Path]) -> Documents:
    read = [Document(one.relative_to(root).as_posix(), read_text(one)) for one in files]
    found = tuple(one for one in read if one.text.strip())
    if not found:
        raise DataError(f"{source} holds no text; raw text is in files that end in {' or '.join(TEXT_FILES)}")
    whole = "".join(f"{one.id}\0{sha256_bytes(one.text.encode())}\n" for one in found)
    return Documents(found, source, sha256_bytes(whole.encode()))
