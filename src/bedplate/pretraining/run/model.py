"""The model of a run: its first weights, its weights gathered from all ranks, and a copy that generates samples."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from bedplate.inference.predict.local import LocalModel
from bedplate.models.build import build
from bedplate.models.checkpoints.base import Base
from bedplate.models.checkpoints.identity import Identity
from bedplate.models.families import Family
from bedplate.models.model import Model
from bedplate.models.precision import dtype_name
from bedplate.models.specs import TextSpec
from bedplate.text.tokenizer import Tokenizer
from bedplate.training.ranks import Ranks

_OUTPUTS = ("attention.o.weight", "feedforward.down.weight")
"""The products whose results are added to the residual."""


def new_model(spec: TextSpec, seed: int) -> Model:
    """First weights, drawn from `seed`: normal, of a standard deviation of 1/√inputs, and 1/√(2·layers) of that where a
    block's parts end in the residual, which so does not grow with depth (GPT-2, section 2.3)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(spec)
    layers = spec.main.layers
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(_OUTPUTS):
                parameter.mul_((2 * layers) ** -0.5)
    return model


def gathered(base: Base, ranks: Ranks, dtype: torch.dtype | None = None) -> Base:
    """On the main rank the base with a model of its own that has all of the weights as they are now, which is freed
    with it; on the others, who must ask as well, and in a single process, the base itself. dtype: of the copy's
    parameters; None: as they are held."""
    if ranks.world == 1:
        return base
    from bedplate.training.parallel.apply import whole_state

    state: dict[str, Tensor] = {}
    parameters = {name for name, _ in base.model.named_parameters()}
    for name, tensor in whole_state(base.model):
        if ranks.main:
            target_dtype = dtype if name in parameters and dtype is not None else tensor.dtype
            state[name] = tensor.to(base.device, target_dtype, copy=True)
    if not ranks.main:
        return base
    model = build(base.spec, dtype or base.dtype, "meta")
    model.load_state_dict(state, assign=True)
    model.requires_grad_(False)
    return replace(base, raw_model=model, dtype=dtype or base.dtype, lineage=dict(base.lineage))


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
