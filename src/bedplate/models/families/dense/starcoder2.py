"""The starcoder2 family (https://arxiv.org/abs/2402.19173): Hugging Face's `Starcoder2ForCausalLM`. LayerNorm, biases
everywhere, a feed-forward without a gate, one window for all layers.
"""

from __future__ import annotations

from bedplate.models.families import decoders as hf
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import Field, constant, flag, ignored, only, real
from bedplate.models.families.rope import rope

_PLAIN = (("feedforward.up", "mlp.c_fc"), ("feedforward.down", "mlp.c_proj"))
WEIGHTS = hf.decoder_weights(*hf.ATTENTION, *_PLAIN, *hf.LLAMA_NORMS)
EXAMPLES = (
    hf.tiny(sliding_window=7),
    hf.tiny(num_key_value_heads=6, use_bias=False, hidden_act="relu", tie_word_embeddings=False),
)
FIELDS = (
    *hf.sizes(context=4096, tied=True),
    constant(norm="layer", gated=False),
    real("norm_epsilon", "norm_eps", 1e-5),
    rope(),
    hf.one_window(),
    hf.activation(default="gelu_pytorch_tanh"),
    flag("use_bias", "attention_bias", True),
    Field(lambda fields, values: {"feedforward_bias": values["attention_bias"]}),
    only("norm_type", "layer_norm"),
    only("mlp_type", "default"),
    ignored(*hf.DROPOUTS),
)

HF = hf_family("starcoder2", "Starcoder2ForCausalLM", FIELDS, weights=WEIGHTS, examples=EXAMPLES)
