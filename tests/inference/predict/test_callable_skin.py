"""A skin that is ready is called with one input or many, gives probabilities, takes tables, and says what it is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pytest
from tests.tiny import write_tiny_base

import bedplate
from bedplate.core.errors import ContextLengthExceeded, DataError, RequestError, UsageError
from bedplate.inference.predict.callable_skin import Prediction, Predictions, columns_for
from bedplate.inference.predict.local import LocalModel
from bedplate.inference.predict.skin_bases import LoadedSkin
from bedplate.models.checkpoints.base import load_base
from bedplate.skins.files import write_skin
from bedplate.skins.output import EmbeddingOutput, LabelOutput, Output, TextOutput
from bedplate.skins.phrasings import default_continuations, default_prompt
from bedplate.skins.prompt import Prompt
from bedplate.skins.skin import BaseReference, EvaluatedWith, InputField, Skin

LABELS = ("negative", "<b>positive</b>")
ROWS = ["great and works well", "it broke", "terrible quality"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("ready") / "base")


@pytest.fixture(scope="module")
def model(base: Path) -> Iterator[LocalModel]:
    with LocalModel(load_base(base)) as local_model:
        yield local_model


def review_skin(base: Path, output: Output | None = None, prompt: Prompt | None = None, name: str = "reviews") -> Skin:
    return Skin(
        name=name,
        bases={"main": BaseReference.of(str(base), "llama", load_base(base).identity)},
        inputs={"review": InputField()},
        output=output or LabelOutput(labels=LABELS, continuations=default_continuations(LABELS)),
        prompt=prompt or default_prompt("reviews", "Decide.", ["review"], LABELS),
        evaluated_with=EvaluatedWith(weights="float32"),
    )


@pytest.fixture(scope="module")
def skin(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedSkin]:
    path = write_skin(review_skin(base), tmp_path_factory.mktemp("ready") / "skin")
    with bedplate.load(path) as loaded:
        assert isinstance(loaded, LoadedSkin)
        yield loaded


def test_predictions_are_an_array_of_answers_to_numpy_and_scikit_learn(skin: LoadedSkin) -> None:
    from sklearn.metrics import accuracy_score, confusion_matrix

    predictions, answers = skin.predict(ROWS), skin(ROWS)
    assert isinstance(predictions, list)
    assert predictions[0].output == answers[0]
    assert list(predictions.answers) == list(np.asarray(predictions)) == answers
    assert accuracy_score(answers, predictions) == 1.0
    wrong = [next(label for label in LABELS if label != answer) for answer in answers]
    assert accuracy_score(wrong, skin.predict(pd.DataFrame({"review": ROWS}))) == 0.0
    assert confusion_matrix(answers, skin.predict(ROWS, one_by_one=True), labels=list(LABELS)).sum() == len(ROWS)
    assert pd.Series(predictions).tolist() == answers


def test_an_empty_input_is_refused_by_its_row(skin: LoadedSkin) -> None:
    for empty in ("", " \n", {"review": ""}):
        with pytest.raises(RequestError, match=r"^the input 'review' is empty; skin 'reviews' answers about a text"):
            skin(empty)
        with pytest.raises(RequestError, match=r"^rows\[1\]: the input 'review' is empty"):
            skin(["fine", empty])


def test_a_row_that_does_not_fit_is_named_with_its_length(skin: LoadedSkin) -> None:
    long = "works " * 5_000
    with pytest.raises(ContextLengthExceeded, match=r"^the prompt has [\d,]+ tokens"):
        skin(long)
    with pytest.raises(ContextLengthExceeded, match=r"^rows\[2\]: the prompt has [\d,]+ tokens"):
        skin(["fine", "well", long, "good"])


def test_long_predictions_print_their_ends() -> None:
    def printed(count: int) -> list[str]:
        return repr(Predictions(Prediction(f"answer {n}", "") for n in range(count))).splitlines()

    assert len(printed(10)) == 10
    lines = printed(4_000)
    assert len(lines) == 11
    assert "answer 4'" in lines[4]
    assert lines[5] == " … 3,990 more …,"
    assert "answer 3995'" in lines[6]


def test_predictions_are_a_table_in_a_notebook() -> None:
    answers = [
        Prediction(f"<b>answer {n}</b>", "", {f"<b>answer {n}</b>": math.log(0.25)}, seconds=0.5) for n in range(40)
    ]
    page = Predictions(answers)._repr_html_()
    assert page.startswith("<div><strong>40 predictions</strong>")
    assert page.count("<tr>") == 1 + 11
    assert "<tr><td>0</td><td>&lt;b&gt;answer 0&lt;/b&gt;</td><td>0.250</td><td>500.0 ms</td></tr>" in page
    assert "… 30 more …" in page
    assert [n for n in (4, 5, 34, 35) if f"answer {n}&lt;" in page] == [4, 35]
    assert "answer 7" in answers[7]._repr_html_()


def test_many_inputs_give_the_answers_of_each(skin: LoadedSkin) -> None:
    alone = [skin(row) for row in ROWS]
    assert set(alone) <= set(LABELS)
    assert skin(ROWS) == alone
    assert skin([{"review": row} for row in ROWS]) == alone
    assert skin(tuple(ROWS)) == skin(row for row in ROWS) == alone
    assert skin([]) == []


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame({"stars": [1, 2, 3], "review": ROWS}),
        pd.DataFrame({"text": ROWS}),
        pd.Series(ROWS),
        pl.DataFrame({"review": ROWS}),
        pl.Series(ROWS),
        datasets.Dataset.from_dict({"review": ROWS}),
        np.array(ROWS),
        np.array(ROWS, dtype=object),
    ],
    ids=["pandas", "text", "Series", "polars", "polars.Series", "datasets", "array", "objects"],
)
def test_tables_and_columns_are_rows(skin: LoadedSkin, table: object) -> None:
    assert [prediction.output for prediction in skin.predict(table)] == skin(ROWS)


def test_probabilities_are_those_of_the_scores(skin: LoadedSkin) -> None:
    table = skin.predict_proba(ROWS)
    assert (skin.labels, table.shape, table.dtype) == (LABELS, (3, 2), np.float64)
    np.testing.assert_allclose(table.sum(1), 1)
    predictions = skin.predict(ROWS)
    np.testing.assert_allclose(
        np.log(table), [[prediction.scores[label] for label in LABELS] for prediction in predictions]
    )
    assert [LABELS[place] for place in table.argmax(1)] == [prediction.output for prediction in predictions]
    assert predictions[0].probabilities == pytest.approx(dict(zip(LABELS, table[0], strict=True)))
    assert skin.predict_proba([]).shape == (0, 2)


def test_a_skin_without_labels_has_no_probabilities(model: LocalModel, base: Path) -> None:
    with model.predictor(review_skin(base, TextOutput(max_tokens=3))) as writer:
        assert writer.labels == ()
        with pytest.raises(UsageError, match="gives text, no labels"):
            writer.predict_proba(ROWS)


def test_vectors_are_an_array(model: LocalModel, base: Path) -> None:
    with model.predictor(review_skin(base, EmbeddingOutput(), Prompt("{{ review }}"))) as embedder:
        vectors = embedder.embed(pd.DataFrame({"review": ROWS}))
        np.testing.assert_allclose(vectors, model.embed(ROWS), atol=1e-5)
        assert (vectors.dtype, embedder.embed([]).shape[0]) == (np.float32, 0)
    assert isinstance(model.logits([3, 4]), np.ndarray)


@pytest.mark.parametrize("others", [["text"], ["REVIEW", "review"], ["Label"]])
def test_a_column_is_found_by_its_name_in_the_table_that_the_task_was_drafted_from(others: list[str]) -> None:
    read = "review" if "review" in others else " Review "
    assert columns_for(["review"], [" Review ", *others], "rows") == {"review": read}
    assert columns_for(["ticket_text", "_2nd"], ["Ticket text", "2nd", *others], "rows") == {
        "ticket_text": "Ticket text",
        "_2nd": "2nd",
    }


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (3, UsageError, "rows is int; give a list of texts"),
        (None, UsageError, "rows is NoneType"),
        (["a", 3], UsageError, r"rows\[1\] is int; give texts or mappings of the inputs"),
        (pd.Series(["a", float("nan")]), UsageError, r"rows\[1\] is a missing value; give texts"),
        (["a", None], UsageError, r"rows\[1\] is a missing value; give texts"),
        (pd.DataFrame({"Review": ["a"], "REVIEW": ["b"]}), DataError, "no column 'review' for the skin's input"),
        (b"bytes", UsageError, "rows is bytes"),
        ([b"bytes"], UsageError, r"rows\[0\] is bytes"),
        (pd.DataFrame({"review": ["a", None]}), DataError, "row 2: column 'review' holds None, which is not a text"),
        (pd.DataFrame({"other": ["a"]}), DataError, "no column 'review' for the skin's input"),
    ],
)
def test_what_is_no_row_is_named(skin: LoadedSkin, rows: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        skin(rows)  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="rows is one str; give a list"):
        skin.predict("one text")


def test_what_is_shown_is_short_and_escaped(skin: LoadedSkin, model: LocalModel, base: Path) -> None:
    labels = tuple(f"label number {n}" for n in range(500))
    output = LabelOutput(labels=labels, continuations=default_continuations(labels))
    big = review_skin(base, output, Prompt("x " * 9000 + "{{ review }}"))
    shown = [skin, skin.skin, big, model, *skin.predict(ROWS), model.generate("the", max_tokens=200)]
    for subject in shown:
        assert len(repr(subject)) < 300, repr(subject)
        assert repr(subject).startswith("<")
    assert "one of negative" in repr(skin)
    assert "and 495 more" in repr(big)
    for subject in (skin, skin.skin, model):
        page = subject._repr_html_()
        assert page.startswith("<div>")
        assert "<b>positive" not in page
    assert "&lt;b&gt;positive" in skin._repr_html_()
