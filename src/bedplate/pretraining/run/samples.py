"""A model in training as a base that can be asked, without touching what is trained."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from bedplate.inference.predict.local import LocalModel
from bedplate.models.build import build
from bedplate.models.checkpoints.base import Base
from bedplate.models.checkpoints.identity import Identity
from bedplate.models.families import Family
from bedplate.models.model import Model
from bedplate.models.precision import dtype_name
from bedplate.models.specs import TextSpec
from bedplate.text.tokenizer import Tokenizer

_WEIGHTS: dict[str, Literal["float32", "bfloat16"]] = {"float32": "float32", "bfloat16": "bfloat16"}


def as_base(
    model: Model, spec: TextSpec, family: Family, tokenizer: Tokenizer, name: str, place: Path, **base_fields: Any
) -> Base:
    """The model as a base of this name. It has no identity before it is written."""
    first = next(model.parameters())
    return Base(
        spec=spec,
        raw_model=model,
        tokenizer=tokenizer,
        family=family,
        identified=Identity("", tokenizer.identity),
        source=name,
        path=place,
        dtype=first.dtype,
        device=first.device,
        stored_dtype=dtype_name(first.dtype),
        **base_fields,
    )


@contextmanager
def inference_copy(base: Base) -> Generator[LocalModel]:
    """A copy of its weights, ready to generate and score; gone afterwards."""
    copy = build(base.spec, base.dtype, "meta")
    state = {name: tensor.detach().clone() for name, tensor in base.model.state_dict().items()}
    copy.load_state_dict(state, assign=True)
    copy.requires_grad_(False).eval()
    snapshot = as_base(
        copy,
        base.spec,
        base.family,
        base.need_tokenizer(),
        base.name,
        base.path,
        generation_defaults=base.generation_defaults,
    )
    with (
        torch.inference_mode(False),
        LocalModel(snapshot, weights=_WEIGHTS.get(snapshot.stored_dtype, "auto"), kernel="torch") as model,
    ):
        yield model


def samples(model: LocalModel, prompts: Sequence[str], tokens: int) -> list[dict[str, str]]:
    """How each prompt goes on, the likeliest token each time."""
    room = model.base.spec.main.context_length
    texts: list[dict[str, str]] = []
    for prompt in prompts:
        length = len(model.tokenizer.encode_prompt(prompt))
        generation = model.generate(prompt, max_tokens=max(1, min(tokens, room - length)))
        texts.append({"prompt": prompt, "text": generation.text})
    return texts
