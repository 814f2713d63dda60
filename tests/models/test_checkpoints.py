"""Checkpoints in and out: bitwise round trips, what transformers and the gguf package make of our files, identity."""

from __future__ import annotations

import json
import re
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType
from safetensors.torch import load_file, save_file
from tests.near import assert_near
from tests.references import reference_bert, reference_llama
from tests.tiny import tiny_spec, write_tiny_base

from bedplate.core.errors import CheckpointError, UsageError
from bedplate.core.files import sha256_file
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.models.checkpoints.checkpoint import open_checkpoint
from bedplate.models.checkpoints.export import export_base, export_gguf
from bedplate.models.checkpoints.gguf import WRITABLE, GgufReader, write_gguf
from bedplate.models.families.weights import interleaved
from bedplate.models.inputs import Inputs
from bedplate.models.specs.position import Llama3Scaling
from bedplate.models.specs.transformer import Rope

TEXTS = ["Hello, world!", "  two  spaces\n\ttab", "naïve café 数字 ½ 🙂", "<|im_start|>user\nhi<|im_end|>"]
READABLE = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")


def weights(base: Base) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in base.model.named_parameters()}


def assert_bitwise(a: Base, b: Base) -> None:
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype
        assert torch.equal(value, theirs[name]), name
    assert a.identity.weights_id == b.identity.weights_id


def logits(base: Base, tokens: torch.Tensor) -> torch.Tensor:
    out = base.model(Inputs(tokens)).hidden
    return base.model.head(out.flatten(0, 1)).view(*tokens.shape, -1)


def random_tokens(vocabulary: int) -> torch.Tensor:
    return torch.randint(0, vocabulary, (2, 31), generator=torch.Generator().manual_seed(0))


# --- Hugging Face directories


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_llama_round_trip_is_bitwise_and_transformers_agrees(
    tmp_path: Path, dtype: torch.dtype, tied: bool, sharded: bool
) -> None:
    base = load_base(write_tiny_base(tmp_path / "a", dtype=dtype, tied_head=tied))
    export_base(base, tmp_path / "b", shard_bytes=20_000 if sharded else 10**9)
    assert (tmp_path / "b" / "model.safetensors.index.json").is_file() == sharded
    reloaded = load_base(tmp_path / "b")
    assert_bitwise(base, reloaded)
    assert reloaded.spec == base.spec
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b", dtype="auto").eval()
    assert reference.dtype == dtype
    tokens = random_tokens(base.spec.vocab_size)
    in_float32 = load_base(tmp_path / "b", dtype="float32")
    with torch.inference_mode():
        expected = reference.float()(tokens).logits
    torch.testing.assert_close(logits(in_float32, tokens), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pooler", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bert_round_trip_is_bitwise_and_transformers_agrees(tmp_path: Path, dtype: torch.dtype, pooler: bool) -> None:
    original = reference_bert(0, pooler=pooler).to(dtype)
    original.save_pretrained(tmp_path / "a")
    base = load_base(tmp_path / "a")
    assert base.spec.pooler == pooler
    export_base(base, tmp_path / "b")
    assert_bitwise(base, load_base(tmp_path / "b"))
    reloaded = transformers.BertModel.from_pretrained(tmp_path / "b", dtype="auto", add_pooling_layer=pooler)
    for name, value in original.state_dict().items():
        assert torch.equal(value, reloaded.state_dict()[name]), name
    tokens = random_tokens(base.spec.vocab_size)
    ours = load_base(tmp_path / "b", dtype="float32").model(Inputs(tokens)).hidden
    with torch.inference_mode():
        expected = reloaded.float().eval()(tokens).last_hidden_state
    assert_near(ours, expected)


def test_every_rope_of_transformers_survives_the_export(tmp_path: Path) -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    for i, rope in enumerate(({"rope_type": "linear", "factor": 3.0}, {"rope_type": "llama3", **scaling})):
        original = reference_llama(i, rope_parameters={"rope_theta": 50_000.0, **rope})
        original.save_pretrained(tmp_path / f"a{i}")
        export_base(load_base(tmp_path / f"a{i}"), tmp_path / f"b{i}")
        reloaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / f"b{i}").eval()
        tokens = random_tokens(97)
        with torch.inference_mode():
            assert torch.equal(reloaded(tokens).logits, original(tokens).logits)


def test_exported_tokenizer_gives_transformers_the_same_ids(tmp_path: Path) -> None:
    base = load_base(write_tiny_base(tmp_path / "a"))
    export_base(base, tmp_path / "b")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "b")
    ours = base.need_tokenizer()
    for text in TEXTS:
        assert theirs.encode(text) == ours.encode(text, add_special_tokens=True)
    messages = [{"role": "user", "content": "hi"}]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ours.encode_chat(messages) == expected


