"""The models that are compared, as directories that every contestant reads, and the work that all do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bedplate.inference.engine.requests import Generate, Sampling


@dataclass(frozen=True)
class Work:
    """prompt, output: tokens of one sequence. rows: how many sequences at once, several tries. long: of a prompt."""

    prompt: int
    output: int
    rows: tuple[int, ...]
    long: int


WORK = Work(prompt=128, output=128, rows=(1, 16, 64), long=2048)
SMALL = Work(prompt=8, output=4, rows=(1, 3), long=32)
LLAMA_1B: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "max_position_embeddings": 4096,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
}
"""The sizes of Llama-3.2-1B (its config.json), weights random."""
TINY = LLAMA_1B | {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
    "max_position_embeddings": 128,
}


def random_llama(models: Path, small: bool, device: str) -> Path:
    """The directory of a llama with random weights in bfloat16 (float32 where it is small), made once."""
    from transformers import LlamaConfig, LlamaForCausalLM

    place = models / ("tiny" if small else "llama-1b")
    if not (place / "made.json").is_file():
        torch.manual_seed(0)
        with torch.device(device):
            model: Any = LlamaForCausalLM(LlamaConfig(**(TINY if small else LLAMA_1B)))
        model.to(torch.float32 if small else torch.bfloat16).save_pretrained(place)
        (place / "made.json").write_text(json.dumps({"small": small}))
    return place


def smollm2(models: Path) -> Path:
    """The directory of smollm2-135m as it stands in the catalogue, exported once for those who read no GGUF."""
    from bedplate.models.checkpoints.base import load_base
    from bedplate.models.checkpoints.export import export_base

    place = models / "smollm2-135m"
    if not (place / "config.json").is_file():
        export_base(load_base("smollm2-135m", dtype="bfloat16", device="cpu"), place)
    return place


def prompts(rows: int, length: int, vocabulary: int, seed: int) -> list[list[int]]:
    """Random tokens: what a token is does not change what it costs, and no two calls share a beginning."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, vocabulary, (rows, length), generator=generator).tolist()


def generations(token_rows: Sequence[Sequence[int]], count: int, adapters: Sequence[str | None] = ()) -> list[Generate]:
    """Greedy continuations of so many tokens."""
    names = adapters or [None] * len(token_rows)
    sampling = Sampling(max_tokens=count, ignore_eos=True)
    return [Generate(tuple(tokens), sampling, adapter=name) for tokens, name in zip(token_rows, names, strict=True)]
