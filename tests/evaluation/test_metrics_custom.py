"""Metrics that a task file describes: a Python function of the team's own, and a model that judges."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.inference.fake_labeller import Labeller
from tests.inference.fake_server import fake_server

from bedplate.adaptation.postprocess.evaluate import evaluate
from bedplate.core.errors import ConfigError, DataError, EndpointError, UsageError
from bedplate.core.files import bedplate_home, read_jsonl
from bedplate.data.splits import row_hash
from bedplate.evaluation import metrics_judge
from bedplate.evaluation.evaluated import compare
from bedplate.evaluation.examples import Example
from bedplate.evaluation.harness import Evaluation, evaluate_predictions
from bedplate.evaluation.task import Task, load_task

RUBRIC = "Question: {{ q }}\nRight answer: {{ target }}\nAnswer: {{ prediction }}\nHow good is it?"
JSON_OUTPUT = {"kind": "json", "json_schema": {"type": "object"}}


def write(directory: Path, metric: Any, output: dict[str, Any] | None = None, /, **files: str) -> Path:
    for name, content in files.items():
        (directory / f"{name}.py").write_text(textwrap.dedent(content), "utf-8")
    task = {
        "task": "t",
        "inputs": {"q": {"column": "q"}},
        "output": output or {"kind": "text"},
        "data": {"source": "rows.jsonl", "target": "y", "split": {"train": 0.6, "valid": 0.2, "test": 0.2}},
        "metric": metric,
    }
    path = directory / "task.yaml"
    path.write_text(json.dumps(task), "utf-8")
    return path


def examples(*targets: str) -> list[Example]:
    rows = [({"q": f"question {i}"}, y) for i, y in enumerate(targets)]
    return [Example(f"row-{i}", x, y, str(i), row_hash(x)) for i, (x, y) in enumerate(rows)]


LENGTH = """
    def score(target, prediction):
        return min(len(target), len(prediction)) / max(len(target), len(prediction))
