"""GGUF files of every architecture: read back as the model that was written, and run by llama.cpp with its logits."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from tests.tiny import write_tiny_base
from torch import Tensor

from bedplate.core.errors import UnsupportedModelError
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Embed, Embedding
from bedplate.models.build import build
from bedplate.models.checkpoints.base import load_base
from bedplate.models.checkpoints.conversion import write_parameters
from bedplate.models.checkpoints.export import export_gguf
from bedplate.models.checkpoints.gguf import GgufReader, write_gguf
from bedplate.models.families import FAMILIES, Family, in_format
from bedplate.models.families.dense import llama, olmo3
from bedplate.models.families.gguf_metadata import llama3_factors, scaling_of
from bedplate.models.inputs import Inputs
from bedplate.models.layers.feedforward import ACTIVATIONS
from bedplate.models.model import Model
from bedplate.models.specs.position import Llama3Scaling
from bedplate.models.specs.transformer import LongRopeScaling, TransformerSpec

# Encoder–decoders are run otherwise: see test_gguf_t5.py.
ARCHITECTURES = {name: family for (format_, name), family in FAMILIES.items() if format_ == "gguf" and name != "t5"}
CASES = [
    pytest.param(family, number, id=f"{name}-{number}")
    for name, family in {**ARCHITECTURES, "llama of experts": llama.MIXTRAL, "olmo2 with windows": olmo3.OLMO3}.items()
    for number in range(len(family.examples))
]
ROUNDED = {"gelu_tanh": 2e-4}
"""llama.cpp looks this activation up in half precision: what is rounded up here may be rounded down there."""


def partner(family: Family) -> Family:
    """The same family in Hugging Face's format, whose config the examples are."""
    hf_family = in_format(family, "hf")
    assert hf_family is not None
    return hf_family


def spec_of(family: Family, **fields: Any) -> TransformerSpec:
    """The spec of one of the examples' fields."""
    spec = partner(family).to_spec(transformers.AutoConfig.for_model(family.name, **fields).to_dict())
    assert isinstance(spec, TransformerSpec)
    return spec


def written(family: Family, number: int, path: Path, seed: int = 0) -> tuple[TransformerSpec, Model]:
    """A file of a random model without a vocabulary, and the model."""
    spec = spec_of(family, **family.examples[number])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build(spec)
        with torch.no_grad():
            for stored in model.state_dict().values():
                stored.add_(torch.randn_like(stored) * 0.1)
    parameters = write_parameters(family, spec, model.state_dict(keep_vars=True))
    tables = [(name, torch.tensor(values)) for name, values in family.tables(spec).items()]
    metadata = family.to_config(spec) | {"tokenizer.ggml.model": "none"}
    write_gguf(path, family.key[1], metadata, [*tables, *parameters], "f32")
    return spec, model.eval()


def looked_up(x: Tensor) -> Tensor:
    """gelu_tanh as llama.cpp's table has it."""
    return F.gelu(x.half().float(), approximate="tanh").half().float()


