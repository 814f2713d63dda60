"""What differs between two skins on disk, and by how much."""

import dataclasses
import json

import torch

from bedplate.adaptation.postprocess.reproduce import compare_skins
from bedplate.skins.files import read_skin, write_skin
from bedplate.skins.skin import LoraPart


def written(skin, directory):
    return read_skin(write_skin(skin, directory, {"report.json": json.dumps({"in": str(directory)}).encode()}))


def differing(old, new):
    return {part.name: part.largest for part in compare_skins(old, new) if not part.equal}


def test_what_is_no_part_of_what_a_skin_does_is_left_out(tmp_path, lora_skin):
    moved = dataclasses.replace(
        lora_skin,
        bases={"main": lora_skin.base.model_copy(update={"name": "/elsewhere"})},
        provenance=lora_skin.provenance.model_copy(update={"parents": ("a" * 64,)}),
    )
    parts = compare_skins(written(lora_skin, tmp_path / "a"), written(moved, tmp_path / "b"))
    assert all(part.equal for part in parts)
    assert {part.name for part in parts} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "demonstrations.jsonl",
        "prompt.jinja",
        "skin.json",
        "the main base",
    }


def test_numbers_are_measured_and_anything_else_is_named(tmp_path, lora_skin):
    old = written(lora_skin, tmp_path / "old")
    assert lora_skin.lora is not None
    first = next(iter(lora_skin.lora.tensors))
    tensors = {name: tensor.clone().float() for name, tensor in lora_skin.lora.tensors.items()}
    tensors[first].view(-1)[0] += 0.25
    tensors[first].view(-1)[1] -= 0.125
    bias = lora_skin.output.bias
    close = dataclasses.replace(
        lora_skin,
        lora=LoraPart(lora_skin.lora.config, tensors),
        output=lora_skin.output.model_copy(update={"bias": (bias[0], bias[1] + 0.5)}),
    )
    assert differing(old, written(close, tmp_path / "close")) == {"adapter_model.safetensors": 0.25, "skin.json": 0.5}

    r = lora_skin.lora.config.r * 2
    doubled = {
        name: torch.cat([tensor, tensor], 0 if name.endswith("lora_A") else 1) for name, tensor in tensors.items()
    }
    wider = dataclasses.replace(lora_skin, lora=LoraPart(lora_skin.lora.config.model_copy(update={"r": r}), doubled))
    differences = differing(old, written(wider, tmp_path / "wide"))
    assert differences == {"adapter_config.json": None, "adapter_model.safetensors": None, "skin.json": None}

    template = f"Now {lora_skin.prompt.template}"
    reworded = dataclasses.replace(lora_skin, prompt=dataclasses.replace(lora_skin.prompt, template=template))
    assert differing(old, written(reworded, tmp_path / "said")) == {"prompt.jinja": None}
    rebased = dataclasses.replace(lora_skin, bases={"main": lora_skin.base.model_copy(update={"weights_id": "f" * 64})})
    assert differing(old, written(rebased, tmp_path / "other")) == {"the main base": None}


def test_files_that_one_lacks(tmp_path, lora_skin):
    plain = dataclasses.replace(lora_skin, lora=None)
    differences = differing(written(lora_skin, tmp_path / "a"), written(plain, tmp_path / "b"))
    assert differences.keys() == {
        "adapter_config.json (only one has it)",
        "adapter_model.safetensors (only one has it)",
        "skin.json",
    }
