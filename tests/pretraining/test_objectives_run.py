"""Every objective of the table over two steps of a run, on a model of its kind: a base that its own library loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from tests.pretraining.runs import tiny_run
from transformers.modelcard import TASK_MAPPING

from bedplate.core.errors import ConfigError
from bedplate.core.files import read_jsonl
from bedplate.models.checkpoints.base import load_base
from bedplate.models.inputs import Inputs
from bedplate.pretraining.plan.dry_run import plan_run
from bedplate.pretraining.run.directory import evaluations, read_record
from bedplate.pretraining.run.pretrain import pretrain
from bedplate.training.objectives import OBJECTIVES

DECODER = {"params": "120k", "context": 40}
ENCODER = {"params": "150k", "family": "bert", "context": 40}
ENCODER_DECODER = {
    "family": "t5",
    "config": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
}
SENTINELS = [f"<extra_id_{number}>" for number in range(20)]
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "next_token": (DECODER, {"z": 1e-4}, "AutoModelForCausalLM", "log_z_squared"),
    "masked": (ENCODER, {"whole_words": True}, "AutoModelForMaskedLM", "accuracy"),
    "span_corruption": (ENCODER_DECODER, {"sentinels": SENTINELS}, "AutoModelForSeq2SeqLM", "accuracy"),
    "mixture_of_denoisers": (ENCODER_DECODER, {"sentinels": SENTINELS}, "AutoModelForSeq2SeqLM", "accuracy"),
    "fill_in_middle": (DECODER, {"rate": 0.9}, "AutoModelForCausalLM", ""),
    "contrastive": (ENCODER, {"longest": 0.4}, "AutoModel", "accuracy"),
}


def values(name: str) -> dict[str, Any]:
    model, settings, _, _ = CASES[name]
    return {
        "model": model,
        "objective": name,
        "objective_settings": settings,
        "data": {
            "sources": [{"name": "lines", "source": "text.txt", "lines": 3}],
            "tokenizer": {"vocab_size": 330},
            "held_out": 0.1,
        },
        "tokens": 512,
        "batch": {"tokens": 256, "micro_tokens": 256 if name == "contrastive" else 128, "sequence": 32},
        "checkpoints": {"every": 1, "seconds": None},
        "evaluation": {},
        "log_steps": 1,
        "dtype": "float32",
    }


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_steps_of_each_end_in_a_base(name: str, tmp_path: Path) -> None:
    pretrained = pretrain(tiny_run(tmp_path, **values(name)), tmp_path / "out")
    rows = read_jsonl(tmp_path / "out" / "metrics.jsonl")
    metric = CASES[name][3]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row[f"{name}/{metric}"] >= 0 for row in rows if metric)
    (judged,) = evaluations(pretrained.directory)
    assert not judged["errors"]
    run_through = sum(row["tokens"] for row in rows)
    assert judged["tokens"] == read_record(pretrained.directory)["tokens_seen"] <= 512, "those of the texts"
    longer = name not in ("next_token", "masked", "contrastive")
    assert (run_through > judged["tokens"]) == longer, "with sentinels, on both sides"
    line_scores = judged["held_out"]["lines"]
    assert line_scores["nats_per_token"] > 0
    assert (line_scores["bits_per_byte"] is None) == (line_scores["target"] == "pair") == (name == "contrastive")
    assert bool(pretrained.baselines) == (name in ("next_token", "fill_in_middle"))
    theirs = getattr(transformers, CASES[name][2]).from_pretrained(pretrained.base).eval()
    card = yaml.safe_load((pretrained.base / "README.md").read_text("utf-8").split("---")[1])
    tasks = {**TASK_MAPPING, "feature-extraction": transformers.models.auto.modeling_auto.MODEL_MAPPING_NAMES}
    assert tasks[card["pipeline_tag"]][theirs.config.model_type] == type(theirs).__name__
    ours = load_base(pretrained.base, dtype=torch.float32).model
    ids = torch.randint(0, 300, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if name in ("span_corruption", "mixture_of_denoisers"):
            expected = theirs(input_ids=ids, decoder_input_ids=ids[:, :5]).logits[0]
            hidden = ours(Inputs(ids[:, :5], encoder=Inputs(ids))).hidden
        elif name == "contrastive":
            states = theirs(ids).last_hidden_state
            torch.testing.assert_close(ours(Inputs(ids)).hidden, states, atol=1e-4, rtol=1e-4)
            return
        else:
            expected, hidden = theirs(ids).logits[0], ours(Inputs(ids)).hidden
        torch.testing.assert_close(ours.head(hidden[0]), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": {"tokens": 256, "micro_tokens": 128}}, "batch.micro_tokens = 128 would cut it"),
        (
            {"model": ENCODER_DECODER, "batch": {"tokens": 256, "sequence": 32}},
            "encoder or decoder, and this one is of the kind enc",
        ),
        ({"objective_settings": {"pooling": "first"}}, "what embeds with this model by mean"),
    ],
)
def test_what_cannot_learn_from_crops_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        pretrain(tiny_run(tmp_path, **{**values("contrastive"), "objective_settings": {}, **change}), tmp_path / "out")


@pytest.mark.parametrize(
    ("of", "change", "message"),
    [
        ("masked", {"model": DECODER}, "kind encoder, and this one is of the kind decoder: .* or one of next_token"),
        ("next_token", {"model": ENCODER}, "of the kind encoder: choose another model, or one of masked, contrastive"),
        (
            "next_token",
            {"model": ENCODER_DECODER},
            "of the kind encoder–decoder: .* one of span_corruption, mixture_of_denoisers",
        ),
        ("masked", {"evaluation": {"prompts": ["the"]}}, "evaluation.prompts: an encoder writes no text"),
    ],
)
def test_a_model_of_another_kind_is_refused(of: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    run = tiny_run(tmp_path, **{**values(of), **change, "objective_settings": {}})
    for start in (plan_run, lambda run: pretrain(run, tmp_path / "out")):
        with pytest.raises(ConfigError, match=message):
            start(run)


def test_settings_that_an_objective_lacks_are_named(tmp_path: Path) -> None:
    for name, settings, message in (
        ("masked", {"densty": 0.2}, "densty"),
        ("maskd", {}, "maskd"),
    ):
        with pytest.raises(ConfigError, match=message):
            tiny_run(tmp_path, **{**values("masked"), "objective": name, "objective_settings": settings})


@pytest.mark.slow
def test_modules_for_further_tokens_learn_from_the_run_file(tmp_path: Path) -> None:
    """Multi-token prediction (DeepSeek-V3): a term of its own, weighed as the file says, and exported with the base."""
    config = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 40,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "num_nextn_predict_layers": 1,
    }
    common = {**values("next_token"), "model": {"family": "glm4_moe", "config": config}}
    settings = {**common, "objective_settings": {"further": 0.4}, "tokens": 4096, "optimizer": {"learning_rate": 0.01}}
    pretrained = pretrain(tiny_run(tmp_path, **settings), tmp_path / "out")
    rows = read_jsonl(tmp_path / "out" / "metrics.jsonl")
    for row in rows:
        assert row["loss"] == pytest.approx(row["loss/next_token"] + row["loss/further_1"])
        assert row["loss/further_1"] == pytest.approx(0.4 * row["further_1/unweighted"])
    assert rows[-1]["further_1/unweighted"] < 0.9 * rows[0]["further_1/unweighted"]
    base = load_base(pretrained.base, dtype=torch.float32)
    assert base.spec.prediction_modules == 1
    theirs = transformers.AutoModelForCausalLM.from_pretrained(pretrained.base).eval()
    ids = torch.randint(0, 300, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(ids).logits[0]
        torch.testing.assert_close(base.model.head(base.model(Inputs(ids)).hidden[0]), expected, atol=1e-4, rtol=1e-4)
    off = pretrain(tiny_run(tmp_path, **{**settings, "objective_settings": {"further": 0}}), tmp_path / "off")
    assert all("loss/further_1" not in row for row in read_jsonl(off.directory / "metrics.jsonl"))
