"""What a run leaves in the catalogue: bases, skins, the run itself and its report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bedplate.adaptation.context.bases import BaseFacts
from bedplate.adaptation.context.outcome import RungResult
from bedplate.report.run_report import Report
from bedplate.skins.catalog import Catalog
from bedplate.skins.files import read_skin
from bedplate.skins.records import opened_by


def record(report: Report, out: Path, task: str, bases: Sequence[BaseFacts], results: Iterable[RungResult]) -> None:
    """Bases, skins, run and report. results: of all candidates, places below `out`."""
    all_results = list(results)
    with Catalog.open() as catalog:
        weights = [catalog.record_base(b.short, b.identity, b.path, family=b.family) for b in bases]
        skins = [catalog.record_skin(read_skin(out / result.skin)) for result in all_results if result.skin is not None]
        details = {"verdict": report.data["verdict"], "opened": opened_by(report.data)}
        catalog.record_report(out / "report.json", task, details, [*weights, *skins])
        catalog.add([out / result.child for result in all_results if result.child is not None])
        catalog.record_run_of(out)
