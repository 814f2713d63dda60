"""Soft prompts: vectors that stand before a prompt's embeddings, how they are trained, and their files, also in PEFT's
layout. Prompt tuning: https://arxiv.org/abs/2104.08691. P vectors take P positions of the context."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.adapters.tensor_files import CONFIG_FILE, TENSORS_FILE, read_tensors, tensor_bytes
from bedplate.core.errors import SkinError, UsageError
from bedplate.models.inputs import Inputs
from bedplate.models.model import Model
from bedplate.models.specs import TextSpec

_NATIVE, _PEFT = "soft_prompt", "prompt_embeddings"


@dataclass(frozen=True, eq=False)
class SoftPrompt:
    """vectors: float32 [P, D], in the place of P tokens' embeddings. SkinError for another shape, NaN or infinity."""

    vectors: Tensor

    def __post_init__(self) -> None:
        if self.vectors.dim() != 2 or not self.vectors.numel() or not self.vectors.is_floating_point():
            raise SkinError(
                f"a soft prompt is a matrix [P, D] of at least one vector, got {list(self.vectors.shape)} of "
                f"{self.vectors.dtype}"
            )
        if not bool(self.vectors.isfinite().all()):
            raise SkinError("the soft prompt holds NaN or infinity")

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def size(self) -> int:
        """D, the features of one vector."""
        return self.vectors.shape[1]

    def to_bytes(self) -> bytes:
        """The content of `soft_prompt.safetensors`."""
        return tensor_bytes({_NATIVE: self.vectors.float()})


def stand_ins(count: int) -> tuple[int, ...]:
    """Token ids in the place of `count` vectors, in order: negative, so that no vocabulary has them."""
    return tuple(range(-count, 0))


def initial_vectors(model: Model, ids: Sequence[int], count: int) -> Tensor:
    """`count` vectors to start from, float32 or wider [count, D]: the embeddings of `ids`, repeated or cut to fit. That
    is PEFT's initialisation from a text. Words that belong to the task are a better start than random vectors
    (https://arxiv.org/abs/2104.08691, section 3.2). UsageError without ids."""
    if not ids:
        raise UsageError("a soft prompt starts from the embeddings of some tokens; none were given")
    chosen = (list(ids) * -(-count // len(ids)))[:count]
    weight = model.token_table().weight.detach()
    scales = model.spec.main.scales
    scale = 1.0 if scales is None else scales.embedding
    vectors = weight[torch.tensor(chosen, device=weight.device)] * scale
    return vectors.to(torch.promote_types(vectors.dtype, torch.float32), copy=True)


@contextmanager
def standing_in(model: Model, vectors: Tensor) -> Generator[None]:
    """While it is open, `model` reads `stand_ins(P)` as the rows of `vectors` [P, D], rounded to its dtype. Gradients
    reach `vectors`. The stand-ins may stand anywhere, so a packed batch may hold them once, in its shared prefix, or in
    each document."""
    count = len(vectors)

    def insert_vectors(_: nn.Module, args: tuple[Inputs, ...]) -> tuple[Inputs, ...]:
        inputs, *extra_args = args
        own_BTD = F.embedding((inputs.tokens + count).clamp(0, count - 1), vectors)
        return replace(inputs, vectors=own_BTD, vector_mask=inputs.tokens < 0), *extra_args

    hook = model.register_forward_pre_hook(insert_vectors)
    try:
        yield
    finally:
        hook.remove()


def read_soft_prompt(path: Path, content: bytes | None = None) -> SoftPrompt:
    """Read `soft_prompt.safetensors`. SkinError when it is corrupt, a link, or holds anything else."""
    tensors = read_tensors(path, content)
    if tensors.keys() != {_NATIVE}:
        raise SkinError(f"{path} must hold exactly {_NATIVE!r}, not {sorted(tensors)}")
    return SoftPrompt(tensors[_NATIVE])


def prompt_peft_files(prompt: SoftPrompt, spec: TextSpec, *, base_name: str) -> dict[str, bytes]:
    """File name → content of PEFT's PromptTuning, the same bytes for the same prompt. `spec`: of the prompt's base."""
    fields: dict[str, Any] = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "num_virtual_tokens": len(prompt),
        "token_dim": prompt.size,
        "num_transformer_submodules": 1,
        "num_attention_heads": spec.main.attention.heads,
        "num_layers": spec.layers,
        "prompt_tuning_init": "RANDOM",
        **dict.fromkeys(("auto_mapping", "revision", "prompt_tuning_init_text", "tokenizer_name_or_path")),
    }
    text = json.dumps(fields, indent=2, sort_keys=True) + "\n"
    return {CONFIG_FILE: text.encode(), TENSORS_FILE: tensor_bytes({_PEFT: prompt.vectors.float()})}
