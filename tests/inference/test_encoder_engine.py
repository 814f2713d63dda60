"""Encoders in the engine: texts packed in any company, padded nowhere, and adapters beside each other, against passes
of one text alone and against peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from tests.encoders import ENCODERS
from tests.near import assert_near

from bedplate.adapters.modules import block_linears
from bedplate.adapters.peft import peft_files, read_peft
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Embed
from bedplate.models.checkpoints.base import load_base

LENGTHS = (3, 41, 3, 17, 3, 60, 41, 1, 17, 2)


def texts() -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(0)
    return [tuple(torch.randint(5, 97, (length,), generator=generator).tolist()) for length in LENGTHS]


def states(reference: Any, ids: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad():
        return reference(torch.tensor([ids])).last_hidden_state[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta", "modernbert"])
def test_texts_in_company_are_texts_alone(tmp_path: Path, name: str, dtype: str) -> None:
    reference = ENCODERS[name].random_model(0, torch.float32)
    reference.save_pretrained(tmp_path)
    token_lists = texts()
    expected = torch.stack([states(reference, ids).mean(0) for ids in token_lists])
    tolerance = 1e-5 if dtype == "float32" else 0.05
    with Engine(load_base(tmp_path, dtype)) as engine:
        requests = [Embed(ids, normalise=False) for ids in token_lists]
        assert_near([result.vector for result in engine.run(requests)], expected, rel=tolerance)
        streams = [engine.submit(request) for request in requests]  # in another order and company
        assert_near([stream.result(timeout=60).vector for stream in streams], expected, rel=tolerance)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_of_peft_beside_each_other(tmp_path: Path) -> None:
    """What peft saved of an encoder is read, serves rows of a batch, and is written as peft reads it again."""
    reference = ENCODERS["bert"].random_model(0, torch.float32)
    reference.save_pretrained(tmp_path / "base")
    base = load_base(tmp_path / "base")
    token_lists = texts()
    expected: dict[str | None, list[torch.Tensor]] = {None: [states(reference, ids).mean(0) for ids in token_lists]}
    loaded: dict[str, Any] = {}
    for key, targets in (("a", ["query", "value"]), ("b", ["query", "key", "value", "dense"])):
        torch.manual_seed(len(targets))
        fresh = type(reference).from_pretrained(tmp_path / "base")
        tuned = get_peft_model(fresh, PeftConfig(r=4, target_modules=targets, exclude_modules=["pooler.dense"]))
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(std=0.3)
        tuned.save_pretrained(tmp_path / key)
        expected[key] = [states(tuned.eval(), ids).mean(0) for ids in token_lists]
        loaded[key] = read_peft(tmp_path / key, base.family.weights, block_linears(base.model))
    with Engine(base) as engine:
        for key, (config, tensors) in loaded.items():
            engine.load_adapter(key, config, tensors)
        keys = [("a", "b", None)[number % 3] for number in range(len(token_lists))]
        requests = [Embed(ids, normalise=False, adapter=key) for ids, key in zip(token_lists, keys, strict=True)]
        vectors = [result.vector for result in engine.run(requests)]
    assert_near(vectors, torch.stack([expected[key][number] for number, key in enumerate(keys)]), rel=1e-5)
    config, tensors = loaded["b"]
    files = peft_files(config, tensors, base.family.weights, base_name="base", task_type="FEATURE_EXTRACTION")
    (tmp_path / "ours").mkdir()
    for name, content in files.items():
        (tmp_path / "ours" / name).write_bytes(content)
    ours = PeftModel.from_pretrained(type(reference).from_pretrained(tmp_path / "base"), tmp_path / "ours").eval()
    assert_near(states(ours, token_lists[1]).mean(0), expected["b"][1], rel=1e-6)
