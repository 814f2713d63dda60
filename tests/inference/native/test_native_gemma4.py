"""Gemma 4's text models in the kernel: transformers' numbers, in company those of the request alone, and blocks of GGUF
files as they lie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tests.inference.native.native_models import Cache, logits, some_tokens, wanted_logits
from tests.inference.native.test_native_engine import adapter
from tests.inference.test_every_family import GROWING, numbers, requests
from tests.made import made_base
from tests.near import assert_near

from bedplate.adapters.lora import LoraConfig
from bedplate.inference.engine import prefix_store, runner
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Embed, Generate, Generation, Result, Sampling
from bedplate.inference.execution.choice import left_in_file, stored_blocks
from bedplate.inference.execution.plan import ExecutionPlan
from bedplate.inference.forward.kv_cache import SlotCache
from bedplate.inference.measure.parity import reference_of
from bedplate.inference.native.description import matrices
from bedplate.inference.native.library import load
from bedplate.inference.native.packed_weights import NativeDecoder, unsupported
from bedplate.models.checkpoints.base import load_base
from bedplate.models.checkpoints.conversion import write_parameters
from bedplate.models.checkpoints.gguf import write_gguf
from bedplate.models.decoder import Decoder
from bedplate.models.families import FAMILIES, Family
from bedplate.models.specs.parts import SharedKeys
from bedplate.models.specs.transformer import FullAttention, TransformerSpec

pytestmark = pytest.mark.skipif(isinstance(load(), str), reason=f"no native kernel here: {load()}")
FAMILY, GGUF = FAMILIES["hf", "gemma4_text"], FAMILIES["gguf", "gemma4"]
WHOLE = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96, "head_dim": 16, "global_head_dim": 32}
SIZES = ({**WHOLE, "hidden_size_per_layer_input": 32}, {**WHOLE, "moe_intermediate_size": 32})
"""Whole blocks, of the family's examples: shared keys, and inputs for every layer; keys as values, and experts."""


def spec_of(number: int, family: Family = FAMILY) -> TransformerSpec:
    spec = FAMILY.to_spec({**family.examples[number], **SIZES[number]})
    assert isinstance(spec, TransformerSpec)
    return spec


def result_values(result: Result) -> tuple[Any, ...]:
    return (*(result.token_ids if isinstance(result, Generation) else ()), *numbers(result))


@pytest.mark.parametrize("number", [0, 1])
def test_numbers_are_those_of_transformers(number: int, tmp_path: Path) -> None:
    reference: Any = reference_of(FAMILY, {**FAMILY.examples[number], **SIZES[number]}, 0)
    reference.save_pretrained(tmp_path)
    base = load_base(tmp_path)
    tokens = some_tokens(60, spec_of(number))
    with torch.inference_mode():
        expected = reference(torch.tensor([tokens])).logits[0].log_softmax(-1)[:-1]
    with Engine(base, kernel="native") as engine:
        assert (engine.kernel, engine.weights) == ("native", "float32")
        [generation] = engine.run([Generate(tuple(tokens), Sampling(max_tokens=1, prompt_logprobs=0))])
    ours = cast(Generation, generation).prompt_logprobs or ()
    assert_near(ours[1:], expected.gather(1, torch.tensor(tokens)[1:, None])[:, 0])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"layer_input_size": 48}, "layer_input_size is 48"),
        ({"full": FullAttention(24)}, "head_dim is 24, and the native path needs a multiple of 16 up to 512"),
        ({"full": FullAttention(528)}, "head_dim is 528"),
        ({"shared_keys": SharedKeys(2, 80)}, "feedforward_size is 80"),
        ({"heads": 130, "full": FullAttention(32, 1)}, "more than 64 query heads share one key-value head"),
    ],
)
def test_sizes_of_some_layers_alone_are_refused(changes: dict[str, Any], reason: str) -> None:
    assert unsupported(spec_of(0), torch.float32, torch.device("cpu")) is None
    assert reason in (unsupported(spec_of(0).with_(**changes), torch.float32, torch.device("cpu")) or "")


@pytest.mark.parametrize("number", [0, 1])
def test_company_changes_no_bit(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    base = made_base(spec_of(number), FAMILY)
    *batch, embedded = (replace(request, adapter="a") if i % 2 else request for i, request in enumerate(requests(base)))
    assert isinstance(embedded, Embed)
    batch.append(replace(embedded, pooling="last"))  # means are added up by steps
    monkeypatch.setattr(runner, "HEADROOM", 3)
    monkeypatch.setattr(prefix_store, "SNAPSHOT", 8)

    def opened(**settings: Any) -> Engine:
        engine = Engine(base, kernel="native", adapters=1, **settings)
        engine.load_adapter("a", LoraConfig(r=4, alpha=8.0), adapter(base, 0))
        return engine

    with opened(cache_bytes=0, speculate=False) as engine:
        alone = [engine.run([request])[0] for request in batch]
    with opened(max_step_tokens=13) as engine:
        assert list(map(result_values, engine.run(batch))) == list(map(result_values, alone))
        before = engine.stats().prefix_hits
        assert list(map(result_values, engine.run(batch))) == list(map(result_values, alone))
        assert engine.stats().prefix_hits > before
    little = SlotCache(base.spec, torch.float32, torch.device("cpu"))._bytes([40, 40])
    with opened(slot_bytes=little, speculate=False) as engine:
        results = engine.run([batch[i] for i in GROWING])
        assert list(map(result_values, results)) == [result_values(alone[i]) for i in GROWING]
        assert engine.stats().preemptions > 0


@pytest.mark.parametrize(("number", "ggml_type", "weights"), [(0, "q8_0", "int8"), (1, "q4_0", "int4")])
def test_a_files_blocks_are_used_as_they_lie(number: int, ggml_type: str, weights: Any, tmp_path: Path) -> None:
    """Experts' among them; the model that the kernel is given has no values there. Numbers differ by what activations
    are rounded, but for tokens whose nearly even experts that swaps."""
    spec, path = spec_of(number, GGUF), tmp_path / "x.gguf"
    parameters = write_parameters(GGUF, spec, made_base(spec).model.state_dict(keep_vars=True))
    tables = [(name, torch.tensor(values)) for name, values in GGUF.tables(spec).items()]
    write_gguf(
        path, "gemma4", GGUF.to_config(spec) | {"tokenizer.ggml.model": "none"}, [*tables, *parameters], ggml_type
    )
    part = load_base(path, dtype="float32", leave=left_in_file(ExecutionPlan("float32", "native", weights)))
    model = part.raw_model
    assert isinstance(model, Decoder)
    names = {matrix.name for matrix in matrices(model)}
    assert {name for name, parameter in model.named_parameters() if parameter.is_meta} == names - {"embedding.weight"}
    native, tokens = NativeDecoder(model, weights, blocks=stored_blocks(part), threads=2), some_tokens(60, spec)
    output = logits(Cache(spec, dtype=torch.float32).run(native, [(0, 0, tokens)]))
    whole = load_base(path, dtype="float32").model
    assert isinstance(whole, Decoder)
    expected = wanted_logits(whole, tokens)
    assert ((output - expected).norm(dim=1) / expected.norm(dim=1)).median() < 0.05
