"""GGUF files whose metadata are of the wrong kind, or would be read as something else than they say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import write_tiny_base

from bedplate.core.errors import BedplateError, CheckpointError, TokenizerError, UnsupportedModelError
from bedplate.models.checkpoints.base import load_base
from bedplate.models.checkpoints.export import export_gguf
from bedplate.models.checkpoints.gguf import GgufReader, write_gguf
from bedplate.models.families import FAMILIES
from bedplate.text.gguf_fields import parts_from_fields

SIZES: dict[str, Any] = {"hidden_size": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "feedforward_size": 96}
Content = tuple[Mapping[str, Any], Mapping[str, torch.Tensor]]


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Content:
    """Metadata and tensors of a small file."""
    directory = tmp_path_factory.mktemp("gguf")
    base = load_base(write_tiny_base(directory / "base", layers=1, **SIZES))
    reader = GgufReader(export_gguf(base, directory / "a.gguf", "f32"))
    metadata = {key: value for key, value in reader.metadata.items() if key != "general.architecture"}
    return metadata, {name: reader.get(name) for name in reader.names}


def load(path: Path, content: Content, fields: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    metadata, stored = content
    write_gguf(path, "llama", {**metadata, **fields}, {**stored, **tensors}.items(), "f32")
    load_base(path)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("llama.block_count", "1", r"block_count = '1' .* without quotes"),
        ("llama.attention.head_count_kv", 2.5, r"head_count_kv = 2\.5 .* whole number"),
        ("llama.context_length", True, "context_length = True .* whole number"),
        ("llama.rope.freq_base", 0.0, "theta is 0"),
        ("llama.block_count", 2**31, "block_count asks for 2147483648 layers"),
        ("llama.attention.frobnicate", 1, r"unsupported field 'attention\.frobnicate'"),
    ],
)
def test_metadata_of_the_wrong_kind(tmp_path: Path, content: Content, key: str, value: Any, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as raised:
        load(tmp_path / "a.gguf", content, {key: value}, {})
    assert str(tmp_path / "a.gguf") in str(raised.value)


def test_layers_are_counted_before_a_list_of_them_is_made() -> None:
    with pytest.raises(UnsupportedModelError, match="block_count asks for 1000000000000000000000000000000 layers"):
        FAMILIES["gguf", "gemma4"].to_spec({"gemma4.block_count": 10**30, "gemma4.feed_forward_length": 64})


def test_a_rope_that_is_said_to_have_no_scaling(tmp_path: Path, content: Content) -> None:
    """As llama.cpp's converter writes it for some families."""
    load(tmp_path / "a.gguf", content, {"llama.rope.scaling.type": "none"}, {})


def test_an_epsilon_of_zero_is_one(tmp_path: Path, content: Content) -> None:
    metadata, stored = content
    path, zero = tmp_path / "a.gguf", {"llama.attention.layer_norm_rms_epsilon": 0.0}
    write_gguf(path, "llama", {**metadata, **zero}, stored.items(), "f32")
    assert load_base(path).spec.main.norm.eps == 0


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("rope_freqs.weight", (1 << 17,), "where one number a pair is wanted"),
        ("rope_freqs.weight", (2, 4), "where one number a pair is wanted"),
        ("rope_factors_short.weight", (8,), "there is only one; they belong together"),
    ],
)
def test_tables_of_positions(tmp_path: Path, content: Content, name: str, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        load(tmp_path / "a.gguf", content, {}, {name: torch.ones(shape)})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("tokenizer.ggml.bos_token_id", "<s>", "bos_token_id is '<s>', not the id of a token"),
        ("tokenizer.ggml.eos_token_id", 1.5, r"eos_token_id is 1\.5, not the id of a token"),
        ("tokenizer.ggml.eot_token_id", 10**6, "eot_token_id is 1000000, outside the vocabulary"),
        ("tokenizer.ggml.add_bos_token", "false", "add_bos_token is 'false', not true or false"),
        ("tokenizer.ggml.token_type", ["a"], "token_type holds 'a', which is no type of tokens"),
        ("tokenizer.chat_template", 5, "chat_template is a int, not text"),
    ],
)
def test_a_tokenizers_metadata_of_the_wrong_kind(content: Content, key: str, value: Any, words: str) -> None:
    with pytest.raises(TokenizerError, match=words):
        parts_from_fields({**content[0], key: value})


def test_a_token_that_is_there_twice_is_found_in_a_large_vocabulary() -> None:
    tokens = [str(number) for number in range(200_000)] + ["7"]
    fields = {"tokens": tokens, "token_type": [1] * len(tokens), "model": "gpt2"}
    with pytest.raises(BedplateError, match="the token '7' is in the vocabulary twice"):
        parts_from_fields({f"tokenizer.ggml.{key}": value for key, value in fields.items()})
