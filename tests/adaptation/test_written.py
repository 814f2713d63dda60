"""Ladders whose answers are written: JSON, text, several labels. What is asked, shown, learned, exported and said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.neighbors import KNeighborsClassifier
from tests.adaptation.written import OUTPUTS, SCHEMA, write_rows, write_task
from tests.elsewhere import answers
from tests.homes import new_home
from tests.rows import slow_unless

from bedplate.adaptation.context.throughput import Throughput, measure_throughput
from bedplate.adaptation.ladder import adapt
from bedplate.adaptation.report.report import Report
from bedplate.adaptation.rungs import RUNGS
from bedplate.adaptation.rungs.answers import predict_examples
from bedplate.adaptation.rungs.from_scratch import SIMILARITIES, Nearest
from bedplate.adaptation.task.task_prompt import AnswerLengths, check_answers, phrasings, task_prompt
from bedplate.core.errors import ConfigError, DataError
from bedplate.evaluation.examples import Example, load_examples
from bedplate.evaluation.task import Task, load_task
from bedplate.inference.predict.loaded import load
from bedplate.inference.predict.local import LocalModel
from bedplate.models.checkpoints.base import load_base
from bedplate.skins.output import JsonOutput
from bedplate.skins.prompt import Prompt, answer_text, completion_tokens
from bedplate.skins.skin import BaseReference, InputField, Skin
from bedplate.text.tokenizer import Tokenizer

OUTPUT_TYPES = tuple(OUTPUTS)
RUNGS_RUN = ("majority", "from_scratch", "zero_shot", "few_shot", "probe", "lora")
SKINS = ("zero_shot", "few_shot", "lora")
CHOOSES = ("probe", "from_scratch")
"""Rungs whose skins cannot write, but choose among labels."""


@pytest.fixture(scope="module", params=slow_unless("text".__ne__, OUTPUT_TYPES))
def run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_base: Path
) -> tuple[Report, Path]:
    """One ladder of each kind of output; `bases.test_encoder_decoder` climbs one of texts."""
    directory = tmp_path_factory.mktemp(f"ladder-{request.param}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEDPLATE_HOME", str(new_home(directory / "home")))
        patch.setattr("bedplate.adaptation.context.context.LATENCY_CALLS", 5)  # test has more rows than are timed
        task = write_task(directory, tiny_base, request.param)
        soft_prompt = () if request.param == "json" else ("soft_prompt",)
        report = adapt(task, directory / "out", rungs=(*RUNGS_RUN, *soft_prompt))
    return report, directory


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Tokenizer:
    return Tokenizer.from_directory(tiny_base)


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Any:
    with LocalModel(load_base(tiny_base)) as loaded:
        yield loaded


def toy(directory: Path, output_type: str, **changes: Any) -> tuple[Task, tuple[Example, ...]]:
    overrides = [f"{key}={value}" for key, value in changes.items()]
    task = load_task(write_task(directory, Path("nowhere"), output_type), overrides)
    return task, load_examples(task).train


def test_every_rung_answers_or_says_why_not_and_the_ladder_ends_in_a_verdict(run: tuple[Report, Path]):
    report = run[0]
    failed = {row["rung"]: row["reason"] for row in report.rungs if row["status"] == "failed"}
    assert not failed
    status = {row["rung"]: row["status"] for row in report.rungs if row["split"] == "valid"}
    probe = report.row("probe")
    assert probe is not None
    if report.data["task"] == "toy-labels":
        assert "labels of at least" in probe["reason"]
        assert probe["estimate"] > report.row("majority")["estimate"]  # pyright: ignore[reportOptionalSubscript]
    else:
        assert status.pop("probe") == "skipped"
    assert set(status.values()) == {"done"}
    assert report.verdict["status"] in {"PASS", "FAIL", "INSUFFICIENT_DATA"}
    assert report.data["details"]["zero_shot"]["phrasings"]["variants"] >= 5
    zero_shot = report.row("zero_shot")
    assert zero_shot is not None
    assert "bias" not in zero_shot["reason"]
    page = (run[1] / "out" / "report.html").read_text()
    assert report.data["task"] in page


def test_skins_answer_alike_after_export_in_another_process(run: tuple[Report, Path], tmp_path: Path):
    report, directory = run
    out = directory / "out"
    task = load_task(directory / "task.yaml")
    rows = [example.inputs for example in load_examples(task).valid[:6]]
    skins = {rung: str(out / "skins" / rung) for rung in _skins(report)}
    answers_by_skin = answers(tmp_path, list(skins.values()), rows)
    for rung, skin_answers in zip(skins, answers_by_skin, strict=True):
        reported = [row["prediction"] for row in report.data["rows"]["valid"][rung]][: len(rows)]
        # what was cut off is no prediction in the report
        comparable = [None if was is None else answer for (answer, _), was in zip(skin_answers, reported, strict=True)]
        assert comparable == reported, rung
        assert report.data["export"][rung]["equal"] == report.data["export"][rung]["rows"] > 0


def _skins(report: Report) -> tuple[str, ...]:
    soft_prompt = () if report.data["task"] == "toy-json" else ("soft_prompt",)
    return (*SKINS, *soft_prompt, *(CHOOSES if report.data["task"] == "toy-labels" else ()))


def test_rows_of_test_have_their_own_answers_timed_or_not(run: tuple[Report, Path]):
    report, directory = run
    test = load_examples(load_task(directory / "task.yaml")).test
    examples = test.open("their answers are compared")
    assert len(examples) > 5
    for row in (row for row in report.rungs if row["split"] == "test" and row["rung"] in _skins(report)):
        with load(directory / "out" / row["skin"]) as skin:
            alone = [skin.predict([example.inputs])[0].output for example in examples]
        reported = {answer["id"]: answer["prediction"] for answer in report.data["rows"]["test"][row["rung"]]}
        reported_answers = [reported[example.id] for example in examples]
        assert [output for output, was in zip(alone, reported_answers, strict=True) if was is not None] == [
            was for was in reported_answers if was is not None
        ]


def test_json_answers_fit_the_schema_unless_they_are_cut_off(run: tuple[Report, Path]):
    report = run[0]
    for rung in SKINS:
        for row in report.data["rows"]["valid"][rung]:
            if report.data["task"] == "toy-json" and row["prediction"] is not None:
                assert set(json.loads(row["prediction"])) == set(SCHEMA["required"])


@pytest.mark.slow
def test_an_interrupted_ladder_goes_on_where_it_stopped(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
):
    task = write_task(tmp_path, tiny_base, "json")
    rungs = ("majority", "zero_shot", "lora")
    monkeypatch.setattr("bedplate.adaptation.context.context.LATENCY_CALLS", 2)

    def stop(*_: object, **__: object) -> object:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(RUNGS["lora"]), "train", stop)
        with pytest.raises(KeyboardInterrupt):
            adapt(task, tmp_path / "out", rungs=rungs)
    saved_result = tmp_path / "out" / "rungs" / "zero_shot" / "result.json"
    before = saved_result.stat().st_mtime_ns
    report = adapt(task, tmp_path / "out", rungs=rungs)
    assert saved_result.stat().st_mtime_ns == before
    assert report.row("lora")["status"] == "done"  # pyright: ignore[reportOptionalSubscript]
    uninterrupted = adapt(write_task(tmp_path / "again", tiny_base, "json"), tmp_path / "other", rungs=rungs)
    for name in ("zero_shot", "lora"):  # what went on is what an uninterrupted one gives
        predictions = [row["prediction"] for row in report.data["rows"]["valid"][name]]
        assert predictions == [row["prediction"] for row in uninterrupted.data["rows"]["valid"][name]]


@pytest.mark.parametrize("output_type", OUTPUT_TYPES)
@pytest.mark.parametrize("format", ["plain", "chat"])
def test_what_is_learned_is_what_will_be_asked_for(tmp_path: Path, tokenizer: Tokenizer, output_type: str, format: Any):
    task, train = toy(tmp_path, output_type)
    prompt, output = task_prompt(task, AnswerLengths.of(task, tokenizer, train), format)
    assert not hasattr(output, "continuations")
    for example in train:
        answer = answer_text(prompt, output, example.target)
        ids, answer_ids = completion_tokens(prompt, tokenizer, example.inputs, answer)
        assert ids == prompt.tokens(tokenizer, example.inputs)
        assert answer_ids[-1] in tokenizer.eos_ids
        written = tokenizer.decode(answer_ids[:-1])
        assert written == answer
        assert task.output.canonical(output.read_text(written)) == example.target  # pyright: ignore
        assert len(answer_ids) <= output.max_tokens  # pyright: ignore


def test_the_answers_of_train_decide_where_text_ends(tmp_path: Path, tokenizer: Tokenizer):
    task, train = toy(tmp_path, "text")
    written = AnswerLengths.of(task, tokenizer, train)
    longest = max(len(tokenizer.encode(f" {e.target}")) + 1 for e in train)
    assert written.longest == longest
    assert longest < written.max_tokens <= 1.25 * longest + 16
    assert written.stop == ("\n",)
    assert written.beyond == 0
    lines = [Example(e.id, e.inputs, f"{e.target}\n\nand so on", e.group, e.row_hash) for e in train]
    assert AnswerLengths.of(task, tokenizer, lines).stop == ()
    short, _ = toy(tmp_path / "short", "text", **{"output.max_tokens": 2})
    assert AnswerLengths.of(short, tokenizer, train).beyond == len(train)


def test_answers_that_cannot_be_written_whole_are_counted_in_the_report(
    tmp_path: Path, tiny_base: Path, tokenizer: Tokenizer
):
    rows = write_rows(tmp_path / "rows.jsonl", "text")
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    for line in lines[::4]:
        line["answer"] += ", " + ", ".join(f"and {n} more of them" for n in range(9))
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = write_task(tmp_path, tiny_base, "text", rows=rows)
    short = min(len(tokenizer.encode(f" {line['answer']}")) for line in lines[::4])
    report = adapt(path, tmp_path / "out", rungs=["zero_shot"], overrides=[f"output.max_tokens={short}"])
    train = load_examples(load_task(path)).train
    count = AnswerLengths.of(load_task(path, [f"output.max_tokens={short}"]), tokenizer, train).beyond
    assert 0 < count < len(train) / 2
    row = report.row("zero_shot")
    assert row is not None
    assert f"{count} of {len(train)} train answers are longer than max_tokens, {short}" in row["reason"]


def test_a_limit_that_most_answers_are_beyond_is_refused_with_the_number_that_would_do(
    tmp_path: Path, tiny_base: Path, tokenizer: Tokenizer
):
    path = write_task(tmp_path, tiny_base, "text")
    train = load_examples(load_task(path)).train
    enough = AnswerLengths.of(load_task(path), tokenizer, train).max_tokens
    with pytest.raises(ConfigError, match=rf"max_tokens: 2 cuts off {len(train)} .* set it to {enough}, or leave it"):
        adapt(path, tmp_path / "out", rungs=["zero_shot"], overrides=["output.max_tokens=2"])
    assert not (tmp_path / "out").exists()


def test_a_prompt_of_nothing_but_its_input_is_continued_as_it_is(tmp_path: Path, tokenizer: Tokenizer):
    task, train = toy(tmp_path, "text")
    assert "continuation" in phrasings(task)
    prompt, output = task_prompt(task, AnswerLengths.of(task, tokenizer, train), "plain", "continuation")
    assert prompt.text({"note": "def f():\n"}) == "def f():\n"
    assert answer_text(prompt, output, "    return 1") == "    return 1"
    form, output = task_prompt(task, AnswerLengths.of(task, tokenizer, train))
    assert answer_text(form, output, "    return 1") == " return 1"
    below, output = task_prompt(task, AnswerLengths.of(task, tokenizer, train), "plain", "below")
    assert str(below.text({"note": "x"})).endswith("Text:\n")
    assert answer_text(below, output, "    return 1") == "    return 1"
    json_task, _ = toy(tmp_path / "json", "json")
    assert "continuation" not in phrasings(json_task)


def test_a_json_prompt_names_fields_and_json_begins_on_a_line_of_its_own(tmp_path: Path, tokenizer: Tokenizer):
    task, train = toy(tmp_path, "json")
    prompt, output = task_prompt(task, AnswerLengths.of(task, tokenizer, train))
    text = prompt.text(train[0].inputs)
    assert isinstance(text, str)
    assert 'what (one of "apples", "pears", "plums", "figs": the fruit), count (whole number)' in text
    assert text.endswith("JSON:\n")
    assert answer_text(prompt, output, '{"count":3,"what":"figs"}') == '{"what":"figs","count":3}'


def test_answers_that_no_grammar_lets_through_are_found_before_a_rung_runs(tmp_path: Path, tiny_base: Path):
    overlapping = json.dumps({"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 0}]})
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"text": f"{i} x", "answer": -i}) for i in range(1, 60)))
    task = write_task(tmp_path / "task", tiny_base, "json", rows=rows)
    overrides = [
        f"output.json_schema={overlapping}",
        "data.group_by=null",
        "data.ungrouped_because=made up",
        "metric=json_match",
    ]
    with pytest.raises(ConfigError, match="oneOf is supported only"):
        adapt(task, tmp_path / "out", overrides=overrides)
    assert not (tmp_path / "out").exists()
    impossible = json.dumps({"type": "integer", "minimum": 5, "maximum": 3})
    with pytest.raises(DataError, match=r"line 1: the target"):
        adapt(task, tmp_path / "out", overrides=[f"output.json_schema={impossible}", *overrides[1:]])
    assert not (tmp_path / "out").exists()


def test_a_target_that_cannot_be_written_is_named(tmp_path: Path, model: LocalModel, monkeypatch: pytest.MonkeyPatch):
    task, train = toy(tmp_path, "json")
    check_answers(task, model.engine, train)
    bad = answer_text(Prompt("{{ inputs }}"), JsonOutput(json_schema=SCHEMA), train[3].target)
    monkeypatch.setattr(model.engine.grammars, "accepts", lambda grammar, text: text != bad)
    first = next(e for e in train if e.target == train[3].target)
    with pytest.raises(DataError, match=f"row {first.id}"):
        check_answers(task, model.engine, train)


def test_the_pace_of_written_answers_counts_what_is_written(tmp_path: Path, model: LocalModel):
    task, train = toy(tmp_path, "text")
    written = AnswerLengths.of(task, model.tokenizer, train)
    prompt, output = task_prompt(task, written)
    base = model.base
    skin = Skin(
        name="pace",
        bases={"main": BaseReference.of("tiny", base.family.key[1], base.identity)},
        inputs={"note": InputField()},
        output=output,
        prompt=prompt,
    )
    with model.predictor(skin) as predictor:
        pace = measure_throughput(predictor, [e.inputs for e in train], written)
    assert 0 < pace.written <= written.max_tokens
    assert pace.target == written.mean
    assert min(pace.token, pace.call, pace.decode) > 0
    assert 1 <= pace.tokens <= max(len(prompt.tokens(model.tokenizer, e.inputs)) for e in train)


def test_time_is_planned_by_what_is_read_and_written():
    pace = Throughput(token=0.001, call=0.1, tokens=50, decode=0.01, written=40, target=10)
    assert pace.rows(2) == pytest.approx(2 * (0.05 + 0.4))
    assert pace.rows(2, tuned=True) == pytest.approx(2 * (0.05 + 0.1))
    assert pace.passes(2) == pytest.approx(2 * 60 * 0.001)
    assert Throughput(0.001, 0.1, 50).rows(2) == Throughput(0.001, 0.1, 50).passes(2) == pytest.approx(0.1)


@pytest.mark.parametrize("similarity", sorted(SIMILARITIES))
def test_the_nearest_answer_is_scikit_learns(similarity: str):
    texts = [f"{a} {b} number {i}" for i, (a, b) in enumerate((a, b) for a in ("red", "blue") for b in "wxyz")]
    answers = [f"answer {i}" for i in range(len(texts))]
    asked_for = ["red x", "a blue z here", "number 5", "blue blue w 4"]
    predictions = Nearest(texts, answers, similarity, ["x"]).predict([{"x": text} for text in asked_for])
    vectorizer = TfidfVectorizer(sublinear_tf=True, **SIMILARITIES[similarity])
    oracle = KNeighborsClassifier(1, metric="cosine", algorithm="brute").fit(vectorizer.fit_transform(texts), answers)
    assert [prediction.output for prediction in predictions] == list(oracle.predict(vectorizer.transform(asked_for)))


def test_single_calls_are_timed_on_prompts_that_are_not_cached(tmp_path: Path, model: LocalModel):
    task, train = toy(tmp_path, "text")
    prompt, output = task_prompt(task, AnswerLengths.of(task, model.tokenizer, train))
    base = model.base
    bases = {"main": BaseReference.of("tiny", base.family.key[1], base.identity)}
    skin = Skin(name="timed", bases=bases, inputs={"note": InputField()}, output=output, prompt=prompt)
    with model.predictor(skin) as predictor:
        predict_examples(predictor, train)
        repeated, anew = (
            predict_examples(predictor, train[:4], one_by_one=True),
            predict_examples(predictor, train[:4], one_by_one=True, tenant="b"),
        )
        prefix_length = len(predictor.prefix)
    assert [prediction.output for prediction in repeated if prediction] == [
        prediction.output for prediction in anew if prediction
    ]
    first, cached = (predictions[0] for predictions in (anew, repeated))
    assert first is not None
    assert first.cached_tokens <= prefix_length  # later rows may begin as earlier ones of this tenant do
    assert cached is not None
    assert cached.cached_tokens == cached.prompt_tokens - 1
    assert sum(prediction.cached_tokens for prediction in anew if prediction) < sum(
        prediction.cached_tokens for prediction in repeated if prediction
    )
