"""Raw text of a task's domain, without labels: what `continued_pretrain` trains a base on before it is adapted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from bedplate.core.config import Strict
from bedplate.data.documents import Documents
from bedplate.evaluation.examples import Example


class RawText(Strict):
    """source: a data set or a .jsonl, .csv, .tsv or .parquet file with a column `text` (rows with one `document` belong
    together), a .txt or .md file, or a directory of such files, each of which is a document. tokens: at most so
    many are trained on."""

    source: Annotated[str, Field(min_length=1)]
    tokens: Annotated[int, Field(ge=1)] | None = None


def inputs_in(text: Documents, examples: Sequence[Example]) -> int:
    """How many examples have an input that stands in the text word for word, white space apart: a child that has read
    what it is judged on knows more than it will of new rows."""
    whole = "\n".join(" ".join(document.text.split()) for document in text.documents)
    return sum(any(" ".join(i.split()) in whole for i in e.texts.values() if i.strip()) for e in examples)
