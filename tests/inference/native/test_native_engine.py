"""The engine on the native kernel: company, chunks and caches change no bit, adapters and stored blocks reach it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import transformers
from tests.inference.mixtures import random_prompt
from tests.tiny import write_tiny_base

from bedplate.adapters.linear_adapter import MAGNITUDE
from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.modules import block_linears
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Generate, Generation, Grammar, Sampling, Score, Scores
from bedplate.inference.engine.requests.generate import Drafter
from bedplate.inference.execution.plan import Weights
from bedplate.inference.forward import native
from bedplate.inference.forward.native import NativeForward
from bedplate.inference.native.library import load
from bedplate.inference.native.packed_weights import NativeDecoder
from bedplate.inference.predict.opening import OpenOptions, open_base
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.models.checkpoints.export import export_gguf

SIZES = {"hidden_size": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "feedforward_size": 96}
FORMATS: tuple[Weights, ...] = ("bfloat16", "int8", "int4")
LORA = LoraConfig(r=4, alpha=8.0)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if isinstance(load(), str):
        pytest.skip(f"NATIVE KERNEL NOT TESTED: {load()}")
    return write_tiny_base(tmp_path_factory.mktemp("native") / "tiny", dtype=torch.bfloat16, **SIZES)


@pytest.fixture(scope="module")
def base(directory: Path) -> Base:
    return load_base(directory)


def adapter(base: Base, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for path, linear in block_linears(base.model).items():
        tensors[f"{path}.lora_A"] = torch.randn(4, linear.in_features, generator=generator) * 0.2
        tensors[f"{path}.lora_B"] = torch.randn(linear.out_features, 4, generator=generator) * 0.2
    return tensors


def load_one(engine: Engine, key: str, seed: int) -> None:
    """Every other one has magnitudes."""
    tensors, config = adapter(engine.base, seed), LORA
    if seed % 2:
        config = LORA.model_copy(update={"dora": True})
        for path, linear in block_linears(engine.base.model).items():
            norms = linear.weight.float().norm(dim=1)
            draw = torch.randn(norms.shape, generator=torch.Generator().manual_seed(seed))
            tensors[f"{path}.{MAGNITUDE}"] = norms * (1 + 0.2 * draw)
    engine.load_adapter(key, config, tensors)


def requests() -> list[Generate | Score]:
    keys = (None, "a", "b", None, "c")
    batch: list[Generate | Score] = []
    for i in range(20):
        tokens, key = random_prompt(i // 3, 4 + 9 * (i % 6)), keys[i % 5]
        drawn = Sampling(max_tokens=9, temperature=0.9, seed=i, ignore_eos=True)
        batch.append(Generate(tokens, Sampling(max_tokens=12, ignore_eos=True), adapter=key))
        batch.append(Generate(tokens, drawn, adapter=key, tenant="t"))
        batch.append(Score(tokens, ((5,), (6, 7, 8)), adapter=key))
    return batch


def numbers(result: Any) -> tuple[Any, ...]:
    if isinstance(result, Scores):
        return result.totals
    generation = cast(Generation, result)
    return (*generation.token_ids, *generation.logprobs)


@pytest.mark.parametrize("weights", FORMATS)
def test_every_answer_is_bit_for_bit_that_of_the_request_alone(base: Base, weights: Weights) -> None:
    with Engine(base, weights=weights, kernel="native", adapters=3, cache_bytes=0) as engine:
        assert (engine.kernel, engine.weights) == ("native", weights)
        for seed, key in enumerate("abc"):
            load_one(engine, key, seed)
        alone = [numbers(engine.run([request])[0]) for request in requests()]
    assert len(set(alone)) > 40
    for settings in ({"max_step_tokens": 7, "cache_bytes": 0}, {"max_rows": 3}, {"speculate": False}):
        with Engine(base, weights=weights, kernel="native", adapters=3, **settings) as engine:
            for seed, key in enumerate("abc"):
                load_one(engine, key, seed)
            assert [numbers(result) for result in engine.run(requests())] == alone
            # And once more, with what the first run left in the prefix cache.
            assert [numbers(result) for result in engine.run(requests())] == alone


LIKELIEST = (Sampling(max_tokens=19, ignore_eos=True), Sampling(max_tokens=9, logprobs=0, stop=("zz",), top_k=3))
FULL_LOGITS = (
    Sampling(max_tokens=4, logprobs=2),
    Sampling(max_tokens=4, repetition_penalty=1.3),
    Sampling(max_tokens=4, presence_penalty=0.5),
    Sampling(max_tokens=4, logit_bias=((7, 100.0),)),
    Sampling(max_tokens=4, min_tokens=2),
    Sampling(max_tokens=4, temperature=0.7, seed=3),
)


def test_logits_are_written_only_where_more_than_the_likeliest_token_is_asked_for(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one row of a pass; the others are answered the same."""
    logits_flags: list[bool] = []
    whole, forward = False, NativeDecoder.forward

    def spied(self: NativeDecoder, *arguments: Any, keep_logits: bool, **settings: Any) -> Any:
        if arguments[5]:
            logits_flags.append(keep_logits)
        return forward(self, *arguments, keep_logits=keep_logits or whole, **settings)

    monkeypatch.setattr(NativeDecoder, "forward", spied)
    tokens = random_prompt(1, 12)
    greedy = [Generate(tokens * (1 + i), sampling) for i, sampling in enumerate(LIKELIEST)]
    full_requests: list[Generate | Score] = [Generate(tokens, sampling) for sampling in FULL_LOGITS]
    full_requests += [Generate(tokens, LIKELIEST[0], Grammar("regex", "[ab]{3}")), Score(tokens, ((5,), (6, 7)))]
    full_requests += [Generate(tokens, Sampling(max_tokens=0, prompt_logprobs=1))]
    with Engine(base, kernel="native", cache_bytes=0) as engine:
        generations = [cast(Generation, result) for result in engine.run(greedy)]
        alone = [numbers(generation) for generation in generations]
        texts = {
            len(request.tokens): generation.token_ids for request, generation in zip(greedy, generations, strict=True)
        }

        def guessed(drafter: Drafter, limit: int) -> list[int]:
            """What comes next, but for every fifth token."""
            begin = len(drafter._prompt)
            at = len(drafter._tokens) - begin
            continuation = texts.get(begin, ())[at : at + limit]
            return [(token + (i % 5 == 4)) % 320 for i, token in enumerate(continuation, at)]

        monkeypatch.setattr(Drafter, "draft", guessed)
        assert [numbers(result) for result in engine.run(greedy)] == alone
        assert engine.stats().accepted
        assert logits_flags
        assert not any(logits_flags)
        for full_request in full_requests:
            logits_flags.clear()
            engine.run([full_request])
            assert logits_flags
            assert all(logits_flags)
        logits_flags.clear()
        mixed = engine.run([*greedy, full_requests[0]])
        assert {True, False} == set(logits_flags)
        assert [numbers(result) for result in mixed[: len(greedy)]] == alone
        whole = True
        assert [numbers(result) for result in engine.run(greedy)] == alone


