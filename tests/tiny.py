"""A tiny random llama base on disk, with a byte-level BPE tokenizer and a ChatML template: whole, but fast."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from bedplate.models.build import build
from bedplate.models.checkpoints.safetensors import write_safetensors
from bedplate.models.families import FAMILIES
from bedplate.models.specs.transformer import AttentionSpec, FeedForwardSpec, PositionSpec, Rope, TransformerSpec

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_TEXT = (
    "this product is great and works well",
    "terrible quality it broke after a day",
    "Review: Sentiment: positive negative neutral",
    "the answer is yes or no and the question was asked by the user",
)


@cache
def tokenizer_json() -> str:
    """A byte-level BPE tokenizer of 320 tokens, as tokenizer.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT * 8, trainer)
    return tokenizer.to_str()


NATIVE_SHAPE = {"hidden_size": 64, "heads": 4, "head_dim": 16, "feedforward_size": 96}
"""Of a base that the native kernel runs, whose passes over so little take a tenth of torch's."""


def tiny_spec(**changes: Any) -> TransformerSpec:
    """Three layers of 48 features, grouped queries, 512 tokens of context."""
    spec = TransformerSpec(
        kind="decoder",
        vocab_size=Tokenizer.from_str(tokenizer_json()).get_vocab_size(),
        hidden_size=48,
        layers=3,
        context_length=512,
        attention=AttentionSpec(heads=6, kv_heads=2, head_dim=8),
        feedforward=FeedForwardSpec(size=96),
        position=PositionSpec(rope=Rope(10_000.0)),
    )
    return spec.with_(**changes)


def write_tiny_base(
    directory: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, tokenizer: bool = True, **changes: Any
) -> Path:
    """A Hugging Face directory of a random llama (sharp enough that greedy text is not one token repeated)."""
    directory.mkdir(parents=True, exist_ok=True)
    family, spec = FAMILIES[("hf", "llama")], tiny_spec(**changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build(spec)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    state = {family.weights.to_external(name): value.to(dtype) for name, value in model.state_dict().items()}
    write_safetensors(directory, ((name, value) for name, value in state.items() if name is not None))
    (directory / "config.json").write_text(json.dumps(family.to_config(spec)))
    if tokenizer:
        (directory / "tokenizer.json").write_text(tokenizer_json())
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": SPECIAL[0],
            "eos_token": SPECIAL[2],
            "pad_token": SPECIAL[0],
            "chat_template": CHATML,
        }
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory
