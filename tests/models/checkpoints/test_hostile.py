"""Files that were made, or damaged, so that another model than the one they tell of would be computed without a word,
or that would take memory and time without end: each is refused with what is wrong and where."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.test_packed import CASES, quantise
from tests.tiny import write_tiny_base
from torch import Tensor

from bedplate.core.errors import CheckpointError, TokenizerError, UnsupportedModelError
from bedplate.inference.execution.plan import read_stored
from bedplate.inference.measure.parity import reference_of
from bedplate.models.checkpoints.base import load_base
from bedplate.models.checkpoints.conversion import readings
from bedplate.models.checkpoints.sentence_transformers import read_sentence
from bedplate.models.families import FAMILIES

UP = "model.layers.1.mlp.up_proj.weight"


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | fields))


def rewrite(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_base(tmp_path / "a")


# --- config.json


@pytest.mark.parametrize(
    ("family", "fields", "words"),
    [
        ("llama", {"hidden_size": "48"}, r"hidden_size = '48' .* without quotes"),
        ("llama", {"hidden_size": 48.5}, r"hidden_size = 48\.5 .* whole number"),
        ("llama", {"num_hidden_layers": True}, "num_hidden_layers = True .* whole number"),
        ("llama", {"tie_word_embeddings": "false"}, "tie_word_embeddings = 'false' .* without quotes"),
        ("llama", {"attention_bias": "no"}, "attention_bias = 'no' .* true or false"),
        ("llama", {"rms_norm_eps": [1e-6]}, r"rms_norm_eps = \[1e-06\] .* a number"),
        ("llama", {"num_attention_heads": 0}, "num_attention_heads is 0: it must be at least 1"),
        ("llama", {"num_key_value_heads": 0}, "kv_heads is 0"),
        ("llama", {"rope_scaling": "linear"}, "rope_scaling = 'linear' .* an object"),
        ("gemma2", {"num_hidden_layers": 10**9}, "num_hidden_layers asks for 1000000000 layers"),
        ("gemma2", {"layer_types": []}, "0 layer_types for 3 layers"),
        ("qwen3", {"use_sliding_window": "off"}, "use_sliding_window = 'off' .* true or false"),
        ("smollm3", {"no_rope_layer_interval": 0}, "wrong kind"),
        ("mixtral", {"num_local_experts": 10**8}, "100000000 experts"),
        ("deepseek_v3", {"num_nextn_predict_layers": 10**8}, "num_nextn_predict_layers asks for 100000000 layers"),
        ("bert", {"architectures": ["BertForSequenceClassification"], "num_labels": 10**9}, "num_labels is 1000000000"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_its_field(
    family: str, fields: dict[str, Any], words: str, tmp_path: Path
) -> None:
    config = {**FAMILIES["hf", family].examples[0], "model_type": family, **fields}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({f"{number}": torch.ones(1) for number in range(9)}, tmp_path / "model.safetensors")
    for opened in (read_stored, load_base):
        with pytest.raises(CheckpointError, match=words) as raised:
            opened(tmp_path)
        assert str(tmp_path / "config.json") in str(raised.value)


def test_two_spellings_of_one_rope_must_agree() -> None:
    llama = FAMILIES["hf", "llama"]
    config = {**llama.examples[0], "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    with pytest.raises(
        UnsupportedModelError, match="rope_scaling and rope_parameters say different things of 'rope_type'"
    ):
        llama.to_spec({**config, "rope_scaling": {"rope_type": "linear", "factor": 2.0}})


def test_json_that_cannot_be_meant(tiny: Path) -> None:
    path = tiny / "config.json"
    whole = path.read_text()
    path.write_text(whole.replace("{", '{"rms_norm_eps": 0.5, ', 1))
    for opened in (load_base, read_stored):
        with pytest.raises(CheckpointError, match="a key has two values in one object: 'rms_norm_eps'"):
            opened(tiny)
        path.write_text(whole + " " * (17 << 20))
        with pytest.raises(CheckpointError, match=r"config\.json: [\d,]+ bytes, where such a file has at most"):
            opened(tiny)
        path.write_text(whole.replace("{", '{"rms_norm_eps": 0.5, ', 1))
    path.write_text(whole)
    for name in ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json"):
        original = (tiny / name).read_text() if (tiny / name).is_file() else "{}"
        (tiny / name).write_text("[" * 100_000)
        with pytest.raises((TokenizerError, CheckpointError), match=rf"{name} is not .*JSON: nested too deeply"):
            load_base(tiny)
        (tiny / name).write_text(original)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"auto_map": {"AutoModel": "code.LlamaOther"}}, "its model is 'LlamaOther', not 'LlamaForCausalLM'"),
        ({"trust_remote_code": True}, "trust_remote_code is set; the Python code"),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            "tells of packed matrices, but no tensor's name",
        ),
    ],
)
def test_a_config_that_claims_what_the_weights_are_not(tiny: Path, fields: dict[str, Any], words: str) -> None:
    edit(tiny / "config.json", **fields)
    # What is no matter of the tensors is told before anything is measured.
    for opened in (load_base,) if "quantization_config" in fields else (load_base, read_stored):
        with pytest.raises(CheckpointError, match=words):
            opened(tiny)


def test_classes_of_a_familys_own_are_read(tiny: Path) -> None:
    for name in ("LlamaModel", "LLaMAForCausalLM", "LlamaForSequenceClassification", "Something"):
        edit(tiny / "config.json", architectures=[name], trust_remote_code=False)
        load_base(tiny)


# --- tensors


def test_a_tensor_that_is_too_small_is_not_spread_over_the_place_it_has(tmp_path: Path) -> None:
    """Stacking the experts' matrices must not repeat one column of them."""
    mixtral = FAMILIES["hf", "mixtral"]
    reference_of(mixtral, mixtral.examples[0], 0).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(name for name in tensors if ".experts.1." in name)
    tensors[name] = tensors[name][:, :1].contiguous()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"of shape .* and .* cannot be .*: they are of different sizes"):
        load_base(tmp_path)
    tensors[name] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"\.experts\.1\..*of shape .* cannot be"):
        load_base(tmp_path)


