"""What the rows are like: labels, lengths, and labels that several rungs agree against.

Suspects follow the idea of confident learning (https://arxiv.org/abs/1911.00068): answers of models that have not
trained on the row. Being sure is each rung's own calibration, so they are a list to look at and no correction.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from bedplate.evaluation.examples import Example
from bedplate.evaluation.harness import Evaluation
from bedplate.evaluation.slices import confidence_of
from bedplate.evaluation.task_row import GradedRow
from bedplate.report.schema import DataCard, Lengths, Suspect
from bedplate.report.schema_parts import Split

SURE = 0.8
SHOWN_SUSPECTS = 12


def data_card(
    labels: Sequence[str],
    train: Sequence[Example],
    valid: Sequence[Example],
    answered: Mapping[str, Evaluation],
    test: Evaluation | None,
) -> DataCard:
    """answered: rung → its evaluation on valid; test: any evaluation on test, where it was
    opened (of its rows only labels and lengths are read)."""
    lengths: dict[Split, list[int]] = {
        "train": [sum(map(len, e.texts.values())) for e in train],
        "valid": [sum(map(len, e.texts.values())) for e in valid],
    }
    targets: dict[Split, list[str]] = {"train": [e.target for e in train], "valid": [e.target for e in valid]}
    if test is not None:
        lengths["test"] = [row.length for row in test.rows]
        targets["test"] = [row.target for row in test.rows]
    suspected = suspects(valid, answered)
    return DataCard(
        labels={name: _counted(labels, part) for name, part in targets.items()} if labels else None,
        lengths={name: Lengths(deciles=_deciles(part)) for name, part in lengths.items()},
        suspects=tuple(suspected[:SHOWN_SUSPECTS]),
        suspect_count=len(suspected),
    )


def _counted(labels: Sequence[str], targets: Iterable[str]) -> dict[str, int]:
    counts = Counter(targets)
    return {label: counts[label] for label in labels}


def _deciles(lengths: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(value) for value in np.quantile(lengths, np.linspace(0, 1, 11), method="nearest"))


def suspects(valid: Sequence[Example], answered: Mapping[str, Evaluation]) -> list[Suspect]:
    """Valid rows for which two rungs or more are sure of one other label, and none is sure of the row's own; most
    rungs first, then the surest."""
    sure: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))  # row → answer → rung
    for rung, evaluation in answered.items():
        for row in evaluation.rows:
            confidence = _confidence(row)
            if confidence >= SURE and row.prediction is not None:
                sure[row.id][row.prediction][rung] = confidence
    suspected: list[Suspect] = []
    for example in valid:
        answers = sure.get(example.id, {})
        if example.target in answers or not answers:
            continue
        answer = max(answers, key=lambda name: (len(answers[name]), name))
        rungs = answers[answer]
        if len(rungs) > 1:
            suspected.append(
                Suspect(
                    id=example.id,
                    text=text_of(example),
                    target=example.target,
                    answer=answer,
                    rungs=tuple(rungs),
                    confidence=sum(rungs.values()) / len(rungs),
                )
            )
    return sorted(suspected, key=lambda suspect: (-len(suspect.rungs), -suspect.confidence, suspect.id))


def _confidence(row: GradedRow) -> float:
    if not row.scores or row.prediction not in row.scores:
        return 0.0
    return confidence_of(row.scores, row.prediction)


def text_of(example: Example) -> str:
    """A row's inputs as one text to read: named where there are several."""
    texts = example.texts
    return "\n".join(texts.values() if len(texts) == 1 else (f"{name}: {text}" for name, text in texts.items()))
