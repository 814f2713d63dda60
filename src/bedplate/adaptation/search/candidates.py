"""What is climbed, in order: references first, then the rungs of each base (small bases first, cheap rungs first), the
hosted models, and cascades of what there was before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bedplate.adaptation.context.bases import suffixes_of
from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import Climbed, RungResult
from bedplate.adaptation.rungs import RUNGS
from bedplate.adaptation.rungs.rung import Needs, Rung, Traits


@dataclass(frozen=True)
class Candidate:
    """A rung on a base. name: the rung's, for another than the task's first base with `@` and that base's name behind
    it."""

    name: str
    rung: Rung
    context: Context

    @property
    def traits(self) -> Traits:
        return self.rung.traits

    @property
    def directory(self) -> Path:
        """Where the rung keeps its state."""
        return self.context.out / "rungs" / self.rung.name

    @property
    def on_base(self) -> bool:
        """Whether a base of this machine is what is adapted."""
        return self.traits.needs in ("base", "decoder")

    @property
    def base(self) -> str | None:
        """The base, or the endpoint, as the task file names it; None where none has a part in it."""
        if self.traits.needs == "endpoint":
            return None if self.context.hosted is None else self.context.hosted.name
        return self.context.at.base_name if self.on_base else None

    @property
    def unfit(self) -> str | None:
        """Why the rung cannot be climbed on this base, whatever the time."""
        if not self.on_base:
            return None
        if self.context.unfit is not None:
            return self.context.unfit
        writing, continuing = self.traits.needs == "decoder", self.traits.continues
        missing = self.context.backbone.missing(writing=writing, continuing=continuing)
        return None if missing is None else f"{self.rung.name} needs {missing}"

    @property
    def climbed(self) -> Climbed:
        return self.context.climbed[self.name]

    def finish(self, result: RungResult) -> RungResult:
        """Let what the rung made be built on by those after it; returns its result under the candidate's name, places
        below the run's directory."""
        context, prefix = self.context, place_of(Path(), self.context.suffix)
        skin, child = (None if place is None else str(prefix / place) for place in (result.skin, result.child))
        named = replace(result, rung=self.name, skin=skin, child=child)
        opened = partial(self.rung.predictor, context, result)
        context.climbed[self.name] = Climbed(self.name, named, result, context.out, context.at, opened)
        return named

    def rung_result(self, result: RungResult) -> RungResult:
        """A result as the rung itself left it: what `Rung.predictor` takes."""
        prefix, both = place_of(Path(), self.context.suffix), (result.skin, result.child)
        skin, child = (None if place is None else str(Path(place).relative_to(prefix)) for place in both)
        return replace(result, rung=self.rung.name, skin=skin, child=child)


def place_of(out: Path, suffix: str) -> Path:
    """The directory of what belongs to another than the first base."""
    return out / "bases" / suffix if suffix else out


def candidates_of(contexts: Sequence[Context], chosen: Sequence[str]) -> list[Candidate]:
    """The candidates in the order in which they are climbed. contexts: one for each base, the task's first in front."""
    small_first = sorted(contexts, key=lambda c: c.at.facts.size)
    turns: tuple[tuple[tuple[Needs, ...], Sequence[Context]], ...] = (
        (("nothing",), contexts[:1]),
        (("base", "decoder"), small_first),
        (("endpoint",), remote(contexts)),
        (("skins",), contexts[:1]),
    )
    return [
        Candidate(f"{name}@{context.suffix}" if context.suffix else name, RUNGS[name].on(context), context)
        for needs, places in turns
        for context in places
        for name in chosen
        if RUNGS[name].traits.needs in needs
    ]


def remote(contexts: Sequence[Context]) -> list[Context]:
    """A context for each endpoint: the task's first base's, whose data and clock it shares; that one itself where the
    task names no endpoint."""
    first = contexts[0]
    base_suffixes = [context.suffix for context in contexts]
    suffixes = suffixes_of([endpoint.name for endpoint in first.spec.hosted], base_suffixes)
    return [
        replace(first, hosted=endpoint, suffix=suffix, out=place_of(first.out, suffix), until=math.inf)
        for endpoint, suffix in zip(first.spec.hosted, suffixes, strict=True)
    ] or [first]
