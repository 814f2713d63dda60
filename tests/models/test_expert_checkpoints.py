"""Files of mixtures that parity's examples do not have: MXFP4 blocks, modules that predict further tokens, experts in
one tensor. Oracle: transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from transformers.modeling_layers import MtpModel

from bedplate.core.errors import CheckpointError, UnsupportedModelError, UsageError
from bedplate.inference.measure.parity import reference_of, relative_difference
from bedplate.models.checkpoints.base import load_base
from bedplate.models.checkpoints.export import export_base
from bedplate.models.decoder import Decoder
from bedplate.models.families import FAMILIES
from bedplate.models.families.experts.parts import mxfp4
from bedplate.models.inputs import Inputs

FILE = "model.safetensors"


def reference(name: str, seed: int = 0, **changes: Any) -> Any:
    family = FAMILIES["hf", name]
    return reference_of(family, {**family.examples[0], **changes}, seed)


def test_mxfp4_blocks_are_the_numbers_that_they_stand_for(tmp_path: Path) -> None:
    """Every byte and a scale of every size; then a checkpoint whose experts are blocks."""
    all_bytes = torch.arange(256, dtype=torch.uint8).view(1, 2, 8, 16)
    scales = torch.randint(100, 154, (1, 2, 8), dtype=torch.uint8)
    theirs = convert_moe_packed_tensors(all_bytes, scales, dtype=torch.bfloat16).transpose(1, 2)
    assert torch.equal(mxfp4(all_bytes, scales), theirs)
    with pytest.raises(CheckpointError, match="do not fit scales"):
        mxfp4(all_bytes, scales[..., 1:])

    model = reference("gpt_oss", hidden_size=64, intermediate_size=32)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / FILE)
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, size, out = tensors.pop(name).shape
        blocks = torch.randint(0, 256, (experts, out, size // 32, 16), dtype=torch.uint8)
        scales = torch.randint(118, 125, (experts, out, size // 32), dtype=torch.uint8)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        with torch.no_grad():
            model.get_parameter(name).copy_(convert_moe_packed_tensors(blocks, scales, dtype=torch.float32))
    save_file(tensors, tmp_path / FILE, {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    # as published: what is quantised, and names of fields that transformers no longer writes
    config |= {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}
    config |= {"experts_per_token": config["num_experts_per_tok"], "initial_context_length": 16}
    (tmp_path / "config.json").write_text(json.dumps(config))
    base = load_base(tmp_path, "float32", "cpu")
    tokens = torch.randint(0, base.spec.vocab_size, (2, 12))
    with torch.no_grad():
        hidden = base.model(Inputs(tokens)).hidden
        ours, theirs = base.model.head(hidden), model(tokens).logits
    assert relative_difference(ours, theirs) < 1e-5
    reloaded = load_base(export_base(base, tmp_path / "export"), device="cpu")
    assert reloaded.identity.weights_id == base.identity.weights_id, "written as the numbers"


def _with_modules(model: Any, mtp: Any, path: Path) -> None:
    """A checkpoint as DeepSeek publishes them: modules are layers after the last, with copies of table and head."""
    model.save_pretrained(path)
    tensors, layers = load_file(path / FILE), model.config.num_hidden_layers
    for name, tensor in mtp.state_dict().items():
        if name.startswith("layers."):
            _, number, suffix = name.split(".", 2)
            suffix = suffix.removeprefix("mtp_block.").replace("post_norm", "shared_head.norm")
            tensors[f"model.layers.{layers + int(number)}.{suffix}"] = tensor.clone()
    for number in range(mtp.num_mtp_layers):
        copies = {"embed_tokens": "model.embed_tokens", "shared_head.head": "lm_head"}
        for theirs, ours in copies.items():
            tensors[f"model.layers.{layers + number}.{theirs}.weight"] = tensors[f"{ours}.weight"].clone()
    save_file(tensors, path / FILE, {"format": "pt"})


@pytest.mark.parametrize("name", ["deepseek_v3", "glm4_moe"])
def test_modules_that_predict_further_tokens(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them: the states of transformers' own; read with their experts in one tensor, written one by one, and read
    by transformers."""
    model = reference(name, num_mtp_layers=2)
    torch.manual_seed(1)
    mtp = MtpModel(model, 2).eval()
    with torch.no_grad():
        for parameter in mtp.layers.parameters():  # of which transformers leaves the experts' as memory was
            parameter.copy_(torch.randn_like(parameter) * 0.1 + (parameter.dim() == 1))
    _with_modules(model, mtp, tmp_path / "theirs")
    base = load_base(tmp_path / "theirs", "float32", "cpu")
    assert isinstance(base.model, Decoder)
    assert base.spec.prediction_modules == 2
    exported = export_base(base, tmp_path / "ours")
    monkeypatch.setattr(type(model), "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.[34]\..*"])
    reread = type(model).from_pretrained(exported, attn_implementation="eager", experts_implementation="eager").eval()
    tokens = torch.randint(0, base.spec.vocab_size, (2, 14))
    at = torch.arange(14)[None].expand_as(tokens)
    with torch.no_grad():
        hidden = base.model(Inputs(tokens)).hidden
        ours = base.model.predict_ahead(hidden, Inputs(tokens))
        for main, modules in ((model, mtp), (reread, MtpModel.from_pretrained(reread))):
            state, shifted = main.model(tokens).last_hidden_state, tokens
            for number, predicted in enumerate(ours, start=1):
                shifted = shifted.roll(-1, dims=1)
                state = modules.forward_layer(number - 1, state, at, None, input_ids=shifted)
                assert relative_difference(predicted[:, :-number], state[:, :-number]) < 1e-5
    packed = Inputs(tokens.view(1, -1), segments=torch.arange(2).repeat_interleave(14)[None] + 1)
    with torch.no_grad():
        together = base.model.predict_ahead(base.model(packed).hidden, packed)
    for number, (alone, joint) in enumerate(zip(ours, together, strict=True), start=1):
        assert relative_difference(joint.view_as(alone)[:, :-number], alone[:, :-number]) < 1e-5
    with pytest.raises(UsageError, match="a prefix that several documents share"):
        base.model.predict_ahead(hidden, Inputs(tokens, segments=torch.zeros_like(tokens)))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("qwen3_moe", {"mlp_only_layers": [1]}, r"mlp_only_layers = \[1\]"),
        ("olmoe", {"clip_qkv": 5.0}, "clip_qkv = 5.0"),
        ("gpt_oss", {"swiglu_limit": 5.0}, "swiglu_limit = 5.0"),
        ("gpt_oss", {"quantization_config": {"quant_method": "fp8"}}, "quant_method = 'fp8'"),
        ("deepseek_v3", {"quantization_config": {"quant_method": "fp8"}}, "'quantization_config'"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func = 'softmax'"),
        ("deepseek_v3", {"num_key_value_heads": 2}, "num_key_value_heads = 2"),
        ("mixtral", {"num_experts": 7}, "they mean the same number"),
    ],
)
def test_fields_that_change_the_computation_are_refused(name: str, fields: dict[str, Any], message: str) -> None:
    config = reference(name).config.to_dict()
    with pytest.raises(UnsupportedModelError, match=message):
        FAMILIES["hf", name].to_spec(config | fields)
