"""Rungs that train weights, on a tiny base: what they leave is whole, stands on the right base, answers anywhere."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import SafetensorError
from tests.adaptation.conftest import write_rows, write_task
from tests.elsewhere import answers as answers_elsewhere
from tests.homes import new_home
from tests.near import assert_near
from tests.rows import slow_unless

from bedplate.adaptation.ladder import adapt
from bedplate.adaptation.postprocess.reproduce import reproduce
from bedplate.adaptation.report.report import Report
from bedplate.adaptation.rungs import RUNGS, continued_pretrain, full
from bedplate.adaptation.task.adapt_parts import inputs_in
from bedplate.core.errors import BedplateError, ConfigError, UsageError
from bedplate.data.documents import read_whole_documents
from bedplate.evaluation.examples import Example
from bedplate.inference.predict.loaded import load
from bedplate.inference.predict.skin_bases import LoadedSkin
from bedplate.models.checkpoints.base import load_base
from bedplate.models.inputs import Inputs
from bedplate.skins.files import read_skin

TRAINED = ("soft_prompt", "lora", "dora", "full", "continued_pretrain")
CHILDREN = ("full", "continued_pretrain")
TEXTS = ("this product works number 3 a", "a product that broke: terrible quality", "great")


def write_text(path: Path, documents: int = 40, seed: int = 0) -> Path:
    """Documents in which one word tells the next."""
    draw = random.Random(seed)
    words = ("this product works well", "the quality is great", "it broke after a day", "the answer is yes")
    rows = [{"text": " . ".join(draw.choice(words) for _ in range(draw.randint(4, 30)))} for _ in range(documents)]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


@pytest.fixture(scope="module", autouse=True)
def small_steps() -> Iterator[None]:
    """So that a little text is many steps."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"ROW": 64, "BATCH_ROWS": 2, "LEARNING_RATE": 5e-3}.items():
            patch.setattr(continued_pretrain, name, value)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> tuple[Report, Path]:
    directory = tmp_path_factory.mktemp("trained")
    raw = {"source": str(write_text(directory / "text.jsonl")), "tokens": 3000}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEDPLATE_HOME", str(new_home(directory / "home")))
        rows = write_rows(directory / "some.jsonl", groups=64)
        task = write_task(directory, tiny_base, rows=rows, raw_text=raw, guards={"retention": None, "loss": None})
        report = adapt(task, directory / "out", rungs=["zero_shot", *TRAINED])
    return report, directory / "out"


def answers(directory: Path) -> list[list[Any]]:
    skin = load(directory)
    assert isinstance(skin, LoadedSkin)
    try:
        rows = [{"review": text} for text in TEXTS]
        return [[p.output, p.scores] for p in skin.predict(rows, one_by_one=True)]
    finally:
        skin.close()


def test_each_skin_answers_the_same_in_another_process(run: tuple[Report, Path], tmp_path: Path):
    report, out = run
    assert {row["rung"]: row["status"] for row in report.rungs} == dict.fromkeys(("zero_shot", *TRAINED), "done")
    directories = [str(out / report.row(name)["skin"]) for name in TRAINED]
    elsewhere = answers_elsewhere(tmp_path, directories, [{"review": text} for text in TEXTS])
    local_answers = [answers(Path(directory)) for directory in directories]
    assert elsewhere == local_answers
    assert len({json.dumps(skin_answers) for skin_answers in local_answers}) == len(TRAINED)


