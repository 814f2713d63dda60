"""What the rows are like (labels, lengths, labels that several rungs agree against), and the judged skin seen close:
calibration, confusion, slices, and rows with every rung's answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from bedplate.adaptation.rungs.answers import own_probability
from bedplate.evaluation.examples import Example
from bedplate.evaluation.grading import GradedRow
from bedplate.evaluation.harness import Evaluation
from bedplate.evaluation.slices import calibration, confusion, slices
from bedplate.report.schema import DataCard, Lengths, Suspect
from bedplate.report.schema_parts import ExampleRow, Examples, Focus, Split

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
    counts: dict[Split, dict[str, int]] = {
        name: {label: part.count(label) for label in labels} for name, part in targets.items()
    }
    return DataCard(
        labels=counts if labels else None,
        lengths={
            name: Lengths(deciles=tuple(map(int, np.quantile(part, np.linspace(0, 1, 11), method="nearest"))))
            for name, part in lengths.items()
        },
        suspects=tuple(suspected[:SHOWN_SUSPECTS]),
        suspect_count=len(suspected),
    )


def suspects(valid: Sequence[Example], answered: Mapping[str, Evaluation]) -> list[Suspect]:
    """Valid rows for which two rungs or more are sure of one other label, and none is sure of the row's own; most
    rungs first, then the surest."""
    sure: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))  # row → answer → rung
    for rung, evaluation in answered.items():
        for row in evaluation.rows:
            confidence = own_probability(row.scores, row.prediction) or 0.0
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


def text_of(example: Example) -> str:
    """A row's inputs as one text to read: named where there are several."""
    texts = example.texts
    return "\n".join(texts.values() if len(texts) == 1 else (f"{name}: {text}" for name, text in texts.items()))


SHOWN_WRONG, SHOWN_DISAGREEING, SHOWN_RIGHT = 8, 12, 4
Why = Literal["wrong", "disagreement", "right"]


def focus(rung: str, split: Split, evaluation: Evaluation) -> Focus:
    """Calibration, confusion and slices (worst first) on a split; what the output has no use for is None."""
    return Focus(
        rung=rung,
        split=split,
        calibration=calibration(evaluation),
        confusion=confusion(evaluation),
        slices=tuple(sorted(slices(evaluation), key=lambda part: part.estimate)),
    )


def examples(valid: Sequence[Example], answered: Mapping[str, Evaluation], judged: str | None) -> Examples:
    """Valid rows with their texts, each once: the judged rung's surest mistakes, then rows on which the rungs disagree
    (most evenly first), then some that it has right. Test texts stay closed. answered: rung → evaluation on valid."""
    rows = {rung: {row.id: row for row in evaluation.rows} for rung, evaluation in answered.items()}
    scores = {e.id: [by_id[e.id].score for by_id in rows.values() if e.id in by_id] for e in valid}
    disagreeing = [e for e in valid if len(set(scores[e.id])) > 1]
    chosen: dict[str, Why] = {}
    if judged is not None:
        surest = sorted(answered[judged].rows, key=lambda row: (-max((row.scores or {}).values(), default=0.0), row.id))
        chosen |= dict.fromkeys([row.id for row in surest if row.score < 1][:SHOWN_WRONG], "wrong")
    means = {e.id: sum(scores[e.id]) / len(scores[e.id]) for e in disagreeing}
    evenly = sorted(disagreeing, key=lambda e: (round(abs(means[e.id] - 0.5), 9), e.id))
    chosen |= dict.fromkeys([e.id for e in evenly if e.id not in chosen][:SHOWN_DISAGREEING], "disagreement")
    if judged is not None:
        right = [row.id for row in answered[judged].rows if row.score == 1 and row.id not in chosen]
        chosen |= dict.fromkeys(right[:: max(1, len(right) // SHOWN_RIGHT)][:SHOWN_RIGHT], "right")
    by_id = {e.id: e for e in valid}
    shown = tuple(_shown(by_id[name], why, rows) for name, why in chosen.items())
    return Examples(rung=judged, split="valid", rows=shown, disagreeing=len(disagreeing))


def _shown(example: Example, why: Why, rows: Mapping[str, Mapping[str, GradedRow]]) -> ExampleRow:
    answered = {rung: by_example[example.id] for rung, by_example in rows.items() if example.id in by_example}
    return ExampleRow(
        id=example.id,
        why=why,
        text=text_of(example),
        target=example.target,
        answers={rung: row.prediction for rung, row in answered.items()},
        scores={rung: row.score for rung, row in answered.items()},
    )
