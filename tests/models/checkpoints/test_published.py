"""Published checkpoints as their files are: fields that transformers' own writer does not write, tokens that the text
model shares with its multimodal kin, shards and indexes of several downloads."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import write_tiny_base

from bedplate.core.errors import CheckpointError, UnsupportedModelError
from bedplate.inference.measure.parity import reference_of
from bedplate.models.checkpoints.base import load_base
from bedplate.models.families import FAMILIES

FIELDS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2.5-0.5B", {"use_mrope": False}),
    "phi3": (
        "Phi-4-mini-instruct",
        {"attention_bias": False, "mlp_bias": False, "lm_head_bias": False}
        | {"full_attn_mod": 1, "interpolate_factor": 1},
    ),
    "gpt2": ("gpt2-medium, distilgpt2", {"n_special": 0, "predict_special_tokens": True, "_num_labels": 1}),
    "qwen3_next": ("Qwen3-Next-80B-A3B", {"use_sliding_window": False}),
    "granitemoehybrid": ("granite-4.0-h-tiny", {"normalization_function": "rmsnorm", "init_method": "mup"}),
    "bart": ("distilbart-cnn-12-6", {"_num_labels": 3, "replacing_rate": 0, "num_beams": 4}),
    "marian": ("opus-mt-en-de", {"_num_labels": 3, "extra_pos_embeddings": 96, "bad_words_ids": [[95]]}),
    "bert": ("finbert, multilingual-e5-small", {"finetuning_task": "sst", "tokenizer_class": "XLMRobertaTokenizer"}),
    "llama": (
        "Llama-2-7b-hf, zephyr; of training",
        {"max_length": 4096, "do_sample": True, "_flash_attn_2_enabled": True, "attention_dropout": 0.1},
    ),
    **{name: ("of training", {"attention_dropout": 0.1}) for name in ("gemma3_text", "gemma4_text", "qwen3_5_text")},
}
"""Of each family, in which published config.json, and what stands there beside what an example has."""
REFUSED_FIELDS: dict[str, dict[str, Any]] = {
    "qwen2": {"use_mrope": True},
    "phi3": {"attention_bias": True},
    "qwen3_next": {"use_sliding_window": True},
    "granitemoehybrid": {"normalization_function": "layernorm"},
}
"""The same fields with values that mean another computation."""


@pytest.mark.parametrize("name", FIELDS)
def test_fields_of_published_configs_are_known(name: str) -> None:
    family, (_, fields) = FAMILIES["hf", name], FIELDS[name]
    example = family.examples[0]
    assert family.to_spec({**example, **fields}) == family.to_spec(example)
    if name in REFUSED_FIELDS:
        with pytest.raises(UnsupportedModelError, match=next(iter(REFUSED_FIELDS[name]))):
            family.to_spec({**example, **REFUSED_FIELDS[name]})


def test_a_hybrid_model_may_have_attention_alone() -> None:
    """granite-4.0-micro is one; its export has sizes of Mamba-2 layers that transformers takes."""
    family = FAMILIES["hf", "granitemoehybrid"]
    spec = family.to_spec({**family.examples[1], "layer_types": ["attention"] * 2})
    assert spec.state.mixer is None
    config = family.to_config(spec)
    assert config["mamba_n_heads"] * config["mamba_d_head"] == config["mamba_expand"] * config["hidden_size"]
    assert family.to_spec(config) == spec


@pytest.mark.parametrize("name", ["qwen3", "bart"])
def test_files_of_a_body_alone(name: str, tmp_path: Path) -> None:
    """Qwen3-Embedding and bart-base: no name begins with `model.`, and the head is the token table."""
    family = FAMILIES["hf", name]
    whole = reference_of(family, {**family.examples[0], "tie_word_embeddings": True}, 0)
    whole.save_pretrained(tmp_path / "whole")
    whole.model.save_pretrained(tmp_path / "body")
    names = load_file(tmp_path / "body" / "model.safetensors")
    assert not any(tensor_name.startswith("model.") for tensor_name in names)
    expected, body = (load_base(tmp_path / folder) for folder in ("whole", "body"))
    before, after = expected.model.state_dict(), body.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items() if key in after)
    assert before.keys() - after.keys() <= {"head_bias"}
    save_file({**names, "layers.9.stray.weight": torch.ones(2)}, tmp_path / "body" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"holds 'layers\.9\.stray\.weight', for which the config has no place"):
        load_base(tmp_path / "body")


def with_tokens(directory: Path, *tokens: dict[str, Any]) -> int:
    """Adds control tokens behind the last; returns the first's id, which is the number of the model's rows."""
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    ids = [*content["model"]["vocab"].values(), *(added["id"] for added in content["added_tokens"])]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    rows = json.loads((directory / "config.json").read_text("utf-8"))["vocab_size"]
    assert max(ids) == rows - 1
    content["added_tokens"] += [{"id": rows + i, **flags, **token} for i, token in enumerate(tokens)]
    path.write_text(json.dumps(content), "utf-8")
    return rows


def test_tokens_of_images_that_a_text_model_has_no_row_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Gemma 3's tokenizers of 270M and 1B have <image_soft_token>, whose id is the number of rows."""
    directory = write_tiny_base(tmp_path / "a")
    before = load_base(directory).need_tokenizer()
    rows = with_tokens(directory, {"content": "<image_soft_token>"})
    with caplog.at_level(logging.WARNING, "bedplate.models"):
        tokenizer = load_base(directory).need_tokenizer()
    assert "no row for the token <image_soft_token>" in caplog.text
    assert tokenizer.vocab_size == rows
    text = "see <image_soft_token> there"
    assert tokenizer.encode(text) == before.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == before.decode(before.encode(text))
    assert tokenizer.identity == before.identity


