"""A linear head on the base's own features (linear probing, Alain & Bengio 2016): the base stays as it is.

Hidden states at a few depths come out of one forward pass, pooled in a few ways: the last token of a prompt or the mean
of its tokens; the mean or the first token of a text that an encoder reads. Layer and pooling are chosen on valid, and
so is, where any number of labels may be right, the probability from which one is given.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bedplate.adaptation.context.backbone import Pooling
from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import KEPT_WITHIN, RungPlan, RungResult, Skip, no_time, rows_left_out
from bedplate.adaptation.rungs.answers import judged
from bedplate.adaptation.rungs.linear_head import AnyOf, HeadTargets, OneOf, fit_head, tempered
from bedplate.adaptation.rungs.rung import Rung, Traits
from bedplate.adapters.head import Head
from bedplate.evaluation.examples import Example
from bedplate.evaluation.harness import evaluate_predictions
from bedplate.models.checkpoints.base import Base
from bedplate.models.inputs import Inputs
from bedplate.models.model import Model
from bedplate.skins.output import LabelOutput, LabelsOutput, Output
from bedplate.skins.phrasings import text_prompt
from bedplate.skins.prompt import Prompt
from bedplate.skins.skin import ProbePart
from bedplate.training.precision import choose, computing, lacks_room

DEPTHS = (1 / 2, 2 / 3, 5 / 6)
FOLDS = 4
BATCH_TOKENS = 2048
SHARE = 0.75
FEW_ROWS, MIN_ROWS = 300, 64
"""Rows that the time is used for beyond a rung's share, and the fewest that a head is fitted on. So many are read
between two looks at whether the time is enough for more."""
HEAD_SECONDS = 0.0015  # about what a row takes of the cross-validation of a head

TRIAL_SHARE = 0.1
"""The inputs alone are tried as well where that takes no more of the time that is left."""
CLEARLY_MORE, SAMPLE_ROWS = 1.5, 64
"""Times the train rows from which the inputs alone, which are shorter, are read in place of the task's prompt, for lack
of time; rows that lengths are estimated from."""

_POOLED = {"last": "last token", "mean": "mean of the tokens", "first": "first token"}
LAYER_ROWS = 300
"""Valid rows that the layer is chosen on; the exported probe is then asked on all of them."""

THRESHOLDS = (0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8)
"""Probabilities from which a label is given, where there may be several; of equals the first."""

Features = dict[tuple[str, Pooling], NDArray[np.float32]]


class Probe(Rung):
    """A probe skin."""

    name = "probe"
    traits = Traits(side="weights", needs="base", own_prompt=True, stops=True, worth=0.5)

    def plan(self, context: Context) -> RungPlan | Skip:
        labels = context.task.output.labels or ()
        if not labels:
            return Skip(f"a head chooses among labels; it cannot write an answer of kind {context.task.output.kind}")
        layers = context.model.base.spec.layers
        depths = sorted({max(1, round(layers * part)) for part in DEPTHS})
        groups = len({e.group for e in context.train})
        if groups < 2:
            return Skip(f"cross-validation needs at least 2 groups in train, there is {groups}")
        n, part = len(context.train), depths[-1] / layers
        if context.smallest:
            rows, layer_rows = min(MIN_ROWS, n), min(MIN_ROWS // 2, len(context.valid))
            name, prompt = list(self._prompts(context).items())[-1]
            settings = {"depths": depths[:1], "rows": rows, "layer_rows": layer_rows, "folds": min(FOLDS, groups)}
            cost = _cost(context, prompt, depths[0] / layers, layer_rows, len(context.backbone.poolings))
            left_out = rows_left_out(rows, n) if rows < n else "its smallest version was fitted: no time for more"
            return RungPlan({**settings, "prompts": [name]}, cost.seconds(rows), (left_out,))
        layer_rows = min(LAYER_ROWS, len(context.valid))
        heads = len(depths) * len(context.backbone.poolings) * (1 if context.labels else len(labels))
        prompts = self._prompts(context)
        costs = {name: _cost(context, prompt, part, layer_rows, heads) for name, prompt in prompts.items()}
        names, cheapest = list(prompts), list(prompts)[-1]
        sizes = {names[0]: costs[names[0]].rows(context, context.room(SHARE))}
        seconds = max(context.room(SHARE), costs[names[0]].seconds(sizes[names[0]]))
        sizes[cheapest] = costs[cheapest].rows(context, seconds)
        chosen = names[0] if sizes[names[0]] * CLEARLY_MORE > sizes[cheapest] else cheapest
        rows, cost = sizes[chosen], costs[chosen]
        if not rows:
            return no_time(min(c.seconds(min(MIN_ROWS, n)) for c in costs.values()))
        trial = costs[cheapest].row_seconds * (rows + layer_rows)
        both = chosen != cheapest and rows == n and trial <= context.seconds_left * TRIAL_SHARE
        settings = {"depths": depths, "rows": rows, "layer_rows": layer_rows, "folds": min(FOLDS, groups)}
        left_out = (rows_left_out(rows, n),) if rows < n else ()
        names = names if both else [chosen]
        return RungPlan({**settings, "prompts": names}, cost.seconds(rows) + trial * both, left_out)

    def fit(self, context: Context, plan: RungPlan, directory: Path) -> RungResult:
        start = time.perf_counter()
        train = context.ordered(context.train, "probe")[: plan.settings["rows"]]
        names = [f"layers.{depth}" for depth in plan.settings["depths"]]
        chosen_on = context.ordered(context.valid, "layer")[: plan.settings["layer_rows"]]
        poolings, labels = context.backbone.poolings, context.task.output.labels or ()
        prompts, tried, planned_rows = self._prompts(context), list[_Tried](), len(train)
        chosen_prompts = plan.settings.get("prompts", ("form",))
        read_first = _times_as_long(context, prompts[chosen_prompts[0]])
        pace = _Pace(context, len(names) * len(poolings) * (1 if context.labels else len(labels)), read_first)
        heads = plan.settings.get("heads", len(names) * len(poolings) * len(chosen_prompts))
        for prompt_name in chosen_prompts:
            prompt = prompts[prompt_name]
            valid_features = features_of(context, chosen_on, names, poolings, prompt)
            features = features_of(context, train, names, poolings, prompt, pace.ends)
            rows = len(features[names[0], poolings[0]])
            if rows < len(train):
                if tried:
                    break
                train = train[:rows]
            targets, groups = wanted_of(context, train), [e.group for e in train]
            for pooling, name in product(poolings, names):
                if len(tried) == heads or (tried and pace.ends(rows)):
                    break
                head, strength = fit_head(features[name, pooling], targets, groups, plan.settings["folds"])
                valid = valid_features[name, pooling]
                estimate = _estimate(context, chosen_on, head, valid, head_outputs(context)[0])
                tried.append(_Tried(prompt_name, name, pooling, head, strength, valid, estimate))
        settings, left_out = {**plan.settings, "rows": len(train), "heads": len(tried)}, plan.left_out
        if len(train) < planned_rows:
            left_out = (rows_left_out(len(train), len(context.train)),)
        elif len(tried) < heads:
            left_out = (*left_out, f"{heads - len(tried)} of {heads} heads were not tried: no time")
        best = _best(tried)
        head, temperature, output = settled(context, best.head, best.valid_features, chosen_on)
        seconds, prompt = time.perf_counter() - start, prompts[best.prompt]
        skin = context.skin(self.name, prompt, output, probe=ProbePart(head, best.layer, best.pooling))
        threshold = output.probability_threshold
        reason = (
            f"logistic regression on {best.layer} of {context.model.base.spec.layers}, {_POOLED[best.pooling]}, "
            f"{len(train)} train rows, temperature {temperature:.2f}"
        )
        reason += "" if threshold is None else f", labels of at least {threshold:g}"
        details = {
            "prompt": "inputs" if prompt == text_prompt(context.fields) else "form",
            "layer": best.layer,
            "pooling": best.pooling,
            "rows": len(train),
            "temperature": temperature,
            **({} if threshold is None else {"threshold": threshold}),
        }
        result = judged(context, self.name, skin, seconds, reason)
        return replace(
            result,
            search=tuple(trial.record(len(chosen_on)) for trial in tried),
            left_out=(*left_out, *result.left_out),
            details=details,
            settings=plan.settings if left_out == plan.left_out else settings,
        )

    @staticmethod
    def _prompts(context: Context) -> dict[str, Prompt]:
        """What features are read from, by name: the plain form, whatever prompt the base chooses later, and the inputs
        alone, which are shorter, unless the form is no more than them."""
        form, alone = context.plain_prompt()[0], text_prompt(context.fields)
        return {"form": form} if form == alone else {"form": form, "text": alone}


@dataclass(frozen=True)
class _Cost:
    """Expected seconds of a probe on one prompt: whatever the number of train rows, and for each of them."""

    fixed: float
    row_seconds: float

    def seconds(self, rows: int) -> float:
        return self.fixed + self.row_seconds * rows

    def rows(self, context: Context, seconds: float) -> int:
        """The train rows that so many seconds, the rung's share, are enough for; but a few rows more rather than no
        probe at all. 0 where the time is not enough for the fewest."""
        n = len(context.train)
        preferred_rows = min(FEW_ROWS, n)
        rows = int(min(n, max(preferred_rows, (seconds - self.fixed) / self.row_seconds)))
        min_rows = min(MIN_ROWS, preferred_rows)
        while self.seconds(rows) > context.seconds_left and rows > min_rows:
            rows = max(min_rows, int(rows * 0.8))
        return rows if self.seconds(rows) <= context.seconds_left else 0


def _cost(context: Context, prompt: Prompt, part: float, layer_rows: int, heads: int) -> _Cost:
    """part: of the base's layers, the deepest. heads: that are fitted."""
    speed, times = context.throughput, _times_as_long(context, prompt)
    # features share the prompt's beginning, calls of a head on the mean of the tokens read all of it
    whole = 1 + context.backbone.shared_tokens(prompt) / max(1.0, times * speed.tokens)
    fixed = speed.passes(layer_rows + len(context.valid) * whole) * part * times + context.timing * times * whole
    # forward, and the cross-validation of each head
    return _Cost(fixed, speed.passes(1) * part * times * 1.2 + heads * HEAD_SECONDS)


