"""A skin on new rows, and two skins side by side, through the command line, with what their run left."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tests.adaptation.conftest import NATIVE_SHAPE
from tests.tiny import write_tiny_base

import bedplate
from bedplate.adaptation.postprocess import monitor
from bedplate.cli.main import main
from bedplate.core.config import dump_config
from bedplate.core.errors import UsageError
from bedplate.core.files import bedplate_home, read_jsonl
from bedplate.evaluation.drift import Sample, Shift, parts, shifts
from bedplate.evaluation.examples import SPLITS, load_examples
from bedplate.evaluation.in_memory import fresh_rows
from bedplate.evaluation.leaks.seen_rows import write_splits
from bedplate.evaluation.ledger import TestLedger, keys_of
from bedplate.evaluation.task import load_task
from bedplate.inference.predict.callable_skin import RowsLike
from bedplate.inference.predict.predictor import Prediction
from bedplate.models.checkpoints.base import load_base
from bedplate.skins.files import read_identified, read_skin, skin_id, write_skin
from bedplate.skins.output import LabelOutput
from bedplate.skins.phrasings import default_continuations, default_prompt
from bedplate.skins.records import Run
from bedplate.skins.skin import BaseReference, EvaluatedWith, InputField, Provenance, Skin

LABELS = ("no", "yes")


def rows(start: int, count: int, template: str = "is it so that number {}") -> list[dict[str, Any]]:
    """Rows whose number looks drawn, so that one hundred is like another; every second is a yes."""
    numbers = range(start, start + count)
    return [{"text": template.format(1000 + i * 7919 % 9000), "y": LABELS[i % 2], "g": f"g{i // 3}"} for i in numbers]


def write(path: Path, rows: Sequence[Mapping[str, Any]], *without: str) -> Path:
    trimmed_rows = [{key: value for key, value in row.items() if key not in without} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in trimmed_rows), "utf-8")
    return path


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two skins that give every row the same label each, of 180 rows in 60 groups, with a report."""
    root = tmp_path_factory.mktemp("house")
    base = write_tiny_base(root / "tiny", **NATIVE_SHAPE)
    write(root / "rows.jsonl", [*rows(0, 180), *rows(0, 3)])  # three texts come twice
    (root / "task.yaml").write_text(
        "task: numbers\ninputs: {q: {column: text}}\noutput: {kind: label, labels: ['no', 'yes']}\nmetric: accuracy\n"
        "data: {source: rows.jsonl, target: y, group_by: g, split: {train: 0.5, valid: 0.25, test: 0.25}}\n"
        "adapt: {bases: [tiny], machine: {usd_per_hour: 3.6, as_of: 2026-11-24}}\n",
        "utf-8",
    )
    task = load_task(root / "task.yaml")
    data = load_examples(task)
    run = root / "run"
    run.mkdir()
    fields: dict[str, Any] = {"task_file": str(root / "task.yaml"), "seed": 0, "rungs": ("zero_shot",)}
    Run(id="0" * 64, task="numbers", budget_seconds=None, exhaustive=False, data=dict(data.hashes), **fields).write(run)
    (run / "task.yaml").write_text(dump_config(task), "utf-8")
    write_splits(run, data)
    skin = Skin(
        name="always-no",
        bases={"main": BaseReference.of(str(base), "llama", load_base(base).identity)},
        inputs={"q": InputField()},
        output=LabelOutput(labels=LABELS, continuations=default_continuations(LABELS), bias=(100.0, 0.0)),
        prompt=default_prompt("numbers", "Decide.", ["q"], LABELS),
        evaluated_with=EvaluatedWith(weights="float32"),
        provenance=Provenance(task="numbers", splits={name: data.hashes[name] for name in SPLITS}),
    )
    biased = skin.output.model_copy(update={"bias": (0.0, 100.0)})
    for variant in (skin, replace(skin, name="always-yes", output=biased)):
        skin_record = {"skin_id": skin_id(variant)}
        row = {"rung": "zero_shot", "split": "test", "estimate": 0.5, "interval": [0.35, 0.65], "n": 45, "groups": 15}
        bound = {"rung": "zero_shot", "lower": 0.36, "lower_confidence": 0.97}
        report = {
            "lineage": {"skins": {"zero_shot": skin_record}},
            "rungs": [row],
            "target": {"metric": "accuracy", "value": 0.3},
            "nominees": {"confirmations": [bound]},
        }
        write_skin(variant, run / "skins" / variant.name, {"report.json": json.dumps(report).encode()})
    return root


