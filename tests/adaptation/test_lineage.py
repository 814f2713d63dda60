"""From a skin to what it was made from and back; made again and compared; taken over on newer data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.adaptation.conftest import NATIVE_SHAPE, write_rows, write_task
from tests.homes import new_home
from tests.tiny import write_tiny_base

from bedplate.adaptation.ladder import adapt
from bedplate.adaptation.postprocess.reproduce import FileDifference, judged, reproduce
from bedplate.adaptation.report.report import Report
from bedplate.adaptation.rungs.lora import LORA
from bedplate.cli.adapt import EXIT_CODES
from bedplate.cli.main import main
from bedplate.core.errors import DataError, UsageError
from bedplate.core.files import sha256_file
from bedplate.evaluation.examples import load_examples
from bedplate.evaluation.task import load_task
from bedplate.models.checkpoints.base import load_base
from bedplate.skins.catalog import Catalog
from bedplate.skins.files import read_skin, skin_id, write_skin
from bedplate.skins.lineage import LineageNode, Trace, trace
from bedplate.skins.records import Run
from bedplate.skins.skin import LoraPart

RUNGS = ["zero_shot", "probe", "lora"]
Call = Callable[..., tuple[int, Any]]


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """A finished run in `run`, its task in `task`, its base in `base`."""
    place = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEDPLATE_HOME", str(new_home(place / "home")))
        patch.setattr(LORA, "recipe", replace(LORA.recipe, seeds=1))
        base = write_tiny_base(place / "base" / "tiny", **NATIVE_SHAPE)
        (place / "task").mkdir()
        rows = write_rows(place / "task" / "rows.jsonl", groups=60)
        task = write_task(place / "task", base, rows=rows, rungs=RUNGS)
        report = adapt(task, place / "run")
    return place, report


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Call:
    def call(*arguments: str | Path) -> tuple[int, Any]:
        with pytest.raises(SystemExit) as stopped:
            main([*map(str, arguments), "--json"])
        return int(stopped.value.code or 0), json.loads(capsys.readouterr().out)

    return call


def all_of(nodes: tuple[LineageNode, ...]) -> dict[str, LineageNode]:
    return {node.id: node for root in nodes for node in root.walk()}


def traced(target: str | Path) -> Trace:
    with Catalog.open() as catalog:
        return trace(target, catalog)


def test_from_a_skin_to_its_data_and_back(finished_run: tuple[Path, Report], run: Call):
    place, report = finished_run
    skin = place / "run" / "skins" / "lora"
    base = load_base(place / "base" / "tiny").identity.weights_id
    data = load_examples(load_task(place / "task" / "task.yaml"))
    code, trace = run("skins", "trace", skin)
    assert code == 0
    (made_in,) = trace["came_from"]
    assert (made_in["what"], made_in["facts"]["seed"], made_in["here"]) == ("run", 0, True)
    assert made_in["facts"]["task_file"] == str(place / "task" / "task.yaml")
    assert made_in["facts"]["environment"]["torch"] == version("torch")
    assert {node["id"] for node in made_in["nodes"]} == {base, *data.hashes.values()}  # each once, the farthest way
    assert trace["became"] == []  # nothing is known of it yet

    assert run("skins", "list", place / "run")[0] == 0
    skins = {
        skin_record["skin_id"]: skin_record["directory"] for skin_record in report.data["lineage"]["skins"].values()
    }
    assert len(skins) == len(RUNGS)
    split = data.hashes["train"]
    for target in (place / "task" / "rows.jsonl", sha256_file(place / "task" / "rows.jsonl")[:8], split, base):
        below = all_of(traced(target).became)
        assert (
            skins.items()
            <= {
                id_: str(Path(node.path or "/").relative_to(place / "run"))
                for id_, node in below.items()
                if node.what == "skin"
            }.items()
        )
        assert {node.what for node in below.values()} == {"run", "skin", "report"}
    assert {node.what for node in all_of(traced(skin).became).values()} == {"report"}
    assert traced(made_in["id"]).subject.what == traced(place / "run").subject.what == "run"

    changed = place / "changed.jsonl"
    changed.write_text((place / "task" / "rows.jsonl").read_text() + "\n")
    assert run("skins", "trace", changed)[0] != 0
    assert "nothing that was made from" in run("skins", "trace", changed)[1]["error"]["message"]


@pytest.mark.parametrize("rung", ["probe", "lora"])
def test_a_skin_is_made_again_bit_for_bit(finished_run: tuple[Path, Report], run: Call, tmp_path: Path, rung: str):
    place, report = finished_run
    code, reproduction = run("skins", "reproduce", place / "run" / "skins" / rung, "--out", tmp_path / "again")
    assert (code, reproduction["status"], reproduction["differences"], reproduction["notes"]) == (
        0,
        "identical",
        [],
        [],
    )
    row = report.row(rung)
    assert row is not None
    assert reproduction["equal_answers"] == reproduction["rows"] == row["n"]
    assert reproduction["estimate"] == reproduction["recorded"] == row["estimate"]
    assert (
        skin_id(read_skin(reproduction["directory"]))
        == reproduction["skin_id"]
        == report.data["lineage"]["skins"][rung]["skin_id"]
    )
    assert not (tmp_path / "again" / "test").exists()
    assert {path.name for path in (tmp_path / "again" / "skins").iterdir()} == {"zero_shot", rung}
    assert json.loads((tmp_path / "again" / "reproduction.json").read_text()) == reproduction


def test_what_is_not_what_it_was_is_named(finished_run: tuple[Path, Report], run: Call, tmp_path: Path):
    shutil.copytree(finished_run[0], tmp_path / "other")
    skin, rows = tmp_path / "other" / "run" / "skins" / "probe", tmp_path / "other" / "task" / "rows.jsonl"
    settings = tmp_path / "other" / "task" / "task.yaml"
    task = yaml.safe_load(settings.read_text())
    task["data"]["source"], task["adapt"]["bases"] = str(rows), [str(tmp_path / "other" / "base" / "tiny")]
    settings.write_text(yaml.safe_dump(task, sort_keys=False))
    lines = rows.read_text().splitlines()

    rows.write_text("\n".join(lines[:-1]) + "\n")
    code, reproduction = run("skins", "reproduce", skin, "--out", tmp_path / "a", "--task", settings)
    assert (code, reproduction["status"], reproduction["reproduced"]) == (1, "not_possible", False)
    decided = {difference["what"] for difference in reproduction["differences"] if difference["decides"]}
    assert decided
    assert decided <= {"the train split", "the valid split", "the test split"}
    assert all(name in reproduction["reason"] for name in decided)
    assert not (tmp_path / "a").exists()

    rows.unlink()
    code, reproduction = run("skins", "reproduce", skin, "--out", tmp_path / "a", "--task", settings)
    assert (code, reproduction["status"]) == (1, "not_possible")
    assert "rows.jsonl" in reproduction["reason"]

    rows.write_text("\n".join(lines) + "\n")
    shutil.rmtree(tmp_path / "other" / "base" / "tiny")
    write_tiny_base(tmp_path / "other" / "base" / "tiny", seed=7, **NATIVE_SHAPE)
    code, reproduction = run("skins", "reproduce", skin, "--out", tmp_path / "a", "--task", settings)
    assert code == 1
    assert [difference["what"] for difference in reproduction["differences"] if difference["decides"]] == [
        f"the base {finished_run[0] / 'base' / 'tiny'}: weights_id"
    ]


def test_a_skin_without_its_run_needs_the_task_file_and_nothing_more(finished_run: tuple[Path, Report], tmp_path: Path):
    place, _ = finished_run
    skin = shutil.copytree(place / "run" / "skins" / "zero_shot", tmp_path / "alone")
    with pytest.raises(UsageError, match="--task"):
        reproduce(skin, tmp_path / "again")
    with pytest.raises(UsageError, match="something else than an earlier reproduction"):
        reproduce(place / "run" / "skins" / "zero_shot", place / "run")
    reproduction = reproduce(skin, tmp_path / "again", task_file=place / "task" / "task.yaml")
    assert (reproduction.status, reproduction.notes) == ("identical", ())
    (skin / "report.json").unlink()
    written = read_skin(place / "run" / "skins" / "zero_shot")
    write_skin(written, skin, replace=True)
    with pytest.raises(UsageError, match=r"has no report\.json"):
        reproduce(skin, tmp_path / "again")


def test_a_skin_that_differs_is_told_and_by_how_much_is_said(
    finished_run: tuple[Path, Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As if the code of today were not that of then."""
    place, _ = finished_run
    train = LORA.train

    def doubled_train(context: Any, source: Any, config: Any, work: Path, output: Any) -> Any:
        parts, training_result = train(context, source, config, work, output)
        lora = parts["lora"]
        return {"lora": LoraPart(lora.config, {k: t * 2 for k, t in lora.tensors.items()})}, training_result

    monkeypatch.setattr(LORA, "train", doubled_train)
    reproduction = reproduce(place / "run" / "skins" / "lora", tmp_path / "again")
    changed = {part.name: part.largest for part in reproduction.parts if not part.equal}
    assert "adapter_model.safetensors" in changed
    assert reproduction.directory is not None
    old, new = (read_skin(path).lora for path in (place / "run" / "skins" / "lora", reproduction.directory))
    assert old is not None
    assert new is not None
    largest = max(float((new.tensors[name] - old.tensors[name]).abs().max()) for name in old.tensors)
    assert changed["adapter_model.safetensors"] == pytest.approx(largest)
    assert (
        reproduction.reproduced
        == (reproduction.status == "equivalent")
        == (reproduction.equal_answers == reproduction.rows)
    )