def _times_as_long(context: Context, prompt: Prompt) -> float:
    """Tokens of a row on this prompt, without those that all rows share, for each of the rows whose reading was
    measured."""
    shared, sample = context.backbone.shared_tokens(prompt), context.valid[:SAMPLE_ROWS]
    tokens = sum(len(context.backbone.tokens(prompt, example.inputs)) - shared for example in sample) / len(sample)
    return tokens / max(1.0, context.throughput.tokens)


@dataclass
class _Pace:
    """Whether a fit has the time to go on, by what reading a row has taken: what follows are its heads, and valid.
    times: `_times_as_long` of the prompt that is read first, the longest."""

    context: Context
    heads: int
    times: float = 1.0
    row_seconds: float = 0.0

    def ends(self, rows: int, row_seconds: float = 0.0) -> bool:
        """Whether no time is left for more rows than these, or for another head on them. row_seconds: as it is now."""
        context, self.row_seconds = self.context, max(self.row_seconds, row_seconds)
        slower = max(1.0, self.row_seconds / max(context.throughput.passes(1) * self.times * DEPTHS[-1], 1e-9))
        follows = (MIN_ROWS + len(context.valid)) * self.row_seconds
        follows += slower * (context.timing + self.heads * (rows + MIN_ROWS) * HEAD_SECONDS)
        return context.fit_room(slower) < follows


