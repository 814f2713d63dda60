"""The run file and its dial: what is read, what is refused, and the laws' published values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.pretraining.runs import run_values, tiny_run

from bedplate.core.config import dump_config, parse_config
from bedplate.core.errors import ConfigError, UnsupportedModelError
from bedplate.economics.model.parameters import parameters
from bedplate.models.build import build
from bedplate.models.checkpoints.base import parameter_count
from bedplate.models.specs.dial import shape_for, shape_of_width
from bedplate.pretraining.plan.sizes import default_batch, default_rate, spec_of
from bedplate.pretraining.runfile.file import BatchPart, ModelPart, RunFile, changes, load_run, look
from bedplate.training.objectives import OBJECTIVES


@given(st.integers(1, 10**15))
def test_counts_are_read_as_they_are_written(number: int) -> None:
    for text in (str(number), f"{number:,}"):
        assert parse_config(f"tokens: {text}", BatchPart, "run.yaml").tokens == number


@pytest.mark.parametrize(
    ("text", "count"),
    [("5M", 5_000_000), ("1.13M", 1_130_000), ("1.5b", 1_500_000_000), ("2e3", 2000), ("15T", 15 * 10**12)],
)
def test_suffixes(text: str, count: int) -> None:
    assert parse_config(f"tokens: {text}", BatchPart, "run.yaml").tokens == count


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": "many"}, "valid integer"),
        ({"tokens": "1,5M"}, "valid integer"),
        ({"tokens": "1e400M"}, "valid integer"),
        ({"data": {"sources": [{"name": "a", "source": "b"}], "weights": {"c": 1.0}}}, "names 'c'.* sources are a"),
        ({"model": {"params": "1M", "size": "micro"}}, "size and params are given"),
        ({"model": {"params": "1M", "size": None, "familly": "llama"}}, "did you mean 'family'"),
        ({"base": "smollm2-135m"}, "give `model`, to build one, or `base`"),
        ({"data": {"corpus": "x", "recipe": "y"}}, "corpus and recipe are given"),
        ({"data": {"corpus": "x", "weights": {"a": 1.0}}}, "`weights` are of texts"),
        ({"data": {"sources": [{"name": "a", "source": "b"}]}}, "need `data.tokenizer`"),
        ({"objective": "next_tokn"}, "there is no objective 'next_tokn'"),
        (
            {"objective_settings": {"speed": 1}},
            "objective next_token has no setting 'speed'; its settings are further, z$",
        ),
        ({"objective": "masked", "objective_settings": {"dense": 1}}, "has no setting 'dense'; did you mean 'density'"),
        ({"evaluation": {"suites": ["grammer"]}}, r"run.yaml, line \d+: evaluation.suites.*no suite 'grammer'"),
        ({"batch": {"tokens": 0}}, "greater than or equal to 1"),
        ({"optimizer": {"learning_rate": "nan"}}, "learning_rate"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_run(tmp_path, **changes)


def test_the_first_look_knows_every_objective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "toy", OBJECTIVES["masked"])
    tiny_run(tmp_path)
    for name in OBJECTIVES:
        run = look(tmp_path / "run.yaml", [f"objective={name}"], reads_data=False)
        assert run.objective == name
    with pytest.raises(ConfigError, match="use next_token"):
        look(tmp_path / "run.yaml", ["objective=sft"], reads_data=False)


def test_the_resolved_file_reads_back(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    assert parse_config(dump_config(run), RunFile, "again").model_dump() == run.model_dump()
    edited = load_run(tmp_path / "run.yaml", ["tokens=5k", "log_steps=3"])
    refused, allowed = changes(run, edited)
    assert [text.partition(":")[0] for text in (*refused, *allowed)] == ["tokens", "log_steps"]
    assert len(refused) == 1


@given(st.floats(2e5, 2e10), st.sampled_from([300, 8192, 50_257]), st.booleans())
def test_the_dial_is_near_what_is_asked(target_size: float, vocabulary: int, tied: bool) -> None:
    try:
        shape = shape_for(target_size, vocabulary, tied)
    except ConfigError:
        assert vocabulary * 64 * (1 if tied else 2) > target_size
        return
    assert 0.5 <= shape.parameters(vocabulary, tied) / target_size <= 2
    assert shape.heads % shape.kv_heads == 0
    assert shape.heads * shape.head_size == shape.width


def test_the_dial_gives_the_published_shapes() -> None:
    """Width and depth of GPT-2 small, and of Llama 3 8B and 70B's neighbours."""
    assert (shape_of_width(768).layers, shape_of_width(4096).layers, shape_of_width(4096).head_size) == (12, 32, 128)
    widths = [shape_of_width(width).layers for width in range(64, 9000, 64)]
    assert widths == sorted(widths)


def test_the_laws_give_the_published_values() -> None:
    """DeepSeek LLM 7B on 2T tokens: a batch of 2,304 sequences of 4,096 and a rate of 4.2e-4 (2401.02954, table 2)."""
    assert default_batch(6.9e9, 2e12) == pytest.approx(2304 * 4096, rel=0.5)
    assert default_rate(6.9e9, 2e12) == pytest.approx(4.2e-4, rel=0.3)


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "olmo2", "bert", "modernbert", "gemma2"])
def test_the_dial_makes_what_can_be_built_and_exported(family: str) -> None:
    spec, architecture = spec_of(ModelPart(family=family, params=400_000, context=64), 300)
    assert architecture.name == family
    assert parameter_count(build(spec)) == parameters(spec).total
    assert architecture.to_spec(architecture.to_config(spec)) == spec


def test_a_model_by_its_own_config(tmp_path: Path) -> None:
    config = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 96,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 64,
    }
    spec, _ = spec_of(ModelPart(family="mixtral", config=config), 300)
    assert spec.experts is not None
    assert spec.experts.count == 4
    with pytest.raises(ConfigError, match=r"model\.config"):
        spec_of(ModelPart(family="mixtral", config={**config, "hidden_sise": 3}), 300)
    with pytest.raises(ConfigError, match="leave it out"):
        spec_of(ModelPart(family="mixtral", config={**config, "vocab_size": 7}), 300)
    with pytest.raises(UnsupportedModelError, match="cannot say what this model has"):
        spec_of(ModelPart(family="llama", preset="qwen3-0.6b"), None)


def test_values_are_whole() -> None:
    assert RunFile.model_validate(run_values()).tokens == 2304


def test_a_base_that_is_a_path_begins_where_the_run_file_lies(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    data = {"sources": [{"name": "a", "source": "text.txt"}]}
    for base, expected in (
        ("./mine", str(tmp_path / "mine")),
        ("../gone", "../gone"),
        ("smollm2-135m", "smollm2-135m"),
    ):
        values = {k: v for k, v in run_values(base=base, data=data).items() if k != "model"}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
        assert load_run(tmp_path / "run.yaml").base_source == expected


def test_a_size_between_two_shapes_has_the_one_that_is_nearer_as_a_ratio() -> None:
    assert shape_for(300_000, 600).parameters(600, True) == 470_016
