"""Text and JSON metrics against the packages that define them in practice, and by hand where there is none."""

from __future__ import annotations

import importlib
import json
import sys
from functools import partial
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bedplate.evaluation.metrics import (
    METRICS,
    chrf,
    json_fields,
    rouge_l,
    rouge_n,
    rouge_words,
    squad_words,
    token_f1,
)

words = st.sampled_from(["the", "a", "cat", "cats", "sat", "Sat", "on", "mat.", "it's", "42", "no-one", "x_y", "!"])
texts = st.lists(words, max_size=14).map(" ".join)


@given(texts, texts)
@settings(max_examples=120, deadline=None)
def test_rouge_matches_rouge_score(target: str, prediction: str) -> None:
    peer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rouge1", "rouge2", "rougeL"])
    theirs = peer.score(target, prediction)
    ours = {"rouge1": partial(rouge_n, n=1), "rouge2": partial(rouge_n, n=2), "rougeL": rouge_l}
    for name, metric in ours.items():
        assert metric(target, prediction) == pytest.approx(theirs[name].fmeasure)


@given(st.text(max_size=30) | texts, st.text(max_size=30) | texts)
@settings(max_examples=120, deadline=None)
def test_chrf_matches_sacrebleu(target: str, prediction: str) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    assert chrf(target, prediction) == pytest.approx(sacrebleu.sentence_chrf(prediction, [target]).score / 100)


def test_token_f1_matches_the_squad_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is copied into LongBench, whose module asks for three packages that the F1 does not use."""
    for name in ("jieba", "fuzzywuzzy", "rouge"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(fuzz=None, Rouge=None))
    peer = importlib.import_module("lm_eval.tasks.longbench.metrics")

    @given(texts, texts)
    @settings(max_examples=120, deadline=None)
    def check(target: str, prediction: str) -> None:
        normalized_target, normalized_prediction = peer.normalize_answer(target), peer.normalize_answer(prediction)
        assert (squad_words(target), squad_words(prediction)) == (
            normalized_target.split(),
            normalized_prediction.split(),
        )
        assert METRICS["squad_exact"].row(target, prediction) == (normalized_target == normalized_prediction)
        # the script of SQuAD 2.0, unlike LongBench's, gives 1 for "no answer" rightly given
        score = (
            float(normalized_target == normalized_prediction)
            if not (normalized_target and normalized_prediction)
            else peer.qa_f1_score(prediction, target)
        )
        assert token_f1(target, prediction) == pytest.approx(score)

    check()


def test_published_examples_by_hand() -> None:
    # Lin 2004, section 3: the one shares "police the gunman" with the reference, the other but "the gunman"
    reference = "police killed the gunman"
    assert rouge_l(reference, "police kill the gunman") == pytest.approx(3 / 4)
    assert rouge_l(reference, "the gunman kill police") == pytest.approx(2 / 4)
    assert token_f1("the Denver Broncos", "Broncos of Denver") == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))


def test_words_of_other_scripts_stay_whole() -> None:
    assert rouge_words("Naïve Straße, x_y") == ["naïve", "straße", "x", "y"]
    assert rouge_n("привет мир", "привет всем", 1) == pytest.approx(0.5)


def test_a_long_common_subsequence_is_quick_and_right() -> None:
    a, b = [f"w{i % 97}" for i in range(3000)], [f"w{i % 89}" for i in range(3000)]
    row = [0] * (len(b) + 1)
    for x in a[:300]:
        before = 0
        for j, y in enumerate(b[:300], start=1):
            before, row[j] = row[j], before + 1 if x == y else max(row[j], row[j - 1])
    assert rouge_l(" ".join(a[:300]), " ".join(b[:300])) == pytest.approx(row[300] / 300)
    assert 0 < rouge_l(" ".join(a), " ".join(b)) < 1


@pytest.mark.parametrize(
    ("target", "prediction", "score"),
    [
        ({"a": 1, "b": "x"}, {"a": 1.0, "b": " X "}, 1.0),
        ({"a": 1, "b": "x"}, {"a": 1, "b": "y"}, 1 / 2),
        ({"a": 1, "b": "x"}, {"a": 1}, 1 / 2),
        ({"a": 1}, {"a": 1, "b": "made up"}, 1 / 2),
        ({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 0}, "d": 3}, 2 / 3),
        ({"tags": ["x", "y", "z"]}, {"tags": ["z", "x"]}, 2 / 3),
        ({"tags": ["x", "x"]}, {"tags": ["x"]}, 1 / 2),
        ({"tags": [], "n": 1}, {"tags": [], "n": 1}, 1.0),
        ({"tags": [], "n": 1}, {"tags": ["x"], "n": 1}, 1 / 2),
        ({"tags": [], "n": 1}, {"n": 1}, 1 / 2),
        ({"rows": [{"k": "a", "v": 1}, {"k": "b", "v": 2}]}, {"rows": [{"k": "a", "v": 1}, {"k": "b", "v": 9}]}, 3 / 4),
        ({"a": True}, {"a": 1}, 0.0),
        ({"a": "4"}, {"a": 4}, 0.0),
        ({"a": None}, {"a": None}, 1.0),
        ({"a": None}, {}, 0.0),
        ({}, {}, 1.0),
        (4, 4.0, 1.0),
        ({"a.b": 1}, {"a": {"b": 1}}, 0.0),
    ],
)
def test_json_fields_by_hand(target: object, prediction: object, score: float) -> None:
    assert json_fields(json.dumps(target), json.dumps(prediction)) == pytest.approx(score)
    assert json_fields(json.dumps(target), None) == 0.0


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
    max_leaves=8,
)


@given(values, values)
@settings(max_examples=80, deadline=None)
def test_json_fields_is_a_score(a: object, b: object) -> None:
    first, two = json.dumps(a), json.dumps(b)
    assert json_fields(first, first) == 1.0
    assert json_fields(first, two) == pytest.approx(json_fields(two, first))
    assert 0 <= json_fields(first, two) <= 1
