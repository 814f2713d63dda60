"""A cheap skin that passes on what it is not sure of to a dearer one: the pair and the threshold are found on valid.

Of the rungs that were climbed before, the dear skin is the best on valid. Each cheaper one whose answers carry a
probability is tried before it: the threshold is the one that costs least and is as good as the dear skin on valid
(FrugalGPT, arXiv 2305.05176). A call costs the cheap one's price, and the share that is passed on the dear one's too.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import Climbed, RungPlan, RungResult, Skip, latency, no_time
from bedplate.adaptation.rungs.answers import export, own_probability, predict_in_time, single_calls
from bedplate.adaptation.rungs.rung import Rung, Traits
from bedplate.core.errors import UsageError
from bedplate.core.version import __version__
from bedplate.evaluation.harness import Evaluation, Predicts, evaluate_predictions
from bedplate.inference.predict.callable_skin import CascadePredictor, SkinPredictor
from bedplate.skins.files import read_skin, skin_id
from bedplate.skins.skin import Skin, cascaded


@dataclass(frozen=True)
class CascadePair:
    """Two candidates: the share of valid that is passed on under the threshold, what is right then, and what a call
    costs in US dollars."""

    cheap: str
    dear: str
    threshold: float
    share: float
    estimate: float
    usd: float


class Cascade(Rung):
    """A cascade skin of two others."""

    name = "cascade"
    traits = Traits(
        side="both", needs="skins", no_curve="it is made of other rungs' skins, which the ladder has at one size"
    )

    def plan(self, context: Context) -> RungPlan | Skip:
        if not context.labels:
            return Skip("only an answer that is one of some labels carries the probability that a cascade needs")
        if any(climbed.result.evaluation.scoring in ("counts", "answered") for climbed in context.climbed.values()):
            return Skip(f"{context.task.metric_name} is not a mean of rows, so no threshold can be found row by row")
        pair = best_pair(context)
        if isinstance(pair, str):
            return Skip(pair)
        cheap, dear = (context.climbed[name].result.latency.mean for name in (pair.cheap, pair.dear))
        calls = (cheap + pair.share * dear) * (context.latency_calls + 1)
        seconds = calls + 2 * context.throughput.rows(len(context.valid))
        if seconds > context.seconds_left:
            return no_time(seconds)
        return RungPlan({"cheap": pair.cheap, "dear": pair.dear, "threshold": pair.threshold}, seconds)

    def settings(self, context: Context) -> Any:
        eligible = [climbed for climbed in context.climbed.values() if climbed.result.skin and not climbed.result.parts]
        return {climbed.name: [climbed.result.skin_id, _price(context, climbed)] for climbed in eligible}

    def parts(self, details: Mapping[str, Any]) -> tuple[str, ...]:
        return details["cheap"], details["dear"]

    def fit(self, context: Context, plan: RungPlan, directory: Path) -> RungResult:
        start = time.perf_counter()
        cheap, dear = (context.climbed[plan.settings[role]] for role in ("cheap", "dear"))
        pair = pair_of(context, cheap, dear, plan.settings["threshold"])
        first, second = (read_skin(climbed.directory) for climbed in (cheap, dear))
        parents = (skin_id(first), skin_id(second), *context.parents)
        update = {"rung": self.name, "seed": context.seed, "code_version": __version__, "parents": parents}
        provenance = first.provenance.model_copy(update=update)
        skin = cascaded(f"{context.task.task}-{self.name}", first, second, pair.threshold, provenance)
        place = context.out / "skins" / self.name
        skin = export(skin, place)
        with _Opened(skin, cheap, dear) as predictor:
            predictions = predict_in_time(context, predictor, context.valid)
            sample = context.ordered(context.valid, "latency")[: context.latency_calls]
            calls = single_calls(predictor, sample, seconds=context.timing_limit)
        evaluation = evaluate_predictions(context.task, context.valid, predictions, seed=context.seed)
        share = sum(p is not None and p.passed_on for p in predictions) / len(predictions)
        return RungResult(
            rung=self.name,
            evaluation=evaluation,
            latency=latency([p.seconds for p in calls]),
            train_seconds=time.perf_counter() - start,
            reason=(
                f"{pair.cheap} answers where its probability is at least {pair.threshold:.3f}, {pair.dear} the "
                f"{share:.0%} of valid that are left; the threshold is as good as {pair.dear} on valid at least cost"
            ),
            skin=str(place.relative_to(context.out)),
            skin_id=skin_id(skin),
            prompt_tokens=max(cheap.result.prompt_tokens, dear.result.prompt_tokens),
            details={"cheap": pair.cheap, "dear": pair.dear, "threshold": pair.threshold, "passed_on": share},
            parts=(pair.cheap, pair.dear),
            usd_per_call=_price(context, cheap) + share * _price(context, dear),
        )

    def predictor(self, context: Context, result: RungResult) -> Predicts:
        assert result.skin is not None
        skin = read_skin(context.out / result.skin)
        cheap, dear = (context.climbed[name] for name in self.parts(result.details))
        return _Opened(skin, cheap, dear)


class _Opened(CascadePredictor):
    """A cascade on the ladder's own bases, which stay in memory together while it is open."""

    def __init__(self, skin: Skin, cheap: Climbed, dear: Climbed) -> None:
        self._bases = (cheap.base, dear.base)
        for base in self._bases:
            base.pin_count += 1
        super().__init__(skin, _open_part(cheap), _open_part(dear))

    def close(self) -> None:
        self.first.close()
        self.second.close()
        for base in self._bases:
            base.pin_count -= 1


