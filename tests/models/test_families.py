"""Rules of weights are invertible, name what is missing or left over; a family is one file and one row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.encoders import ENCODERS
from tests.encoders import converted as encoder_of
from tests.models.toy_family import TOY
from tests.near import assert_near
from tests.references import reference_bert
from tests.tiny import tiny_spec, write_tiny_base
from torch import Tensor
from transformers import AutoConfig

from bedplate.core.errors import CheckpointError, UnsupportedModelError
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Generate, Sampling
from bedplate.models.build import build
from bedplate.models.checkpoints.base import load_base
from bedplate.models.checkpoints.conversion import read_parameters, write_parameters
from bedplate.models.checkpoints.export import export_base, export_gguf
from bedplate.models.families import FAMILIES, Family, in_format
from bedplate.models.families.weights import (
    Change,
    Rule,
    WeightMap,
    fused,
    interleaved,
    renamed,
    stack,
    transpose,
    transposed,
    unstack,
)
from bedplate.models.specs.transformer import Experts, TransformerSpec

SIZES = st.integers(1, 9)


def random_tensors(*shapes: Sequence[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(map(sum, shapes)))
    return [torch.randn(*shape, generator=generator) for shape in shapes]


def assert_inverse(rule: Rule, spec: TransformerSpec, ours: list[Tensor]) -> list[Tensor]:
    """Forward, then inverse, gives what there was, bit for bit, in memory of its own; what it was in between."""
    theirs = list(rule.forward(ours, spec))
    restored = rule.inverse(theirs, spec)
    assert len(restored) == len(ours)
    for a, b in zip(ours, restored, strict=True):
        assert torch.equal(a, b)
    return theirs


# --- changes


@settings(max_examples=50, deadline=None)
@given(SIZES, SIZES, SIZES, SIZES, st.booleans())
def test_fused_projections(groups: int, shared: int, head: int, width: int, bias: bool) -> None:
    spec = tiny_spec(rope=None, heads=groups * shared, kv_heads=groups, head_dim=head, hidden_size=width)
    rows = (spec.attention.heads * head, groups * head, groups * head)
    rule = fused(
        ("q", "k", "v"),
        "qkv",
        lambda s: (s.attention.heads * s.attention.head_dim, *2 * (s.attention.kv_heads * s.attention.head_dim,)),
    )
    ours = random_tensors(*((n,) if bias else (n, width) for n in rows))
    (whole,) = assert_inverse(rule, spec, ours)
    assert torch.equal(whole, torch.cat(ours))
    with pytest.raises(CheckpointError, match=f"{sum(rows) + 1} rows cannot be cut"):
        rule.inverse(random_tensors((sum(rows) + 1, width)), spec)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), SIZES, SIZES)
def test_stacked_experts(experts: int, rows: int, columns: int) -> None:
    rule = Rule(("experts.{e}.up",), ("experts",), stack, unstack)
    ours = random_tensors(*[(rows, columns)] * experts)
    (whole,) = assert_inverse(rule, tiny_spec(), ours)
    assert torch.equal(whole, torch.stack(ours))
    assert_inverse(Rule(("experts",), ("experts.{e}.up",), unstack, stack), tiny_spec(), [whole])


@settings(max_examples=50, deadline=None)
@given(SIZES, SIZES, st.integers(0, 3))
def test_transposes(rows: int, columns: int, experts: int) -> None:
    shape = (experts, rows, columns) if experts else (rows, columns)
    (theirs,) = assert_inverse(transposed("a", "b"), tiny_spec(), random_tensors(shape))
    assert torch.equal(theirs, random_tensors(shape)[0].mT)
    assert theirs.is_contiguous()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.booleans())
def test_interleaved_rotary_pairs(heads: int, half: int, width: int, bias: bool) -> None:
    spec = tiny_spec(heads=heads, kv_heads=heads, head_dim=2 * half)
    shape = (heads * 2 * half,) if bias else (heads * 2 * half, width)
    (theirs,) = assert_inverse(interleaved("a", "b", lambda s: s.attention.heads), spec, random_tensors(shape))
    ours = random_tensors(shape)[0]
    for head in range(heads):
        for i in range(half):
            at = head * 2 * half
            assert torch.equal(theirs[at + 2 * i], ours[at + i])
            assert torch.equal(theirs[at + 2 * i + 1], ours[at + half + i])


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))
def test_changes_one_after_the_other(experts: int, rows: int, columns: int) -> None:
    """Experts whose matrices stand side by side in one tensor that is multiplied from the other side."""

    def chain(*changes: Change) -> Change:
        def apply(tensors: Sequence[Tensor], spec: TransformerSpec) -> Sequence[Tensor]:
            for change in changes:
                tensors = change(tensors, spec)
            return tensors

        return apply

    rule = Rule(("e.{e}",), ("e",), chain(transpose, stack), chain(unstack, transpose))
    (whole,) = assert_inverse(rule, tiny_spec(), random_tensors(*[(rows, columns)] * experts))
    assert whole.shape == (experts, columns, rows)


# --- rules


MIXED = WeightMap(
    rules=(
        renamed("a.{i}.w", "x.{i}.weight"),
        renamed("a.{i}.{e}.w", "x.{i}.expert.{e}.weight"),
        Rule(("a.{i}.{e}.up", "a.{i}.{e}.gate"), ("x.{i}.both",), stack, unstack),
        Rule(("every",), ("x.{i}.{e}.part",), unstack, stack),
    )
)


def test_an_index_of_one_side_stands_for_all_its_numbers() -> None:
    steps = list(MIXED.steps(tiny_spec(layers=2, experts=Experts(3, 1, 8))))
    assert [(step.ours, step.theirs) for step in steps if step.rule is MIXED.rules[0]] == [
        (("a.0.w",), ("x.0.weight",)),
        (("a.1.w",), ("x.1.weight",)),
    ]
    assert len([step for step in steps if step.rule is MIXED.rules[1]]) == 6
    assert [(step.ours, step.theirs) for step in steps if step.rule is MIXED.rules[2]][1] == (
        ("a.1.0.up", "a.1.1.up", "a.1.2.up", "a.1.0.gate", "a.1.1.gate", "a.1.2.gate"),
        ("x.1.both",),
    )
    (last,) = [step for step in steps if step.rule is MIXED.rules[3]]
    assert last.theirs == tuple(f"x.{i}.{e}.part" for i in range(2) for e in range(3))
    without = {step.rule for step in MIXED.steps(tiny_spec(layers=2)) if "{e}" not in "".join(step.rule.ours)}
    assert MIXED.rules[0] in without


def test_names_that_stand_for_each_other_alone_are_translated() -> None:
    for ours, theirs in (("a.12.w", "x.12.weight"), ("a.3.10.w", "x.3.expert.10.weight")):
        assert MIXED.to_external(ours) == theirs
        assert MIXED.from_external(theirs) == ours
    for name in ("a.1.0.up", "every", "a.x.w", "a.1.w.w"):
        assert MIXED.to_external(name) is None
    assert MIXED.from_external("x.1.both") is None


ENCODER_DECODERS = [("hf", "t5"), ("hf", "bart"), ("hf", "marian")]


@pytest.mark.parametrize("key", FAMILIES)
def test_every_familys_rules_are_one_to_one_and_invertible(key: tuple[str, str]) -> None:
    family = FAMILIES[key]
    encoders = {encoder.random_model(0, torch.float32).config.model_type: encoder for encoder in ENCODERS.values()}
    if key in ENCODER_DECODERS:
        spec = family.to_spec(family.examples[0])
        family = family.of(spec)
    elif key[1] in encoders:
        spec = encoder_of(encoders[key[1]].random_model(0, torch.float32), torch.float32)[0].spec
    else:  # a GGUF architecture's examples are configurations of its partner
        theirs = in_format(family, "hf")
        assert theirs is not None
        spec = theirs.to_spec(AutoConfig.for_model(family.name, **family.examples[0]).to_dict())
    # of several ways to store the same parameters, the one that is written
    steps = list({step.ours: step for step in reversed(list(family.weights.steps(spec)))}.values())
    model = build(spec)
    parameters = model.state_dict()
    for side in (0, 1):
        names = [name for step in steps if parameters.keys() >= set(step.ours) for name in step[side]]
        assert len(names) == len(set(names))
    stored = dict(write_parameters(family, spec, parameters))
    restored = dict(read_parameters(family, spec, list(stored), stored.__getitem__, parameters, "here"))
    assert restored.keys() == parameters.keys()
    for name, value in parameters.items():  # a vector that is stored with 1 added loses what is finer than that
        torch.testing.assert_close(restored[name], value, atol=1e-7 if key[0] == "gguf" else 0, rtol=0)


def test_partners_are_each_others_and_are_there() -> None:
    for key, family in FAMILIES.items():
        assert family.key == key
        for partner in family.partners:
            assert key in FAMILIES[partner].partners
            # of several (Mistral's files are llama's in GGUF) the first is what it is written as, and called
            first = next(candidate for candidate in family.partners if candidate[0] == partner[0])
            assert in_format(family, partner[0]) is FAMILIES[first]
            if in_format(FAMILIES[partner], key[0]) is family and in_format(family, partner[0]) is FAMILIES[partner]:
                assert FAMILIES[partner].name == family.name
        assert in_format(family, key[0]) is family
        assert in_format(family, "no such format") is None


def test_a_partner_may_have_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read as one name in one format is written as its partner's in the other."""
    theirs, llama = FAMILIES["gguf", "llama"], FAMILIES["hf", "llama"]
    alias = Family(("gguf", "other"), theirs.to_spec, theirs.to_config, theirs.weights, (("hf", "llama"),))
    monkeypatch.setitem(FAMILIES, ("gguf", "other"), alias)
    moved = Family(llama.key, llama.to_spec, llama.to_config, llama.weights, (("gguf", "other"),))
    monkeypatch.setitem(FAMILIES, ("hf", "llama"), moved)
    base = load_base(write_tiny_base(tmp_path / "a"))
    export_gguf(base, tmp_path / "x.gguf", "f32")
    reloaded = load_base(tmp_path / "x.gguf", dtype="float32")
    assert reloaded.family.key == ("gguf", "other")
    assert reloaded.family.name == "llama"
    export_base(reloaded, tmp_path / "b")
    assert load_base(tmp_path / "b").identity.weights_id == base.identity.weights_id