def test_what_files_and_answers_say_together():
    equal, close, unequal = FileDifference("a", True), FileDifference("b", False, 1e-3), FileDifference("c", False)
    assert judged([equal], 9, 10)[0] == "identical"
    assert judged([equal, close], 10, 10) == (
        "equivalent",
        "b differs by at most 0.001; 10 of 10 answers on valid are the same",
    )
    assert judged([equal, close], 9, 10)[0] == "different"
    assert judged([close, unequal], 10, 10)[0] == "different"
    assert judged([close], 0, 0)[0] == "different"  # nobody was asked


def test_a_child_goes_on_from_its_parent_and_keeps_its_rows_apart(
    finished_run: tuple[Path, Report], tmp_path: Path, run: Call, monkeypatch: pytest.MonkeyPatch
):
    place, _ = finished_run
    parent = place / "run" / "skins" / "lora"
    extended_rows = write_rows(tmp_path / "more.jsonl", groups=80)  # the same reviews first, and 20 groups of new ones
    task = write_task(
        tmp_path / "task", place / "base" / "tiny", rows=extended_rows, rungs=["zero_shot", "probe", "lora"]
    )
    monkeypatch.setattr(LORA, "recipe", replace(LORA.recipe, learning_rate=1e-12, seeds=1))
    code, report = run("adapt", task, "--out", tmp_path / "run", "--parent", parent)
    assert code == EXIT_CODES[report["verdict"]["status"]]

    before, after = (
        json.loads((directory / "splits.json").read_text()) for directory in (place / "run", tmp_path / "run")
    )
    assigned_rows = {row for rows in after.values() for row in rows["rows"]}
    for name in ("train", "valid", "test"):
        assert set(before[name]["rows"]) & assigned_rows <= set(after[name]["rows"])
        assert set(before[name]["groups"]) <= set(after[name]["groups"])
    assert sum(len(split["rows"]) for split in after.values()) > sum(len(split["rows"]) for split in before.values())

    id_ = skin_id(read_skin(parent))
    made_of = report["lineage"]["skins"]
    assert {tuple(skin_record["parents"]) for skin_record in made_of.values()} == {(id_,)}
    assert report["details"]["lora"]["goes_on_from"] == id_
    child, old = (read_skin(path).lora for path in (tmp_path / "run" / "skins" / "lora", parent))
    assert child is not None
    assert old is not None
    for name, tensor in old.tensors.items():  # nearly no learning: what it started from
        assert torch.allclose(child.tensors[name].float(), tensor.float(), atol=1e-6)
    assert Run.read(tmp_path / "run").parent_id == id_
    assert id_ in all_of(traced(tmp_path / "run" / "skins" / "lora").came_from)
    assert made_of["lora"]["skin_id"] in all_of(traced(parent).became)

    code, reproduction = run("skins", "reproduce", tmp_path / "run" / "skins" / "lora", "--out", tmp_path / "again")
    assert (code, reproduction["status"]) == (0, "identical")


