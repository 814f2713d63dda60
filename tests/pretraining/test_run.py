"""A whole run, small: what it leaves, that it is gone on with bit by bit, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tests.pretraining.runs import run_values, tiny_run, write_text

from bedplate.core import progress
from bedplate.core.errors import ConfigError, DataError, TrainingError, UsageError
from bedplate.core.files import file_lock, read_jsonl
from bedplate.models.checkpoints.base import load_base
from bedplate.models.inputs import Inputs
from bedplate.pretraining.page.page import TOKENS_PREFIX, same_documents
from bedplate.pretraining.plan.sizes import RowShape
from bedplate.pretraining.run import baselines, outputs
from bedplate.pretraining.run.data import texts_data
from bedplate.pretraining.run.directory import evaluations, opened, read_record
from bedplate.pretraining.run.pretrain import Pretrained, pretrain
from bedplate.text.tokenizer import Tokenizer
from bedplate.training.sources import ALONE


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    directory = tmp_path_factory.mktemp("run")
    return pretrain(tiny_run(directory), directory / "out")


def test_the_base_is_what_its_own_library_loads(pretrained: Pretrained) -> None:
    ours = load_base(pretrained.base)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(pretrained.base)
    tokenizer = transformers.AutoTokenizer.from_pretrained(pretrained.base)
    ids = tokenizer("the cat sat on the", return_tensors="pt").input_ids
    assert ids[0].tolist() == ours.need_tokenizer().encode("the cat sat on the")
    with torch.no_grad():
        logits = ours.model.head(ours.model(Inputs(ids)).hidden[0])
        assert torch.allclose(logits, theirs(ids).logits[0], atol=1e-4)


def test_what_was_learned_shows_on_texts_that_were_kept(pretrained: Pretrained) -> None:
    rows = evaluations(pretrained.directory)
    assert [row["step"] for row in rows] == [3, 6, 9]
    bits = [row["held_out"]["lines"]["bits_per_byte"] for row in rows]
    assert bits[-1] < bits[0]
    assert all(not row["errors"] for row in rows)
    assert rows[-1]["held_out"]["lines"]["documents"] == 5
    assert rows[-1]["suites"]["code"]["n"] == 2
    assert set(pretrained.baselines["lines"]) == {"gzip", "xz", "5-gram"}


def test_the_held_out_loss_is_that_of_the_reference(pretrained: Pretrained) -> None:
    """Bits a byte, computed again from the exported base alone, one document at a time."""
    base = load_base(pretrained.base)
    line_scores = pretrained.judged["held_out"]["lines"]
    assert line_scores["nats_per_token"] > 0
    model = transformers.AutoModelForCausalLM.from_pretrained(pretrained.base)
    run = tiny_run(pretrained.directory.parent)
    from bedplate.pretraining.run.data import texts_data

    part = texts_data(run, pretrained.directory, None).holdouts[0]
    nats = tokens = 0.0
    for ids in part.ids:
        for start in range(0, len(ids), 32):  # rows of 32, each predicting the token behind it as well
            row = torch.tensor(ids[start : start + 32], dtype=torch.int64)[None]
            targets = torch.tensor(ids[start + 1 : start + 33], dtype=torch.int64)
            with torch.no_grad():
                logits = model(row).logits[0, : len(targets)]
            nats += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
            tokens += len(targets)
    assert line_scores["tokens"] == tokens
    assert line_scores["nats_per_token"] == pytest.approx(nats / tokens, rel=1e-3)
    first = len(part.ids) * torch.log2(torch.tensor(base.spec.vocab_size)).item()
    bits = (nats / torch.log(torch.tensor(2.0)).item() + first) / part.bytes
    assert line_scores["bits_per_byte"] == pytest.approx(bits, rel=1e-3)


def test_everything_is_recorded(pretrained: Pretrained) -> None:
    out, record = pretrained.directory, read_record(pretrained.directory)
    assert record["status"] == "finished"
    assert record["seen"]["lines"] == record["tokens_seen"]
    metrics = read_jsonl(out / "metrics.jsonl")
    assert [row["step"] for row in metrics] == list(range(1, 10))
    assert (
        sum(row[f"{TOKENS_PREFIX}lines"] for row in metrics)
        == sum(row["tokens"] for row in metrics)
        == record["tokens_seen"]
    )
    base = json.loads((pretrained.base / "base.json").read_text())
    assert base["lineage"]["parent"] is None
    assert base["lineage"]["made"]["data"]["sources"]["lines"]["sha256"] == record["data"]["sources"]["lines"]["sha256"]
    card = (pretrained.base / "README.md").read_text()
    assert "CC0-1.0" in card
    assert "| optimizer     | adamw" in card or "| optimizer | adamw" in card
    assert "computed in float32" in card
    assert f"{pretrained.judged['held_out']['lines']['bits_per_byte']:.3f}" in card
    assert list((out / "tensorboard").iterdir())
    checkpoints = list((out / "checkpoints").iterdir())
    assert len(checkpoints) == 1
    assert int(checkpoints[0].name.rpartition("-")[2]) < metrics[-1]["step"]  # beside the last, which is `base`
    assert load_base(checkpoints[0]).spec == load_base(pretrained.base).spec


def test_the_page_fetches_nothing_and_shows_the_run(pretrained: Pretrained) -> None:
    page = (pretrained.directory / "page.html").read_text()
    assert not re.findall(r"(?:src|href)=[\"'](?!#|data:)", page)
    for shown in ("finished", "bits a byte", "CC0-1.0", "5-gram", 'aria-label="Loss"'):
        assert shown in page


def test_the_n_gram_model_reads_what_the_run_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three steps their tokens, of many epochs each text once."""
    streams: list[np.ndarray] = []

    class Recorded(baselines.NgramModel):
        def __init__(self, stream: np.ndarray, *sizes: int) -> None:
            streams.append(np.asarray(stream))
            super().__init__(stream, *sizes)

    monkeypatch.setattr(baselines, "NgramModel", Recorded)
    part = pretrain(tiny_run(tmp_path, tokens=768, evaluation={}), tmp_path / "part")
    tokens = part.judged["tokens"]
    available = read_record(part.directory)["data"]["sources"]["lines"]["tokens"]
    assert tokens < available / 2
    assert len(streams[0]) == tokens
    data = {"sources": [{"name": "lines", "source": "text.txt", "lines": 8}], "weights": {"lines": 2.0}}
    changes = {"data": {**run_values()["data"], **data}, "tokens": 5 * available, "batch": {"tokens": 2048}}
    pretrain(tiny_run(tmp_path, **changes, evaluation={}), tmp_path / "epochs")
    assert len(streams[1]) == available