def test_bfloat16_is_transformers_model_of_the_same_weights(base: Base, directory: Path) -> None:
    reference: Any = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with Engine(base, kernel="native") as engine:
        for seed in range(3):
            tokens = random_prompt(seed, 60)
            [generation] = engine.run([Generate(tokens, Sampling(max_tokens=1, prompt_logprobs=0))])
            with torch.inference_mode():
                expected = reference(torch.tensor([tokens])).logits[0, :-1].log_softmax(-1)
            theirs = expected.gather(1, torch.tensor(tokens)[1:, None])[:, 0].numpy()
            ours = np.array(cast(Generation, generation).prompt_logprobs[1:], dtype=np.float64)
            assert np.abs(ours - theirs).mean() < 0.02 * theirs.std()


def test_an_adapter_unloaded_and_loaded_anew_is_the_new_one(base: Base) -> None:
    request = Generate(random_prompt(1, 30), Sampling(max_tokens=12, ignore_eos=True), adapter="a")
    with Engine(base, kernel="native", adapters=1) as engine:
        outputs: list[tuple[Any, ...]] = []
        for seed in (0, 1, 0):
            engine.load_adapter("a", LORA, adapter(base, seed))
            outputs.append(numbers(engine.run([request])[0]))
            engine.unload_adapter("a")
    assert outputs[0] == outputs[2] != outputs[1]


@pytest.mark.parametrize(("ggml_type", "weights"), [("q4_1", "int4"), ("q8_0", "int8"), ("q5_0", "int4")])
def test_what_the_kernel_reads_itself_is_left_in_the_file_until_torch_is_asked(
    base: Base, tmp_path: Path, ggml_type: str, weights: Weights
) -> None:
    path = tmp_path / "tiny.gguf"
    export_gguf(base, path, ggml_type)
    request = Generate(random_prompt(1, 20), Sampling(max_tokens=8, ignore_eos=True, logprobs=2))
    with Engine(load_base(path, dtype="bfloat16"), weights=weights) as engine:
        expected, tensors = numbers(engine.run([request])[0]), adapter(engine.base, 0)
        engine.load_adapter("a", LORA, tensors)
        adapted = numbers(engine.run([replace(request, adapter="a")])[0])
    with open_base(path, OpenOptions(weights=weights)).model() as model:
        engine, outline = model.engine, model.base.raw_model
        waiting = {name for name, p in outline.named_parameters() if p.is_meta}
        assert waiting == {f"{name}.weight" for name in block_linears(outline)}
        assert numbers(engine.run([request])[0]) == expected
        assert waiting == {name for name, p in outline.named_parameters() if p.is_meta}
        engine.load_adapter("a", LORA, tensors)
        assert not any(p.is_meta for p in outline.parameters())
        assert numbers(engine.run([replace(request, adapter="a")])[0]) == adapted
        assert numbers(engine.run([request])[0]) == expected
    with open_base(path, OpenOptions(weights=weights)).model() as model:
        assert np.isfinite(model.logits([1, 2, 3])).all()
        assert not any(p.is_meta for p in model.base.raw_model.parameters())


@pytest.mark.parametrize(("ggml_type", "weights", "bits"), [("q4_1", "int4", 4), ("q8_0", "int8", 8)])
def test_a_ggufs_own_blocks_are_what_the_kernel_reads(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ggml_type: str, weights: Weights, bits: int
) -> None:
    path = tmp_path / "tiny.gguf"
    export_gguf(base, path, ggml_type)
    passed_blocks: dict[str, Any] = {}

    class Spied(native.NativeDecoder):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            passed_blocks.update(settings["blocks"])
            super().__init__(*arguments, **settings)

    monkeypatch.setattr(native, "NativeDecoder", Spied)
    with Engine(load_base(path, dtype="bfloat16"), weights=weights) as engine:
        assert isinstance(engine._forward, NativeForward)
        assert {f"{name}.weight" for name in block_linears(base.model)} <= passed_blocks.keys()
        assert {blocks.bits for name, blocks in passed_blocks.items() if name.startswith("layers.")} == {bits}
        assert engine.run([Generate(random_prompt(1, 20), Sampling(max_tokens=4, ignore_eos=True))])
