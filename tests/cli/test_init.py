"""`bedplate init`: a look at a file, and a task file that everything else reads."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.terminals import shown_on

import bedplate
from bedplate.adaptation.task.draft import guess_group, guess_inputs, guess_target
from bedplate.adaptation.task.task_file import check_task_file
from bedplate.cli.main import main
from bedplate.core.errors import ConfigError, DataError
from bedplate.data.profile import profiles
from bedplate.data.sources import read_rows
from bedplate.evaluation.examples import load_examples, sources_of
from bedplate.evaluation.leaks.hidden_groups import grouping_of
from bedplate.evaluation.task import load_task

WORDS = ("card", "transfer", "pending", "refund", "charge", "limit", "declined", "statement", "fee", "currency", "pin")


def tickets(path: Path, count: int = 400) -> Path:
    """Messages of customers with a category; the first two are copies, the third contradicts the first."""
    draw = random.Random(0)
    rows = [
        f'"about {" ".join(draw.choices(WORDS, k=6))}, number {i}",{("billing", "delivery", "other")[i % 3]},c{i // 4}'
        for i in range(count)
    ]
    rows += [rows[0].replace("c0", "c9"), rows[1], rows[2].replace("other", "billing")]
    path.write_text("\n".join(["message,category,customer_id", *rows]) + "\n", "utf-8")
    return path


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["init", *map(str, words)])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_a_csv_becomes_a_task_that_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tickets(tmp_path / "tickets.csv"), tmp_path / "tasks" / "task.yaml"
    code, shown, _ = run(capsys, data, "--out", out, "--yes", "--budget", "90s", "--bar", "0.9")
    assert code == 0
    for part in ("403 rows", "message", "customer_id", "billing (", "Copies of a text are left out: 2.", "100 groups"):
        assert part in shown
    assert "different values of category are all left out" in shown
    task = load_task(out)
    assert (task.task, list(task.inputs), task.labels) == ("tickets", ["message"], ("billing", "delivery", "other"))
    assert (task.data.target, task.data.group_by) == ("category", "customer_id")
    spec = check_task_file(out)
    assert (spec.target.value, spec.budget.train_minutes, spec.bases) == (0.9, 1.5, ("smollm2-135m",))
    splits = load_examples(task)
    assert f"{len(splits.train):,} train, {len(splits.valid):,} valid, {splits.test.n:,} test" in shown
    text = out.read_text("utf-8")
    assert text.count("# ") >= 8
    assert f"bedplate adapt {out}" in shown


def test_the_summary_has_labels_metric_and_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "task.yaml"
    shown = run(capsys, tickets(tmp_path / "t.csv"), "--out", out, "--yes", "--budget", "90s")[1]
    assert "the answer is category (one of 3 labels: billing, delivery, other)" in shown
    assert "with a budget of 1.5 min; read it through, above all the instructions and the bar (accuracy 0.8)" in (
        " ".join(shown.split())
    )


def test_options_say_what_is_otherwise_guessed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tickets(tmp_path / "t.csv"), tmp_path / "t.yaml"
    words = ("--target", "category", "--input", "message", "--group", "none", "--name", "mine")
    code, shown, _ = run(
        capsys, data, "smollm2-135m", "minilm-l6", "--out", out, *words, "--instructions", "Sort: it\nnow", "--json"
    )
    assert code == 0
    assert json.loads(shown)["group"] is None
    task = load_task(out)
    _, shown, _ = run(capsys, data, "--out", tmp_path / "bar.yaml", *words[:6], "--yes", "--bar", "0.75")
    assert "the bar (accuracy 0.75)" in shown
    assert (task.task, task.data.group_by, task.instructions) == ("mine", None, "Sort: it\nnow")
    assert check_task_file(out).bases == ("smollm2-135m", "minilm-l6")
    code, _, error = run(capsys, data, "--out", out, "--yes")
    assert (code, "exists already" in error) == (2, True)
    assert run(capsys, data, "--out", out, "--yes", "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("rows", "output_type", "metric"),
    [
        ([{"text": f"t {i}", "labels": ["a", "b"][: 1 + i % 2]} for i in range(90)], "labels", "example_f1"),
        ([{"text": f"t {i}", "label": ("a;b", "b", "a;c")[i % 3] + ";d"} for i in range(90)], "label", "accuracy"),
        ([{"text": f"t {i}", "out": {"name": str(i), "n": i}} for i in range(90)], "json", "json_fields"),
        ([{"text": f"t {i}", "answer": f"it is {i}"} for i in range(90)], "text", "token_f1"),
        (
            [{"text": f"t {i}", "label": "yes" if i % 9 else ("no", "so")[i // 9 % 2]} for i in range(900)],
            "label",
            "macro_f1",
        ),
        (  # no verdict on macro-F1 is possible with so few rows of a label
            [{"text": f"t {i}", "label": "yes" if i % 9 else ("no", "so")[i // 9 % 2]} for i in range(270)],
            "label",
            "accuracy",
        ),
    ],
)
def test_kinds_of_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]], output_type: str, metric: str
) -> None:
    data, out = lines(tmp_path / "rows.jsonl", rows), tmp_path / "task.yaml"
    target = next(name for name in rows[0] if name != "text")
    code, shown, error = run(capsys, data, "--out", out, "--target", target, "--json")
    assert (code, error) == (0, "")
    summary = json.loads(shown)
    assert (summary["kind"], summary["metric"]) == (output_type, metric)
    assert load_examples(load_task(out)).test.n > 0


def test_a_misspelt_label_is_named_and_no_metric_is_chosen_that_it_would_decide(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = ("top_up_failed", "card_arrival", "request_refund")
    rows = [{"text": f"message number {i} of a customer", "label": labels[i % 3]} for i in range(300)]
    rows[0]["label"] = "top_up_faild"
    code, shown, _ = run(capsys, lines(tmp_path / "r.jsonl", rows), "--out", tmp_path / "task.yaml", "--json")
    summary = json.loads(shown)
    assert (code, summary["metric"]) == (0, "accuracy")
    note = "The label 'top_up_faild' is on 1 row: did you mean 'top_up_failed'? Correct the data if so."
    assert note in summary["notes"]


def test_labels_that_yaml_reads_as_booleans_stay_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": f"is it {i}?", "label": ("yes", "no", "1e3")[i % 3]} for i in range(90)]
    out = tmp_path / "task.yaml"
    assert run(capsys, lines(tmp_path / "q.jsonl", rows), "--out", out, "--yes")[0] == 0
    assert load_task(out).labels == ("1e3", "no", "yes")


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        ("a,b\nx y z,other words\nu v w,more words\n", (), "which column is the answer? Name it as the target"),
        ("text,label\nx,a\n", ("--target", "lable"), "did you mean 'label'?"),
        ("text,label\nx,a\n", ("--input", "label", "--target", "label"), "both an input and the target"),
        ("label,n\na,1\nb,2\n", ("--target", "label"), "no column has text to be asked with"),
        ("text,label\nx, a\ny,b\n", (), "has spaces around it"),
        ("text,label\nx,a\ny,a\n", (), "the column 'label' is 'a' in every row"),
        ("text,label\nx,\ny,\n", ("--target", "label"), "the answers belong there"),
        ("text,label\nx,a\ny,b\n", (), "split"),
        ("text,label\nx,a\ny,b\n", ("--bar", "80"), "--bar is 80"),
        ("text,label\nx,a\ny,b\n", ("--budget", "soon"), "is not a length of time"),
    ],
)
def test_what_cannot_be_is_one_line_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, words: tuple[str, ...], message: str
) -> None:
    (tmp_path / "d.csv").write_text(content)
    code, _, error = run(capsys, tmp_path / "d.csv", "--out", tmp_path / "task.yaml", "--json", *words)
    assert code in (1, 2)
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "task.yaml").exists()


def test_guesses(tmp_path: Path) -> None:
    columns = profiles(read_rows(str(tickets(tmp_path / "t.csv"))))
    assert guess_target(columns) == "category"
    assert guess_inputs(columns, "category") == ("message",)
    assert guess_group(columns, ("message", "category")) == "customer_id"
    message = columns["message"]
    assert (message.column_type, message.rows, message.empty) == ("text", 403, 0)
    assert columns["category"].commonest[0] == ("billing", 136)
    numbers = lines(tmp_path / "n.jsonl", [{"text": "a b", "n": i, "flag": True, "x": None} for i in range(9)])
    column_types = {name: column.column_type for name, column in profiles(read_rows(str(numbers))).items()}
    assert column_types == {"text": "text", "n": "number", "flag": "boolean", "x": "empty"}


def test_on_a_terminal_it_asks(tmp_path: Path) -> None:
    data, out = tickets(tmp_path / "t.csv"), tmp_path / "task.yaml"
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "bedplate.cli.main", "init", str(data), "--out", str(out)]
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    os.write(ours, b"categry\rcategory\rmessage\rnone\rSort the message.\r80\r0.85\rsoon\r90s\r")
    shown = shown_on(ours)
    assert child.wait(timeout=30) == 0, shown
    assert "Which column is the answer? [category]" in shown
    assert "There is no column 'categry'" in shown
    values = yaml.safe_load(out.read_text("utf-8"))
    assert (values["data"]["target"], values["data"]["group_by"]) == ("category", None)
    assert values["instructions"] == "Sort the message."
    assert "Which accuracy must be shown for a PASS (the bar)? [0.8]" in shown
    assert "80 does not lie between 0 and 1" in shown
    assert values["adapt"]["target"]["value"] == 0.85
    assert "How long may the whole search take? [10m]" in shown
    assert values["adapt"]["budget"] == {"train_minutes": 1.5}


def test_rows_without_a_text_or_a_label_are_named_and_not_counted_as_usable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tickets(tmp_path / "tickets.csv")
    data.write_text(data.read_text("utf-8") + ",billing,c200\n,delivery,c201\n", "utf-8")
    code, printed, error = run(capsys, data, "--out", tmp_path / "task.yaml", "--yes")
    assert (code, error) == (0, "")
    match = re.search(r"(\d+) of 405 rows can be used: (\d+) train, (\d+) valid, (\d+) test", printed)
    assert match is not None
    usable, *parts = map(int, match.groups())
    assert usable == sum(parts)
    data.write_text(data.read_text("utf-8") + "where is my card,,c202\nand mine, ,c203\n", "utf-8")
    code, printed, error = run(capsys, data, "--out", tmp_path / "more.yaml", "--yes")
    assert (code, error) == (0, "")
    assert (
        "Rows without category are left out: 2 of 407 rows (lines 407, 408). Fill it in if they are to count."
        in printed
    )
    assert f"{usable} of 407 rows can be used" in printed
    task = load_task(tmp_path / "more.yaml")
    assert (task.labels, load_examples(task).counts["unlabelled"]) == (("billing", "delivery", "other"), 2)


@pytest.mark.parametrize(
    ("count", "words", "test", "design"),
    [
        (1200, (), 0.2, "on the 240 test rows shows the bar of 0.8 in 80% of cases for a skin that truly scores 0.8"),
        (120, (), 0.35, "first / second / third verdict on the 4"),
        (1200, ("--bar", "0.98"), 0.25, "third verdict on the 300"),
        (60, (), 0.2, "No verdict is possible on these rows: it takes at least 40 test rows to show a bar of 0.8"),
        (240, ("--group", "customer"), 0.35, "more where rows of a group are alike"),
    ],
)
def test_the_splits_are_of_a_size_that_allows_a_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int, words: tuple[str, ...], test: float, design: str
) -> None:
    draw = random.Random(1)
    rows = [
        {"text": " ".join(draw.choices(WORDS, k=7)) + f" {i}", "label": "ab"[i % 2], "customer": f"c{i // 2}"}
        for i in range(count)
    ]
    if not words or words[0] != "--group":
        rows = [{name: value for name, value in row.items() if name != "customer"} for row in rows]
    out = tmp_path / "task.yaml"
    code, shown, error = run(capsys, lines(tmp_path / "rows.jsonl", rows), "--out", out, "--yes", *words)
    assert (code, error) == (0, "")
    task = load_task(out)
    assert task.data.split.test == test
    assert design in " ".join(shown.split())
    splits = load_examples(task).test
    assert design.startswith("No") or (splits.groups >= 40 and f"bar of {check_task_file(out).target.value:g}" in shown)


def test_what_stands_for_an_empty_label_is_asked_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": f"message {i} of a customer", "label": ("card", "fee", "nan")[min(i % 40, 2)]} for i in range(90)]
    code, shown, _ = run(capsys, lines(tmp_path / "r.jsonl", rows), "--out", tmp_path / "task.yaml", "--json")
    assert code == 0
    assert any(note.startswith("Labels that may stand for none: 'nan' (") for note in json.loads(shown)["notes"])


def test_what_adapt_would_stop_at_is_said_before_the_next_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(3)
    texts = [" ".join(draw.choices(WORDS, k=14)) for _ in range(60)]
    rows = [{"text": f"{texts[i // 2]} {'now' if i % 2 else 'then'}", "label": "ab"[i // 2 % 2]} for i in range(120)]
    out = tmp_path / "task.yaml"
    code, shown, _ = run(capsys, lines(tmp_path / "r.jsonl", rows), "--out", out, "--yes")
    assert code == 0
    first, following = shown.splitlines()[-2:]
    assert first.startswith(f"first: in {out}, under data,")
    assert 'not_groups: {"near_duplicates": "..."}' in first
    assert following.startswith("next: ")
    task = load_task(out)
    with pytest.raises(ConfigError, match="near_duplicates"):
        grouping_of(task, sources_of(task))
    answered = load_task(out, ['data.not_groups={near_duplicates: "two wordings"}'])
    assert grouping_of(answered, sources_of(answered)).found[0].answer == "two wordings"


def numbered(target: list[Any]) -> list[dict[str, Any]]:
    return [{"text": f"message {i} of a customer", "label": value} for i, value in enumerate(target)]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
@pytest.mark.parametrize(
    "values",
    [
        [round(0.37 * i, 2) for i in range(300)],  # 300 different ones
        [round(0.37 * (i % 60), 2) for i in range(300)],  # each five times
        [1000 + 7 * i for i in range(300)],  # whole numbers
        [1000 + i % 250 for i in range(1000)],
        [3 * (i % 120) for i in range(700)],  # whole numbers with gaps, each about six times
    ],
)
def test_measured_numbers_are_no_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], values: list[float], suffix: str
) -> None:
    rows, data = numbered(values), tmp_path / f"prices{suffix}"
    if suffix == ".jsonl":
        lines(data, rows)
    else:
        data.write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows), "utf-8")
    code, _, error = run(capsys, data, "--out", tmp_path / "task.yaml", "--json")
    assert (code, len(error.splitlines())) == (1, 1)
    assert f"'label' holds {len({*values})} different numbers in {len(values):,} rows, too many for labels" in error
    assert "regression is not offered; put them into ranges" in error
    assert not (tmp_path / "task.yaml").exists()
    with pytest.raises(DataError, match="regression is not offered"):
        bedplate.adapt(rows, tmp_path / "out", target="label")
    assert [path.name for path in tmp_path.iterdir()] == [data.name]


@pytest.mark.parametrize(("labels", "count"), [(5, 60), (77, 3), (150, 4)])
def test_numbers_that_name_classes_are_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], labels: int, count: int
) -> None:
    data = lines(tmp_path / "rows.jsonl", numbered([1 + i % labels for i in range(labels * count * 3)]))
    code, shown, error = run(capsys, data, "--out", tmp_path / "task.yaml", "--json")
    assert (code, error) == (0, "")
    summary = json.loads(shown)
    assert (summary["kind"], len(summary["labels"])) == ("label", labels)
    assert any("A number near the right one counts as wrong." in note for note in summary["notes"])


def test_stars_in_halves_are_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = numbered([0.5 + i % 10 / 2 for i in range(300)])
    (tmp_path / "s.csv").write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows))
    code, shown, _ = run(capsys, tmp_path / "s.csv", "--out", tmp_path / "task.yaml", "--json")
    assert (code, len(json.loads(shown)["labels"])) == (0, 10)


def test_a_label_that_the_draw_takes_from_train_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A long conversation holds the only rows of a label."""
    draw = random.Random(2)
    rows = [
        {"text": f"{' '.join(draw.choices(WORDS, k=7))} {i}", "label": "ab"[i % 2], "thread_id": f"t{i // 4}"}
        for i in range(320)
    ]
    for name in ("long", "longer", "endless", "talk", "chat"):  # the draw is by the names of groups
        thread = [f"{' '.join(draw.choices(WORDS, k=7))} of {number}" for number in range(24)]
        rare = [{"text": text, "label": "rare", "thread_id": name} for text in thread]
        out = tmp_path / f"{name}.yaml"
        code, shown, error = run(capsys, lines(tmp_path / f"{name}.jsonl", rows + rare), "--out", out, "--json")
        assert (code, error) == (0, "")
        assert "rare" in json.loads(shown)["labels"]
        assert "rare" in {example.target for example in load_examples(load_task(out)).train}


def test_labels_that_differ_in_case_alone_are_named_however_frequent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = numbered([("positive", "Positive", "negative")[i % 3] for i in range(300)])
    rows.append({"text": "one more", "label": "NEGATIVE"})
    code, shown, error = run(capsys, lines(tmp_path / "r.jsonl", rows), "--out", tmp_path / "task.yaml", "--json")
    assert (code, error) == (0, "")
    (note,) = (note for note in json.loads(shown)["notes"] if note.startswith("Labels that differ in case or spaces"))
    assert ": 'Positive' (100) and 'positive' (100); 'negative' (100) and 'NEGATIVE' (1). Write them alike" in note
    assert "did you mean" not in shown
