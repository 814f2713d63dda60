"""Bag-of-words models compute what scikit-learn computes, and a directory that holds no such model is refused."""

from __future__ import annotations

import csv
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from bedplate.adapters.tensor_files import tensor_bytes
from bedplate.cli.main import main
from bedplate.core.errors import ContextLengthExceeded, RequestError, SkinError, UsageError
from bedplate.core.files import sha256_file
from bedplate.inference.predict.classical import ClassicalPredictor
from bedplate.inference.predict.loaded import load
from bedplate.models.checkpoints.identity import Identity
from bedplate.skins import classical
from bedplate.skins.classical import CLASSICAL_FILE, VOCABULARY_FILE, Classical, words_of
from bedplate.skins.files import SKIN_FILE, read_skin, skin_id, write_skin
from bedplate.skins.lookup_index import text_of
from bedplate.skins.output import Abstain, LabelOutput, LabelsOutput, Output
from bedplate.skins.phrasings import values_prompt
from bedplate.skins.skin import InputField, Limits, Skin
from bedplate.skins.verify import verify_skin

TEXTS = [
    "It broke after a day, and nobody answers!",
    "Works well: it is the best product I own.",
    "Meh. It is a product; it is what it is.",
    "terrible, terrible, TERRIBLE quality",
    "İstanbul'da çok güzel — ΣΟΦΟΣ, 10½ of 10",
    "what a day to own a product that broke",
    "naïve café_au_lait \x02 \x1c \u2028 e\u0301 😀😀",
    "it works and works and works",
]
LABELS = ("bad", "good", "unsure")
ANSWERS = ["bad", "good", "unsure", "bad", "good", "bad", "unsure", "good"]
# what TfidfVectorizer is asked for by whoever wants one-letter words and marks as well
PATTERN = r"(?u)\b\w+\b|[^\w\s]"


def fitted(labels: tuple[str, ...] = LABELS, words: tuple[int, int] = (1, 2), sublinear: bool = True) -> Any:
    """scikit-learn's two models, and the same as a part of a skin."""
    vectorizer = TfidfVectorizer(ngram_range=words, sublinear_tf=sublinear, token_pattern=PATTERN)
    answers = [answer if answer in labels else labels[0] for answer in ANSWERS]
    model = LogisticRegression(C=10.0, max_iter=500).fit(vectorizer.fit_transform(TEXTS), answers)
    assert tuple(model.classes_) == labels
    weight, bias = model.coef_, model.intercept_
    if len(labels) == 2:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    terms = tuple(str(term) for term in vectorizer.get_feature_names_out())
    numbers = (np.asarray(array, np.float32) for array in (vectorizer.idf_, weight, bias))
    return vectorizer, model, Classical(terms, *numbers, labels, words, sublinear)


def skin(model: Classical, output: Output | None = None, **fields: Any) -> Skin:
    return Skin(
        name="words",
        bases={},
        inputs={"review": InputField()},
        output=output or LabelOutput(labels=model.labels),
        prompt=values_prompt(["review"]),
        classical=model,
        **fields,
    )


@pytest.mark.parametrize("labels", [LABELS, ("bad", "good")])
@pytest.mark.parametrize("words", [(1, 1), (1, 2), (2, 3)])
@pytest.mark.parametrize("sublinear", [True, False])
def test_a_skin_gives_scikit_learns_probabilities(
    labels: tuple[str, ...], words: tuple[int, int], sublinear: bool, tmp_path: Path
) -> None:
    vectorizer, theirs, model = fitted(labels, words, sublinear)
    directory = write_skin(skin(model), tmp_path / "skin")
    rows = [*TEXTS, "?", " .\n", "never seen", "it it is is product"]
    expected = theirs.predict_log_proba(vectorizer.transform(rows))
    with load(directory) as loaded:
        assert isinstance(loaded, ClassicalPredictor)
        predictions = loaded.predict(rows)
        assert loaded(rows[0]) == predictions[0].output
        assert loaded(rows) == [prediction.output for prediction in predictions]
        np.testing.assert_allclose(loaded.predict_proba(rows), np.exp(expected), atol=1e-5)
        assert "classical, no base, review" in repr(loaded)
    np.testing.assert_allclose([list(prediction.scores.values()) for prediction in predictions], expected, atol=1e-5)
    assert [prediction.output for prediction in predictions] == [labels[i] for i in expected.argmax(axis=1)]
    assert [prediction.prompt_tokens for prediction in predictions] == [len(words_of(row)) for row in rows]


READ = TfidfVectorizer(ngram_range=(1, 2), token_pattern=PATTERN).build_analyzer()


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_words_are_those_of_scikit_learn(text: str) -> None:
    words = words_of(text)
    assert [*words, *(f"{a} {b}" for a, b in itertools.pairwise(words))] == READ(text)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(min_size=1), min_size=1, max_size=3))
def test_the_prompt_of_the_values_is_the_text_that_was_learnt_from(values: list[str]) -> None:
    names = [f"field {i}" for i in range(len(values))]
    inputs = dict(zip(names, values, strict=True))
    assert values_prompt(names).text(inputs) == text_of(inputs, names)


