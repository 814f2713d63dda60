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
from bedplate.evaluation.ledger.chain import Entry


@dataclass(frozen=True)
class Told:
    """An opening by its verdict. entry: its rows as a ledger has them; None where the run is not there any more."""

    verdict: str
    report: Path
    entry: Entry | None


def told_at_home(known: Collection[str]) -> list[Told]:
    """The openings of catalogued reports, by verdict, without those that are known. DataError: a damaged catalogue."""
    if not (bedplate_home() / "catalog.sqlite").is_file():
        return []
    from bedplate.skins.catalog import Catalog  # late, as reading skins loads torch

    with Catalog.open() as catalog:
        reports = [(one.details.get("opened"), one.path) for one in catalog.entries("report")]
    found = {verdict: Path(path) for verdict, path in reports if verdict is not None and path is not None}
    return [Told(verdict, path, _rows(path)) for verdict, path in found.items() if verdict not in known]


def _rows(report: Path) -> Entry | None:
    from bedplate.skins.run import SPLITS_FILE

    if not report.is_file():
        return None
    try:
        test: Any = json.loads(read_text(report.parent / SPLITS_FILE))["test"]
        return {"rows": [*map(str, test["rows"])], "exact": [*map(str, test.get("texts", ()))]}
    except (DataError, ValueError, KeyError, TypeError, AttributeError):
        return None
