"""Gemma 3 270M from its GGUF: llama.cpp's perplexity, and a LoRA skin's weights in peft on the exported base."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bedplate.models.checkpoints.base import Base, load_base
from bedplate.models.checkpoints.export import export_base
from bedplate.models.checkpoints.gguf import GgufReader, write_gguf
from bedplate.models.inputs import Inputs

WINDOWS, TOKENS = 3, 256


@pytest.fixture
def base(gemma3_gguf: Path) -> Base:
    return load_base(gemma3_gguf, dtype="float32")


def windows(base: Base, text: str) -> Iterator[list[int]]:
    """Whole windows of a text, each behind the token that begins every text."""
    tokenizer = base.need_tokenizer()
    ids, size = tokenizer.encode(text), TOKENS - 1
    for number in range(WINDOWS):
        yield [*tokenizer.prompt_start, *ids[number * size : (number + 1) * size]]


def loss(logits: Tensor, tokens: list[int]) -> float:
    return float(torch.nn.functional.cross_entropy(logits[:-1].float(), torch.tensor(tokens[1:])))


@pytest.mark.slow
@pytest.mark.real
def test_perplexity_of_prose_is_llamacpps(base: Base, gemma3_gguf: Path, vader_news: Path, tmp_path: Path) -> None:
    """llama.cpp rounds activations to 8 bits in products with quantised weights, which moves its perplexity by a per
    cent either way; on the same numbers written as float32 it does not, and that is what ours must be."""
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed (the bench extra)")
    from llama_cpp import Llama

    reader, plain = GgufReader(gemma3_gguf), tmp_path / "plain.gguf"
    metadata = {key: value for key, value in reader.metadata.items() if not key.startswith(("general.", "GGUF."))}
    write_gguf(plain, "gemma3", metadata, ((name, reader.get(name)) for name in reader.names), "f32")
    text = " ".join(line.split("\t")[2] for line in vader_news.read_text("utf-8").splitlines()[:400])
    texts, ours, theirs = list(windows(base, text)), 0.0, dict[Path, float]()
    for tokens in texts:
        with torch.inference_mode():
            ours += loss(base.model.head(base.model(Inputs(torch.tensor([tokens]))).hidden[0]), tokens)
    for path in (plain, gemma3_gguf):
        model = Llama(str(path), n_ctx=TOKENS, logits_all=True, verbose=False)
        for tokens in texts:
            model.reset()
            model.eval(tokens)
            theirs[path] = theirs.get(path, 0.0) + loss(torch.from_numpy(np.array(model.scores)), tokens)
        model.close()
    ratio = {path: math.exp((ours - found) / WINDOWS) for path, found in theirs.items()}
    assert abs(ratio[plain] - 1) < 0.001
    assert ratio[gemma3_gguf] < 1.02


@pytest.mark.slow
@pytest.mark.real
def test_the_export_is_gemma3_to_transformers(base: Base, tmp_path: Path) -> None:
    import transformers

    export_base(base, tmp_path / "b")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b").eval()
    assert theirs.config.model_type == "gemma3_text"
    tokens = torch.randint(0, base.spec.vocab_size, (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, ours = theirs(tokens).logits[0], base.model.head(base.model(Inputs(tokens)).hidden[0])
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-4)
