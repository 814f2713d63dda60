"""The one path from items to grades: in order, bounded in memory, several answers to an item; one row adds a suite or a
metric."""

from __future__ import annotations

import random
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
from tests.evaluation.test_harness import examples
from tests.evaluation.test_harness import task as task_of
from tests.tiny import write_tiny_base

from bedplate.adaptation.postprocess.evaluate import evaluate
from bedplate.evaluation import harness
from bedplate.evaluation.examples import TaskData, TestHandle
from bedplate.evaluation.grading import SingleTurn, Turns, graded
from bedplate.evaluation.harness import evaluate_predictions
from bedplate.evaluation.metrics import METRICS, Metric
from bedplate.evaluation.suites import SUITES
from bedplate.evaluation.suites.suite import SampleSet, grades
from bedplate.inference.engine.answers import Answers, ModelDescription
from bedplate.inference.engine.requests import (
    Generate,
    Generation,
    Request,
    Result,
    Sampling,
    Score,
    Scores,
    Stream,
    Usage,
)
from bedplate.inference.predict.local import LocalModel
from bedplate.models.checkpoints.base import load_base
from bedplate.text.tokenizer import Tokenizer


class Counted(SingleTurn[str, str, str, tuple[int, list[str]]]):
    """An item that asks as many questions as its number has digits, and is told when it goes."""

    alive = peak = 0

    def __init__(self, number: int) -> None:
        self.number = number
        Counted.alive += 1
        Counted.peak = max(Counted.peak, Counted.alive)
        weakref.finalize(self, self.released)

    @staticmethod
    def released() -> None:
        Counted.alive -= 1

    def requests(self, model: str) -> list[str]:
        return [f"{model}{self.number}/{place}" for place in range(len(str(self.number)) - 1)]

    def grade(self, answers: Sequence[str]) -> tuple[int, list[str]]:
        return self.number, list(answers)


def test_many_items_pass_through_one_window_and_keep_their_order() -> None:
    """Twenty thousand items of none to four requests, whose answers come in any order."""
    rng, most_asked = random.Random(0), 0
    Counted.alive = Counted.peak = 0

    def respond(requests: list[str]) -> Iterator[tuple[int, str]]:
        nonlocal most_asked
        most_asked = max(most_asked, len(requests))
        order = list(range(len(requests)))
        rng.shuffle(order)
        yield from ((place, requests[place].upper()) for place in order)

    results = graded((Counted(number) for number in range(20_000)), "m", respond, 50)
    for number, (graded_number, answers) in enumerate(results):
        assert graded_number == number
        assert answers == [f"M{number}/{place}" for place in range(len(str(number)) - 1)]
    assert Counted.peak <= 60  # a window, and the item that is drawn
    assert most_asked <= 50 + 3  # the last item's own stay together
    del results
    assert Counted.alive <= 1


def test_no_items_ask_nothing() -> None:
    def respond(requests: list[str]) -> Iterator[tuple[int, str]]:
        raise AssertionError("asked")

    assert list(graded(iter(list[Counted]()), "m", respond, 4)) == []


# --- suites


@dataclass(frozen=True)
class Claim(SingleTurn[LocalModel, Score, Scores, dict[str, float]]):
    """Whether a base thinks alike of a claim in two wordings."""

    text: str

    def requests(self, model: LocalModel) -> list[Score]:
        answers = tuple(tuple(model.tokenizer.encode(word)) for word in (" yes", " no"))
        return [
            Score(tuple(model.tokenizer.encode(form.format(self.text))), answers) for form in ("{} is", "{}. Right?")
        ]

    def grade(self, results: Sequence[Scores]) -> dict[str, float]:
        plain, instructed = (result.totals.index(max(result.totals)) for result in results)
        return {"agrees": float(plain == instructed), "yes": float(plain == 0)}


def claims(limit: int | None = None) -> SampleSet[Claim]:
    texts = tuple(Claim(f"number {i}") for i in range(100))[:limit]
    return SampleSet(texts, "this test", "0" * 64)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base") / "tiny", seed=3)


def test_one_row_adds_a_suite(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SUITES, "claims", claims)  # type: ignore[arg-type]
    with LocalModel(load_base(tiny)) as model:
        together = list(grades(model, SUITES["claims"](90).samples, "claims"))  # more requests than one window holds
        alone = [next(grades(model, [claim], "claims")) for claim in SUITES["claims"](5).samples]
    assert len(together) == 90
    assert together[:5] == alone
    assert {key for grade in together for key in grade} == {"agrees", "yes"}


def test_what_is_asked_of_a_base_is_the_same_every_time() -> None:
    sampled, complete = SUITES["refusals"](3), SUITES["refusals"](None)
    assert [question.id for question in sampled.samples] == [
        f"{category}-{i}" for category in ("refuse", "answer") for i in range(3)
    ]
    assert set(sampled.samples) < set(complete.samples)
    assert complete == SUITES["refusals"](None)
    assert sampled.sha256 != complete.sha256


# --- several turns