# --- what is missing, and what is left over


def test_missing_and_left_over_tensors_are_named(tmp_path: Path) -> None:
    directory = write_tiny_base(tmp_path / "a")
    file = directory / "model.safetensors"
    tensors = load_file(file)
    lost = ["model.layers.0.mlp.up_proj.weight", "model.norm.weight"]
    for name in lost:
        tensors[f"{name}.renamed"] = tensors.pop(name)
    save_file(tensors, file)
    with pytest.raises(CheckpointError) as raised:
        load_base(directory)
    for name in lost:
        assert f"'{name}'" in str(raised.value)
        assert f"'{name}.renamed'" in str(raised.value)
    assert "(2 missing, 2 surplus)" in str(raised.value)


def test_a_missing_expert_is_named() -> None:
    spec = tiny_spec(layers=1, experts=Experts(3, 1, 8))
    toy = Family(
        ("hf", "stacked"),
        TOY.to_spec,
        TOY.to_config,
        WeightMap((Rule(("layers.{i}.up",), ("model.{i}.{e}.up",), unstack, stack),)),
    )
    parameters = {"layers.0.up": torch.zeros(3, 4, 5)}
    stored = dict(
        zip(("model.0.0.up", "model.0.1.up", "model.0.2.up"), random_tensors((4, 5), (4, 5), (4, 5)), strict=True)
    )
    loaded = dict(read_parameters(toy, spec, list(stored), stored.__getitem__, parameters, "here"))
    assert torch.equal(loaded["layers.0.up"], torch.stack(list(stored.values())))
    last = stored.pop("model.0.2.up")
    with pytest.raises(CheckpointError, match=r"lacks 'model\.0\.2\.up' \(1 missing, 0 surplus\)"):
        dict(read_parameters(toy, spec, list(stored), stored.__getitem__, parameters, "here"))
    stored |= {"model.0.2.up": last, "model.0.3.up": last}
    with pytest.raises(CheckpointError, match=r"holds 'model\.0\.3\.up', for which .* \(0 missing, 1 surplus\)"):
        dict(read_parameters(toy, spec, list(stored), stored.__getitem__, parameters, "here"))
    with pytest.raises(CheckpointError, match=r"'layers\.0\.down' has no name in the hf stacked family"):
        dict(read_parameters(toy, spec, list(stored), stored.__getitem__, parameters | {"layers.0.down": last}, "here"))


