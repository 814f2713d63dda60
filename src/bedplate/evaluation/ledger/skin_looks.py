"""Stores what earlier looks at a skin found (the gains of each bet), so that a further look continues the same test.

Looks are numbered in `ledger/skin-looks.jsonl` at home before anything is asked; what they gained is written down
after, in a file for each skin. A row is bet on once, however many looks have it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from bedplate.core.files import bedplate_home, file_lock
from bedplate.core.statistics.betting import Gains
from bedplate.evaluation.ledger.chain import Chain, append, read_chain
from bedplate.evaluation.ledger.ledger import TestLedger

_DIGITS = 9


def looks() -> TestLedger:
    """The ledger of looks at skins: where the test ledger has rows, it has the skin."""
    return TestLedger(bedplate_home() / "ledger" / "skin-looks.jsonl")


@dataclass(frozen=True)
class EarlierLook:
    """Looks before this one. gains: of each, by what was looked at. rows: those that a look had, judged: those that one
    had with their targets, by row hash. largest: rows of a group that are bet on at most; None before the first."""

    gains: tuple[dict[str, Gains], ...]
    rows: frozenset[str]
    judged: frozenset[str]
    largest: int | None
    notes: tuple[str, ...]


def earlier_looks(skin: str, question: str) -> EarlierLook:
    """What is known before the look that asks `question`: asked again, it goes on from where it stood."""
    chain = _chain(skin)
    before = list(chain.entries)
    place = next((i for i, record in enumerate(before) if record["verdict"] == question), len(before))
    before = before[:place]
    return EarlierLook(
        tuple(
            {metric: np.array(metric_gains, dtype=float) for metric, metric_gains in record["gains"].items()}
            for record in before
        ),
        frozenset(row for record in before for row in record["rows"]),
        frozenset(row for record in before for row in record["judged"]),
        before[0]["largest"] if before else None,
        tuple(chain.notes()),
    )


def remember(
    skin: str,
    question: str,
    number: int,
    *,
    rows: Iterable[str],
    judged: Iterable[str],
    largest: int,
    gains: Mapping[str, Gains],
) -> None:
    """Write down what the look that asked `question` found; once, however often it is asked."""
    path = _chain(skin).path
    with file_lock(path.with_name(path.name + ".lock")):
        chain = _chain(skin)
        if any(earlier["verdict"] == question for earlier in chain.entries):
            return
        record = {
            "verdict": question,
            "number": number,
            "rows": sorted(set(rows)),
            "judged": sorted(set(judged)),
            "largest": largest,
            "gains": {metric: np.round(metric_gains, _DIGITS).tolist() for metric, metric_gains in gains.items()},
        }
        append(chain, record)


def _chain(skin: str) -> Chain:
    return read_chain(bedplate_home() / "ledger" / "looks" / f"{skin}.jsonl")