def test_experts_that_nobody_stored_are_not_counted_one_by_one() -> None:
    qwen3 = FAMILIES["hf", "qwen3_moe"]
    spec = qwen3.to_spec({**qwen3.examples[0], "num_hidden_layers": 1_000, "num_experts": 90_000})
    with pytest.raises(CheckpointError, match=r"asks for more than 100,016 tensors, but the checkpoint holds 1"):
        readings(qwen3, spec, ["model.norm.weight"], {}, "x")


def packed(name: str, **config: Any) -> Callable[[Path], None]:
    def write_packed(directory: Path) -> None:
        matrix, usual = CASES[name]
        quantise(directory, matrix, usual | config)

    return write_packed


def parts(name: str, ending: str, change: Callable[[Tensor], Tensor] | None) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        packed(name)(directory)

        def changed(tensors: dict[str, Tensor]) -> None:
            for key in [key for key in tensors if key.endswith(ending)]:
                value = tensors.pop(key)
                tensors |= {} if change is None else {key: change(value)}

        rewrite(directory, changed)

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (packed("gptq4", group_size=16), "groups of 16 inputs ask for zeros and real scales of shape"),
        (packed("gptq4", group_size=0), "group_size is 0: it must be at least 1"),
        (packed("awq", group_size=16), "groups of 16 inputs ask for"),
        (packed("fp8", weight_block_size=[32, 32]), r"blocks of \(32, 32\) ask for factors of shape"),
        (packed("fp8", weight_block_size=[16]), "weight_block_size is"),
        (parts("gptq8 reordered", ".g_idx", None), r"g_idx' is missing, so its matrix cannot be unpacked"),
        (parts("gptq4", ".g_idx", lambda tensor: tensor[:1]), "g_idx must name one of"),
        (parts("gptq4", ".scales", lambda tensor: tensor[:, :1]), "do not make one matrix"),
        (parts("gptq4", ".scales", lambda tensor: tensor.int()), "do not make one matrix"),
        (parts("gptq4", ".qweight", lambda tensor: tensor.long()), "packed values are matrices of int32"),
        (parts("awq", ".scales", lambda tensor: torch.cat((tensor, tensor[:1]))), "do not make one matrix"),
        (parts("fp8", "_scale_inv", lambda tensor: torch.cat((tensor, tensor[:1]))), "do not make one matrix"),
    ],
)
def test_parts_of_packed_matrices_fit_or_are_refused(tiny: Path, damage: Callable[[Path], None], words: str) -> None:
    damage(tiny)
    with pytest.raises(CheckpointError, match=words):
        load_base(tiny)


def test_one_file_and_an_index_of_others(tiny: Path) -> None:
    tensors = load_file(tiny / "model.safetensors")
    save_file(tensors, tiny / "shard.safetensors")
    index = tiny / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "shard.safetensors")}))
    with pytest.raises(CheckpointError, match="programs differ in which they read: remove the one"):
        load_base(tiny)
    (tiny / "model.safetensors").unlink()
    load_base(tiny)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "x" * 5_000)}))
    with pytest.raises(CheckpointError, match="names a shard outside the directory: 'xxx"):
        load_base(tiny)


# --- tokenizers, and how texts are written


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"added_tokens_decoder": {"x": {"content": "a"}}}, r"added_tokens_decoder has .* under 'x'"),
        ({"added_tokens_decoder": {"1": {}}}, r"added_tokens_decoder has \{\} under '1'"),
        ({"added_tokens_decoder": [1]}, "added_tokens_decoder is a list"),
        ({"extra_special_tokens": 5}, "list of special tokens is a int"),
        ({"additional_special_tokens": [5]}, "holds something that is no token"),
        ({"model_max_length": -1}, "model_max_length is -1"),
        ({"model_input_names": 5}, "model_input_names is 5"),
    ],
)
def test_a_tokenizers_config_of_the_wrong_kind(tiny: Path, fields: dict[str, Any], words: str) -> None:
    edit(tiny / "tokenizer_config.json", **fields)
    with pytest.raises(TokenizerError, match=words):
        load_base(tiny)


