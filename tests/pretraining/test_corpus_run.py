"""A run on a corpus that its recipe is built into: mixed, counted by source, gone on with, judged on its own texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.pretraining.runs import tiny_run, write_text

from bedplate.core.errors import ConfigError, DataError, TrainingError
from bedplate.core.files import read_jsonl
from bedplate.data.corpus.shards import Corpus
from bedplate.models.checkpoints.base import load_base
from bedplate.pretraining.plan.dry_run import plan_run
from bedplate.pretraining.run import data, outputs
from bedplate.pretraining.run.data import TOKENS_PREFIX
from bedplate.pretraining.run.directory import evaluations, read_record
from bedplate.pretraining.run.pretrain import data_of, pretrain

MIXED: dict[str, Any] = {
    "data": {"recipe": "recipe.yaml", "mixture": {"weights": {"one": 3, "two": 1}}, "general": ["two"]},
    "evaluation": {"baselines": True},
    "tokens": 4608,
}


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "processes_here", lambda: 1)


def write_recipe(directory: Path) -> None:
    for name in ("one", "two"):
        (directory / name).mkdir(parents=True)
        for number in range(40):
            write_text(directory / name / f"{number}.txt", lines=12, seed=hash_of(name) + number)
    recipe = {
        "corpus": "tiny",
        "preset": "none",
        "sources": [{"name": name, "kind": "files", "path": name, "licence": "CC0-1.0"} for name in ("one", "two")],
        "tokenizer": {"train": {"vocab_size": 300}},
        "dedup": {"exact": False, "minhash": None},
        "split": {"valid": 0.2},
    }
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def hash_of(name: str) -> int:
    return 1000 * len(name) + ord(name[0])


def test_from_a_recipe_to_a_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_recipe(tmp_path)
    run = tiny_run(tmp_path, **MIXED)
    assert plan_run(run)["vocabulary"] == 300
    whole = outputs.RunOutputs._judge

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(outputs.RunOutputs, "_judge", stop)
    with pytest.raises(KeyboardInterrupt):
        pretrain(run, tmp_path / "out")
    monkeypatch.setattr(outputs.RunOutputs, "_judge", whole)
    pretrained = pretrain(run, tmp_path / "out")
    assert pretrained.result.resumed_at == 6
    rows = read_jsonl(tmp_path / "out" / "metrics.jsonl")
    token_counts = {name: sum(row[f"{TOKENS_PREFIX}{name}"] for row in rows) for name in ("one", "two")}
    assert token_counts == read_record(tmp_path / "out")["seen"]
    assert token_counts["one"] / token_counts["two"] == pytest.approx(3, rel=0.25)
    corpus = Corpus.open(tmp_path / "out" / "corpus")
    last = evaluations(tmp_path / "out")[-1]["held_out"]
    for name in ("one", "two"):
        assert last[name]["bytes"] == sum(shard.bytes for shard in corpus.shards(name, "valid"))
        assert last[name]["general"] == (name == "two")
    origin = json.loads((pretrained.base / "base.json").read_text())["lineage"]["made"]
    assert origin["data"]["sha256"] == corpus.sha256
    assert origin["data"]["sources"]["one"]["sha256"] != origin["data"]["sources"]["two"]["sha256"]
    unbroken = pretrain(run, tmp_path / "unbroken")
    assert load_base(unbroken.base).identity.weights_id == load_base(pretrained.base).identity.weights_id
    shard = corpus.directory / corpus.shards("one", "train")[0].file
    written = shard.read_bytes()
    shard.write_bytes(bytes([written[0] ^ 1]) + written[1:])  # an id of the vocabulary still
    with pytest.raises(DataError, match=f"{shard.name} is not what was written: its sha256 is"):
        pretrain(run, tmp_path / "out")
    monkeypatch.setattr(data, "MAX_HASHED_BYTES", 0)
    shard.write_bytes(written[:-2])
    with pytest.raises(DataError, match="is short"):
        pretrain(run, tmp_path / "out")


@pytest.mark.slow
def test_what_a_corpus_does_not_have(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    run = tiny_run(tmp_path, **MIXED)
    base = load_base(pretrain(run, tmp_path / "out").base)
    corpus = {"corpus": "out/corpus"}
    with pytest.raises(ConfigError, match="names 'three'"):
        data_of(tiny_run(tmp_path, data={**corpus, "general": ["three"]}), tmp_path / "x", None)
    with pytest.raises(DataError, match=r"is not a corpus directory|does not exist"):
        data_of(tiny_run(tmp_path, data={"corpus": "nowhere"}), tmp_path / "x", None)
    assert data_of(tiny_run(tmp_path, data=corpus), tmp_path / "x", base).tokenizer.vocab_size == 300
    write_text(tmp_path / "text.txt")
    words = {"sources": [{"name": "lines", "source": "text.txt", "lines": 8}], "tokenizer": {"vocab_size": 290}}
    stranger = load_base(pretrain(tiny_run(tmp_path, data=words, tokens=512), tmp_path / "stranger").base)
    with pytest.raises(ConfigError, match="another tokenizer"):
        data_of(tiny_run(tmp_path, data=corpus), tmp_path / "x", stranger)
    with pytest.raises(TrainingError, match="decides its weights"):
        pretrain(tiny_run(tmp_path, **{**MIXED, "seed": 1}), tmp_path / "out")