@dataclass(frozen=True, eq=False)
class _Tried:
    """A head on one layer and pooling of one prompt, its features of valid and its estimate there."""

    prompt: str
    layer: str
    pooling: Pooling
    head: Head
    strength: float
    valid_features: NDArray[np.float32]
    estimate: float

    def record(self, rows: int) -> dict[str, Any]:
        """What the report says of it. rows: of valid."""
        name = f"{self.layer}, {self.pooling}{', the inputs alone' if self.prompt == 'text' else ''}"
        return {"name": name, "C": self.strength, "estimate": self.estimate, "n": rows, "split": "valid"}


def _best(tried: Sequence[_Tried]) -> _Tried:
    """The best on valid. A tie goes to the pooling that shares the prompt's beginning, and to the earlier layer, which
    are cheaper to serve; and so do the inputs alone where they keep the score."""
    best = max(tried, key=lambda trial: trial.estimate)  # the first of equals
    alone = [trial for trial in tried if trial.prompt == "text" and trial.estimate >= best.estimate - KEPT_WITHIN]
    return max(alone, key=lambda trial: trial.estimate) if alone else best


def settled(
    context: Context, head: Head, features_ND: NDArray[np.float32], examples: Sequence[Example]
) -> tuple[Head, float, Output]:
    """A head brought to how sure it may be, by rows that it was not fitted on; its temperature, and what it answers
    with."""
    head, temperature = tempered(head, features_ND, wanted_of(context, examples))
    outputs = head_outputs(context)
    if len(outputs) > 1:
        outputs = [max(outputs, key=lambda output: _estimate(context, examples, head, features_ND, output))]
    return head, temperature, outputs[0]


def head_outputs(context: Context) -> list[Output]:
    """The outputs that a head may answer with, the plainest first; of several, validation rows decide."""
    if context.labels:
        return [LabelOutput(labels=context.labels)]
    labels = context.task.output.labels or ()
    return [LabelsOutput(labels=labels, threshold=threshold) for threshold in THRESHOLDS]


def wanted_of(context: Context, examples: Sequence[Example]) -> HeadTargets:
    """The rows' right answers."""
    if context.labels:
        return OneOf.of([e.target for e in examples], context.labels)
    return AnyOf.of([json.loads(e.target) for e in examples], context.task.output.labels or ())