"""


def test_a_python_function_scores_rows(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, {"python": "closeness.py:score"}, closeness=LENGTH))
    result = evaluate_predictions(task, examples("abcd", "ab", "abc", *["ab"] * 40), ["ab", "ab", None, *["ab"] * 40])
    assert [row.score for row in result.rows] == [0.5, 1.0, 0.0, *[1.0] * 40]
    assert (result.scoring, result.unparsed) == ("real", 1)
    assert re.fullmatch(r"score \(closeness\.py, [0-9a-f]{8}\)", result.metric)
    assert result.metric == task.metric_name
    assert Evaluation.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert result.bound(0.9) < result.estimate  # without the file: from the rows alone


def test_a_functions_file_may_hold_dataclasses(tmp_path: Path) -> None:
    """Their annotations, where they are texts, are looked up in the module by its name."""
    function = """
        from __future__ import annotations
        from dataclasses import KW_ONLY, dataclass

        @dataclass
        class Weights:
            _: KW_ONLY
            same: float = 1.0

        def score(target, prediction):
            return Weights(same=0.25).same
    """
    task = load_task(write(tmp_path, {"python": "weighed.py:score"}, weighed=function))
    assert evaluate_predictions(task, examples("a"), ["a"]).estimate == 0.25
    before = set(sys.modules)
    with pytest.raises(ConfigError, match="cannot be run"):
        load_task(write(tmp_path, {"python": "broken.py:score"}, broken="1 / 0"))
    assert set(sys.modules) == before


def test_json_and_labels_reach_the_function_as_values(tmp_path: Path) -> None:
    function = "def score(target, prediction):\n    return float(target['n'] == prediction['n'])\n"
    task = load_task(write(tmp_path, {"python": "same.py:score"}, JSON_OUTPUT, same=function))
    result = evaluate_predictions(task, examples('{"n":1}', '{"n":2}'), ['{"n": 1, "more": 0}', '{"n": 3}'])
    assert result.estimate == 0.5


def test_the_hash_follows_the_functions_file(tmp_path: Path) -> None:
    path = write(tmp_path, {"python": "closeness.py:score"}, closeness=LENGTH)
    first = load_task(path)
    before = first.hash
    assert load_task(path).hash == before
    original = evaluate_predictions(first, examples("ab"), ["a"])
    write(tmp_path, {"python": "closeness.py:score"}, closeness=LENGTH + "\n    # the same, but who knows\n")
    assert load_task(path).hash != before
    edited = evaluate_predictions(load_task(path), examples("ab"), ["a"])
    with pytest.raises(UsageError, match="only evaluations of one metric"):
        compare(original, edited)


@pytest.mark.parametrize(
    ("reference", "content", "message"),
    [
        ("none.py:score", "", r"task.yaml: metric: the Python file .*none.py does not exist"),
        ("metric.py:scor", "def score(a, b): return 1.0", "has no function 'scor'"),
        ("metric.py:score", "score = 3", "'score' in .* is not a function but int"),
        ("metric.py:score", "def score(a, b) return 1.0", r"metric.py cannot be run \(SyntaxError"),
        ("metric.py:score", "import nothing_of_the_kind", r"cannot be run \(ModuleNotFoundError"),
        ("metric.py", "", "write it as path/to/file.py:function"),
    ],
)
def test_a_function_that_is_not_there_is_told_at_once(
    tmp_path: Path, reference: str, content: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_task(write(tmp_path, {"python": reference}, metric=content))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("float('nan')", "gives nan for row row-1; a score must lie in 0 to 1"),
        ("1.5", "gives 1.5 for row row-1"),
        ("-0.1", "gives -0.1 for row row-1"),
        ("None", "gives None for row row-1"),
        ("'0.5'", "gives '0.5' for row row-1"),
        ("1 / 0", r"fails on row row-1 \(ZeroDivisionError: division by zero\); its prediction is 'bad'"),
    ],
)
def test_what_is_no_score_names_the_row(tmp_path: Path, returned: str, message: str) -> None:
    function = f"def score(target, prediction):\n    return {returned} if prediction == 'bad' else True\n"
    task = load_task(write(tmp_path, {"python": "metric.py:score"}, metric=function))
    assert evaluate_predictions(task, examples("a"), ["good"]).estimate == 1.0
    with pytest.raises(DataError, match=message):
        evaluate_predictions(task, examples("a", "b"), ["good", "bad"])


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ({}, "give one of `python"),
        ({"python": "a.py:f", "judge": {"endpoint": "http://h", "model": "m", "rubric": "r"}}, "give one of"),
        ({"pyhton": "a.py:f"}, "'pyhton'.*did you mean 'python'"),
        ({"judge": {"endpoint": "http://h", "model": "m"}}, "rubric"),
        ({"judge": {"endpoint": "http://h", "model": "m", "rubric": RUBRIC, "scale": [1, 1]}}, "are the same"),
        ({"judge": {"endpoint": "http://h", "model": "m", "rubric": RUBRIC, "max_usd": 1}}, "needs a `price`"),
        (
            {
                "judge": {
                    "endpoint": "http://h",
                    "model": "m",
                    "rubric": RUBRIC,
                    "price": {"input": 1, "output": 1, "out": 1},
                }
            },
            "'out'.*did you mean 'output'",
        ),
        ({"judge": {"endpoint": "http://h", "model": "m", "rubric": "Is {{ answr }} good?"}}, "reads 'answr'"),
        ({"judge": {"endpoint": "http://h", "model": "m", "rubric": "Is {{ q }} good?"}}, "never shows the prediction"),
        ({"judge": {"endpoint": "http://h", "model": "m", "rubric": "{{ prediction"}}, "the judge's rubric"),
    ],
)
def test_a_wrong_metric_is_named(tmp_path: Path, metric: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_task(write(tmp_path, metric))
    assert "task.yaml" in str(caught.value)
    assert str(caught.value).count("\n") == 0


# --- judges


@pytest.fixture(autouse=True)
def accounts_from_disk() -> Iterator[None]:
    metrics_judge._account.cache_clear()
    yield
    metrics_judge._account.cache_clear()


@pytest.fixture
def server() -> Iterator[Labeller]:
    labeller = Labeller(answer=by_quality)
    with fake_server(labeller):
        yield labeller


def by_quality(prompt: str) -> str:
    """The digit in the answer that is judged; some explain themselves, one cannot count."""
    shown = re.search(r"Answer: (.*)", prompt)
    assert shown is not None
    if shown[1] == "vague":
        return "Let me think.\n**Score: 3**" if "You answered:" in prompt else "I would say it is fair, 3 of 5."
    return "hard to say" if shown[1] == "mute" else f"It is what it is.\n{shown[1][-1]}"


def judged(directory: Path, server: Labeller, model: str = "ok", **judge_options: Any) -> Task:
    judge = {"endpoint": server.url, "model": model, "rubric": RUBRIC, "scale": [1, 5], "retries": 1, **judge_options}
    return load_task(write(directory, {"judge": judge}))


def test_a_judge_scores_rows_on_its_scale(tmp_path: Path, server: Labeller) -> None:
    task = judged(tmp_path, server)
    rows = examples("a", "b", "c", "d", "e")
    result = evaluate_predictions(task, rows, ["is 5", "is 1", "is 4", None, "vague"])
    assert [row.score for row in result.rows] == [1.0, 0.0, 0.75, 0.0, 0.5]
    assert len(server.requests) == 5  # the vague one twice, what could not be parsed not at all
    prompts = [body["messages"][-1]["content"] for body in server.requests]
    assert any(
        prompt.startswith("Question: question 0\nRight answer: a\nAnswer: is 5\nHow good is it?") for prompt in prompts
    )
    assert all("one number from 1 to 5" in prompt for prompt in prompts)
    assert (result.scoring, result.metric) == ("real", task.metric_name)


def test_nothing_is_asked_twice(tmp_path: Path, server: Labeller) -> None:
    task = judged(tmp_path, server)
    rows, answers = examples("a", "b", "vague"), ["is 5", "is 2", "vague"]
    first = evaluate_predictions(task, rows, answers)
    count = len(server.requests)
    metrics_judge._account.cache_clear()  # as in another process
    assert evaluate_predictions(judged(tmp_path, server, concurrency=1), rows, answers) == first
    assert len(server.requests) == count
    copies = [Example(f"{i}", {"q": "one"}, "a", str(i), row_hash({"q": f"{i}"})) for i in range(6)]
    assert evaluate_predictions(task, copies, ["is 3"] * 6).estimate == 0.5
    assert len(server.requests) == count + 1
    evaluate_predictions(judged(tmp_path, server, rubric=RUBRIC + "!"), rows, answers)
    assert len(server.requests) == 2 * count + 1


def test_a_judge_that_says_nothing_usable_is_an_error_that_names_the_row(tmp_path: Path, server: Labeller) -> None:
    task = judged(tmp_path, server)
    with pytest.raises(EndpointError, match=r"ok at http.*gives row row-1 no number from 1 to 5, but 'hard to say'"):
        evaluate_predictions(task, examples("a", "b"), ["is 5", "mute"])
    judgments = list(read_jsonl(next((bedplate_home() / "judged").iterdir())))
    assert len(judgments) == 3
    server.answer = lambda prompt: "7"
    with pytest.raises(EndpointError, match="no number from 1 to 5, but '7'"):
        evaluate_predictions(task, examples("c"), ["is 5"])


def test_a_judge_that_fails_is_an_error_and_what_came_before_is_kept(tmp_path: Path, server: Labeller) -> None:
    server.failing = 2
    task = judged(tmp_path, server, "dies", concurrency=1, retries=0)
    rows, answers = examples("a", "b", "c", "d"), ["is 5", "is 4", "is 3", "is 2"]
    with pytest.raises(EndpointError, match="gone for good"):
        evaluate_predictions(task, rows, answers)
    server.failing = 1000
    request_count = len(server.requests)
    assert evaluate_predictions(task, rows, answers).estimate == pytest.approx((1 + 0.75 + 0.5 + 0.25) / 4)
    assert len(server.requests) == request_count + 2


def test_an_answer_that_was_cut_off_is_no_score(tmp_path: Path, server: Labeller) -> None:
    """The server says which was; one that ends by itself with its last token (the fake counts one) is whole."""
    whole = evaluate_predictions(judged(tmp_path, server, max_tokens=1), examples("a"), ["is 5"])
    assert whole.estimate == 1.0
    server.ended = "length"
    task = judged(tmp_path, server, max_tokens=2)
    with pytest.raises(EndpointError, match="gives row row-0 no number"):
        evaluate_predictions(task, examples("a"), ["is 5"])


def test_a_cap_on_spending_stops_before_it_is_passed(tmp_path: Path, server: Labeller) -> None:
    price = {"input": 1000.0, "output": 1000.0}
    task = judged(tmp_path, server, concurrency=1, price=price, max_usd=0.7)
    rows = examples(*"abcdefgh")
    with pytest.raises(EndpointError, match=r"past max_usd of \$0.7"):
        evaluate_predictions(task, rows, [f"is {1 + i % 5}" for i in range(8)])
    assert 0 < len(server.requests) < 8


class Never:
    def predict(self, rows: Any) -> Any:
        raise AssertionError("the model was asked though the judge has no key")


def test_a_key_that_is_not_set_is_told_before_the_model_is_asked(
    tmp_path: Path, server: Labeller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    task = judged(tmp_path, server, api_key_env="JUDGE_KEY")
    with pytest.raises(UsageError, match="environment variable JUDGE_KEY"):
        evaluate(Never(), task)
    monkeypatch.setenv("JUDGE_KEY", "secret")
    evaluate_predictions(task, examples("a"), ["is 5"])
    assert server.requests[0]["key"] == "Bearer secret"
    assert "secret" not in next((bedplate_home() / "judged").iterdir()).read_text("utf-8")
    assert task.hash == judged(tmp_path, server).hash  # who pays changes no score


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("4", 0.75),
        (" 4.0 \n", 0.75),
        ("Fine.\n\nScore: 4", 0.75),
        ("**Score:** 4", 0.75),
        ("**4**.", 0.75),
        ("`4`", 0.75),
        ("4/5", None),
        ("I found 4 mistakes", None),
        ("4 or 5", None),
        ("0", None),
        ("nan", None),
        ("", None),
        ("4\nThat is my verdict.", None),
    ],
)
def test_which_answers_are_numbers(tmp_path: Path, server: Labeller, answer: str, score: float | None) -> None:
    server.answer = lambda prompt: answer
    task = judged(tmp_path, server)
    if score is None:
        with pytest.raises(EndpointError, match="no number"):
            evaluate_predictions(task, examples("a"), ["x"])
    else:
        assert evaluate_predictions(task, examples("a"), ["x"]).estimate == score