def run_cli(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def looked(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    code, printed, complaint = run_cli(capsys, "evaluate", *arguments, "--json")
    assert (code, complaint) == (0, "")
    return json.loads(printed)


def test_rows_like_the_old_ones_keep_the_skin(house: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    skin, new = house / "run/skins/always-no", write(tmp_path / "new.jsonl", rows(180, 150))
    report = looked(capsys, skin, new, "--out", tmp_path / "out.json")
    assert report["verdict"] == "keep"
    assert report["evaluation"]["estimate"] == report["quality"]["estimate"] == 0.5
    assert (report["evaluation"]["n"], report["evaluation"]["groups"]) == (150, 50)
    # 3 copies stay where their texts are in train or valid
    old = load_examples(load_task(house / "task.yaml"))
    assert 135 <= report["old_rows"] <= 138
    assert len(old.train) + len(old.valid) == 135
    assert not any(shift["differs"] for shift in report["shifts"])
    assert [shift["what"] for shift in report["shifts"]] == ["inputs", "words", "length", "labels"]
    assert len(json.loads((tmp_path / "out.json").read_text("utf-8"))["evaluation"]["rows"]) == 150


def test_other_rows_that_it_gets_wrong_mean_to_climb(
    house: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    changed = [{**row, "y": "yes"} for row in rows(500, 150, "the delivery of {} came late and the box was open")]
    code, printed, _ = run_cli(
        capsys, "evaluate", house / "run/skins/always-no", write(tmp_path / "new.jsonl", changed)
    )
    assert code == 0
    assert "Adapt again: accuracy is 0.000 on the new rows, where the skin's verdict promised 0.360" in printed
    assert "promised at least 0.360 (97.0%, from its verdict). Evidence of a drop: " in printed
    assert re.search(r"Evidence of a value below the bar: \S+ to 1 \(107 to 1 would show it\)\.", printed)
    assert (
        "significantly below the bar and the promise; new rows differ from old ones in inputs, length and labels"
        in printed
    )
    assert "words that are more frequent now:" in printed


def test_rows_without_labels_are_compared_by_input_alone(
    house: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    unlabeled_rows = write(tmp_path / "new.jsonl", rows(500, 90, "the delivery of {} came late"), "y")
    report = looked(capsys, house / "run/skins/always-no", unlabeled_rows)
    assert (report["verdict"], report["quality"], report["evaluation"]) == ("label", None, None)
    assert [shift["what"] for shift in report["shifts"]] == ["inputs", "words", "length"]
    assert "no column 'y'" in " ".join(report["notes"])


def test_another_topic_is_seen_where_the_base_takes_it_for_the_same(
    house: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of the same length whose words are other ones, by a base whose vectors are all alike."""

    def alike(old: Sequence[str], new: Sequence[str], *_: object) -> tuple[Any, Any]:
        return np.ones((len(old), 4)), np.ones((len(new), 4))

    monkeypatch.setattr(monitor, "input_vectors", alike)
    drifted = write(tmp_path / "new.jsonl", rows(500, 300, "my card is at home, box {}"), "y")
    report = looked(capsys, house / "run/skins/always-no", drifted)
    assert {shift["what"]: shift["differs"] for shift in report["shifts"] if shift["what"] != "length"} == {
        "inputs": False,
        "words": True,
    }
    assert report["verdict"] == "label"


def test_a_table_of_new_rows_is_looked_at_as_the_file_of_them(
    house: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    skin, new = house / "run/skins/always-no", rows(600, 120)
    report = looked(capsys, skin, write(tmp_path / "new.jsonl", new))
    drift = bedplate.evaluate(skin, pd.DataFrame(new))
    assert (drift.verdict, drift.sentence, drift.look) == (report["verdict"], report["sentence"], report["look"])
    assert drift.quality is not None
    assert (drift.quality.estimate, drift.new_rows) == (report["quality"]["estimate"], 120)
    assert repr(drift).startswith("<new rows 120 against 13")
    assert len(repr(drift)) < 250
    bare = bedplate.evaluate(skin, [{"text": row["text"]} for row in new])
    assert (bare.quality, bare.verdict) == (None, "keep")
    with pytest.raises(UsageError, match="go with a task, not with new rows"):
        bedplate.evaluate(skin, pd.DataFrame(new), split="test")  # type: ignore[call-overload]
    with bedplate.load(skin) as loaded, pytest.raises(UsageError, match="give its directory, not a LoadedSkin"):
        bedplate.evaluate(loaded, new)  # type: ignore[call-overload]


def test_looks_are_counted_and_the_same_rows_are_one(
    house: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    skin = house / "run/skins/always-no"
    months = [write(tmp_path / f"{i}.jsonl", rows(1000 * i, 60), "y", "g") for i in (1, 2)]
    reports = [looked(capsys, skin, month) for month in (months[0], months[1], months[0])]
    assert [report["look"] for report in reports] == [1, 2, 1]
    assert [shift["evidence"] for shift in reports[2]["shifts"]] == [
        shift["evidence"] for shift in reports[0]["shifts"]
    ]
    looks = read_jsonl(bedplate_home() / "ledger" / "looks" / f"{read_identified(skin)[0]}.jsonl")
    assert [(look["number"], set(look["gains"])) for look in looks] == [
        (n, {"inputs", "words", "length"}) for n in (1, 2)
    ]
    assert looked(capsys, house / "run/skins/always-yes", months[0])["look"] == 1
    assert len(read_jsonl(monitor.looks().path)) == 3
    assert not (bedplate_home() / "ledger" / "test-openings.jsonl").exists()
    assert "each row is taken for a group of its own" in " ".join(reports[0]["notes"])


def test_new_rows_whose_accuracy_was_shown_are_no_fresh_test_rows(
    house: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The best of twenty skins by such looks passes at the bar in a fifth of verdicts that take the rows as unseen."""
    new = rows(4000, 60)
    report = looked(capsys, house / "run/skins/always-no", write(tmp_path / "new.jsonl", new))
    assert "a later verdict of `adapt` on them is exploratory" in " ".join(report["notes"])
    keys = keys_of((str(i), {"text": row["text"]}) for i, row in enumerate(new))
    assert TestLedger().open("a verdict", keys, task="t", reason="adapt").exploratory
    bare = rows(5000, 60)
    looked(capsys, house / "run/skins/always-no", write(tmp_path / "bare.jsonl", bare, "y"))
    unseen = keys_of((str(i), {"text": row["text"]}) for i, row in enumerate(bare))
    assert not TestLedger().open("of other rows", unseen, task="t", reason="adapt").exploratory  # nothing was shown


def test_looks_add_up_and_rows_are_counted_once_and_again_when_they_get_labels(
    house: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Two labels in three are other ones: ten rows show nothing, a hundred do."""
    skin = house / "run/skins/always-no"
    worse = [{**row, "y": LABELS[i % 3 > 0]} for i, row in enumerate(rows(2000, 120))]
    first = looked(capsys, skin, write(tmp_path / "bare.jsonl", worse[:60], "y"))
    assert first["quality"] is None
    evidence: list[float] = []
    for upto in (12, 60, 120):  # a file that grows
        report = looked(capsys, skin, write(tmp_path / f"{upto}.jsonl", worse[:upto]))
        evidence.append(report["quality"]["worse_evidence"]["value"])
    assert report["look"] == 4
    assert "60 of 120 new rows were in an earlier look and are not counted again" in " ".join(report["notes"])
    alone = looked(capsys, house / "run/skins/always-yes", tmp_path / "60.jsonl")
    assert not alone["quality"]["worse"]
    assert evidence[0] < evidence[1] < evidence[2]
    repeated = looked(capsys, skin, tmp_path / "60.jsonl")
    assert repeated["quality"]["worse_evidence"]["value"] == pytest.approx(evidence[1])
    assert repeated["look"] == 3


def test_of_a_file_that_grows_the_rows_that_are_new_are_embedded_and_texts_of_earlier_looks_left_out_of_both(
    house: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skin, grown = house / "run/skins/always-no", [*rows(0, 90), *rows(3000, 30, "the delivery of {} came late")]
    monkeypatch.setattr(monitor, "MAX_EMBEDDED_ROWS", 45)
    looked(capsys, skin, write(tmp_path / "first.jsonl", grown[:90], "y"))
    samples: list[Sample] = []

    def recorded_shifts(old: Sample, new: Sample, level: float, **kwargs: Any) -> Any:
        samples.extend((old, new))
        return shifts(old, new, level, **kwargs)

    monkeypatch.setattr(monitor, "shifts", recorded_shifts)
    report = looked(capsys, skin, write(tmp_path / "grown.jsonl", grown, "y"))
    had = {row["text"] for row in grown[:90]}
    for sample in samples:
        assert sample.unseen == [text not in had for text in sample.texts]
    assert sum(samples[0].unseen or ()) < len(samples[0].texts)
    assert {samples[1].texts[i] for i in samples[1].embedded} == {row["text"] for row in grown[90:]}
    assert "new rows are compared" in " ".join(report["notes"])


def test_rows_that_the_skin_had_say_nothing_of_quality(
    house: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    skin = house / "run/skins/always-no"
    reused_rows = [
        *rows(90, 45),
        *rows(135, 45, "Is it so, that number {}?"),
    ]  # a question mark makes no other row of one
    report = looked(capsys, skin, write(tmp_path / "new.jsonl", [*reused_rows, *rows(300, 120)]))
    assert report["evaluation"]["n"] == 120
    assert "90 of 210 new texts are among those" in " ".join(report["notes"])
    code, _, complaint = run_cli(capsys, "evaluate", skin, write(tmp_path / "old.jsonl", rows(0, 90)))
    assert code == 1
    assert "all rows of" in complaint


def test_a_skin_whose_run_is_gone_needs_its_task(
    house: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    alone = tmp_path / "elsewhere"
    shutil.copytree(house / "run/skins/always-no", alone)
    new = write(tmp_path / "new.jsonl", rows(180, 60))
    code, _, complaint = run_cli(capsys, "evaluate", alone, new)
    assert code == 2
    assert "give the task file with --task" in complaint
    report = looked(capsys, alone, new, "--task", house / "task.yaml")
    assert len(report["shifts"]) == 4  # its rows are those of the task file, by their hashes
    (tmp_path / "task.yaml").write_text(
        (house / "task.yaml").read_text("utf-8").replace("0.5,", "0.4,").replace("test: 0.25", "test: 0.35"), "utf-8"
    )
    shutil.copy(house / "rows.jsonl", tmp_path)
    report = looked(capsys, alone, new, "--task", tmp_path / "task.yaml")
    assert report["shifts"] == []
    assert "the hash of" in " ".join(report["notes"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["NEW", "--split", "test"], "go with a task file"),
        (["TASK", "--task", "TASK"], "goes with new rows"),
    ],
)
def test_options_of_the_other_form_are_refused(
    house: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    names = {"NEW": str(write(tmp_path / "new.jsonl", rows(180, 9))), "TASK": str(house / "task.yaml")}
    resolved = [names.get(argument, argument) for argument in arguments]
    code, _, complaint = run_cli(capsys, "evaluate", house / "run/skins/always-no", *resolved)
    assert code == 2
    assert message in complaint


# --- two skins


def compared(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    code, printed, complaint = run_cli(capsys, "skins", "compare", *arguments, "--json")
    assert (code, complaint) == (0, "")
    return json.loads(printed)


def test_the_better_skin_is_told_with_its_price(
    house: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    a, b = house / "run/skins/always-no", house / "run/skins/always-yes"
    fresh = [{**row, "y": LABELS[i % 4 > 0]} for i, row in enumerate(rows(200, 150))]
    new = write(tmp_path / "new.jsonl", [*rows(0, 180), *fresh])
    comparison = compared(capsys, a, b, new)
    assert (comparison["verdict"], comparison["exploratory"], comparison["number"]) == ("b", False, 1)
    right = sum(i % 4 == 0 for i in range(150))
    assert (comparison["comparison"]["n"], comparison["comparison"]["groups"]) == (150, 51)
    assert comparison["comparison"]["difference"] == pytest.approx((right - (150 - right)) / 150)
    assert comparison["sentence"].startswith("always-yes is better than always-no on these 150 rows (accuracy +0.4")
    low, high = comparison["comparison"]["interval"]
    assert low < comparison["comparison"]["difference"] < high < 0
    assert comparison["comparison"]["confidence"] == pytest.approx(1 - 0.05 * 6 / 3.14159265**2)
    assert {secondary["metric"] for secondary in comparison["others"]} == {"macro_f1", "exact_match"}
    assert sum(comparison["left_out"][str(a)].values()) == 180
    for side in ("a", "b"):
        seconds = comparison[side]["latency"]["mean"]
        assert comparison[side]["usd_per_1k_calls"] == pytest.approx(1000 * seconds * 3.6 / 3600)
    code, printed, _ = run_cli(capsys, "skins", "compare", b, a, new, "--usd-per-hour", "1")
    assert code == 0
    assert "always-yes is better than always-no on these 150 rows (accuracy +0.4" in printed
    assert "EXPLORATORY" not in printed  # the same question, turned round


def test_a_further_verdict_on_the_same_rows_is_exploratory(
    house: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    new = write(tmp_path / "new.jsonl", rows(200, 120))
    hashes = [e.row_hash for e in fresh_rows(load_task(house / "task.yaml"), new).examples]
    TestLedger().open("f" * 64, hashes[:5], task="numbers", reason="adapt")
    comparison = compared(capsys, house / "run/skins/always-no", house / "run/skins/always-yes", new)
    assert (comparison["verdict"], comparison["exploratory"], comparison["number"]) == ("undecided", True, 2)
    assert comparison["sentence"].startswith("EXPLORATORY: some of these rows were used for 1 earlier verdict;")


def test_rows_that_one_of_them_had_are_no_fresh_data(
    house: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    a, b = house / "run/skins/always-no", house / "run/skins/always-yes"
    for name, template in (("old", "is it so that number {}"), ("touched", "Is it so, that number {}?")):
        code, _, complaint = run_cli(
            capsys, "skins", "compare", a, b, write(tmp_path / f"{name}.jsonl", rows(0, 180, template))
        )
        assert code == 1
        assert "give fresh rows" in complaint
    code, _, complaint = run_cli(capsys, "skins", "compare", a, b, write(tmp_path / "bare.jsonl", rows(200, 9), "y"))
    assert code == 2
    assert "no column 'y'" in complaint
    code, _, complaint = run_cli(capsys, "skins", "compare", a, a, write(tmp_path / "new.jsonl", rows(200, 9)))
    assert code == 2
    assert "the same skin" in complaint


def test_inputs_are_compared_by_their_words_and_of_a_remote_skin_by_nothing_else(house: Path) -> None:
    class Remote:
        """Has no engine here."""

        skin, warnings = read_skin(house / "run/skins/always-no"), list[str]()

        def predict(self, rows: RowsLike, *, one_by_one: bool = False, tenant: str = "") -> list[Prediction]:
            raise NotImplementedError

        def close(self) -> None:
            """Nothing is open."""

    old, new = ([row["text"] for row in rows(0, 60)], [row["text"] for row in rows(60, 40, "the box of {} was open")])
    notes: list[str] = []
    assert monitor.input_vectors(old, new, Remote(), notes) is None
    assert "by their words alone" in notes[0]

    def compared_by_words(old: list[str], new: list[str]) -> Shift:
        vectors = monitor.word_vectors(old, new, parts(None, len(old), 0).learned)
        samples = [
            Sample(texts, None, embedded=range(len(texts)), word_vectors=side)
            for texts, side in zip((old, new), vectors, strict=True)
        ]
        return shifts(*samples, 0.01)[0]

    assert compared_by_words(old, new).aspect == "words"
    assert compared_by_words(old, new).differs
    assert not compared_by_words(old[:30], old[30:]).differs
    duplicate_vectors = monitor.word_vectors(["a", "a"], ["a", "b"], [0, 1])
    assert [len(side_vectors) for side_vectors in duplicate_vectors] == [2, 2]
