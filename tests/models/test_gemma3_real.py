"""Gemma 3 270M from its GGUF: llama.cpp's perplexity, and a LoRA skin as peft reads it on the exported base."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bedplate.adapters.bank import Bank
from bedplate.adapters.lora import LoraConfig
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.models.checkpoints.export import export_base
from bedplate.models.checkpoints.gguf import GgufReader, write_gguf
from bedplate.models.inputs import Inputs
from bedplate.skins.files import write_skin
from bedplate.skins.output import TextOutput
from bedplate.skins.prompt import Prompt
from bedplate.skins.skin import BaseReference, InputField, LoraPart, Skin

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
    ratio = {path: math.exp((ours - total) / WINDOWS) for path, total in theirs.items()}
    assert abs(ratio[plain] - 1) < 0.001
    assert ratio[gemma3_gguf] < 1.02


def logits(base: Base, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        return base.model.head(base.model(Inputs(tokens)).hidden[0])


def logits_of(theirs: Any, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        return theirs(tokens).logits[0]


def lora_skin(base: Base) -> Skin:
    """All linears of all blocks, moved."""
    bank, config, generator = Bank(base.model), LoraConfig(r=4, alpha=8), torch.Generator().manual_seed(1)
    state = bank.state(bank.add(config))
    tensors = {name: torch.randn(tensor.shape, generator=generator) * 0.02 for name, tensor in state.items()}
    bank.close()
    return Skin(
        name="moved",
        bases={"main": BaseReference.of("gemma3-270m", base.family.name, base.identity)},
        inputs={"text": InputField()},
        output=TextOutput(max_tokens=8),
        prompt=Prompt("{{ text }}"),
        lora=LoraPart(config, tensors, base.spec),
    )


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks
def test_the_export_is_gemma3_to_transformers_and_its_skin_a_lora_to_peft(base: Base, tmp_path: Path) -> None:
    import peft
    import transformers

    export_base(base, tmp_path / "b")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b").eval()
    assert theirs.config.model_type == "gemma3_text"
    tokens = torch.randint(0, base.spec.vocab_size, (1, 40), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(logits(base, tokens), logits_of(theirs, tokens), atol=1e-3, rtol=1e-4)
    skin = lora_skin(base)
    write_skin(skin, tmp_path / "skin")
    plain, tuned = logits(base, tokens), peft.PeftModel.from_pretrained(theirs, tmp_path / "skin").eval()
    bank = Bank(base.model)
    assert skin.lora is not None
    bank.select(bank.add(skin.lora.config, skin.lora.tensors))
    ours = logits(base, tokens)
    bank.close()
    torch.testing.assert_close(ours, logits_of(tuned, tokens), atol=1e-3, rtol=1e-4)
    assert (ours - plain).abs().max() > 1