def test_a_tokenizer_that_draws_lots(tiny: Path) -> None:
    content = json.loads((tiny / "tokenizer.json").read_text())
    content["model"]["dropout"] = 0.5
    (tiny / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match=r"leaves merges out at random \(dropout 0\.5\)"):
        load_base(tiny)


def test_a_tokenizer_that_fails_on_texts(tiny: Path) -> None:
    """The library panics where nothing is replaced by something."""
    path = tiny / "tokenizer.json"
    content = json.loads(path.read_text())
    path.write_text(
        json.dumps(content | {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "b"}})
    )
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: this tokenizer cannot encode the text: index out of"):
        load_base(tiny).need_tokenizer().encode("ab")


def test_a_token_that_only_the_post_processor_has(tiny: Path) -> None:
    """Its number would be none of the table's rows."""
    path = tiny / "tokenizer.json"
    content = json.loads(path.read_text())
    pieces = [{"SpecialToken": {"id": "[X]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    step: dict[str, Any] = {
        "type": "TemplateProcessing",
        "single": pieces,
        "pair": [*pieces, {"Sequence": {"id": "B", "type_id": 0}}],
    }
    step["special_tokens"] = {"[X]": {"id": "[X]", "ids": [999], "tokens": ["[X]"]}}
    path.write_text(json.dumps(content | {"post_processor": step}))
    with pytest.raises(CheckpointError, match="the tokenizer has 1000 ids, but the model has only 320 rows"):
        load_base(tiny)


def test_tokens_that_generation_is_to_avoid_are_ids(tiny: Path) -> None:
    for tokens in ("x", [1, 2], [["a"]]):
        (tiny / "generation_config.json").write_text(json.dumps({"bad_words_ids": tokens}))
        with pytest.raises(CheckpointError, match="bad_words_ids are lists of ids, and suppress_tokens is one, not"):
            load_base(tiny)


# --- sentence encoders


DENSE = {"in_features": 48, "out_features": 4, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}


def sentence(directory: Path, dense: dict[str, Any] | None = None, weight: Tensor | None = None) -> Path:
    """A directory with a pooling, and a map behind it."""
    modules = {"Transformer": "", "Pooling": "1_Pooling"} | ({} if dense is None else {"Dense": "2_Dense"})
    listed = [
        {"idx": number, "path": place, "type": f"sentence_transformers.models.{module_type}"}
        for number, (module_type, place) in enumerate(modules.items())
    ]
    (directory / "modules.json").write_text(json.dumps(listed))
    for place in modules.values():
        (directory / place).mkdir(exist_ok=True)
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    if dense is not None:
        (directory / "2_Dense" / "config.json").write_text(json.dumps(dense))
        weights = {"linear.weight": torch.ones(4, 48) if weight is None else weight, "linear.bias": torch.ones(4)}
        save_file(weights, directory / "2_Dense" / "model.safetensors")
    return directory


@pytest.mark.parametrize(
    ("dense", "weight", "words"),
    [
        (
            DENSE | {"out_features": 10**12},
            None,
            r"size mismatch for dense\.0\.weight: .*\[4, 48\].*\[1000000000000",
        ),
        (DENSE | {"out_features": -1}, None, "out_features is -1"),
        (DENSE | {"out_features": [4]}, None, r"out_features = \[4\] .* whole number"),
        (DENSE | {"activation_function": ["x"]}, None, "activation_function = .* a text"),
        (DENSE, torch.full((4, 48), torch.nan), r"linear\.weight holds values that are no finite real numbers"),
        (DENSE, torch.ones(4, 48, dtype=torch.int8), r"linear\.weight holds values that are no finite real numbers"),
    ],
)
def test_a_map_behind_the_pooling(tmp_path: Path, dense: dict[str, Any], weight: Tensor | None, words: str) -> None:
    read_sentence(sentence(tmp_path, DENSE), 48)
    with pytest.raises(CheckpointError, match=words):
        read_sentence(sentence(tmp_path, dense, weight), 48)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("modules.json", "[" * 100_000, "nested too deeply"),
        (
            "modules.json",
            [{"idx": n, "path": "", "type": "sentence_transformers.x.Y"} for n in range(101)],
            "101 modules",
        ),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False}, "none of its poolings is on"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": "false"}, "without quotes"),
        ("1_Pooling/config.json", {"pooling_mode": 3}, "pooling_mode = 3 .* a list"),
        ("sentence_bert_config.json", {"max_seq_length": 0}, "max_seq_length is 0"),
        ("sentence_bert_config.json", {"max_seq_length": [1]}, r"max_seq_length = \[1\] .* whole number"),
        ("config_sentence_transformers.json", {"prompts": [1]}, r"prompts = \[1\] .* an object"),
        ("config_sentence_transformers.json", {"prompts": {"a": 5}}, "a = 5 .* a text"),
    ],
)
def test_files_of_sentence_encoders_of_the_wrong_kind(tmp_path: Path, file: str, content: Any, words: str) -> None:
    sentence(tmp_path)
    (tmp_path / file).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(CheckpointError, match=words) as raised:
        read_sentence(tmp_path, 48)
    assert file in str(raised.value)
