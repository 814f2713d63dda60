"""Long texts become documents: where they are cut, and that the pieces of a text stay together."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from bedplate.core.config import parse_config
from bedplate.core.errors import ConfigError, DataError
from bedplate.data.corpus.build import build
from bedplate.data.corpus.encode import cut_text
from bedplate.data.corpus.fates import fates_of, read_fates, read_funnel
from bedplate.data.corpus.recipe import CorpusRecipe
from bedplate.data.corpus.shards import Corpus
from bedplate.text.tokenizer import Tokenizer

RECIPE = """
corpus: books
preset: none
sources: [{name: books, kind: files, path: books}]
tokenizer: {train: {vocab_size: 400}}
decontaminate: {against: [held.txt], words: 8}
split: {valid: 0.3}
cut: CUT
"""
LEAKED = "the answer to the ultimate question of life is forty two"


def characters(texts: Sequence[str]) -> list[int]:
    return [len(text) for text in texts]


def paragraphs(seed: int, count: int) -> str:
    draw = random.Random(seed)
    lines = (" ".join("".join(draw.choices("abcdefgh", k=5)) for _ in range(9)) for _ in range(4 * count))
    return "".join(f"{line}\n" + "\n" * (number % 4 == 3) for number, line in enumerate(lines))


@pytest.mark.parametrize("seed", range(20))
def test_pieces_are_the_text_and_of_about_the_length(seed: int) -> None:
    draw = random.Random(seed)
    breaks = ("\n\n", "\n", " ", "", " \n \n ")
    text = "".join(
        draw.choice(breaks) + "x" * draw.choice((1, 5, 40, 300)) for _ in range(draw.choice((0, 3, 90, 400)))
    )
    length = draw.choice((64, 100, 900))
    pieces = cut_text(text, length, characters)
    assert "".join(pieces) == text
    assert len(pieces) == 1 or all(length / 2 <= len(piece) <= 1.5 * length for piece in pieces)


def test_a_paragraph_goes_before_a_line_and_a_line_before_a_word() -> None:
    lines = [f"{n:02} " + "word " * 5 for n in range(40)]
    text = "".join(f"{line}\n" + "\n" * (n in (8, 30)) for n, line in enumerate(lines))
    pieces = cut_text(text, 300, characters)
    assert pieces[0].endswith("\n\n")  # although the end of line 9 is nearer to 300
    assert all(piece.endswith("\n") for piece in pieces)
    words = cut_text("word " * 100, 100, characters)
    assert all(piece.strip().split() == ["word"] * len(piece.split()) for piece in words)


@pytest.mark.parametrize(
    ("sentence", "end"),
    [
        ("The cat sat on the mat, and it stayed. ", "."),
        ('She said: "Is it so?" ', '"'),
        ("这是一个没有空格的句子。", "。"),
    ],
)
def test_a_text_without_line_breaks_is_cut_between_sentences(sentence: str, end: str) -> None:
    draw = random.Random(0)
    parts = [*["word"] * draw.randrange(9), sentence] if " " in sentence else [sentence]
    text = "".join(f"{' '.join(parts)}" for _ in range(200))
    pieces = cut_text(text, 300, characters)
    assert "".join(pieces) == text
    assert len(pieces) > 5
    assert all(piece.rstrip().endswith(end) for piece in pieces)
    assert all(150 <= len(piece) <= 450 for piece in pieces)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "books").mkdir()
    for number in range(12):
        (tmp_path / "books" / f"{number:02}.txt").write_text(paragraphs(number, 20))
    (tmp_path / "books" / "copy.txt").write_text(paragraphs(3, 20).replace("\n", "\n\n"))
    (tmp_path / "books" / "leak.txt").write_text(paragraphs(50, 10) + LEAKED + paragraphs(51, 10))
    (tmp_path / "books" / "short.txt").write_text(paragraphs(60, 1))
    (tmp_path / "held.txt").write_text(f"Somewhere it is said: {LEAKED}.")
    return tmp_path


@pytest.mark.parametrize("cut", ["{characters: 800}", "{tokens: 300}"])
def test_the_pieces_of_a_text_have_one_fate(place: Path, cut: str) -> None:
    recipe = parse_config(RECIPE.replace("CUT", cut), CorpusRecipe, "recipe.yaml")
    build(recipe, place, place / "out", quiet=True)
    corpus, tokenizer = Corpus.open(place / "out"), Tokenizer.from_directory(place / "out")
    texts = {
        split: [tokenizer.decode(ids[:-1].tolist()) for ids in corpus.documents("books", split)]  # type: ignore[arg-type]
        for split in ("train", "valid")
    }
    fates = [fate for path in (place / "out/fates").iterdir() for fate in read_fates(path)]
    whole = {fate.id: (place / "books" / fate.id).read_text() for fate in fates}
    for split, documents in texts.items():  # each text's pieces one behind the other, in one split
        assert "".join(documents) == "".join(whole[fate.id] for fate in fates if fate.split == split)
        lengths = [n for fate in fates if fate.split == split for n in fate.pieces or (len(whole[fate.id]),)]
        assert [len(text) for text in documents] == lengths
    assert texts["valid"]
    dropped = {fate.id: (fate.rule, fate.pieces) for fate in fates if fate.rule}
    assert dropped["leak.txt"] == ("contaminated", ())
    assert {"copy.txt", "03.txt"} & dropped.keys()
    kept = [fate for fate in fates if fate.rule is None and fate.id != "short.txt"]
    assert all(len(fate.pieces) > 2 for fate in kept)
    [short] = fates_of(place / "out", "short.txt")
    assert not short.pieces
    funnel = read_funnel(place / "out")
    pieces = sum(len(fate.pieces) for fate in kept)
    assert funnel["cut"] == {"texts": len(kept), "documents": pieces}
    assert corpus.sources["books"].documents == pieces + 1
    assert f"into {pieces} documents" in (place / "out/card.md").read_text()


def test_a_piece_is_explained_by_its_name(place: Path) -> None:
    recipe = parse_config(RECIPE.replace("CUT", "{characters: 800}"), CorpusRecipe, "recipe.yaml")
    build(recipe, place, place / "out", quiet=True)
    [whole] = fates_of(place / "out", "00.txt")
    assert f"cut into {len(whole.pieces)} documents (00.txt#1 to #{len(whole.pieces)})" in whole.line
    [piece] = fates_of(place / "out", "00.txt#2")
    first, second = whole.pieces[:2]
    assert f"00.txt#2 ({second} characters): kept, in {whole.split} (characters {first + 1} to" in piece.line
    with pytest.raises(
        DataError, match=rf"no piece '00.txt#\d+': books: 00.txt .* cut into {len(whole.pieces)} documents"
    ):
        fates_of(place / "out", f"00.txt#{len(whole.pieces) + 1}")
    with pytest.raises(DataError, match=r"no piece 'short.txt#1': books: short.txt"):
        fates_of(place / "out", "short.txt#1")


def test_other_cuts_are_other_corpora_and_none_leaves_a_build_as_it_was(place: Path) -> None:
    text = RECIPE.replace("cut: CUT\n", "")
    plain = build(parse_config(text, CorpusRecipe, "r.yaml"), place, place / "plain", quiet=True, keep_work=True).corpus
    again = build(parse_config(text + "cut: null\n", CorpusRecipe, "r.yaml"), place, place / "plain", quiet=True)
    assert not again.new
    recipe = parse_config(RECIPE.replace("CUT", "{characters: 800}"), CorpusRecipe, "recipe.yaml")
    other = build(recipe, place, place / "out", quiet=True).corpus
    assert other.sha256 != plain.sha256
    assert not build(recipe, place, place / "out", quiet=True).new


def test_a_long_text_is_not_dropped_for_its_length_where_it_is_cut(tmp_path: Path) -> None:
    text = RECIPE.replace(
        "decontaminate: {against: [held.txt], words: 8}\n", "rules: {length: {max_characters: 5000}}\n"
    )
    (tmp_path / "books").mkdir()
    for number in range(2):
        (tmp_path / "books" / f"{number}.txt").write_text(paragraphs(number, 40))
    with pytest.raises(DataError, match="length 2"):
        build(
            parse_config(text.replace("cut: CUT\n", ""), CorpusRecipe, "r.yaml"), tmp_path, tmp_path / "out", quiet=True
        )
    recipe = parse_config(text.replace("CUT", "{characters: 800}"), CorpusRecipe, "r.yaml")
    assert build(recipe, tmp_path, tmp_path / "out", quiet=True).new


def test_one_unit_of_length(place: Path) -> None:
    for cut in ("{}", "{tokens: 100, characters: 800}", "{tokens: 3}"):
        with pytest.raises(ConfigError, match="cut"):
            parse_config(RECIPE.replace("CUT", cut), CorpusRecipe, "recipe.yaml")
