"""A linear head on the base's own features (linear probing, Alain & Bengio 2016): the base stays as it is.

Hidden states at a few depths come out of one forward pass, pooled in a few ways: the last token of a prompt or the mean
of its tokens; the mean or the first token of a text that an encoder reads. Layer and pooling are chosen on valid, and
so is, where any number of labels may be right, the probability from which one is given.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.fits import KEPT_WITHIN
from bedplate.adaptation.context.outcome import RungPlan, RungResult, Skip, no_time
from bedplate.adaptation.rungs.answers import judged
from bedplate.adaptation.rungs.heads import AnyOf, HeadTargets, OneOf, fit_head, tempered
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
SHARE = 0.5
FEW_ROWS, LEAST_ROWS = 300, 64
"""Rows that the time is used for beyond a rung's share, and the fewest that a head is fitted on."""

TRIAL_SHARE = 0.1
"""The inputs alone are tried as well where that takes no more of the time that is left."""

_POOLED = {"last": "last token", "mean": "mean of the tokens", "first": "first token"}
LAYER_ROWS = 300
"""Valid rows that the layer is chosen on; the exported probe is then asked on all of them."""

THRESHOLDS = (0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8)
"""Probabilities from which a label is given, where there may be several; of equals the first."""

Pooling = Literal["last", "mean", "first"]
POOLINGS: dict[str, tuple[Pooling, ...]] = {"decoder": ("last", "mean"), "encoder": ("mean", "first")}
Features = dict[tuple[str, Pooling], NDArray[np.float32]]


class Probe(Rung):
    """A probe skin."""

    name = "probe"
    traits = Traits(side="weights", needs="base", own_prompt=True, worth=0.5)

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
        layer_rows = min(LAYER_ROWS, len(context.valid))
        # features share the prompt's beginning, calls of a head on the mean of the tokens read all of it
        whole = 1 + self._prefix(context) / max(1.0, context.throughput.tokens)
        fixed = context.throughput.passes(layer_rows + len(context.valid) * whole) * part + context.timing * whole
        # forward, and the cross-validation of each head
        heads = len(depths) * len(self._poolings(context)) * (1 if context.labels else len(labels))
        row_seconds = context.throughput.passes(1) * part * 1.2 + heads * 0.0015
        # its share of the time, but a few rows more rather than no probe at all
        preferred_rows = min(FEW_ROWS, n)
        rows = int(min(n, max(preferred_rows, (context.room(SHARE) - fixed) / row_seconds)))
        min_rows = min(LEAST_ROWS, preferred_rows)
        while fixed + row_seconds * rows > context.seconds_left and rows > min_rows:
            rows = max(min_rows, int(rows * 0.8))
        if fixed + row_seconds * rows > context.seconds_left:
            return no_time(fixed + row_seconds * min_rows, context.seconds_left)
        left_out = [f"{n - rows} of {n} train rows were left out: no time"] if rows < n else []
        names, seconds = list(self._prompts(context)), fixed + row_seconds * rows
        trial = row_seconds * rows + context.throughput.passes(layer_rows) * part
        if trial > context.seconds_left * TRIAL_SHARE or rows < n:
            names = names[:1]
        settings = {
            "depths": depths,
            "rows": rows,
            "layer_rows": layer_rows,
            "folds": min(FOLDS, groups),
            "prompts": names,
        }
        return RungPlan(settings, seconds + trial * (len(names) - 1), tuple(left_out))

    def fit(self, context: Context, plan: RungPlan, directory: Path) -> RungResult:
        start = time.perf_counter()
        train = context.ordered(context.train, "probe")[: plan.settings["rows"]]
        names = [f"layers.{depth}" for depth in plan.settings["depths"]]
        chosen_on = context.ordered(context.valid, "layer")[: plan.settings["layer_rows"]]
        poolings = self._poolings(context)
        prompts, tried = self._prompts(context), list[_Tried]()
        targets, groups = wanted_of(context, train), [e.group for e in train]
        search: list[dict[str, Any]] = []
        for prompt_name in plan.settings.get("prompts", ("form",)):
            prompt = prompts[prompt_name]
            features = features_of(context, train, names, poolings, prompt)
            valid_features = features_of(context, chosen_on, names, poolings, prompt)
            for pooling in poolings:
                for name in names:
                    head, strength = fit_head(features[name, pooling], targets, groups, plan.settings["folds"])
                    estimate = _estimate(
                        context, chosen_on, head, valid_features[name, pooling], head_outputs(context)[0]
                    )
                    row = {
                        "name": f"{name}, {pooling}{', the inputs alone' if prompt_name == 'text' else ''}",
                        "C": strength,
                        "estimate": estimate,
                        "n": len(chosen_on),
                        "split": "valid",
                    }
                    search.append(row)
                    tried.append(_Tried(prompt_name, name, pooling, head, valid_features[name, pooling], estimate))
        best = _best(tried)
        head, temperature, output = settled(context, best.head, best.valid_features, chosen_on)
        seconds = time.perf_counter() - start
        part = ProbePart(head, best.layer, best.pooling)
        prompt = prompts[best.prompt]
        return self._finish(context, plan, prompt, part, output, temperature, seconds, search, len(train))

    def _prefix(self, context: Context) -> int:
        """Tokens that all prompts begin with."""
        if context.is_encoder:
            return 0
        prompt = self._prompts(context)["form"]
        return len(prompt.constant_prefix(context.model.tokenizer, fields=context.fields))

    @staticmethod
    def _prompts(context: Context) -> dict[str, Prompt]:
        """What features are read from, by name: the plain form, whatever prompt the base chooses later, and the inputs
        alone, which are shorter. An encoder reads the inputs."""
        alone = text_prompt(context.fields)
        return {"form": alone} if context.is_encoder else {"form": context.task_prompt()[0], "text": alone}

    @staticmethod
    def _poolings(context: Context) -> tuple[Pooling, ...]:
        return POOLINGS[context.at.facts.architecture]

    def _finish(
        self,
        context: Context,
        plan: RungPlan,
        prompt: Prompt,
        part: ProbePart,
        output: Output,
        temperature: float,
        seconds: float,
        search: list[dict[str, Any]],
        rows: int,
    ) -> RungResult:
        skin = context.skin(self.name, prompt, output, probe=part)
        threshold = output.probability_threshold
        threshold_note = "" if threshold is None else f", labels of at least {threshold:g}"
        extra_details: dict[str, Any] = {} if threshold is None else {"threshold": threshold}
        reason = (
            f"logistic regression on {part.layer} of {context.model.base.spec.layers}, {_POOLED[part.pooling]}, "
            f"{rows} train rows, temperature {temperature:.2f}{threshold_note}"
        )
        return replace(
            judged(context, self.name, skin, seconds, reason),
            search=tuple(search),
            left_out=plan.left_out,
            details={
                "prompt": "inputs" if prompt == text_prompt(context.fields) else "form",
                "layer": part.layer,
                "pooling": part.pooling,
                "rows": rows,
                "temperature": temperature,
                **extra_details,
            },
        )


