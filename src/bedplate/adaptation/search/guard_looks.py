"""The child bases that nominees stand on, and how often what guards ask them was asked before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import RungResult
from bedplate.adaptation.search.candidates import Candidate
from bedplate.adaptation.search.guard_drops import GuardResult
from bedplate.adaptation.search.guards import guards_opened


def children(candidates: Mapping[str, Candidate], name: str) -> list[tuple[Context, Path]]:
    """The child bases that a candidate stands on, its own or those of its parts, with what they are children of."""
    parts = [candidates[part] for part in candidates[name].climbed.result.parts or (name,)]
    child_bases = [(part.context, part.climbed.child) for part in parts]
    return [(context, child) for context, child in child_bases if child is not None]


def guards_asked(
    candidates: Mapping[str, Candidate],
    nominees: Sequence[str],
    results: Mapping[str, RungResult],
    guarded: Mapping[str, Sequence[GuardResult]],
) -> int:
    """How many verdicts the items of these nominees' guards have been part of, this one with it; 1 without any."""
    looked = [
        (results[name].skin_id, at.at.facts.identity.weights_id, guarded[name])
        for name in nominees
        if name in guarded
        for at, _ in children(candidates, name)
    ]
    return guards_opened(candidates[nominees[0]].context.task.task, looked) if looked else 1