def test_the_same_tensor_under_two_names_is_left_over(tmp_path: Path) -> None:
    reference_bert(0).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["bert.pooler.dense.bias"] = tensors["pooler.dense.bias"].clone()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"pooler\.dense\.bias', for which the config has no place"):
        load_base(tmp_path)


def test_one_rule_is_converted_at_a_time() -> None:
    """Nothing is read before it is asked for, and the tensors of one rule alone."""
    spec = tiny_spec(layers=2)
    model = build(spec)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    stored = dict(write_parameters(TOY, spec, parameters))
    read: list[str] = []

    def get(name: str) -> Tensor:
        read.append(name)
        return stored[name]

    loading = read_parameters(TOY, spec, list(stored), get, parameters, "here")
    assert next(loading)[0] == "embedding.weight"
    assert read == ["toy.tokens"]
    assert next(loading)[0] == "layers.0.attention_norm.weight"
    assert [next(loading)[0] for _ in range(3)] == [f"layers.0.attention.{name}.weight" for name in "qkv"]
    assert read == ["toy.tokens", "toy.0.norm.0", "toy.0.attention.qkv"]


# --- a family is one file and one row


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_toy_family_loads_exports_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    with pytest.raises(UnsupportedModelError, match="'toy' is not supported"):
        load_base(_toy(tmp_path / "early", dtype))
    monkeypatch.setitem(FAMILIES, TOY.key, TOY)
    directory = _toy(tmp_path / "a", dtype)
    base = load_base(directory)
    assert (base.family, base.dtype) == (TOY, dtype)
    export_base(base, tmp_path / "b", shard_bytes=20_000)
    stored, written = load_file(directory / "model.safetensors"), dict[str, Tensor]()
    for shard in (tmp_path / "b").glob("*.safetensors"):
        written |= load_file(shard)
    assert written.keys() == stored.keys()
    assert all(torch.equal(written[name], value) for name, value in stored.items())
    reloaded = load_base(tmp_path / "b")
    assert reloaded.spec == base.spec
    assert reloaded.identity == base.identity
    with pytest.raises(CheckpointError, match="toy family cannot be written as gguf"):
        export_gguf(base, tmp_path / "x.gguf", "f32")
    # The same weights in another family give the same text.
    request = Generate(tuple(range(5, 25)), Sampling(max_tokens=12, ignore_eos=True))
    outputs = []
    for path in (directory, tmp_path / "a-llama"):
        with Engine(load_base(path, dtype="float32")) as engine:
            [result] = engine.run([request])
            outputs.append((result.token_ids, result.logprobs))
    assert outputs[0][0] == outputs[1][0]
    assert_near(torch.tensor(outputs[0][1]), torch.tensor(outputs[1][1]))