@pytest.mark.parametrize("name", CHILDREN)
def test_a_child_base_is_a_base_of_its_own_with_its_lineage(run: tuple[Report, Path], tiny_base: Path, name: str):
    report, out = run
    parent, child = load_base(tiny_base), load_base(out / "children" / name)
    assert child.identity.weights_id != parent.identity.weights_id
    assert child.identity.tokenizer_id == parent.identity.tokenizer_id
    assert child.dtype == parent.dtype
    assert child.lineage["parent"] == parent.identity.weights_id
    assert child.identity.equivalent_of is None
    provenance = child.lineage["made"]
    assert (provenance["rung"], provenance["task"]) == (name, "toy-sentiment")
    assert provenance["data"]["train"] != provenance["data"]["valid"]
    changed = [
        key
        for (key, a), b in zip(parent.model.named_parameters(), child.model.parameters(), strict=True)
        if not torch.equal(a, b)
    ]
    assert len(changed) == len(list(parent.model.parameters()))  # every weight
    skin = read_skin(out / report.row(name)["skin"])
    assert skin.base.weights_id == child.identity.weights_id
    assert skin.name == f"toy-sentiment-{name.replace('_', '-')}"
    assert skin.provenance.rung == name
    reference = transformers.AutoModelForCausalLM.from_pretrained(out / "children" / name, dtype=torch.float32).eval()
    tokens = torch.arange(3, 40)[None]
    with torch.no_grad():
        expected = reference(tokens).logits[0]
        logits = child.model.head(child.model(Inputs(tokens)).hidden[0])
    assert_near(logits, expected)


def test_raw_text_is_learned(run: tuple[Report, Path]):
    result = json.loads((run[1] / "rungs" / "continued_pretrain" / "result.json").read_text())
    details = result["details"]
    assert details["held_out_loss"] < details["held_out_loss_before"] - 0.2
    assert details["tokens"] == 3000
    tried = {row["name"]: row["estimate"] for row in result["search"]}
    assert set(tried) == {"zero_shot", "few_shot", "lora"}
    assert tried[details["then"]] == max(tried.values()) == result["evaluation"]["estimate"]
    assert not list((run[1] / "rungs").rglob("state.safetensors"))


