"""Architecture, sizes and training configuration of a run: from its file, or from scaling laws where the file is
silent. The architecture is one that its family can export.

One dial: from a number of parameters to a shape (models/specs/dial.py), tokens, a batch and a learning rate. Every law
with its source.

tokens          20 a parameter (Chinchilla, https://arxiv.org/abs/2203.15556)
batch, rate     0.2920 · C^0.3271 tokens and 0.3118 · C^-0.1250 of C = 6·N·D operations, N without the token table
                (DeepSeek LLM, https://arxiv.org/abs/2401.02954, equation 4)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pydantic

from bedplate.core.config import first_problem
from bedplate.core.errors import BedplateError, ConfigError, UnsupportedModelError
from bedplate.economics.model.named_model import resolve
from bedplate.economics.model.parameters import parameters
from bedplate.models.families import Family, find_family
from bedplate.models.specs import EncoderDecoderSpec, TextSpec, TransformerSpec
from bedplate.models.specs.dial import shape_for
from bedplate.pretraining.runfile.file import ModelPart, RunFile
from bedplate.training.config import Axis, TrainConfig
from bedplate.training.objectives import OBJECTIVES
from bedplate.training.objectives.corruption import Masked

CONTINUED_RATE = 1e-4
"""Learning rate of continued pretraining where the file gives none: the one that the ladder's rung takes."""
FEWEST_STEPS = 200
"""A batch is made smaller rather than that a run of a few tokens has fewer steps."""


DEFAULT_CONTEXT = 1024


def spec_of(part: ModelPart, vocabulary: int | None, objective: str = "next_token") -> tuple[TextSpec, Family]:
    """The architecture, for a tokenizer of so many ids (None: a preset's own, and only that), with the head that the
    objective of that name needs. ConfigError for sizes that cannot be,
    UnsupportedModelError for what the family cannot say: such a base could be trained and never exported."""
    family = find_family("hf", part.family, "model.family")
    if part.preset is not None:
        preset_spec = resolve(part.preset)[1]
        if isinstance(preset_spec, EncoderDecoderSpec):
            raise ConfigError("model.preset: an encoder–decoder is given by `config`, with `family`")
        if not isinstance(preset_spec, TransformerSpec):
            raise UnsupportedModelError(f"model.preset {part.preset!r} is of a kind that cannot be trained on text")
        changes = {"vocab_size": vocabulary, "context_length": part.context}
        spec: TextSpec = preset_spec.with_(**{k: value for k, value in changes.items() if value is not None})
    elif part.config is not None:
        spec = _from_config(family, {"vocab_size": vocabulary, **part.config}, part)
        if spec.vocab_size != vocabulary:
            raise ConfigError(
                f"model.config says vocab_size = {spec.vocab_size:,}, and the tokenizer has {vocabulary:,} ids; "
                "leave it out"
            )
    else:
        assert vocabulary is not None
        spec = _dialled(family, part, vocabulary)
    if isinstance(spec, TransformerSpec) and spec.kind == "encoder" and objective == Masked.name:
        if family.with_masked_head is None:
            raise ConfigError(f"model.family: {family.name} has no head that says which tokens were hidden")
        spec = family.with_masked_head(spec)
    family = family.of(spec)
    back = family.to_spec(family.to_config(spec))
    if back != spec:
        field_name = next(name for name, value in spec.flat().items() if value != back.flat()[name])
        raise UnsupportedModelError(
            f"model.family: {family.name} cannot say what this model has, so that it could not be exported: "
            f"{field_name} = {spec.flat()[field_name]!r}; choose another family"
        )
    return spec, family


def _from_config(family: Family, config: Mapping[str, Any], part: ModelPart) -> TextSpec:
    settings = dict(config)
    if part.context is not None:
        settings.setdefault("max_position_embeddings", part.context)
    try:
        return family.to_spec(settings)
    except KeyError as error:
        raise ConfigError(f"model.config: {family.name} needs the field {error}") from error
    except (TypeError, ValueError, BedplateError) as error:
        raise ConfigError(f"model.config: {error}") from error


def _dialled(family: Family, part: ModelPart, vocabulary: int) -> TextSpec:
    """The dial's sizes in the family's own fields: of a decoder, or of an encoder, whose heads share no keys."""
    assert part.asked_parameters is not None
    shape = shape_for(part.asked_parameters, vocabulary, part.tied)
    context = part.context or DEFAULT_CONTEXT
    common = {"vocab_size": vocabulary, "max_position_embeddings": context, **shape.config()}
    decoder = {**common, "tie_word_embeddings": part.tied}
    encoder = {**common, "intermediate_size": 4 * shape.width}
    del encoder["num_key_value_heads"], encoder["head_dim"]
    reasons: list[str] = []
    for fields_ in (decoder, encoder):
        try:
            return family.to_spec({**fields_, **part.fields})
        except (BedplateError, TypeError, ValueError, KeyError) as error:
            reasons.append(str(error))
    raise ConfigError(f"model: the dial makes no {family.name} ({reasons[0]}); give its `config`")


@dataclass(frozen=True)
class RowShape:
    """How documents are laid into steps. length: tokens of a row; batch, micro: rows of a step and of a micro-batch."""

    length: int
    batch: int
    micro: int


