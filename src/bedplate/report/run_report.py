"""The report of an `adapt` run in memory: what `adapt` returns, and what `load_report` reads from a directory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedplate.core import display
from bedplate.core.arguments import checked
from bedplate.core.errors import DataError, UsageError
from bedplate.core.files import read_text
from bedplate.report.formatting import shown_estimate
from bedplate.report.schema import SCHEMA_VERSION
from bedplate.report.schema_parts import Curve

REPORT_FILE, PAGE_FILE = "report.json", "report.html"
_READ = ("task", "verdict", "rungs", "comparisons", "target")
"""Parts without which a file is no report."""


class Verdict(dict[str, Any]):
    """status (PASS, FAIL, …), rung, skin, reason. It prints as a sentence."""

    def __repr__(self) -> str:
        rung = self["rung"]
        return f"{self['status']}{'' if rung is None else f' with {rung}'}: {self['reason']}"


@dataclass(frozen=True, repr=False)
class Report:
    """`data` is report.json, as `bedplate.report.schema` has it; the rest are shorthands into it."""

    data: dict[str, Any]
    directory: Path

    @property
    def verdict(self) -> Verdict:
        """What was decided, and why."""
        return Verdict(self.data["verdict"])

    @property
    def rungs(self) -> list[dict[str, Any]]:
        """One row for each rung and split."""
        return self.data["rungs"]

    @property
    def skin(self) -> Path | None:
        """The directory of the skin that passed."""
        path = self.verdict["skin"]
        return None if path is None else self.directory / path

    @property
    def page(self) -> Path:
        """The report as a page to look at."""
        return self.directory / PAGE_FILE

    @property
    def comparison(self) -> dict[str, Any] | None:
        """The one pair that was fixed before test was opened."""
        return next((pair for pair in self.data["comparisons"] if pair["planned"]), None)

    def row(self, rung: str, split: str = "valid") -> dict[str, Any] | None:
        """The row of a rung on a split."""
        return next((r for r in self.rungs if r["rung"] == rung and r["split"] == split), None)

    def with_curve(self, curve: Curve, seconds: float, usd: float) -> Report:
        """The same with learning curves, and the time and money that it took in all."""
        timing = {**self.data["timing"], "seconds": round(seconds, 1), "usd": usd}
        return Report({**self.data, "curve": curve.model_dump(mode="json"), "timing": timing}, self.directory)

    def to_json(self) -> dict[str, Any]:
        """`data`, which `json.dumps` takes."""
        return self.data

    def __repr__(self) -> str:
        count = len({row["rung"] for row in self.rungs if row["status"] == "done"})
        verdict = str(self.verdict).partition(":")[0]
        return display.line("report", self.data["task"], verdict, f"{count} rungs made", self.directory)

    def _repr_html_(self) -> str:
        metric = self.data["target"]["metric"]
        header = ("rung", "split", f"{metric} (95% interval)", "rows", "USD per 1,000 calls", "p95 ms")
        rows = [self._cells(row) for row in self.rungs]
        verdict = f"{self.verdict['status']}: {self.verdict['reason']}"
        return display.table(f"Report of {self.data['task']}", header, rows, verdict)

    def _cells(self, row: dict[str, Any]) -> tuple[object, ...]:
        if row["estimate"] is None:
            return (row["rung"], row["status"], row["reason"], "", "", "")
        estimate, low, high = (shown_estimate(self.data, value) for value in (row["estimate"], *row["interval"]))
        price = "" if row["usd_per_1k_calls"] is None else f"{row['usd_per_1k_calls']:.5f}"
        slowest = "" if row["p95_ms"] is None else f"{row['p95_ms']:.0f}"
        return (row["rung"], row["split"], f"{estimate} ({low} to {high})", row["n"], price, slowest)


@checked
def load_report(directory: Path | str) -> Report:
    """The report of a run of `adapt`, or the one that a skin carries (without its rows). UsageError for a directory
    without one, DataError for a file that is no report, or one of another version."""
    path = Path(directory)
    path = path if path.suffix == ".json" else path / REPORT_FILE
    if not path.is_file():
        raise UsageError(f"{path}: there is no report; give the directory of a run of `adapt`, or of a skin of one")
    try:
        data = json.loads(read_text(path))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    lacks = [name for name in _READ if not isinstance(data, dict) or name not in data]
    if lacks:
        raise DataError(f"{path} is not a report of `adapt`: it has no {lacks[0]!r}")
    if data.get("schema_version") != SCHEMA_VERSION:
        raise DataError(f"{path} is a report of schema version {data.get('schema_version')}; {SCHEMA_VERSION} is read")
    return Report(data, path.parent)
