"""What reports tell of openings: those that the catalogue at home has, where a ledger does not know of them any more.

A report names the verdict that its test rows were opened for, and the splits of its run, which lie beside it, the rows.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedplate.core.errors import DataError
from bedplate.core.files import bedplate_home, read_text
from bedplate.evaluation.ledger.chain import LedgerRecord


@dataclass(frozen=True)
class ReportedOpening:
    """An opening by its verdict. record: its rows as a ledger has them; None where the run is not there any more."""

    verdict: str
    report: Path
    record: LedgerRecord | None


def told_at_home(ledger_verdicts: Collection[str]) -> list[ReportedOpening]:
    """The openings of catalogued reports, by verdict, without those that are known. DataError: a damaged catalogue."""
    if not (bedplate_home() / "catalog.sqlite").is_file():
        return []
    from bedplate.skins.catalog import Catalog  # late, as reading skins loads torch

    with Catalog.open() as catalog:
        reports = [(report.details.get("opened"), report.path) for report in catalog.entries("report")]
    report_paths = {verdict: Path(path) for verdict, path in reports if verdict is not None and path is not None}
    return [
        ReportedOpening(verdict, path, _rows(path))
        for verdict, path in report_paths.items()
        if verdict not in ledger_verdicts
    ]


def _rows(report: Path) -> LedgerRecord | None:
    from bedplate.skins.run import SPLITS_FILE

    if not report.is_file():
        return None
    try:
        test: Any = json.loads(read_text(report.parent / SPLITS_FILE))["test"]
        return {"rows": [*map(str, test["rows"])], "exact": [*map(str, test.get("texts", ()))]}
    except (DataError, ValueError, KeyError, TypeError, AttributeError):
        return None
