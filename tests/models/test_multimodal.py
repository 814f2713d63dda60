"""The text models of multimodal checkpoints against transformers' whole ones, read of text alone."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.near import assert_near

from bedplate.core.errors import BedplateError, CheckpointError, UnsupportedModelError
from bedplate.economics.model.named_model import spec_of
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.models.checkpoints.export import export_base
from bedplate.models.families import FAMILIES
from bedplate.models.families.multimodal import MULTIMODAL
from bedplate.models.inputs import Inputs

_SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
_IMAGE: dict[str, Any] = {**_SIZES, "image_size": 8, "patch_size": 4}
_SMALL = {**_SIZES, "num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 8, "patch_size": 4}
TOWERS: dict[str, dict[str, Any]] = {
    "gemma3": {"vision_config": _IMAGE, "mm_tokens_per_image": 4},
    "gemma4": {
        "vision_config": {**_SMALL, "pooling_kernel_size": 1, "position_embedding_size": 16},
        "audio_config": {**_SIZES, "subsampling_conv_channels": [8, 4], "output_proj_dims": 16},
    },
    "mistral3": {"vision_config": {**_IMAGE, "model_type": "pixtral", "head_dim": 8}, "image_token_index": 96},
    "qwen3_5": {
        "vision_config": {
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "patch_size": 4,
            "out_hidden_size": 48,
            "num_position_embeddings": 16,
        }
    },
}
CASES = [
    (outer, text, seed) for outer, outer_family in MULTIMODAL.items() for text in outer_family.texts for seed in (0, 1)
]


def reference(outer: str, text: str, seed: int) -> Any:
    """A random multimodal model around the family's example of the seed's number."""
    fields = FAMILIES["hf", text].examples[seed]
    example = {name: value for name, value in fields.items() if name not in MULTIMODAL[outer].unread}
    tied = transformers.AutoConfig.for_model(text, **example).tie_word_embeddings
    config: Any = transformers.AutoConfig.for_model(
        outer, text_config={**example, "model_type": text}, tie_word_embeddings=tied, **TOWERS[outer]
    )
    for nested in (config, config.text_config):
        nested._attn_implementation = nested._experts_implementation = "eager"
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = transformers.AutoModelForImageTextToText.from_config(config)
        for stored in {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}.values():
            stored.add_(torch.randn_like(stored) * 0.1)
    return model.eval()


def logits_of(base: Base, tokens: torch.Tensor) -> torch.Tensor:
    out = base.model(Inputs(tokens))
    return base.model.head(out.hidden.flatten(0, 1)).view(*tokens.shape, -1)


@pytest.mark.parametrize(("outer", "text", "seed"), CASES)
def test_its_text_model_is_loaded_as_the_family_that_it_is(
    outer: str, text: str, seed: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = reference(outer, text, seed)
    theirs.save_pretrained(tmp_path / "whole")
    with caplog.at_level(logging.WARNING, "bedplate.models"):
        base = load_base(tmp_path / "whole", device="cpu")
    assert base.family.key == ("hf", text)
    tokens = torch.randint(3, 90, (2, 24), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected = theirs(tokens).logits
        assert_near(logits_of(base, tokens), expected)

    parts = {name: part for name, part in theirs.model.named_children() if name != "language_model"}
    sizes = {name: sum(tensor.nbytes for tensor in part.state_dict().values()) for name, part in parts.items()}
    assert base.lineage["text_of"] == {"model_type": outer, "left_out": sizes}
    [line] = [record.message for record in caplog.records if record.name == "bedplate.models"]
    assert all(name in line for name in (outer, *sizes))

    export_base(base, tmp_path / "text")
    assert json.loads((tmp_path / "text" / "config.json").read_text())["model_type"] == text
    assert json.loads((tmp_path / "text" / "base.json").read_text())["lineage"]["text_of"]["left_out"] == sizes
    alone = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "text", attn_implementation="eager")
    with torch.no_grad():
        assert_near(alone(tokens).logits, expected)
    reloaded = load_base(tmp_path / "text", device="cpu")
    assert reloaded.identity.weights_id == base.identity.weights_id
    assert reloaded.lineage["text_of"] == base.lineage["text_of"]
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert spec_of("hf", config, tmp_path) == base.spec


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mistral3 with a head of its own, whose config does not say so."""
    path = tmp_path_factory.mktemp("mistral3")
    reference("mistral3", "mistral", 0).save_pretrained(path)
    _edit(path, lambda config: config.pop("tie_word_embeddings"))
    return path


def _edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((path / "config.json").read_text())
    change(config)
    (path / "config.json").write_text(json.dumps(config))