@dataclass(frozen=True)
class Dialogue:
    """A tool-using conversation: the base names a row of a table, reads it, and is asked again, twice at most."""

    question: str
    table: tuple[str, ...] = ("one", "two", "three")

    def turns(self, model: Answers) -> Turns[Request, Result, list[str]]:
        tokenizer, transcript, replies = model.describe().need_tokenizer(), self.question, list[str]()
        rows = tuple(tuple(tokenizer.encode(f" {number}")) for number in range(len(self.table)))
        for _ in range(2):
            (choice,) = yield [Score(tuple(tokenizer.encode(transcript)), rows)]
            totals = cast(Scores, choice).totals
            replies.append(self.table[totals.index(max(totals))])
            transcript = f"{transcript} {replies[-1]}"
            if replies[-1] == "one":  # the tool has nothing to add
                break
        (reply,) = yield [Generate(tuple(tokenizer.encode(transcript)), Sampling(max_tokens=3, temperature=0.0))]
        return [*replies, cast(Generation, reply).text]


def dialogues(limit: int | None = None) -> SampleSet[Dialogue]:
    words = ("good", "bad", "the first", "number 7", "it is", "why not")[:limit]
    return SampleSet(tuple(Dialogue(word) for word in words), "this test", "0" * 64)


def test_a_suite_of_several_turns_sees_its_answers_and_asks_again(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A toy multi-turn suite: dialogues of different lengths in one window, each as if it were asked alone."""
    monkeypatch.setitem(SUITES, "dialogues", dialogues)  # type: ignore[arg-type]
    with LocalModel(load_base(tiny)) as model:
        samples = SUITES["dialogues"](None).samples
        together = list(grades(model, samples, "dialogues"))
        alone = [next(grades(model, [sample], "dialogues")) for sample in samples]
    assert together == alone
    assert all(len(grade) in (2, 3) for grade in together)
    assert all(len(grade) == 3 or grade[0] == "one" for grade in together)


class Refuser:
    """An answerer without an engine: it refuses whatever it is asked."""

    alive = True

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self.facts = ModelDescription("refuser", frozenset(["generate"]), 128, tokenizer)

    def submit(self, request: Request) -> Stream:
        stream = Stream(request)
        text = "I'm sorry, but I cannot help with that."
        stream.finish(Generation(text, (), (), "stop", usage=Usage(len(request.tokens))))
        return stream

    def run(self, requests: Sequence[Request]) -> list[Result]:
        return [self.submit(request).result(0) for request in requests]

    def tokenize(self, text: str) -> list[int]:
        return list(text.encode())

    def describe(self) -> ModelDescription:
        return self.facts


def test_a_suite_asks_whoever_answers(tiny: Path) -> None:
    for tokenizer in (load_base(tiny).need_tokenizer(), None):  # a base's, and what an endpoint has
        assert list(grades(Refuser(tokenizer), SUITES["refusals"](3).samples, "refusals")) == [1.0] * 6


def test_the_answers_of_a_turn_come_back_to_the_sample_that_asked() -> None:
    class Countdown:
        """Asks for its number minus one until that is zero."""

        def __init__(self, number: int) -> None:
            self.number = number

        def turns(self, _: object) -> Turns[int, int, list[int]]:
            seen = [self.number]
            while seen[-1]:
                seen += yield [seen[-1]]
            return seen

    asked: list[int] = []

    def answer(requests: list[int]) -> Iterator[tuple[int, int]]:
        asked.append(len(requests))
        yield from ((place, request - 1) for place, request in enumerate(requests))

    assert list(graded(map(Countdown, (3, 0, 1)), "m", answer, 100)) == [[3, 2, 1, 0], [0], [1, 0]]
    assert asked == [2, 1, 1]


# --- tasks


class Echo:
    """Answers with the target it finds in the input's last word; remembers how many rows came at once."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def predict(self, rows: Sequence[Mapping[str, str]]) -> list[str]:
        self.batches.append(len(rows))
        return ["b" if "3" in row["x"] else "a" for row in rows]


def test_a_task_is_evaluated_in_windows_as_it_is_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "AT_ONCE", 16)
    task, rows = task_of(), examples(["a", "b", "c", "a"] * 10)
    data = TaskData((), tuple(rows), TestHandle("", ()), {}, {"valid": "v"}, ())
    model = Echo()
    evaluation = evaluate(model, task, data=data)
    assert model.batches == [16, 16, 8]
    assert evaluation == evaluate_predictions(task, rows, Echo().predict([row.inputs for row in rows]))


def test_one_row_adds_a_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    def first_letter(target: str, prediction: str | None) -> float:
        return float(prediction is not None and target[:1] == prediction[:1])

    monkeypatch.setitem(METRICS, "first_letter", Metric("first_letter", ("label",), first_letter))
    labels = ["apple", "avocado", "beet"]
    task = task_of("first_letter", labels)
    evaluation = evaluate_predictions(
        task, examples(["apple", "avocado", "beet", "beet"]), ["avocado", "apple", "beet", None]
    )
    assert (evaluation.metric, evaluation.scoring, evaluation.estimate, evaluation.unparsed) == (
        "first_letter",
        "binary",
        0.75,
        1,
    )
    assert type(evaluation).from_json(evaluation.to_json()) == evaluation