def test_any_of_several_labels_and_answers_that_are_withheld() -> None:
    _, _, model = fitted()
    several = ClassicalPredictor(skin(model, LabelsOutput(labels=LABELS, threshold=0.6)))
    logits = model.logits(TEXTS)
    expected = [[LABELS[i] for i in range(3) if 1 / (1 + np.exp(-row[i])) >= 0.6] for row in logits]
    assert [json.loads(prediction.output) for prediction in several.predict(TEXTS)] == expected
    careful = ClassicalPredictor(skin(model, LabelOutput(labels=LABELS, abstain=Abstain(below=0.99, answer="?"))))
    assert {prediction.output for prediction in careful.predict(TEXTS)} == {"?"}


def test_a_text_that_is_longer_than_the_skin_takes_and_one_that_is_none() -> None:
    predictor = ClassicalPredictor(skin(fitted()[2], limits=Limits(max_prompt_tokens=3)))
    assert predictor("a, b") in LABELS
    with pytest.raises(ContextLengthExceeded, match="4 words and marks, more than the 3"):
        predictor("a, b c")
    with pytest.raises(RequestError):
        predictor({"text": "a"})


def test_it_stands_on_no_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = write_skin(skin(fitted()[2]), tmp_path / "skin")
    read = read_skin(directory)
    with pytest.raises(SkinError, match="answers without a base: it fits none, and needs none"):
        verify_skin(read, Identity("0" * 64, "none", "none"))  # type: ignore[arg-type]
    for options in ({"dtype": "float32"}, {"base": tmp_path}, {"weights": "int8"}):
        with pytest.raises(UsageError, match="'classical' answers without a base"):
            load(directory, **options)
    shown: dict[str, Any] = {}
    for verb in ("show", "list"):
        with pytest.raises(SystemExit) as stopped:
            main(["skins", verb, str(directory), "--json"])
        assert not stopped.value.code
        shown[verb] = json.loads(capsys.readouterr().out)
    assert (shown["show"]["kind"], shown["show"]["bases"]) == ("classical", {})
    assert shown["show"]["classical"] == {"terms": len(read.classical.terms), "words": [1, 2], "sublinear": True}  # type: ignore[union-attr]
    assert [row["base"] for row in shown["list"]["skins"]] == [None]


# --- what is refused