def test_a_directory_without_tokenizer_takes_ids_only(tmp_path: Path) -> None:
    base = load_base(write_tiny_base(tmp_path / "a", tokenizer=False))
    assert base.tokenizer is None
    assert logits(base, random_tokens(base.spec.vocab_size)).isfinite().all()
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        base.need_tokenizer()
    export_base(base, tmp_path / "b")
    assert_bitwise(base, load_base(tmp_path / "b"))


def test_base_json_says_who_the_base_is_and_a_changed_weight_is_refused(tmp_path: Path) -> None:
    base = load_base(write_tiny_base(tmp_path / "a"))
    export_gguf(base, tmp_path / "a.gguf", "f32")
    source = load_base(tmp_path / "a.gguf", dtype="float32")
    export_base(source, tmp_path / "b")
    record = json.loads((tmp_path / "b" / "base.json").read_text())
    assert record["equivalent_of"] == sha256_file(tmp_path / "a.gguf")
    for key in ("weights_id", "tokenizer_id", "template_id"):
        assert record[key] == getattr(source.identity, key)
    assert load_base(tmp_path / "b").identity.equivalent_of == record["equivalent_of"]
    path = tmp_path / "b" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"base\.json"):
        load_base(tmp_path / "b")


def test_a_lossy_export_claims_no_equivalence(tmp_path: Path) -> None:
    export_gguf(load_base(write_tiny_base(tmp_path / "a")), tmp_path / "a.gguf", "f32")
    export_base(load_base(tmp_path / "a.gguf", dtype="float32"), tmp_path / "b", dtype="bfloat16")
    record = json.loads((tmp_path / "b" / "base.json").read_text())
    assert record["equivalent_of"] is None
    assert not record["lineage"]["same_values"]
    assert load_base(tmp_path / "b").dtype == torch.bfloat16


def test_existing_and_unwritable_outputs_are_refused(tmp_path: Path) -> None:
    base = load_base(write_tiny_base(tmp_path / "a"))
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "a", tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError):
            export_base(base, out)
    for out in (tmp_path / "file", tmp_path / "file" / "below.gguf"):
        with pytest.raises(UsageError):
            export_gguf(base, out, "f16")
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "file"]


# --- GGUF


