"""The fits of a rung that trains weights: one for each seed on a prompt, which of them is the rung's, and what a larger
fit takes over of a smaller one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bedplate.core.errors import BedplateError
from bedplate.core.files import atomic_write, read_text
from bedplate.evaluation.harness import Evaluation
from bedplate.inference.predict.predictor import Prediction
from bedplate.skins.files import read_skin
from bedplate.skins.skin import Skin

FIT_FILE, SMALLER = "fit.json", Path("smaller")
"""What a finished fit took; where fits lie, in the run's directory, that a larger one follows."""

KEPT_WITHIN = 0.005
"""A shorter prompt keeps the score where it loses no more of the metric than this on valid."""


@dataclass(frozen=True, eq=False)
class Trained:
    """One seed's skin on one prompt, read back from disk, and how it does on valid."""

    skin: Skin
    seed: int
    seconds: float
    computed_in: str
    evaluation: Evaluation
    prompt: str
    by_id: Mapping[str, Prediction | None] = field(repr=False)


def best_of(trained: Sequence[Trained]) -> Trained:
    """The best seed on the shortest prompt that keeps the score on valid: the bare one, unless another's best is more
    than KEPT_WITHIN above its best."""
    by_prompt = {fit.prompt: max((t for t in trained if t.prompt == fit.prompt), key=_standing) for fit in trained}
    best = max(by_prompt.values(), key=_standing)
    bare = by_prompt.get("bare", best)
    return bare if bare.evaluation.estimate >= best.evaluation.estimate - KEPT_WITHIN else best


def _standing(fit: Trained) -> tuple[float, int]:
    return fit.evaluation.estimate, -fit.seed


def chosen_by(best: Trained, trained: Sequence[Trained]) -> str:
    """Which of the fits is the rung's, and why, in a few words."""
    names = list(dict.fromkeys(fit.prompt for fit in trained))
    reason = f"seed {best.seed} is the best of {sum(t.prompt == best.prompt for t in trained)} on valid"
    if len(names) == 1:
        return reason if best.prompt == "chosen" else f"{reason}; trained on the bare inputs, for lack of room for more"
    tops = {name: max(t.evaluation.estimate for t in trained if t.prompt == name) for name in names}
    scores = " and ".join(f"{tops[name]:.3f} on the {name} prompt" for name in names)
    return f"{scores} on valid, so the {best.prompt} one is kept; {reason}"


def write_fit(work: Path, seconds: float, computed_in: str) -> None:
    """Mark a fit finished whose skin lies in `work`/skin."""
    atomic_write(work / FIT_FILE, json.dumps({"seconds": seconds, "computed_in": computed_in}) + "\n")


def taken_over(work: Path) -> tuple[Skin, float, str] | None:
    """The finished fit of the smaller plan whose larger one is made in `work` (run/rungs/name/seed): its skin, seconds,
    and what it was computed in. None where it is not there any more: then it is made again."""
    run = work.parents[2]
    place = run / SMALLER / work.relative_to(run)
    try:
        values = json.loads(read_text(place / FIT_FILE))
        return read_skin(place / "skin"), float(values["seconds"]), str(values["computed_in"])
    except (OSError, ValueError, KeyError, BedplateError):
        return None
