"""A run in the catalogue: its bases, skins and child bases, and its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import Result
from bedplate.report.run_report import Report
from bedplate.skins.catalog import Catalog
from bedplate.skins.files import read_skin


def catalogue(contexts: Sequence[Context], out: Path, report: Report, results: Mapping[str, Result]) -> None:
    """Bases, skins, run and report of the run in `out` are recorded."""
    with Catalog.open() as catalog:
        known = [context.at.facts for context in contexts]
        weights = [catalog.record_base(b.short, b.identity, b.path, family=b.family) for b in known]
        skins = [
            catalog.record_skin(read_skin(out / result.skin)) for result in results.values() if result.skin is not None
        ]
        verdict = {"verdict": report.data["verdict"]}
        catalog.record_report(out / "report.json", contexts[0].task.task, verdict, [*weights, *skins])
        catalog.add([out / result.child for result in results.values() if result.child is not None])
        catalog.record_run_of(out)
