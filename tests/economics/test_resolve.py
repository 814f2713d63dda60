"""Presets by name and bases by path, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from tests.tiny import tiny_spec, write_tiny_base

from bedplate.core.errors import BedplateError, CheckpointError, ConfigError, UnsupportedModelError, UsageError
from bedplate.economics.model.named_model import resolve
from bedplate.economics.model.parameters import parameters
from bedplate.models.families import FAMILIES
from bedplate.models.specs.dial import SIZES
from bedplate.models.specs.presets import PRESETS


def test_presets_in_any_case() -> None:
    assert resolve(" Llama-3.1-8B ") == ("llama-3.1-8b", PRESETS["llama-3.1-8b"])


def test_a_base_by_its_directory_or_its_config(tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path / "base")
    assert resolve(str(base))[1] == resolve(str(base / "config.json"))[1] == tiny_spec(norm_eps=1e-5)


@pytest.mark.real
def test_real_bases(smollm2_gguf: Path, minilm_dir: Path) -> None:
    """A GGUF's context and head are its own; the weights are the preset's."""
    for path, name in ((smollm2_gguf, "smollm2-135m"), (minilm_dir, "minilm-l6")):
        _, spec = resolve(str(path))
        pooler = 384 * 385 if name == "minilm-l6" else 0  # which a config does not tell of
        assert parameters(spec).total + pooler == parameters(PRESETS[name]).total


def test_a_gguf_file_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in FAMILIES[("gguf", "llama")].to_config(tiny_spec()).items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc", ""])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.0])
    writer.add_bool("flag", True)
    writer.add_tensor("token_embd.weight", np.zeros((tiny_spec().vocab_size, 48), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert resolve(str(path))[1] == resolve(str(tmp_path))[1] == tiny_spec()
    whole = path.read_bytes()
    for size in (0, 3, 30, 200, 500):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"is not a (readable )?GGUF file"):
            resolve(str(path))
    path.write_bytes(whole[:40] + b"\xff" * 8 + whole[48:])
    with pytest.raises(CheckpointError):
        resolve(str(path))


def test_unknown_names_say_what_is_near(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no model or path is called 'llama3-8b'; did you mean llama-3.1-8b"):
        resolve("llama3-8b")
    with pytest.raises(UsageError, match="there are gpt2,"):
        resolve("")
    with pytest.raises(UsageError, match=r"has no config.json and no .gguf file"):
        resolve(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "is not a JSON file"),
        ("[]", "must hold a JSON object"),
        ({"model_type": "mamba"}, "model type 'mamba' is not supported; supported are: .*llama"),
        ({"model_type": ["llama"]}, "is not supported"),
        ({"model_type": "llama"}, "the field 'hidden_size' is missing"),
        ({"model_type": "llama", "hidden_size": "many"}, "missing|wrong kind"),
        ({"model_type": "llama", "hidden_size": "many", "num_attention_heads": 2}, "wrong kind"),
    ],
)
def test_damaged_configs_are_one_line(tmp_path: Path, config: object, message: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(BedplateError, match=message) as raised:
        resolve(str(file))
    assert "\n" not in str(raised.value)
    assert isinstance(raised.value, UsageError | CheckpointError | UnsupportedModelError)


def test_resolving_imports_no_torch_and_no_numpy() -> None:
    code = (
        "import sys; from bedplate.economics.model.named_model import resolve;"
        "from bedplate.economics.model.parameters import parameters;"
        "parameters(resolve('deepseek-v3')[1]);"
        "print(sorted({'torch', 'numpy', 'scipy', 'transformers', 'gguf'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(("name", "count"), [("100m", 1e8), ("1b", 1e9), ("1.5B", 1.5e9), ("7b", 7e9), ("70b", 7e10)])
def test_a_size_is_a_dense_decoder_of_about_so_many_parameters(name: str, count: float) -> None:
    key, spec = resolve(name)
    assert key == name.lower()
    assert parameters(spec).total == pytest.approx(count, rel=0.15)


@pytest.mark.parametrize("name", SIZES)
def test_sizes_have_names(name: str) -> None:
    assert parameters(resolve(name.upper())[1]).total == pytest.approx(SIZES[name], rel=0.25)


def test_a_size_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="a model has more than 0 parameters; give a size such as 1b"):
        resolve("0b")


def test_a_mistyped_path_is_told_with_what_is_there(tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path / "base")
    with pytest.raises(UsageError, match=rf"did you mean '{base}/config.json'\?"):
        resolve(str(tmp_path / "bsae/config.json"))