@pytest.mark.slow
@pytest.mark.parametrize(("rung", "skin_type"), [("dora", "lora"), ("soft_prompt", "soft_prompt")])
def test_other_weights_are_gone_on_from_too(
    finished_run: tuple[Path, Report], tmp_path: Path, rung: str, skin_type: str
):
    place, _ = finished_run
    rows = place / "task" / "rows.jsonl"
    first = write_task(tmp_path / "a", place / "base" / "tiny", rows=rows, rungs=["zero_shot", rung])
    adapt(first, tmp_path / "first", exhaustive=True)
    parent = tmp_path / "first" / "skins" / rung
    assert read_skin(parent).kind == skin_type
    second = write_task(tmp_path / "b", place / "base" / "tiny", rows=rows, rungs=["zero_shot", "lora", rung])
    report = adapt(second, tmp_path / "second", exhaustive=True, parent=parent)
    assert report.data["details"][rung]["goes_on_from"] == skin_id(read_skin(parent))
    assert report.data["details"]["lora"]["goes_on_from"] is None  # weights of another shape
    assert reproduce(tmp_path / "second" / "skins" / rung, tmp_path / "again").status == "identical"


def test_what_cannot_be_a_parent(finished_run: tuple[Path, Report], tmp_path: Path):
    place, _ = finished_run
    task = place / "task" / "task.yaml"
    alone = shutil.copytree(place / "run" / "skins" / "lora", tmp_path / "alone")
    with pytest.raises(UsageError, match="nobody can tell which rows it has seen"):
        adapt(task, tmp_path / "run", parent=alone)
    changed = yaml.safe_load(task.read_text())
    changed["inputs"] = {"text": {"column": "text", "kind": "text"}}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(changed, sort_keys=False))
    with pytest.raises(UsageError, match="its inputs are review, those of"):
        adapt(tmp_path / "task.yaml", tmp_path / "run", parent=place / "run" / "skins" / "lora")
    # files that put what it was trained on into test
    data = load_examples(load_task(task))
    rows = {json.loads(line)["id"]: line for line in (place / "task" / "rows.jsonl").read_text().splitlines()}
    parts = {"train": data.valid, "valid": data.test.open("a test of files"), "test": data.train}
    for name, examples in parts.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows[example.id] for example in examples) + "\n")
    changed = yaml.safe_load(task.read_text())
    changed["data"] = {"target": "label", "group_by": "group", "split": {name: f"{name}.jsonl" for name in parts}}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(changed, sort_keys=False))
    with pytest.raises(DataError, match="was in train when the parent was made"):
        adapt(tmp_path / "task.yaml", tmp_path / "run", parent=place / "run" / "skins" / "lora")
    assert not (tmp_path / "run").exists()