def _toy(directory: Path, dtype: torch.dtype) -> Path:
    """A directory of the toy family, written by hand from a llama's tensors."""
    theirs = load_file(
        write_tiny_base(directory.with_name(f"{directory.name}-llama"), dtype=dtype) / "model.safetensors"
    )
    spec = tiny_spec()
    tensors = {"toy.tokens": theirs["model.embed_tokens.weight"], "toy.norm": theirs["model.norm.weight"]}
    for i in range(spec.layers):
        layer = f"model.layers.{i}"
        tensors |= {
            f"toy.{i}.attention.qkv": torch.cat([theirs[f"{layer}.self_attn.{n}_proj.weight"] for n in "qkv"]),
            f"toy.{i}.attention.out": theirs[f"{layer}.self_attn.o_proj.weight"],
            f"toy.{i}.feedforward.in": torch.stack([theirs[f"{layer}.mlp.{n}_proj.weight"] for n in ("gate", "up")]),
            f"toy.{i}.feedforward.out": theirs[f"{layer}.mlp.down_proj.weight"].t().contiguous(),
            f"toy.{i}.norm.0": theirs[f"{layer}.input_layernorm.weight"],
            f"toy.{i}.norm.1": theirs[f"{layer}.post_attention_layernorm.weight"],
        }
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    (directory / "config.json").write_text(json.dumps(TOY.to_config(spec)))
    return directory
