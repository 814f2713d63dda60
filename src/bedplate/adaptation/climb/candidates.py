"""What is climbed, in order: references first, then the rungs of each base (small bases first, cheap rungs first), the
hosted models, and cascades of what there was before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bedplate.adaptation.context.bases import suffixes_of
from bedplate.adaptation.context.context import Context
from bedplate.adaptation.rungs import RUNGS, Result, Rung
from bedplate.adaptation.rungs.base import RungOutcome

WITHOUT_BASE = ("majority", "from_scratch")
"""References: no base has a part in them, so that they are climbed once."""
REMOTE = ("hosted",)
"""Climbed once for each endpoint, after all bases."""
COMPOSED = ("cascade",)
"""Made of what was climbed before, so that they come last."""
ON_ENCODERS = ("probe",)


@dataclass(frozen=True)
class Entry:
    """A candidate: a rung on a base. name: the rung's, for another than the task's first base with `@` and that base's
    name behind it."""

    name: str
    rung: Rung
    context: Context

    @property
    def directory(self) -> Path:
        """Where the rung keeps its state."""
        return self.context.out / "rungs" / self.rung.name

    @property
    def on_base(self) -> bool:
        """Whether a base of this machine is what is adapted."""
        return self.rung.name not in (*WITHOUT_BASE, *REMOTE, *COMPOSED)

    @property
    def base(self) -> str | None:
        """The base, or the endpoint, as the task file names it; None where none has a part in it."""
        if self.rung.name in REMOTE:
            return None if self.context.hosted is None else self.context.hosted.name
        return None if self.rung.name in (*WITHOUT_BASE, *COMPOSED) else self.context.at.given

    @property
    def unfit(self) -> str | None:
        """Why the rung cannot be climbed on this base, whatever the time."""
        if not self.on_base:
            return None
        if self.context.unfit is not None:
            return self.context.unfit
        if self.context.is_encoder and self.rung.name not in ON_ENCODERS:
            return f"{self.rung.name} needs a decoder; {self.context.at.given} is an encoder"
        return None

    def named(self, outcome: RungOutcome) -> RungOutcome:
        """The outcome under the candidate's name, its skin's place below the run's directory."""
        result = outcome.result
        if result is not None and result.skin is not None:
            child = None if result.child is None else str(self._prefix / result.child)
            result = replace(result, rung=self.name, skin=str(self._prefix / result.skin), child=child)
        return replace(outcome, rung=self.name, result=result)

    def own(self, result: Result) -> Result:
        """A result as the rung itself left it: what `Rung.predictor` takes."""
        skin, child = (
            None if place is None else str(Path(place).relative_to(self._prefix))
            for place in (result.skin, result.child)
        )
        return replace(result, rung=self.rung.name, skin=skin, child=child)

    @property
    def _prefix(self) -> Path:
        return Path() if not self.context.suffix else place_of(Path(), self.context.suffix)


def place_of(out: Path, suffix: str) -> Path:
    """The directory of what belongs to another than the first base."""
    return out / "bases" / suffix if suffix else out


def entries(contexts: Sequence[Context], chosen: Sequence[str]) -> list[Entry]:
    """The candidates in the order in which they are climbed. contexts: one for each base, the task's first in front."""
    first = contexts[0]
    found = [Entry(name, RUNGS[name], first) for name in chosen if name in WITHOUT_BASE]
    apart = (*WITHOUT_BASE, *REMOTE, *COMPOSED)
    for context in sorted(contexts, key=lambda c: c.at.facts.size):
        found += [_on(context, name) for name in chosen if name not in apart]
    for name in (name for name in chosen if name in REMOTE):
        found += [_on(context, name) for context in remote(contexts)]
    return found + [Entry(name, RUNGS[name], first) for name in chosen if name in COMPOSED]


def remote(contexts: Sequence[Context]) -> list[Context]:
    """A context for each endpoint: the task's first base's, whose data and clock it shares; that one itself where the
    task names no endpoint."""
    first = contexts[0]
    taken = [context.suffix for context in contexts]
    suffixes = suffixes_of([one.name for one in first.spec.hosted], taken)
    return [
        replace(first, hosted=one, suffix=suffix, out=place_of(first.out, suffix), until=math.inf)
        for one, suffix in zip(first.spec.hosted, suffixes, strict=True)
    ] or [first]


def _on(context: Context, rung: str) -> Entry:
    return Entry(f"{rung}@{context.suffix}" if context.suffix else rung, RUNGS[rung], context)