def logits(model: Model, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        return model.head(model(Inputs(tokens[None])).hidden[0])


@pytest.mark.parametrize(("family", "number"), CASES)
def test_a_file_is_read_back_as_the_same_model(family: Family, number: int, tmp_path: Path) -> None:
    spec, model = written(family, number, tmp_path / "x.gguf")
    base = load_base(tmp_path / "x.gguf", dtype="float32")
    assert base.spec == spec
    assert base.family.partners == family.partners
    read = base.model.state_dict()
    assert read.keys() == model.state_dict().keys()
    for name, ours in model.state_dict().items():
        torch.testing.assert_close(read[name], ours, atol=2e-7, rtol=0, msg=name)
    assert set(GgufReader(tmp_path / "x.gguf").metadata) >= set(family.to_config(spec))


def test_the_header_alone_says_the_shape(tmp_path: Path) -> None:
    """Of a file with lists of what each layer has."""
    spec, _ = written(FAMILIES["gguf", "gemma4"], 0, tmp_path / "x.gguf")
    assert FAMILIES["gguf", "gemma4"].to_spec(GgufReader(tmp_path / "x.gguf").header.fields()) == spec


def test_a_base_without_a_tokenizer(tmp_path: Path) -> None:
    """llama.cpp does not read a file that says nothing of one."""
    base = load_base(write_tiny_base(tmp_path / "a", tokenizer=False))
    path = export_gguf(base, tmp_path / "x.gguf", "f32")
    assert GgufReader(path).metadata["tokenizer.ggml.model"] == "none"
    reloaded = load_base(path)
    assert (reloaded.tokenizer, reloaded.spec) == (None, base.spec)


def again_with(path: Path, to: Path, fields: dict[str, Any]) -> Path:
    """The same file with these fields of its architecture."""
    reader = GgufReader(path)
    architecture = str(reader.metadata["general.architecture"])
    metadata = {k: v for k, v in reader.metadata.items() if k not in ("general.architecture", "GGUF.version")}
    changes = {f"{architecture}.{key}": value for key, value in fields.items()}
    write_gguf(to, architecture, metadata | changes, [(name, reader.get(name)) for name in reader.names], "f32")
    return to


def test_a_file_that_says_how_vectors_are_made(tmp_path: Path) -> None:
    """Qwen3-Embedding's: the last token's state, to unit length."""
    plain = export_gguf(load_base(write_tiny_base(tmp_path / "a")), tmp_path / "x.gguf", "f32")
    base = load_base(again_with(plain, tmp_path / "last.gguf", {"pooling_type": 3}), dtype="float32")
    ids = tuple(range(5, 30))
    with Engine(base, kernel="torch") as engine, torch.no_grad():
        [embedding] = engine.run([Embed(ids)])
        last = base.model(Inputs(torch.tensor([ids]))).hidden[0, -1]
    assert isinstance(embedding, Embedding)
    torch.testing.assert_close(torch.tensor(embedding.vector), F.normalize(last, dim=0), rtol=1e-4, atol=1e-5)
    assert load_base(again_with(plain, tmp_path / "none.gguf", {"pooling_type": 0})).sentence is None
    with pytest.raises(UnsupportedModelError, match=r"llama\.pooling_type = 4 is not supported"):
        load_base(again_with(plain, tmp_path / "rank.gguf", {"pooling_type": 4}))


def older(path: Path, to: Path, spec: TransformerSpec) -> None:
    """A file of deepseek2 as those before attention over latents were: keys and values made by one product."""
    reader, part, begin = GgufReader(path), spec.attention.latent, "deepseek2.attention."
    assert part is not None
    sizes = {"head_count_kv": spec.attention.heads, "key_length": part.key_dim, "value_length": part.value_dim}
    fields = {key: value for key, value in reader.metadata.items() if not key.endswith("_mla")}
    tensors = {name: reader.get(name) for name in reader.names}
    for layer in range(spec.layers):
        keys, values = (tensors.pop(f"blk.{layer}.attn_{letter}_b.weight") for letter in "kv")
        tensors[f"blk.{layer}.attn_kv_b.weight"] = torch.cat((keys.mT, values), dim=1).flatten(0, 1)
    metadata = {k: v for k, v in fields.items() if k not in ("general.architecture", "GGUF.version")}
    write_gguf(to, "deepseek2", metadata | {f"{begin}{k}": v for k, v in sizes.items()}, tensors.items(), "f32")


def test_older_files_of_deepseek2(tmp_path: Path) -> None:
    spec, _ = written(FAMILIES["gguf", "deepseek2"], 0, tmp_path / "new.gguf")
    older(tmp_path / "new.gguf", tmp_path / "old.gguf", spec)
    new, old = (load_base(tmp_path / f"{name}.gguf", dtype="float32") for name in ("new", "old"))
    assert (old.spec, old.identity) == (new.spec, new.identity)


def test_what_deepseek2s_files_say() -> None:
    family = FAMILIES["gguf", "deepseek2"]
    spec = spec_of(family, **family.examples[0])
    metadata = family.to_config(spec) | {"tensor_names": ("output.weight",), "embedding_rows": 97, "tables": {}}
    lite = {key: value for key, value in metadata.items() if not key.endswith("q_lora_rank")}
    lite_spec = family.to_spec({**lite, "deepseek2.block_count": 27, "deepseek2.expert_gating_func": 1})
    assert (lite_spec.attention.latent.q_rank, lite_spec.experts.scoring, lite_spec.experts.selection_bias) == (
        None,
        "softmax",
        False,
    )
    assert "deepseek2.attention.q_lora_rank" not in family.to_config(lite_spec)
    with pytest.raises(UnsupportedModelError, match="needs q_rank in a model of 3 layers"):
        family.to_config(spec.with_(latent=replace(spec.attention.latent, q_rank=None)))
    for key, value, message in (
        ("attention.layer_norm_rms_epsilon", 1e-5, "layer_norm_rms_epsilon = 1e-05"),
        ("rope.scaling.yarn_log_multiplier", None, "YaRN without rope.scaling.yarn_log_multiplier"),
        ("expert_gating_func", 3, "expert_gating_func = 3"),
        ("attention.key_length", 40, "attention.key_length = 40"),
    ):
        with pytest.raises(UnsupportedModelError, match=message):
            family.to_spec({**metadata, f"deepseek2.{key}": value})


@pytest.mark.slow
def test_llamacpp_reads_older_files_of_deepseek2_so(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    spec, model = written(FAMILIES["gguf", "deepseek2"], 0, tmp_path / "new.gguf")
    older(tmp_path / "new.gguf", tmp_path / "old.gguf", spec)
    tokens = torch.randint(0, spec.vocab_size, (40,), generator=torch.Generator().manual_seed(0))
    expected = by_llamacpp(tmp_path / "old.gguf", tokens)
    assert float((logits(model, tokens) - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("family", "number"), CASES)
def test_llamacpp_gives_the_same_logits(
    family: Family, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed (the bench extra)")
    monkeypatch.setitem(ACTIVATIONS, "gelu_tanh", looked_up)
    for seed in range(3):
        path = tmp_path / f"{seed}.gguf"
        spec, model = written(family, number, path, seed)
        tokens = torch.randint(0, spec.vocab_size, (40,), generator=torch.Generator().manual_seed(seed))
        expected = by_llamacpp(path, tokens)
        ours = logits(model, tokens)
        assert float((ours - expected).norm() / expected.norm()) < ROUNDED.get(spec.feedforward.activation, 1e-5)


def by_llamacpp(path: Path, tokens: Tensor) -> Tensor:
    """llama.cpp's logits, its cache in single precision too."""
    from llama_cpp import Llama

    model = Llama(str(path), n_ctx=128, logits_all=True, type_k=0, type_v=0, n_threads=1, verbose=False)
    try:
        model.eval(tokens.tolist())
        return torch.from_numpy(np.array(model.scores[: len(tokens)]))
    finally:
        model.close()


# --- rotary positions that a tensor scales


@pytest.mark.parametrize(("factor", "head_dim"), [(8.0, 128), (32.0, 64)])  # Llama 3.1 and 3.2
def test_llama3s_scaling_is_read_back_from_its_divisors(factor: float, head_dim: int) -> None:
    fields: dict[str, Any] = {
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "rope_theta": 500_000.0,
    }
    config = transformers.LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=131_072,
        rope_parameters={"rope_type": "llama3", "original_max_position_embeddings": 8192, **fields},
    )
    scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500_000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
    divisors = (plain / scaled).tolist()
    scaling = Llama3Scaling(factor, 1.0, 4.0, 8192)
    assert scaling_of(divisors, 500_000.0, head_dim) == scaling
    np.testing.assert_allclose(llama3_factors(scaling, 500_000.0, head_dim), divisors, rtol=1e-5)


def test_other_divisors_are_kept_as_they_are() -> None:
    divisors = [1.0, 1.5, 2.5, 3.0]
    scaling = scaling_of(divisors, 10_000.0, 8)
    assert isinstance(scaling, LongRopeScaling)
    assert scaling.short == scaling.long == tuple(divisors)


def test_what_the_format_cannot_say_is_refused() -> None:
    gemma = FAMILIES["gguf", "gemma3"]
    spec = spec_of(gemma, **gemma.examples[0])
    with pytest.raises(UnsupportedModelError, match="cannot say that scales is"):
        gemma.to_config(spec_of(gemma, **{**gemma.examples[0], "query_pre_attn_scalar": 3}))
    with pytest.raises(UnsupportedModelError, match="llama cannot say that"):
        FAMILIES["gguf", "llama"].to_config(spec)
    metadata = gemma.to_config(spec) | {"tensor_names": (), "embedding_rows": 97, "tables": {}}
    assert gemma.to_spec(metadata) == spec
    with pytest.raises(UnsupportedModelError, match=r"attention\.unheard_of"):
        gemma.to_spec({**metadata, "gemma3.attention.unheard_of": 1})
    with pytest.raises(UnsupportedModelError, match="differs from layer to layer"):
        gemma.to_spec({**metadata, "gemma3.attention.head_count": [1, 2, 3]})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "attention.sliding_window_pattern",
            [True, False, True, True, False],
            "needs a layer with a window, then one without",
        ),
        ("attention.head_count_kv", [2, 2, 2, 2, 1], r"attention\.head_count_kv = .* is not supported"),
        ("feed_forward_length", [80, 80, 80, 160, 80], r"feed_forward_length = .* is not supported"),
        ("attention.value_length_swa", 4, "attention.value_length_swa"),
    ],
)
def test_layers_of_shapes_that_llamacpp_does_not_have(key: str, value: object, message: str) -> None:
    family = FAMILIES["gguf", "gemma4"]
    spec = spec_of(family, **family.examples[0])
    names = [f"blk.{layer}.attn_v.weight" for layer in range(5)]
    metadata = family.to_config(spec) | {"tensor_names": names, "embedding_rows": 97, "tables": family.tables(spec)}
    with pytest.raises(UnsupportedModelError, match=message):
        family.to_spec(metadata | {f"gemma4.{key}": value})


def test_gemma4s_defaults() -> None:
    """What llama.cpp takes for what a file does not say: a cap of logits."""
    family = FAMILIES["gguf", "gemma4"]
    spec = spec_of(family, **family.examples[1])
    metadata = family.to_config(spec) | {"tensor_names": ("blk.0.layer_output_scale.weight",), "embedding_rows": 97}
    del metadata["gemma4.final_logit_softcapping"]
    default_spec = family.to_spec(metadata)
    assert default_spec.scales.logit_cap == 30.0
    with pytest.raises(UnsupportedModelError, match="only 1, and then"):
        family.to_spec({**metadata, "tables": {"rope_freqs.weight": [1.0, 2.0, 1e30, 1e30]}})