def edit(directory: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Change what a file holds, and list its new hash."""
    path = directory / name
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(change(safetensors.torch.load_file(path)), path)
    else:
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
    if name != SKIN_FILE:
        listed = json.loads((directory / SKIN_FILE).read_text())
        listed["files"][name] = sha256_file(path)
        (directory / SKIN_FILE).write_text(json.dumps(listed))


def tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], Any]:
    return lambda tensors: tensors | {name: change(tensors[name]).contiguous()}


def terms(change: Callable[[list[Any]], Any]) -> Callable[[Any], Any]:
    return lambda fields: fields | {"terms": change(fields["terms"])}


def fields(**changes: Any) -> Callable[[Any], Any]:
    return lambda manifest: manifest | {"classical": manifest["classical"] | changes}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (CLASSICAL_FILE, tensor("weight", lambda x: x[:, 1:]), "needs an idf"),
        (CLASSICAL_FILE, tensor("weight", lambda x: x[1:]), "a head of 3 labels needs"),
        (CLASSICAL_FILE, tensor("weight", lambda x: x[0]), "a head of 3 labels needs"),
        (CLASSICAL_FILE, tensor("bias", lambda x: x[1:]), "a head of 3 labels needs"),
        (CLASSICAL_FILE, tensor("idf", lambda x: x[1:]), "needs an idf"),
        (CLASSICAL_FILE, tensor("idf", lambda x: x[None]), "needs an idf"),
        (CLASSICAL_FILE, tensor("idf", lambda x: -x), "numbers above 0"),
        (CLASSICAL_FILE, tensor("idf", lambda x: x * 0), "numbers above 0"),
        (CLASSICAL_FILE, tensor("idf", lambda x: x * torch.nan), "NaN"),
        (CLASSICAL_FILE, tensor("weight", lambda x: x * torch.inf), "NaN or infinity"),
        (CLASSICAL_FILE, tensor("bias", lambda x: x.long()), "a floating-point type is needed"),
        (CLASSICAL_FILE, lambda x: x | {"more": torch.zeros(1)}, "must hold exactly bias, idf, weight"),
        (CLASSICAL_FILE, lambda x: {"idf": x["idf"]}, "must hold exactly bias, idf, weight"),
        (CLASSICAL_FILE, lambda x: x | {"more": torch.zeros(2**14)}, "labels need"),
        (VOCABULARY_FILE, terms(lambda x: x[1:]), "needs an idf"),
        (VOCABULARY_FILE, terms(lambda x: []), "has 1 to 1,000,000 terms"),
        (VOCABULARY_FILE, terms(lambda x: [x[1], *x[1:]]), "a term twice"),
        (VOCABULARY_FILE, terms(lambda x: [7, *x[1:]]), "a list of texts"),
        (VOCABULARY_FILE, terms(lambda x: "abc"), "a list of texts"),
        (VOCABULARY_FILE, terms(lambda x: ["(a+)+$", *x[1:]]), "is not 1 to 2 words of a text"),
        (VOCABULARY_FILE, terms(lambda x: ["", *x[1:]]), "is not 1 to 2 words of a text"),
        (VOCABULARY_FILE, terms(lambda x: ["one two three", *x[1:]]), "is not 1 to 2 words of a text"),
        (VOCABULARY_FILE, terms(lambda x: ["one  two", *x[1:]]), "is not 1 to 2 words of a text"),
        (VOCABULARY_FILE, terms(lambda x: ["a" * 10**6 + " ", *x[1:]]), "is not 1 to 2 words of a text"),
        (VOCABULARY_FILE, terms(lambda x: ["a"] * 1_000_001), "this one has 1,000,001"),
        (VOCABULARY_FILE, lambda x: x | {"token_pattern": "(a+)+$"}, "and nothing else"),
        (SKIN_FILE, fields(token_pattern="(a+)+$"), "token_pattern"),
        (SKIN_FILE, fields(terms="(a+)+$"), "classical.terms"),
        (SKIN_FILE, fields(words=[1, 9]), "1 to 3 words, not 1 to 9"),
        (SKIN_FILE, fields(words=[0, 1]), "1 to 3 words, not 0 to 1"),
        (SKIN_FILE, fields(words=[2, 1]), "1 to 3 words, not 2 to 1"),
        (SKIN_FILE, fields(words=[10**30, 10**30]), "classical.words|1 to 3 words"),
        (SKIN_FILE, lambda x: x | {"output": {"kind": "text"}}, "a classical model's output must be a label"),
        (SKIN_FILE, lambda x: x | {"kind": "prompt"}, "does not fit the parts"),
        (SKIN_FILE, lambda x: x | {"classical": None}, "does not fit the parts|names no main base"),
    ],
)
def test_a_directory_that_holds_something_else_is_refused(
    name: str, change: Callable[[Any], Any], message: str, tmp_path: Path
) -> None:
    directory = write_skin(skin(fitted()[2]), tmp_path / "skin")
    edit(directory, name, change)
    with pytest.raises(SkinError, match=message):
        read_skin(directory)


def test_a_vocabulary_of_too_many_bytes_is_not_even_read(tmp_path: Path) -> None:
    directory = write_skin(skin(fitted()[2]), tmp_path / "skin")
    with (directory / VOCABULARY_FILE).open("r+b") as file:
        file.truncate(classical.MAX_VOCABULARY_BYTES + 1)  # of zeros that the disk does not hold
    with pytest.raises(SkinError, match="more than the 67,108,864 that are allowed"):
        read_skin(directory)


def test_a_model_that_would_not_be_read_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fitted()[2]
    monkeypatch.setattr(classical, "MAX_WEIGHTS", 3 * len(model.terms) - 1)
    with pytest.raises(SkinError, match="terms for 3 labels"):
        write_skin(skin(model), tmp_path / "skin")
    assert not (tmp_path / "skin").exists()


def test_half_a_surrogate_pair_is_a_word_that_comes_back(tmp_path: Path) -> None:
    numbers = np.ones(2, np.float32), np.eye(2, dtype=np.float32), np.zeros(2, np.float32)
    odd = skin(Classical(("\ud83d", "x"), *numbers, ("a", "b")))
    read = read_skin(write_skin(odd, tmp_path / "skin"))
    assert skin_id(read) == skin_id(odd)
    assert ClassicalPredictor(read)("\ud83d") == "a"


# --- what is not needed


def test_it_is_written_as_torch_would_and_answers_without_torch(tmp_path: Path) -> None:
    model = fitted()[2]
    directory = write_skin(skin(model), tmp_path / "skin")
    arrays = {name: getattr(model, name) for name in ("idf", "weight", "bias")}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    assert (directory / CLASSICAL_FILE).read_bytes() == tensor_bytes(tensors)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"review": text}) + "\n" for text in TEXTS))
    code = (
        "import sys, bedplate\n"
        "from bedplate.cli.main import main\n"
        "loaded = bedplate.load(sys.argv[1])\n"
        "print(loaded(['it works', 'it broke']), loaded.predict_proba(['it works']), loaded.predict(['it works']))\n"
        "try: main(['predict', *sys.argv[1:3], '--out', sys.argv[3]])\n"
        "finally: assert not {'torch', 'scipy', 'sklearn', 'transformers'} & set(sys.modules)\n"
    )
    paths = [str(directory), str(tmp_path / "rows.jsonl"), str(tmp_path / "out.csv")]
    ran = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    with (tmp_path / "out.csv").open(newline="") as file:
        assert [row["review"] for row in csv.DictReader(file)] == TEXTS


def test_a_row_that_is_too_long_is_named_with_its_length() -> None:
    predictor = ClassicalPredictor(skin(fitted()[2], limits=Limits(max_prompt_tokens=3)))
    with pytest.raises(ContextLengthExceeded, match=r"^rows\[1\]: the text has 4 words and marks, more than the 3"):
        predictor.predict(["a, b", "a, b c", "a"])