def _copy(whole: Path, path: Path, tensors: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    path.mkdir()
    (path / "config.json").write_bytes((whole / "config.json").read_bytes())
    save_file(tensors(load_file(whole / "model.safetensors")), path / "model.safetensors")
    return path


def test_other_spellings_of_names_are_the_same_model(whole: Path, tmp_path: Path) -> None:
    base = load_base(whole, device="cpu")
    assert not base.spec.main.tied_head

    def newer(name: str) -> str:
        name = name.replace("language_model.lm_head", "lm_head").replace("language_model.model.", "language_model.")
        return name if name.startswith("lm_head") else f"model.{name}"

    path = _copy(whole, tmp_path / "newer", lambda tensors: {newer(name): tensor for name, tensor in tensors.items()})
    assert load_base(path, device="cpu").identity.weights_id == base.identity.weights_id
    path = _copy(
        whole,
        tmp_path / "older",
        lambda tensors: {
            "language_model.lm_head.weight" if "lm_head" in name else name: tensor for name, tensor in tensors.items()
        },
    )
    assert load_base(path, device="cpu").identity.weights_id == base.identity.weights_id
    path = _copy(
        whole,
        tmp_path / "tied",
        lambda tensors: {name: tensor for name, tensor in tensors.items() if "lm_head" not in name},
    )
    assert load_base(path, device="cpu").spec.main.tied_head


def test_its_type_is_that_of_the_text_models_matrices(whole: Path, tmp_path: Path) -> None:
    def halved(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            name: tensor.bfloat16() if "lan" in name or "lm" in name else tensor for name, tensor in tensors.items()
        }

    assert load_base(_copy(whole, tmp_path / "mixed", halved), device="cpu").dtype == torch.bfloat16


REFUSED: dict[str, tuple[Callable[[Path], object], type[BedplateError], str]] = {
    "a tensor of no part": (
        lambda p: _tensor(p, "model.layers.0.extra.weight"),
        CheckpointError,
        "'model.layers.0.extra.weight', which is neither",
    ),
    "a tensor twice": (lambda p: _tensor(p, "model.language_model.norm.weight"), CheckpointError, "are both"),
    "a field outside": (lambda p: _edit(p, lambda c: c.update(cross=[1])), UnsupportedModelError, "'cross'"),
    "a field inside": (
        lambda p: _edit(p, lambda c: c["text_config"].update(cross=[1])),
        UnsupportedModelError,
        "'cross'",
    ),
    "another text model": (
        lambda p: _edit(p, lambda c: c["text_config"].update(model_type="qwen2")),
        UnsupportedModelError,
        "'qwen2' is not supported .only 'mistral' or 'ministral3'",
    ),
    "no text model": (lambda p: _edit(p, lambda c: c.pop("text_config")), UnsupportedModelError, "'text_config'"),
    "no object": (lambda p: _edit(p, lambda c: c.update(text_config=[1])), CheckpointError, "must be an object"),
    "another type": (lambda p: _edit(p, lambda c: c.update(model_type="llama4")), UnsupportedModelError, "mistral3"),
}


def _tensor(path: Path, name: str) -> None:
    save_file({**load_file(path / "model.safetensors"), name: torch.zeros(2)}, path / "model.safetensors")


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_unknown_is_refused_by_name(case: str, whole: Path, tmp_path: Path) -> None:
    damage, error, message = REFUSED[case]
    path = _copy(whole, tmp_path / "copy", dict)
    damage(path)
    with pytest.raises(error, match=message):
        load_base(path, device="cpu")


@pytest.mark.parametrize("name", MULTIMODAL)
def test_sizes_that_a_config_leaves_out_are_the_classes_own(name: str) -> None:
    outer = MULTIMODAL[name]
    config = transformers.AutoConfig.for_model(name)
    text = transformers.AutoConfig.for_model(outer.texts[0])
    assert outer.sizes == tuple((size, getattr(text, size)) for size, _ in outer.sizes)
    assert outer.tied == config.tie_word_embeddings
    # Every field that the class has is known.
    outer.text_config({**config.to_dict(), "text_config": {"model_type": outer.texts[0]}}, "config.json")
    for unread in outer.unread:
        with pytest.raises(UnsupportedModelError, match=unread):
            outer.text_config({"text_config": {unread: 3.0}}, "config.json")
    if outer.sizes:
        spec = spec_of("hf", {"model_type": name, "text_config": {}}, Path("config.json"))
        assert spec == FAMILIES["hf", outer.texts[0]].to_spec(text.to_dict())