@dataclass(frozen=True)
class RunSizes(RowShape):
    """tokens: asked for. parameters: all; body: those that scaling laws count (active, without tables). rate: the peak
    learning rate."""

    parameters: int
    body: int
    tokens: int
    steps: int
    rate: float


def sizes_of(run: RunFile, spec: TextSpec, available: int | None) -> RunSizes:
    """available: tokens that there are to learn, once; None where the data was not read. ConfigError for what cannot
    be."""
    counts = parameters(spec)
    total, body = counts.total, max(1, counts.active - counts.embedding)
    single_pass = available if run.base is not None and run.tokens is None else None
    tokens = run.tokens or single_pass or default_tokens(total)
    context = spec.context_length
    objective = run.made_objective()
    _check_kind(run, spec, objective.architectures)
    growth = objective.max_growth
    length = run.batch.sequence or context - growth
    if length + growth > context:
        longer = f", and the objective {run.objective} may lengthen a text by {growth}" if growth else ""
        raise ConfigError(f"batch.sequence is {length:,}{longer}: the model's context holds {context:,}")
    batch_tokens = run.batch.tokens or min(default_batch(body, tokens), max(length, tokens // FEWEST_STEPS))
    batch = max(1, round(batch_tokens / length))
    if batch > 1 and run.batch.tokens is not None and run.batch.tokens > tokens and single_pass is None:
        raise ConfigError(f"batch.tokens is {run.batch.tokens:,}, and the whole run has {tokens:,} tokens; lower it")
    steps = max(1, math.ceil(tokens / (batch * length)))
    rate = run.optimizer.learning_rate or (default_rate(body, tokens) if run.base is None else CONTINUED_RATE)
    micro = min(batch, max(1, run.batch.micro_tokens // length))
    if micro < batch and objective.scope == "global_batch":
        raise ConfigError(
            f"the objective {run.objective} tells the texts of a whole step apart, and batch.micro_tokens = "
            f"{run.batch.micro_tokens:,} would cut it: set it to the step's {batch * length:,} tokens, or lower "
            "batch.tokens"
        )
    return RunSizes(length, batch, micro, total, body, tokens, steps, rate)


def _check_kind(run: RunFile, spec: TextSpec, model_types: Sequence[str]) -> None:
    """ConfigError where a model of this kind cannot learn the objective, or cannot write what it is asked for."""
    if model_types and spec.kind not in model_types:
        fitting = [name for name, factory in OBJECTIVES.items() if spec.kind in factory().architectures]
        raise ConfigError(
            f"the objective {run.objective} is for models of the kind {' or '.join(model_types)}, and this one is "
            f"of the kind {spec.kind}: choose another model, or one of {', '.join(fitting)}"
        )
    for name in ("prompts", "suites"):
        if getattr(run.evaluation, name) and spec.kind == "encoder":
            raise ConfigError(f"evaluation.{name}: an encoder writes no text; leave it out")


def check_shares(sizes: RunSizes, axes: Mapping[Axis, int]) -> None:
    """ConfigError where a step has fewer rows than there are ranks with data of their own."""
    shares = axes["data"] * axes["shard"] * axes["expert"]
    if sizes.batch < shares:
        raise ConfigError(
            f"batch.tokens gives steps of {sizes.batch:,} rows, and {shares:,} ranks have data of their own: raise it, "
            "take shorter rows (batch.sequence), or let ranks share products (parallel.tensor)"
        )


def config_of(run: RunFile, sizes: RunSizes) -> TrainConfig:
    """The configuration of the training loop. ConfigError for settings that cannot be."""
    optimizer, schedule = run.optimizer, run.schedule
    fields: dict[str, Any] = {
        **optimizer.model_dump(exclude={"name", "settings"}),
        **schedule.model_dump(exclude={"name"}),
        "learning_rate": sizes.rate,
        "schedule": schedule.name,
        "steps": sizes.steps,
        "seed": run.seed,
        "save_steps": max(1, round(run.checkpoints.every * sizes.steps)),
        "save_seconds": run.checkpoints.seconds,
        "log_steps": run.log_steps,
        "dtype": run.dtype,
        "router": run.router,
        "recompute": run.recompute,
    }
    reserved = next((name for name in optimizer.settings if name in fields), None)
    if reserved is not None:
        raise ConfigError(f"optimizer.settings.{reserved}: the run file has a key of its own for it")
    if optimizer.name != "adamw":
        fields["optimizer"] = optimizer.name
    try:
        return TrainConfig(**fields, **optimizer.settings)
    except pydantic.ValidationError as error:
        raise ConfigError(first_problem(error, "optimizer", "settings")) from error


TOKENS_A_PARAMETER = 20
MAX_RATE = 1e-2
"""The fit is of runs from 1e17 operations on; the smallest ones here would be given a rate at which they diverge."""


def default_tokens(parameters: float) -> int:
    """How many tokens a model of this size is trained on where the file does not say."""
    return round(TOKENS_A_PARAMETER * parameters)


def default_batch(parameters: float, tokens: float) -> int:
    """Tokens of an optimizer step. parameters: without the token table."""
    return max(1, round(0.2920 * (6 * parameters * tokens) ** 0.3271))


def default_rate(parameters: float, tokens: float) -> float:
    """AdamW's peak learning rate. parameters: without the token table."""
    return float(f"{min(MAX_RATE, 0.3118 * (6 * parameters * tokens) ** -0.1250):.3g}")