def gguf_with(path: Path, ggml_type: str) -> tuple[np.ndarray, int]:
    """A file with one tensor of random but valid blocks (the package cannot quantise the K types)."""
    type_ = GGMLQuantizationType[ggml_type]
    rng = np.random.default_rng(0)
    columns = 512
    if ggml_type in {"F32", "F16"}:
        stored: Any = rng.standard_normal((4, columns)).astype(np.float32 if ggml_type == "F32" else np.float16)
    elif ggml_type.endswith("_K"):
        block, size = gguf.GGML_QUANT_SIZES[type_]
        stored = rng.integers(0, 256, (4, columns // block * size), dtype=np.uint8)
    else:
        stored = gguf.quants.quantize(rng.standard_normal((4, columns)).astype(np.float32), type_)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("blk.0.attn_v.weight", stored, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return gguf.quants.dequantize(stored, type_), columns


@pytest.mark.parametrize("ggml_type", READABLE)
def test_every_readable_type_has_the_gguf_packages_values(tmp_path: Path, ggml_type: str) -> None:
    with np.errstate(all="ignore"):  # random scale bytes can be infinite
        expected, columns = gguf_with(tmp_path / "x.gguf", ggml_type)
        reader = GgufReader(tmp_path / "x.gguf")
        tensor = reader.get("blk.0.attn_v.weight")
    assert reader.types == {"blk.0.attn_v.weight": ggml_type}
    assert tensor.shape == (4, columns)
    assert tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor.numpy(), expected.astype(np.float32))


@pytest.mark.parametrize("ggml_type", WRITABLE)
def test_written_gguf_reads_back_as_quantised(tmp_path: Path, ggml_type: str) -> None:
    values = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    write_gguf(tmp_path / "x.gguf", "llama", {"llama.block_count": 1}, {"w": values, "v": values[0]}.items(), ggml_type)
    reader = GgufReader(tmp_path / "x.gguf")
    stored = gguf.GGMLQuantizationType[ggml_type.upper()]
    expected = gguf.quants.dequantize(gguf.quants.quantize(values.numpy(), stored), stored)
    np.testing.assert_array_equal(reader.get("w").numpy(), expected)
    assert torch.equal(reader.get("v"), values[0])
    assert reader.metadata["llama.block_count"] == 1


@pytest.mark.parametrize("ggml_type", ["f32", "f16", "q8_0"])
def test_gguf_export_means_the_same_to_transformers(tmp_path: Path, ggml_type: str) -> None:
    """The oracle of the permutation of q and k rows and of the header's numbers: a wrong one changes every logit."""
    sizes = {"hidden_size": 64, "heads": 4, "head_dim": 16, "feedforward_size": 96}
    base = load_base(write_tiny_base(tmp_path / "a", **sizes, rope=Rope(300.0), norm_eps=0.3))
    export_gguf(base, tmp_path / "x.gguf", ggml_type)
    ours = load_base(tmp_path / "x.gguf", dtype="float32")
    assert (ours.identity.weights_id == base.identity.weights_id) == (ggml_type == "f32")
    assert ours.identity.tokenizer_id == base.identity.tokenizer_id
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf", dtype=torch.float32).eval()
    tokens = random_tokens(base.spec.vocab_size)
    with torch.inference_mode():
        expected = theirs(tokens).logits
    torch.testing.assert_close(logits(ours, tokens), expected, atol=1e-4, rtol=1e-4)


def test_gguf_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    base = load_base(write_tiny_base(tmp_path / "a", hidden_size=40, heads=5, kv_heads=1))
    with pytest.raises(UsageError, match="do not divide"):
        export_gguf(base, tmp_path / "x.gguf", "q8_0")
    with pytest.raises(UsageError, match="cannot be written"):
        export_gguf(base, tmp_path / "x.gguf", "q4_k")
    reference_bert(0).save_pretrained(tmp_path / "bert")
    with pytest.raises(CheckpointError, match="bert family cannot be written as gguf"):
        export_gguf(load_base(tmp_path / "bert"), tmp_path / "x.gguf", "f16")
    assert not list(tmp_path.glob("x.gguf*"))


def test_a_gguf_export_keeps_llama3s_scaling_and_the_name(tmp_path: Path) -> None:
    rope = Rope(500_000.0, Llama3Scaling(8.0, 1.0, 4.0, 8192))
    sizes = {"heads": 2, "kv_heads": 1, "head_dim": 64, "rope": rope}
    base = load_base(write_tiny_base(tmp_path / "a", **sizes))
    export_gguf(base, tmp_path / "x.gguf", "f32")
    reloaded = load_base(tmp_path / "x.gguf", dtype="float32")
    assert "rope_freqs.weight" in GgufReader(tmp_path / "x.gguf").names
    assert (reloaded.spec, reloaded.lineage["name"]) == (base.spec, "a")
    assert_bitwise(base, reloaded)


# --- the real ones


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.slow
def test_real_smollm2_export_equals_ours_in_transformers(smollm2_gguf: Path, tmp_path: Path) -> None:
    base = load_base(smollm2_gguf, dtype="float32")
    export_base(base, tmp_path / "b")
    record = json.loads((tmp_path / "b" / "base.json").read_text())
    assert record["equivalent_of"] == sha256_file(smollm2_gguf)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b").eval()
    tokens = random_tokens(base.spec.vocab_size)
    with torch.inference_mode():
        expected, ours = theirs(tokens).logits, logits(base, tokens)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "b")
    for text in TEXTS:
        assert tokenizer.encode(text) == base.need_tokenizer().encode(text, add_special_tokens=True)


@pytest.mark.real
def test_real_minilm_embeds_as_transformers_with_mean_pooling(minilm_dir: Path) -> None:
    from bedplate.inference.predict.local import LocalModel

    texts = ["A cat sat on the mat.", "Quarterly revenue rose.", "the feline rested on a rug", "x"]
    with LocalModel(load_base(minilm_dir, dtype="float32")) as model:
        ours = model.embed(texts)
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_dir)
    reference = transformers.AutoModel.from_pretrained(minilm_dir, dtype=torch.float32).eval()
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    mask = batch["attention_mask"][:, :, None]
    with torch.inference_mode():
        states = reference(**batch).last_hidden_state
    expected = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-5)


def test_heads_that_do_not_divide_a_projection_are_an_error() -> None:
    with pytest.raises(CheckpointError, match="cannot be 3 heads"):
        interleaved("q", "attn_q", lambda _: 3).inverse([torch.zeros(10, 4)], tiny_spec())


def test_a_checkpoint_opens_without_a_token_table(tmp_path: Path) -> None:
    """Only a model that has one asks for it, by its name."""
    write_tiny_base(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    table = next(name for name in weights if "embed_tokens" in name)
    save_file({name: tensor for name, tensor in weights.items() if name != table}, tmp_path / "model.safetensors")
    (tmp_path / "base.json").unlink(missing_ok=True)
    with closing(open_checkpoint(tmp_path)) as checkpoint:
        assert checkpoint.stored_dtype == torch.float32
        assert table not in checkpoint.names
        assert checkpoint.spec.layers > 0
    with pytest.raises(CheckpointError, match=f"lacks '{re.escape(table)}'"):
        load_base(tmp_path)