@pytest.mark.parametrize("name", slow_unless("full".__eq__, CHILDREN))
def test_an_interrupted_rung_makes_the_same_child(
    run: tuple[Report, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    """Stopped in the middle of training, and once more after the child was written."""
    module = full if name == "full" else continued_pretrain
    task = run[1].parent / "task.yaml"
    out = tmp_path / "out"
    train = module.train

    def stops(*arguments: Any, **named: Any) -> Any:
        config = arguments[3]
        half = config.model_copy(update={"save_steps": 2})

        def stop(step: int, _: Any) -> None:
            if step == 2:
                raise KeyboardInterrupt

        return train(*arguments[:3], half, *arguments[4:], **{**named, "on_checkpoint": stop})

    with monkeypatch.context() as patch:
        patch.setattr(module, "train", stops)
        with pytest.raises(KeyboardInterrupt):
            adapt(task, out, rungs=["zero_shot", name])
    assert list((out / "rungs" / name).rglob("state.safetensors"))
    assert not (out / "children").exists()

    def after(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if name == "full":
            patch.setattr(type(RUNGS[name]), "_finish", after)
        else:
            patch.setattr(continued_pretrain, "on_child", after)
        with pytest.raises(KeyboardInterrupt):
            adapt(task, out, rungs=["zero_shot", name])
    assert (out / "children" / name).is_dir()
    assert adapt(task, out, rungs=["zero_shot", name]).row(name)["status"] == "done"
    expected, resumed = (load_base(place / "children" / name).identity for place in (run[1], out))
    assert resumed.weights_id == expected.weights_id


def test_too_little_memory_or_disk_is_a_reason(
    run: tuple[Report, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    task = run[1].parent / "task.yaml"
    monkeypatch.setattr(full, "free_on", lambda _: 1_000_000)
    report = adapt(task, tmp_path / "memory", rungs=["majority", "full", "continued_pretrain"])
    for name in CHILDREN:
        assert "of memory are free" in report.row(name)["reason"]
    monkeypatch.undo()
    usage = full.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(full.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    report = adapt(task, tmp_path / "disk", rungs=["majority", "full"])
    assert "on disk" in report.row("full")["reason"]


def test_without_raw_text_the_rung_says_what_is_missing(tmp_path: Path, tiny_base: Path):
    report = adapt(write_task(tmp_path / "t", tiny_base), tmp_path / "out", rungs=["majority", "continued_pretrain"])
    assert "adapt.raw_text" in report.row("continued_pretrain")["reason"]


def test_raw_text_that_cannot_be_read_ends_the_ladder(tmp_path: Path, tiny_base: Path):
    empty = tmp_path / "notes"
    empty.mkdir()
    for source, message in ((str(empty), "holds no text"), ("nowhere.txt", "nowhere.txt"), ("x.bin", "data set")):
        task = write_task(tmp_path / "t", tiny_base, raw_text={"source": source})
        with pytest.raises(BedplateError, match=message):
            adapt(task, tmp_path / "out", rungs=["majority", "continued_pretrain"])
    (empty / "b.md").write_text("second " * 40)
    (empty / "a.txt").write_text("first " * 40)
    task = write_task(tmp_path / "t", tiny_base, raw_text={"source": str(empty)})
    report = adapt(task, tmp_path / "out", rungs=["majority", "continued_pretrain"])
    assert "do not move a base" in report.row("continued_pretrain")["reason"]


def test_a_child_that_is_gone_is_made_again(run: tuple[Report, Path], tmp_path: Path):
    """Without it the result cannot be tested, which must not come out after test was opened."""
    task, out = run[1].parent / "task.yaml", tmp_path / "out"
    shutil.copytree(run[1], out)
    weights_id = load_base(out / "children" / "full").identity.weights_id
    shutil.rmtree(out / "children")
    report = adapt(task, out, rungs=["zero_shot", "full"])
    assert report.row("full")["status"] == "done"
    assert load_base(out / "children" / "full").identity.weights_id == weights_id


def test_the_task_s_own_data_is_no_raw_text(tmp_path: Path, tiny_base: Path):
    task = write_task(tmp_path / "t", tiny_base, raw_text={"source": "../t/rows.jsonl"})
    with pytest.raises(ConfigError, match="is the task's own data"):
        adapt(task, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_inputs_that_stand_in_raw_text_are_counted(tmp_path: Path):
    write_text(tmp_path / "text.jsonl", 1)
    (tmp_path / "text.md").write_text("Before. It  broke\nafter a day. Afterwards.")
    text = read_whole_documents("text.md", tmp_path)
    examples = [
        Example(str(i), {"review": review}, "x", str(i), "g") for i, review in enumerate(("It broke after", "other"))
    ]
    assert inputs_in(text, examples) == 1


def test_a_disk_that_is_full_is_no_failure_of_the_rung(
    run: tuple[Report, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full_disk(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("bedplate.models.checkpoints.safetensors.save_file", full_disk)
    with pytest.raises(UsageError, match="cannot be written"):
        adapt(run[1].parent / "task.yaml", tmp_path / "out", rungs=["majority", "full"])
    assert not (tmp_path / "out" / "test").exists()


@pytest.mark.parametrize("rung", slow_unless("full".__eq__, CHILDREN))
def test_a_skin_is_made_again_with_the_base_that_it_stands_on(run: tuple[Report, Path], tmp_path: Path, rung: str):
    report, out = run
    row = report.row(rung)
    assert row is not None
    skin = out / row["skin"]
    reproduction = reproduce(skin, tmp_path / "again")
    assert (reproduction.status, reproduction.equal_answers) == ("identical", reproduction.rows), (
        reproduction.reason,
        reproduction.parts,
    )
    assert reproduction.estimate == reproduction.recorded == row["estimate"]
    old, new = read_skin(skin).base, read_skin(Path(reproduction.directory or "")).base
    assert old.weights_id == new.weights_id
    assert Path(new.name).is_relative_to(tmp_path / "again")
    assert load_base(new.name).identity.weights_id == new.weights_id