def test_a_finished_run_is_only_loaded(pretrained: Pretrained, capsys: pytest.CaptureFixture[str]) -> None:
    before = load_base(pretrained.base).identity.weights_id
    rows = (pretrained.directory / "evaluations.jsonl").read_bytes()
    reloaded = pretrain(tiny_run(pretrained.directory.parent), pretrained.directory)
    assert "tiny is finished already: 9 steps of 256 tokens" in capsys.readouterr().err
    assert reloaded.judged == json.loads(rows.splitlines()[-1])
    assert (pretrained.directory / "evaluations.jsonl").read_bytes() == rows
    assert reloaded.result.steps == 9
    assert reloaded.result.resumed_at == 9
    assert load_base(reloaded.base).identity.weights_id == before


def test_a_stopped_run_goes_on_bit_by_bit(
    pretrained: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped twice between a save and its evaluation; weights, metrics and judgements are those of the other. A log,
    which is no terminal, has lines of how it goes."""
    write_text(tmp_path / "text.txt")
    whole = outputs.RunOutputs._judge

    def stop_at(step: int) -> None:
        def judge(self: Any, base: Any, at_step: int, *args: Any) -> Any:
            if at_step == step:
                raise KeyboardInterrupt
            return whole(self, base, at_step, *args)

        monkeypatch.setattr(outputs.RunOutputs, "_judge", judge)

    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    for step in (3, 6):
        stop_at(step)
        with pytest.raises(KeyboardInterrupt):
            pretrain(tiny_run(tmp_path), tmp_path / "out")
        assert read_record(tmp_path / "out")["status"].startswith("stopped")
    monkeypatch.setattr(outputs.RunOutputs, "_judge", whole)
    capsys.readouterr()
    resumed = pretrain(tiny_run(tmp_path), tmp_path / "out")
    assert resumed.result.resumed_at == 6
    log = capsys.readouterr().err
    assert re.search(r"tiny resumes after step 6 of 9 steps of 256 tokens, [\d,]+ parameters, in ", log)
    assert re.search(r"tiny: 9 of 9 steps, loss \d\.\d+, tokens/s [\d,]+, 0:00:00 left\n", log)
    assert "step 9 is saved" in log
    assert load_base(resumed.base).identity.weights_id == load_base(pretrained.base).identity.weights_id
    ours, theirs = (read_jsonl(result.directory / "metrics.jsonl") for result in (resumed, pretrained))
    assert [(row["step"], row["loss"]) for row in ours] == [(row["step"], row["loss"]) for row in theirs]
    assert resumed.judged["held_out"] == pretrained.judged["held_out"]


def test_what_an_evaluation_does_never_ends_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise MemoryError("no memory for the suite")

    monkeypatch.setattr(outputs, "suite_rows", fails)
    result = pretrain(tiny_run(tmp_path, tokens=512), tmp_path / "out")
    assert (result.base / "model.safetensors").is_file()
    assert "no memory for the suite" in result.judged["errors"][0]
    assert result.judged["held_out"]["lines"]["bits_per_byte"] > 0
    assert "no memory for the suite" in (tmp_path / "out" / "page.html").read_text()


def test_what_changes_in_the_file_is_told_and_judged(pretrained: Pretrained, tmp_path: Path) -> None:
    place = pretrained.directory.parent
    with pytest.raises(TrainingError, match=r"batch\.tokens: 256 before, 512 now.*these may: evaluation\.items"):
        pretrain(
            tiny_run(place, batch={"tokens": 512, "micro_tokens": 128}, evaluation={"items": 3}), pretrained.directory
        )
    result = pretrain(tiny_run(place, evaluation={"prompts": [], "suites": [], "items": 3}), pretrained.directory)
    assert result.result.resumed_at == 9
    assert load_base(result.base).identity.weights_id == load_base(pretrained.base).identity.weights_id
    write_text(tmp_path / "text.txt", seed=1)


def test_other_text_under_the_same_name_is_refused(tmp_path: Path) -> None:
    pretrain(tiny_run(tmp_path, tokens=512, evaluation={"baselines": False}), tmp_path / "out")
    write_text(tmp_path / "text.txt", seed=1)
    with pytest.raises(TrainingError, match=r"source\.documents"):
        pretrain(tiny_run(tmp_path, tokens=512, evaluation={"baselines": False}), tmp_path / "out")


def test_directories_that_are_taken_are_refused(tmp_path: Path) -> None:
    run, out = tiny_run(tmp_path), tmp_path / "out"
    with file_lock(out / ".run.lock"), pytest.raises(UsageError, match="in use by another process"):
        pretrain(run, out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds no run"):
        pretrain(run, out)
    with pytest.raises(UsageError, match="is a file"):
        pretrain(run, out / "notes.txt")


@pytest.mark.parametrize(
    ("text", "lines", "message"),
    [
        ("", 8, "holds no text|no document holds any text"),
        ("one text of a few words " * 90, 8, "leave none to be judged"),
    ],
)
def test_texts_that_train_nothing_are_refused(tmp_path: Path, text: str, lines: int, message: str) -> None:
    (tmp_path / "text.txt").write_text(text)
    data = {
        "sources": [{"name": "lines", "source": "text.txt", "lines": lines}],
        "tokenizer": {"vocab_size": 300},
    }
    with pytest.raises(DataError, match=message):
        pretrain(tiny_run(tmp_path, data=data), tmp_path / "out")


def test_a_start_that_failed_on_its_data_is_in_the_way_of_no_other(tmp_path: Path) -> None:
    out, run_file = tmp_path / "out", tmp_path / "out/run.yaml"
    (tmp_path / "text.txt").write_text("one text of a few words " * 90)
    with pytest.raises(DataError, match="leave none to be judged"):
        pretrain(tiny_run(tmp_path), out)
    assert run_file.is_file()
    assert (out / "tokenizer").is_dir()
    write_text(tmp_path / "text.txt")
    with opened(tiny_run(tmp_path), out):
        assert not (out / "tokenizer").exists()  # what was made of the other text
    run_file.write_text("run: of another version\n")
    with opened(tiny_run(tmp_path), out) as directory:
        assert not directory.changed
    run_file.write_text("run: of another version\n")
    (out / "checkpoints").mkdir()
    with pytest.raises(TrainingError, match="a run of another version"), opened(tiny_run(tmp_path), out):
        pass


def test_a_base_trained_further_says_what_it_forgot(pretrained: Pretrained, tmp_path: Path) -> None:
    write_text(tmp_path / "text.txt")
    (tmp_path / "new.txt").write_text("".join(f"item {n}: count {n % 7} and again {n % 7}.\n" for n in range(400)))
    data = {
        "sources": [
            {"name": "new", "source": "new.txt", "lines": 8},
            {"name": "old", "source": "text.txt", "lines": 8, "general": True},
        ],
        "weights": {"old": 0.25},
        "held_out": 0.1,
    }
    run = tiny_run(tmp_path, data=data, base=str(pretrained.base), model=None, optimizer={"learning_rate": 3e-3})
    continued = pretrain(run, tmp_path / "out")
    rows = evaluations(tmp_path / "out")
    assert rows[0]["step"] == 0
    before, after = rows[0]["held_out"], rows[-1]["held_out"]
    assert after["new"]["bits_per_byte"] < before["new"]["bits_per_byte"]
    assert after["old"]["general"]
    record = read_record(tmp_path / "out")
    assert 0 < record["data"]["sources"]["old"]["tokens"] < record["data"]["sources"]["new"]["tokens"]
    base = json.loads((continued.base / "base.json").read_text())
    assert base["lineage"]["parent"] == load_base(pretrained.base).identity.weights_id
    assert load_base(continued.base).identity.tokenizer_id == load_base(pretrained.base).identity.tokenizer_id


def test_the_end_may_be_judged_on_a_part(pretrained: Pretrained, tmp_path: Path) -> None:
    full_scores = evaluations(pretrained.directory)[-1]["held_out"]["lines"]
    evaluation = {"baselines": False, "tokens": 60, "end_tokens": full_scores["tokens"] // 2}
    result = pretrain(tiny_run(tmp_path, tokens=512, evaluation=evaluation), tmp_path / "out")
    first, last = (row["held_out"]["lines"]["documents"] for row in evaluations(result.directory)[-2:])
    assert 0 < first < last < full_scores["documents"]
    drawn = 'aria-label="Held out"'  # of what was judged on the same documents
    assert drawn in (pretrained.directory / "page.html").read_text()
    assert drawn not in (result.directory / "page.html").read_text()


def test_the_page_sets_only_the_same_documents_side_by_side() -> None:
    """The end reads more of them; a text whose first checkpoint failed begins at the second."""
    at = [(1, 2, 3.5), (2, 2, 3.25), (3, 9, 3.75)]
    rows = [{"step": s, "held_out": {"a": {"documents": d, "bits_per_byte": b}}} for s, d, b in at]
    assert same_documents(rows) == {
        "a": {"documents": 9, "bits_per_byte": 3.75, "same_documents": 2, "first": 3.5, "last": 3.25}
    }
    rows[0]["held_out"] = {}
    assert same_documents(rows)["a"]["first"] == 3.25
    assert same_documents([]) == {}


@pytest.mark.slow
def test_what_stands_beside_the_model_reads_the_same_part(pretrained: Pretrained, tmp_path: Path) -> None:
    def measure_baselines(name: str, **part: int) -> Mapping[str, Mapping[str, float]]:
        return pretrain(tiny_run(tmp_path, tokens=512, evaluation=part), tmp_path / name).baselines

    tokens = evaluations(pretrained.directory)[-1]["held_out"]["lines"]["tokens"]
    half, whole = measure_baselines("half", end_tokens=tokens // 2)["lines"], measure_baselines("whole")["lines"]
    assert all(half[name] != whole[name] for name in ("gzip", "xz", "5-gram"))


def test_a_text_of_weight_0_is_only_judged_on(tmp_path: Path) -> None:
    write_text(tmp_path / "text.txt")
    write_text(tmp_path / "new.txt", seed=1)
    sources = [{"name": name, "source": file, "lines": 8} for name, file in (("new", "new.txt"), ("old", "text.txt"))]
    data = {"sources": sources, "tokenizer": {"vocab_size": 280}, "held_out": 0.1}
    texts = texts_data(tiny_run(tmp_path, data={**data, "weights": {"old": 0}}), tmp_path / "out", None)
    assert [part.name for part in texts.holdouts] == ["new", "old"]
    assert all(part.ids for part in texts.holdouts)
    assert texts.tokens["old"] == texts.bytes["old"] == 0 < texts.tokens["new"]
    (step,) = [step for step, _ in zip(texts.make_source(RowShape(32, 8, 4), 1, ALONE), range(1), strict=False)]
    assert sum(batch.counts["tokens/new"] for batch in step) > 0
    assert sum(batch.counts["tokens/old"] for batch in step) == 0
    with pytest.raises(DataError, match="the texts hold 0 tokens"):
        texts_data(tiny_run(tmp_path, data={**data, "weights": {"old": 0, "new": 0}}), tmp_path / "out", None)


def test_a_run_that_ended_before_anything_was_saved_may_change(tmp_path: Path) -> None:
    first = tiny_run(tmp_path, model={"params": "1", "context": 32})
    with pytest.raises(ConfigError, match="no model of about 1 parameters"):
        pretrain(first, tmp_path / "out")
    first_identity = Tokenizer.from_directory(tmp_path / "out/tokenizer").identity
    write_text(tmp_path / "other.txt", seed=1)
    source = {"name": "lines", "source": "other.txt", "lines": 8}
    data = {"sources": [source], "tokenizer": {"vocab_size": 280}, "held_out": 0.1}
    second = tiny_run(tmp_path, data=data, evaluation={"baselines": False}, tokens=512)
    result = pretrain(second, tmp_path / "out")
    assert Tokenizer.from_directory(result.base).identity != first_identity
    assert load_base(result.base).spec.vocab_size == 280


def test_a_model_that_diverged_is_said_to_have(tmp_path: Path) -> None:
    optimizer = {"learning_rate": 1e12, "clip": None}  # far beyond what float32 holds, not so far that all is 0
    run = tiny_run(tmp_path, optimizer=optimizer, evaluation={"baselines": False}, tokens=1024)
    with pytest.raises(TrainingError, match="lower the learning rate"):
        pretrain(run, tmp_path / "out")
    rows = read_jsonl(tmp_path / "out/evaluations.jsonl")
    assert any("the loss on lines is not finite" in error for row in rows for error in row["errors"])
