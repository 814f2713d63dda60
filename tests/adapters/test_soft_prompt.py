"""Soft prompts' files: what is written is read, both ways with peft, and what is not a soft prompt is refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
from tests.near import assert_near
from tests.references import reference_llama

from bedplate.adapters.peft import CONFIG_FILE
from bedplate.adapters.soft_prompt import SoftPrompt, prompt_peft_files
from bedplate.adapters.soft_prompt import read_soft_prompt as read
from bedplate.adapters.tensor_files import SOFT_PROMPT_FILE
from bedplate.core.errors import SkinError
from bedplate.models.families import FAMILIES

SIZE, TOKENS = 48, torch.arange(12).reshape(2, 6)
SPEC = FAMILIES[("hf", "llama")].to_spec(reference_llama(0).config.to_dict())


@pytest.fixture
def prompt() -> SoftPrompt:
    return SoftPrompt(torch.randn(5, SIZE, generator=torch.Generator().manual_seed(1)))


def write(directory: Path, prompt: SoftPrompt, **fields: Any) -> Path:
    directory.mkdir()
    for name, content in prompt_peft_files(prompt, SPEC, base_name="tiny").items():
        (directory / name).write_bytes(content)
    path = directory / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return directory


@pytest.fixture(autouse=True)
def old_names():
    """peft asks transformers by names that will go."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def test_a_file_gives_back_what_was_written(tmp_path, prompt):
    path = tmp_path / SOFT_PROMPT_FILE
    path.write_bytes(prompt.to_bytes())
    assert torch.equal(read(path).vectors, prompt.vectors)
    assert read(path).to_bytes() == path.read_bytes()
    assert (len(read(path)), read(path).size) == (5, SIZE)
    half = SoftPrompt(prompt.vectors.bfloat16())
    path.write_bytes(half.to_bytes())
    assert read(path).vectors.dtype == torch.float32
    assert torch.equal(read(path).vectors, half.vectors.float())


def test_our_prompt_in_peft_stands_before_the_tokens(tmp_path, prompt):
    reference = reference_llama(0)
    whole = torch.cat([prompt.vectors.expand(2, -1, -1), reference.get_input_embeddings()(TOKENS)], dim=1)
    with torch.no_grad():
        expected, plain = reference(inputs_embeds=whole).logits, reference(TOKENS).logits
    model = peft.PeftModel.from_pretrained(reference, write(tmp_path / "a", prompt)).eval()
    assert torch.equal(model.prompt_encoder["default"].embedding.weight, prompt.vectors)
    with torch.no_grad():
        logits = model(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS)).logits
    assert_near(logits, expected)
    assert not torch.allclose(logits[:, 5:], plain, atol=1e-2)


def test_the_files_are_what_peft_writes(tmp_path):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(reference_llama(0), config)
    model.save_pretrained(tmp_path)
    rewritten = tmp_path / "again"
    write(rewritten, SoftPrompt(model.prompt_encoder["default"].embedding.weight.detach()))
    theirs, ours = (json.loads((place / CONFIG_FILE).read_text()) for place in (tmp_path, rewritten))
    for name in ("peft_type", "task_type", "num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads"):
        assert theirs[name] == ours[name], name


@pytest.mark.parametrize(
    "vectors",
    [
        torch.zeros(3),
        torch.zeros(0, SIZE),
        torch.zeros(3, 4, dtype=torch.int64),
        torch.full((2, 4), float("nan")),
        torch.full((2, 4), float("inf")),
    ],
    ids=["no matrix", "empty", "integers", "nan", "infinity"],
)
def test_what_is_no_soft_prompt_is_refused(vectors):
    with pytest.raises(SkinError):
        SoftPrompt(vectors)


def test_reading_refuses_other_files(tmp_path, prompt):
    path = tmp_path / SOFT_PROMPT_FILE
    with pytest.raises(SkinError, match="missing"):
        read(path)
    safetensors.torch.save_file({"other": prompt.vectors}, path)
    with pytest.raises(SkinError, match="exactly 'soft_prompt'"):
        read(path)
    safetensors.torch.save_file({"soft_prompt": prompt.vectors, "more": prompt.vectors.clone()}, path)
    with pytest.raises(SkinError, match="exactly 'soft_prompt'"):
        read(path)
    safetensors.torch.save_file({"soft_prompt": torch.full((2, 4), float("nan"))}, path)
    with pytest.raises(SkinError, match="NaN"):
        read(path)
    path.write_bytes(prompt.to_bytes()[:-4])
    with pytest.raises(SkinError, match="not a whole safetensors"):
        read(path)
    path.write_bytes(prompt.to_bytes())
    path.rename(tmp_path / "real")
    path.symlink_to(tmp_path / "real")
    with pytest.raises(SkinError, match="symbolic link"):
        read(path)
