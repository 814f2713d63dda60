"""From an architecture to numbers: parameters, operations and bytes. The one door to what is computed beside it."""

from __future__ import annotations

from bedplate.economics.model.activations import (
    Recompute,
    activation_bytes,
    head_activation_bytes,
    layer_activation_bytes,
)
from bedplate.economics.model.attention_pairs import causal_pairs, square_pairs, two_sided_pairs
from bedplate.economics.model.flops import (
    audio_flops,
    audio_tokens,
    decode_flops,
    denoise_flops,
    encoder_decoder_flops,
    image_flops,
    image_tokens,
    prefill_flops,
    sampling_flops,
    training_flops_per_token,
)
from bedplate.economics.model.footprint import (
    BYTES_PER_PARAMETER,
    WeightFormat,
    experts_touched,
    kv_bytes,
    kv_bytes_per_token,
    latent_bytes,
    step_reads,
    step_weight_bytes,
    weight_bytes,
)
from bedplate.economics.model.named_model import resolve
from bedplate.economics.model.parameters import Parameters, parameters, weights
from bedplate.economics.model.states import OPTIMIZERS, Optimizer, gradient_bytes, optimizer_bytes
from bedplate.economics.model.weight_list import Weight, block_weights, stack_weights
from bedplate.models.specs import Spec

__all__ = [
    "BYTES_PER_PARAMETER",
    "OPTIMIZERS",
    "Optimizer",
    "Parameters",
    "Recompute",
    "Spec",
    "Weight",
    "WeightFormat",
    "activation_bytes",
    "audio_flops",
    "audio_tokens",
    "block_weights",
    "causal_pairs",
    "decode_flops",
    "denoise_flops",
    "encoder_decoder_flops",
    "experts_touched",
    "gradient_bytes",
    "head_activation_bytes",
    "image_flops",
    "image_tokens",
    "kv_bytes",
    "kv_bytes_per_token",
    "latent_bytes",
    "layer_activation_bytes",
    "optimizer_bytes",
    "parameters",
    "prefill_flops",
    "resolve",
    "sampling_flops",
    "square_pairs",
    "stack_weights",
    "step_reads",
    "step_weight_bytes",
    "training_flops_per_token",
    "two_sided_pairs",
    "weight_bytes",
    "weights",
]