@pytest.mark.parametrize("use", ["template", "role", "plain"])
def test_tokens_that_are_needed_must_have_a_row(use: str, tmp_path: Path) -> None:
    directory = write_tiny_base(tmp_path / "a")
    with_tokens(directory, {"content": "<|turn|>", "special": use != "plain"})
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8"))
    config_changes = {
        "template": {"chat_template": "{{ '<|turn|>' }}{{ messages }}"},
        "role": {"pad_token": "<|turn|>"},
    }
    path.write_text(json.dumps(config | config_changes.get(use, {})), "utf-8")
    with pytest.raises(CheckpointError, match="it is another model's tokenizer"):
        load_base(directory)


def test_a_much_smaller_vocabulary_is_another_models(tmp_path: Path) -> None:
    """As Gemma's weights beside a tokenizer of 49,152 ids."""
    directory = write_tiny_base(tmp_path / "a")
    config, tensors = json.loads((directory / "config.json").read_text()), load_file(directory / "model.safetensors")
    rows, name = 20_000, "model.embed_tokens.weight"
    tensors = {key: tensor for key, tensor in tensors.items() if key != "lm_head.weight"}
    tensors[name] = tensors[name].repeat(-(-rows // len(tensors[name])), 1)[:rows].contiguous()
    save_file(tensors, directory / "model.safetensors")
    changes = {"vocab_size": rows, "tie_word_embeddings": True}
    (directory / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(CheckpointError, match=r"has \d+ ids, but .* 20000 rows for them; it is another model's"):
        load_base(directory)


def test_an_index_that_leaves_a_shards_tensors_out(tmp_path: Path) -> None:
    directory = write_tiny_base(tmp_path / "a")
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
    for file, shard_names in parts.items():
        save_file({name: tensors[name] for name in shard_names}, directory / file)
    weight_map = {name: file for file, shard_names in parts.items() for name in shard_names}
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    load_base(directory)
    save_file({name: tensors[name] for name in names}, directory / "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"does not say that model-00002-of-00002\.safetensors holds .*5 such"):
        load_base(directory)
