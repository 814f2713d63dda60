"""What a rung is: one way to adapt, that plans or skips with a reason, then fits and leaves its outcome on disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import RungPlan, RungResult, Skip
from bedplate.evaluation.harness import Predicts
from bedplate.skins.files import read_skin
from bedplate.skins.output import Output
from bedplate.skins.prompt import Prompt

Needs = Literal["nothing", "base", "decoder", "endpoint", "skins"]
Side = Literal["prompt", "weights", "both", "reference"]
Role = Literal["baseline", "classical", "examples"]


@dataclass(frozen=True)
class Traits:
    """What others need to know of a rung.

    side: what is adapted; a "reference" adapts nothing, is always estimated on test, and is nominated only where it
    leaves a skin, which then stands on no base. needs: a "decoder"; a "base",
    which may be an encoder; "nothing", so that it is climbed once, in front; an "endpoint", once for each, after all
    bases; or "skins", made of what was climbed before, so that it comes last. role: a part that only one plays:
    "baseline" is the base as it is, which superiority is claimed over and whose prompt others build on; "classical" is
    what a team without a foundation model would have; "examples" has worked examples in every prompt.

    learns: from the labels of train, so that a learning curve has a point of it at each size, and else a flat line;
    no_curve: why it has neither. own_prompt: nothing of it depends on the prompt that the baseline chose, so that it
    may be climbed before. whole_prompt: its calls take at least what the plain prompt takes through the whole base.
    dear: a long search for a prompt, put off where tuning is expected to win. trained: weights are, on the task's rows.
    continues: it learns from text that goes on, which an encoder–decoder does not read.
    makes_child: it leaves a base of its own, which the task's guards look at. stops: it has a smallest version, which
    ends by itself when the time is over (`Context.smallest`). least_labels: with fewer it is not worth trying. worth:
    about which share of what the references get wrong it is expected to put right. Time is given out by this and by
    what it takes; nothing is decided by it.
    """

    side: Side
    needs: Needs = "decoder"
    role: Role | None = None
    learns: bool = True
    no_curve: str | None = None
    own_prompt: bool = False
    whole_prompt: bool = False
    dear: bool = False
    trained: bool = False
    continues: bool = False
    makes_child: bool = False
    stops: bool = False
    least_labels: int = 0
    worth: float = 0.3


class Rung(ABC):
    """One way to adapt. It keeps nothing between calls: what it works with is in the context and on disk."""

    name: str
    traits: Traits

    def on(self, context: Context) -> Rung:
        """The rung as it adapts this context's base."""
        return self

    @abstractmethod
    def plan(self, context: Context) -> RungPlan | Skip: ...

    @abstractmethod
    def fit(self, context: Context, plan: RungPlan, directory: Path) -> RungResult:
        """`directory` is the rung's own, for state that a resumed run goes on from."""

    def predictor(self, context: Context, result: RungResult) -> Predicts:
        """What answers on test, from what `fit` left on disk."""
        assert result.skin is not None
        return context.predictor(read_skin(context.out / result.skin))

    def lightest(self, context: Context) -> tuple[Prompt, Output]:
        """The lightest prompt that its skin's calls may have."""
        return context.default_prompt()

    def settings(self, context: Context) -> Any:
        """What the task file says for this rung alone, as JSON; None for nothing. HubError, CheckpointError,
        DataError."""
        return None

    def remember(self, context: Context, result: RungResult) -> None:  # noqa: B027  (most leave nothing)
        """Put into the context what `fit` of an earlier run had left there."""

    def parts(self, details: Mapping[str, Any]) -> tuple[str, ...]:
        """The candidates that its skin is made of, by its result's details."""
        return ()
