"""The test ledger: who opened which test rows for which verdict. Append-only, and apart from every cache.

The j-th verdict on the same rows may spend 6α/(π²j²) (core.statistics.spent_alpha); from the second on, reports say
EXPLORATORY, because what was seen on these rows may have shaped what is judged on them.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bedplate.core.errors import DataError
from bedplate.core.files import append_jsonl, bedplate_home, file_lock, read_jsonl


@dataclass(frozen=True)
class Opening:
    """`number` is j: this is the j-th verdict on some of these rows, counted from 1."""

    verdict_id: str
    number: int

    @property
    def exploratory(self) -> bool:
        """Whether these rows had served an earlier verdict."""
        return self.number > 1


class Ledger:
    """A file of openings; concurrent writers wait for each other."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = bedplate_home() / "ledger" / "test-openings.jsonl" if path is None else path

    def open(self, verdict_id: str, row_hashes: Sequence[str], *, task: str, reason: str) -> Opening:
        """Record, before anything is read, that these rows are opened for this verdict.

        `verdict_id` names the question (skins, target, rows): asked again, after an interruption, it keeps its number
        and spends nothing. Raises DataError where the ledger is damaged, UsageError where it cannot be written.
        """
        with file_lock(self.path.with_name(self.path.name + ".lock")):
            entries = read_jsonl(self.path, allow_torn_tail=True) if self.path.exists() else []
            rows = set(row_hashes)
            earlier: dict[str, int] = dict.fromkeys(rows, 0)
            for number, entry in enumerate(entries, start=1):
                if not isinstance(entry.get("rows"), list) or not isinstance(entry.get("number"), int):
                    raise DataError(f"{self.path}, line {number}: not an entry of the test ledger; restore the file")
                if entry.get("verdict") == verdict_id:
                    return Opening(verdict_id, entry["number"])
                for row in rows.intersection(entry["rows"]):
                    earlier[row] += 1
            opening = Opening(verdict_id, 1 + max(earlier.values(), default=0))
            entry = {
                "verdict": verdict_id,
                "number": opening.number,
                "task": task,
                "reason": reason,
                "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "rows": sorted(rows),
            }
            append_jsonl(self.path, [entry])
            return opening