def _estimate(
    context: Context, examples: Sequence[Example], head: Head, features_ND: NDArray[np.float32], output: Output
) -> float:
    """The task's metric of what the head answers on these rows."""
    answers = [output.read_scores(logits)[0] for logits in head(torch.from_numpy(features_ND)).tolist()]
    return evaluate_predictions(context.task, examples, answers).estimate


def features_of(
    context: Context,
    examples: Sequence[Example],
    names: Sequence[str],
    poolings: Sequence[Pooling],
    prompt: Prompt | None = None,
    ends: Callable[[int, float], bool] | None = None,
) -> Features:
    """(layer name, pooling) → each prompt's pooled hidden states, float32 [N, D], in the examples' order. prompt: by
    default the one that later rungs build on. ends: by the rows so far and the seconds of
    one, whether these are all."""
    with context.model.engine.exclusive() as base, _fastest(context, base.model):
        return features_on(context, base, examples, names, poolings, prompt, ends)


def features_on(
    context: Context,
    base: Base,
    examples: Sequence[Example],
    names: Sequence[str],
    poolings: Sequence[Pooling],
    prompt: Prompt | None = None,
    ends: Callable[[int, float], bool] | None = None,
) -> Features:
    """The same of a base that is held, as it is, with the adapter that is selected."""
    prompt = prompt or context.default_prompt()[0]
    prompts = [context.backbone.tokens(prompt, example.inputs) for example in examples]
    shared = context.backbone.shared_tokens(prompt)
    depth = max(int(name.partition(".")[2]) for name in names)
    size = (len(examples), context.model.base.spec.hidden_size)
    features: Features = {(name, pooling): np.zeros(size, np.float32) for name in names for pooling in poolings}
    start, rows_read, batch_tokens = time.perf_counter(), 0, BATCH_TOKENS // (8 if context.smallest else 1)
    part = len(examples) if ends is None or math.isinf(context.fit_seconds_left) else MIN_ROWS
    with torch.inference_mode():
        for first in range(0, len(examples), part):
            if ends is not None and first and ends(first, (time.perf_counter() - start) / first):
                return {key: values[:first] for key, values in features.items()}
            lengths = [len(tokens) - shared for tokens in prompts[first : first + part]]
            for batch in ([first + i for i in numbers] for numbers in _batches(lengths, batch_tokens)):
                tokens, segments = list(prompts[batch[0]][:shared]), [0] * shared
                spans: list[tuple[int, int]] = []
                for number, i in enumerate(batch, start=1):
                    suffix = prompts[i][shared:]
                    spans.append((len(tokens), len(tokens) + len(suffix)))
                    tokens += suffix
                    segments += [number] * len(suffix)
                inputs = Inputs(
                    torch.tensor([tokens], device=base.device), None, torch.tensor([segments], device=base.device)
                )
                captured = base.model(inputs, capture=tuple(names), depth=depth).captured
                for name, pooling in features:
                    states_TD = captured[name][0].float()
                    rows = [_pooled(states_TD, shared, begin, end, pooling) for begin, end in spans]
                    features[name, pooling][batch] = torch.stack(rows).cpu().numpy()
                rows_read += len(batch)
                context.check_time(start, rows_read, len(examples))
    return features


def _fastest(context: Context, model: Model) -> AbstractContextManager[object]:
    """The base in the arithmetic that its products are measured to be fastest in, where memory allows. Weights are
    widened for it, never rounded: the head is served on features of the base as it is held."""
    if not model.writes:
        return nullcontext()
    models, arithmetic = {"base": model}, choose(model, "adapters", context.spec.train_dtype)
    narrower = arithmetic.torch_dtype.itemsize < model.dtype.itemsize
    return nullcontext() if narrower or lacks_room(models, arithmetic) else computing(models, arithmetic)


def _pooled(states_TD: torch.Tensor, shared: int, begin: int, end: int, pooling: Pooling) -> torch.Tensor:
    """One document's states [D]; its own tokens are begin … end, and the first `shared` ones are everybody's."""
    if pooling == "last":
        return states_TD[end - 1]
    if pooling == "first":
        return states_TD[0 if shared else begin]
    return (states_TD[:shared].sum(0) + states_TD[begin:end].sum(0)) / (shared + end - begin)


def _batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Row numbers, alike in length, in batches of at most so many tokens (or one row)."""
    batches: list[list[int]] = [[]]
    tokens = 0
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batches[-1] and tokens + lengths[i] > batch_tokens:
            batches.append([])
            tokens = 0
        batches[-1].append(i)
        tokens += lengths[i]
    return batches
