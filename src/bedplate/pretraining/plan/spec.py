"""The architecture of a run: from the model part of its file to a spec that its family can export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.core.errors import BedplateError, ConfigError, UnsupportedModelError
from bedplate.economics.model.named_model import resolve
from bedplate.models.families import Family, find_family
from bedplate.models.specs import EncoderDecoderSpec, TextSpec, TransformerSpec
from bedplate.pretraining.runfile.dial import shape_for
from bedplate.pretraining.runfile.file import ModelPart
from bedplate.training.objectives.masked import Masked

DEFAULT_CONTEXT = 1024


def spec_of(part: ModelPart, vocabulary: int | None, objective: str = "next_token") -> tuple[TextSpec, Family]:
    """The architecture, for a tokenizer of so many ids (None: a preset's own), with the head that the objective of that
    name needs. ConfigError for sizes that cannot be,
    UnsupportedModelError for what the family cannot say: such a base could be trained and never exported."""
    family = find_family("hf", part.family, "model.family")
    if part.preset is not None:
        preset_spec = resolve(part.preset)[1]
        if not isinstance(preset_spec, TransformerSpec | EncoderDecoderSpec):
            raise UnsupportedModelError(f"model.preset {part.preset!r} is of a kind that cannot be trained on text")
        spec: TextSpec = _with(preset_spec, vocabulary, part.context)
    elif vocabulary is None:
        raise ConfigError("the size of the vocabulary comes from the corpus, which does not exist yet; build it first")
    elif part.config is not None:
        spec = _from_config(family, {"vocab_size": vocabulary, **part.config}, part)
        if spec.vocab_size != vocabulary:
            raise ConfigError(
                f"model.config says vocab_size = {spec.vocab_size:,}, and the tokenizer has {vocabulary:,} ids; "
                "leave it out"
            )
    else:
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


def _with(spec: TransformerSpec | EncoderDecoderSpec, vocabulary: int | None, context: int | None) -> TextSpec:
    if isinstance(spec, EncoderDecoderSpec):
        raise ConfigError("model.preset: an encoder–decoder is given by `config`, with `family`")
    changes = {"vocab_size": vocabulary, "context_length": context}
    return spec.with_(**{name: value for name, value in changes.items() if value is not None})


def _from_config(family: Family, config: Mapping[str, Any], part: ModelPart) -> TextSpec:
    settings = dict(config)
    if part.context is not None:
        settings.setdefault("max_position_embeddings", part.context)
    try:
        return family.to_spec(settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model.config: {error}") from error
    except KeyError as error:
        raise ConfigError(f"model.config: {family.name} needs the field {error}") from error
    except BedplateError as error:
        raise ConfigError(f"model.config: {error}") from error


def _dialled(family: Family, part: ModelPart, vocabulary: int) -> TextSpec:
    """The dial's sizes in the family's own fields: of a decoder, or of an encoder, whose heads share no keys."""
    assert part.asked_parameters is not None
    shape = shape_for(part.asked_parameters, vocabulary, part.tied)
    context = {"max_position_embeddings": part.context or DEFAULT_CONTEXT}
    common = {"vocab_size": vocabulary, **context}
    decoder = {**common, **shape.config(), "tie_word_embeddings": part.tied}
    grouped = ("num_key_value_heads", "head_dim")
    encoder = {**common, **{k: v for k, v in shape.config().items() if k not in grouped}}
    encoder["intermediate_size"] = 4 * shape.width
    reasons: list[str] = []
    for fields_ in (decoder, encoder):
        try:
            return family.to_spec({**fields_, **part.fields})
        except (BedplateError, TypeError, ValueError, KeyError) as error:
            reasons.append(str(error))
    raise ConfigError(
        f"model: the dial makes no {family.name} ({reasons[0]}); give `config`, the fields of its config.json"
    )
