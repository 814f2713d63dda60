from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import tokenizer_json
from tokenizers import Tokenizer

from bedplate.core.errors import UsageError
from bedplate.text.chunks import pieces

TOKENIZER = Tokenizer.from_str(tokenizer_json())
ALPHABET = st.sampled_from([*"ab .!?\n。”é中", " the answer", ". The", "\n\n", "works well. ", "a" * 30, "  \n \n"])


def count(text: str) -> int:
    return len(TOKENIZER.encode(text).ids)


@settings(max_examples=120, deadline=None)
@given(text=st.lists(ALPHABET, max_size=60).map("".join), size=st.integers(4, 40), data=st.data())
def test_nothing_is_lost_and_no_limit_is_passed(text: str, size: int, data: st.DataObject):
    overlap = data.draw(st.integers(0, size - 1))
    chunks = pieces(text, size, overlap, count)
    assert "".join(text[chunk.fresh : chunk.end] for chunk in chunks) == text
    for chunk in chunks:
        assert chunk.start <= chunk.fresh < chunk.end
        assert count(text[chunk.start : chunk.end]) <= size
    for before, after in pairwise(chunks):
        assert before.start <= after.start <= after.fresh == before.end
        if after.start < after.fresh:
            assert count(text[after.start : after.fresh]) <= overlap
    if not overlap:
        assert all(chunk.start == chunk.fresh for chunk in chunks)


def test_a_character_of_several_tokens_stands_alone():
    chunks = pieces("中文", 1, 0, count)
    assert count("中") > 1
    assert [(chunk.start, chunk.end) for chunk in chunks] == [(0, 1), (1, 2)]


def words(text: str) -> int:
    return len(text.split())


def test_paragraphs_then_sentences_then_words_are_the_borders():
    text = "One two three. Four five six.\n\nSeven eight nine. Ten eleven twelve thirteen."
    cut = [text[chunk.start : chunk.end] for chunk in pieces(text, 8, 0, words)]
    assert cut == ["One two three. Four five six.\n\n", "Seven eight nine. Ten eleven twelve thirteen."]
    cut = [text[chunk.start : chunk.end] for chunk in pieces(text, 4, 0, words)]
    assert cut == ["One two three. ", "Four five six.\n\n", "Seven eight nine. ", "Ten eleven twelve thirteen."]
    cut = pieces("one two three four five", 2, 0, words)
    assert ["one two three four five"[p.start : p.end] for p in cut] == ["one two ", "three four ", "five"]


def test_the_overlap_is_whole_sentences():
    text = "One two three. Four five. Six seven eight. Nine."
    cut = [text[chunk.start : chunk.end] for chunk in pieces(text, 6, 3, words)]
    assert cut == ["One two three. Four five. ", "Four five. Six seven eight. Nine."]


def test_a_text_that_fits_is_one_piece():
    assert [(p.start, p.end, p.fresh) for p in pieces("A b. C d.\n\nE.", 50, 10, words)] == [(0, 13, 0)]
    assert pieces("", 5, 0, words) == []


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (5, 5), (5, -1)])
def test_sizes_that_cannot_be(size: int, overlap: int):
    with pytest.raises(UsageError, match="overlap < size"):
        pieces("a b", size, overlap, words)