@dataclass(frozen=True, eq=False)
class _Tried:
    """A head on one layer and pooling of one prompt, its features of valid and its estimate there."""

    prompt: str
    layer: str
    pooling: Pooling
    head: Head
    valid_features: NDArray[np.float32]
    estimate: float


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
    if len(outputs) == 1:
        return head, temperature, outputs[0]
    best = max(outputs, key=lambda candidate: _estimate(context, examples, head, features_ND, candidate))
    return head, temperature, best


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
    context: Context,
    examples: Sequence[Example],
    head: Head,
    features_ND: NDArray[np.float32],
    output: Output,
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
) -> Features:
    """(layer name, pooling) → each prompt's pooled hidden states, float32 [N, D], in the examples' order. prompt: by
    default the one that later rungs build on."""
    with context.model.engine.exclusive() as base, _fastest(context, base.model):
        return features_on(context, base, examples, names, poolings, prompt)


def features_on(
    context: Context,
    base: Base,
    examples: Sequence[Example],
    names: Sequence[str],
    poolings: Sequence[Pooling],
    prompt: Prompt | None = None,
) -> Features:
    """The same of a base that is held, as it is, with the adapter that is selected."""
    prompt = prompt or context.default_prompt()[0]
    tokenizer = context.model.tokenizer
    limit = context.model.base.spec.context_length
    prompts: Sequence[Sequence[int]]
    if context.is_encoder:
        prompts, shared = [context.model.text_tokens(str(prompt.text(e.inputs))) for e in examples], 0
    else:
        prompts = [prompt.tokens(tokenizer, e.inputs, limit=limit) for e in examples]
        shared = len(prompt.constant_prefix(tokenizer, fields=context.fields))
    depth = max(int(name.partition(".")[2]) for name in names)
    size = (len(examples), context.model.base.spec.hidden_size)
    features: Features = {(name, pooling): np.zeros(size, np.float32) for name in names for pooling in poolings}
    with torch.inference_mode():
        for batch in _batches([len(p) - shared for p in prompts]):
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
    return features


def _fastest(context: Context, model: Model) -> AbstractContextManager[object]:
    """The base in the arithmetic that its products are measured to be fastest in, where memory allows. Weights are
    widened for it, never rounded: the head is served on features of the base as it is held."""
    if "generate" not in model.can:
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


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Row numbers, alike in length, in batches of at most BATCH_TOKENS tokens (or one row)."""
    batches: list[list[int]] = [[]]
    tokens = 0
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batches[-1] and tokens + lengths[i] > BATCH_TOKENS:
            batches.append([])
            tokens = 0
        batches[-1].append(i)
        tokens += lengths[i]
    return batches
