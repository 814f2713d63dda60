"""A LoRA skin merged into its base (W + scaling · B A), as a base of its own that any program loads.

https://arxiv.org/abs/2106.09685, section 4.1. How far the written base is from base and adapter is measured, not
assumed: weights that are stored in fewer bits than float32 are rounded after the sum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from bedplate.adapters.bank import Bank
from bedplate.adapters.modules import hf_module_name
from bedplate.core.errors import UsageError
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.models.checkpoints.export import export_base
from bedplate.models.inputs import Inputs
from bedplate.models.precision import DTYPES
from bedplate.skins.files import family_of, skin_id
from bedplate.skins.skin import Skin
from bedplate.skins.verify import verify_skin

TEXTS = (
    "The delivery came two days late, but the product itself is great.",
    "It broke after a day. I asked for my money back, and nobody answered!",
    "Could you tell me how to change the address of order 4711?",
)
"""What every input of the skin is set to, in turn, where the drift is measured."""
_EXACT = frozenset(("f32", "f16", "bf16"))


@dataclass(frozen=True)
class MergeDrift:
    """The written base against base with adapter, next-token distributions at every position, computed in float32; of
    an encoder, which has none, those of the skin's own head on every state, or without one the states themselves.

    logit: the largest difference of two logits. kl: mean Kullback-Leibler divergence, nats. same_top: share of
    positions where the likeliest token is the same.
    """

    tokens: int
    logit: float
    kl: float
    same_top: float


@dataclass(frozen=True)
class Merged:
    """stored: the type of the written weights. dequantised: the block types that the source held, None for exact
    sources. weights_id: of the written base."""

    out: Path
    stored: str
    dequantised: str | None
    weights_id: str
    drift: MergeDrift


@torch.no_grad()
def merge_skin(
    skin: Skin, out: Path, *, base: str | Path | None = None, dtype: str | None = None, overwrite: bool = False
) -> Merged:
    """Writes the new Hugging Face directory `out`: the base with the skin's LoRA weights added to its own.

    base: where the skin's base is, when not where it was made. dtype: how weights are stored; by default as in the
    source, float32 for a GGUF, whose quantised blocks are merged as the values that they stand for. UsageError for a
    skin without LoRA weights, SkinError for another base, and where `out` exists and is not to be overwritten.
    """
    if skin.lora is None:
        raise UsageError(f"skin {skin.name!r} is of kind {skin.kind!r}; only LoRA weights can be merged into a base")
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is not known; use one of {', '.join(DTYPES)}")
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists already; choose another directory or remove it")
    if out.exists() and Path(base or skin.base.name).exists() and out.samefile(base or skin.base.name):
        raise UsageError(f"{out} is the skin's base itself; choose another directory")
    source = load_base(base or skin.base.name, dtype="float32", device="cpu")
    verify_skin(skin, source, allow_other_weights=True)
    weights = family_of(skin.base.family).of(source.spec).weights
    bank = Bank(source.model, hf_name=lambda path: hf_module_name(weights, path))
    slot = bank.add(skin.lora.config, skin.lora.tensors)
    prompts = _prompts(skin, source)
    bank.select(slot)
    expected = _distributions(skin, source, prompts)
    bank.merge(slot)
    stored = dtype or (source.stored_dtype if source.stored_dtype in DTYPES else "float32")
    # It is no longer what its file holds; the base it comes from stays its parent.
    identity = replace(source.identity, equivalent_of=None)
    lineage = source.lineage | {"merged_skin": {"name": skin.name, "id": skin_id(skin)}}
    export_base(replace(source, identified=identity, lineage=lineage), out, dtype=stored, replace=overwrite)
    bank.close()
    written = load_base(out.absolute(), dtype="float32", device="cpu")
    drift = _drift(expected, _distributions(skin, written, prompts))
    blocks = sorted(set(source.stored_dtype.split("+")) - _EXACT) if source.path.is_file() else []
    return Merged(out, stored, "+".join(blocks) or None, written.identity.weights_id, drift)


def _prompts(skin: Skin, base: Base) -> list[list[int]]:
    """The skin's own prompt around each of TEXTS; the end of it where the context is shorter."""
    tokenizer, input_values = base.need_tokenizer(), [dict.fromkeys(skin.inputs, text) for text in TEXTS]
    if base.writes:
        encoded_prompts = [skin.prompt.tokens(tokenizer, inputs, skin.demonstrations) for inputs in input_values]
    else:
        texts = [str(skin.prompt.text(inputs)) for inputs in input_values]
        encoded_prompts = [tokenizer.encode(text, add_special_tokens=True) for text in texts]
    return [tokens[-base.spec.context_length :] for tokens in encoded_prompts]


def _distributions(skin: Skin, base: Base, prompts: list[list[int]]) -> list[tuple[Tensor, Tensor]]:
    """Logits, and log-probabilities in float64, [T, V] of each prompt."""
    distributions: list[tuple[Tensor, Tensor]] = []
    for tokens in prompts:
        logits = _logits(skin, base, torch.tensor([tokens]))
        # Divergences this small vanish in the rounding of float32 sums.
        distributions.append((logits, logits.double().log_softmax(-1)))
    return distributions


def _logits(skin: Skin, base: Base, tokens_1T: Tensor) -> Tensor:
    model = base.model
    if model.has_encoder:  # the decoder is given the prompt again, as an answer
        written = torch.cat((torch.tensor([base.decoder_start]), tokens_1T), dim=1)[:, : tokens_1T.shape[1]]
        return model.head(model(Inputs(written, encoder=Inputs(tokens_1T))).hidden[0])
    if model.writes:
        return model.head(model(Inputs(tokens_1T)).hidden[0])
    states_TD = model(Inputs(tokens_1T)).hidden[0]
    return states_TD if skin.probe is None else skin.probe.head(states_TD)


def _drift(expected: list[tuple[Tensor, Tensor]], actual: list[tuple[Tensor, Tensor]]) -> MergeDrift:
    tokens, agreements = 0, 0
    logit = kl = 0.0
    for (logits, expected_logprobs), (theirs, actual_logprobs) in zip(expected, actual, strict=True):
        tokens += len(expected_logprobs)
        agreements += int((expected_logprobs.argmax(-1) == actual_logprobs.argmax(-1)).sum())
        logit = max(logit, float((logits - theirs).abs().max()))
        kl += float((expected_logprobs.exp() * (expected_logprobs - actual_logprobs)).sum())
    return MergeDrift(tokens, logit, kl / tokens, agreements / tokens)