def best_pair(context: Context) -> CascadePair | str:
    """The cheapest cascade that is as good on valid as the best candidate, or why there is none."""
    climbed_skins = [climbed for climbed in context.climbed.values() if climbed.result.skin is not None]
    # rows decide the threshold one by one: of two skins, all of valid
    eligible = {c.name: c for c in climbed_skins if c.result.evaluation.n == len(context.valid)}
    if len(eligible) < 2:
        return "a cascade needs two skins that were made before it"
    best = max(eligible.values(), key=lambda climbed: (climbed.result.evaluation.estimate, -_price(context, climbed)))
    pairs: list[CascadePair] = []
    for climbed in eligible.values():
        if _price(context, climbed) < _price(context, best):
            threshold = threshold_for(climbed.result.evaluation, best.result.evaluation)
            if threshold is not None:
                pairs.append(pair_of(context, climbed, best, threshold))
    pairs = [pair for pair in pairs if pair.usd < _price(context, best)]
    if not pairs:
        return (
            f"it would save nothing: no cheaper skin than {best.name}, the best on valid, is sure of enough rows and "
            "right on these"
        )
    return min(pairs, key=lambda pair: (pair.usd, pair.cheap))


def threshold_for(cheap: Evaluation, dear: Evaluation) -> float | None:
    """The lowest threshold under which the cascade scores as the dear skin does on these rows; None where the cheap
    skin tells no probabilities, or everything would be passed on.

    Rows of equal probability are passed on together. The metric must be a mean of rows.
    """
    sure = confidences(cheap)
    place = {row.row_hash: row.score for row in dear.rows}
    gain = np.array([place[row.row_hash] - row.score for row in cheap.rows])
    if not sure.any():
        return None
    levels, index = np.unique(sure, return_inverse=True)
    gained = np.concatenate([[0.0], np.cumsum(np.bincount(index, gain))])  # by passing on all below level i
    enough = gained >= gained[-1] - 1e-9
    first = int(np.argmax(enough))
    if first in (0, len(levels)):  # the cheap one alone does as well (then it is the candidate), or never
        return None
    return float((levels[first - 1] + levels[first]) / 2)


def confidences(evaluation: Evaluation) -> NDArray[np.float64]:
    """The probability of each row's own answer, 0 where it tells none."""
    return np.array([own_probability(row.scores, row.prediction) or 0.0 for row in evaluation.rows])


def pair_of(context: Context, cheap: Climbed, dear: Climbed, threshold: float) -> CascadePair:
    """What the cascade of two candidates would be on valid."""
    passed = confidences(cheap.result.evaluation) < threshold
    place = {row.row_hash: row.score for row in dear.result.evaluation.rows}
    scores = [
        place[row.row_hash] if on else row.score for row, on in zip(cheap.result.evaluation.rows, passed, strict=True)
    ]
    share = float(passed.mean())
    usd = _price(context, cheap) + share * _price(context, dear)
    return CascadePair(cheap.name, dear.name, threshold, share, float(np.mean(scores)), usd)


def _price(context: Context, climbed: Climbed) -> float:
    return climbed.result.price(context.spec.machine.usd_per_hour, climbed.result.latency.mean)


def _open_part(climbed: Climbed) -> SkinPredictor:
    predictor = climbed.opened()
    if not isinstance(predictor, SkinPredictor):
        raise UsageError(f"{climbed.name} is not a skin that could be part of a cascade")
    return predictor
