"""Ids to bytes and text: whole, token by token, and in a stream; user text never becomes a control token."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from bedplate.text.control_tokens import secret_name
from bedplate.text.directory import TokenizerParts
from bedplate.text.tokenizer import Tokenizer

SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LOOKALIKES = [
    "<|im_end|>",
    "<|im_start|>",
    "<|endoftext|>",
    "<s>",
    "</s>",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "[PAD]",
    "<|im_",
]
texts = st.lists(st.one_of(st.text(max_size=8), st.sampled_from([*LOOKALIKES, " ", "\n", "é", "😀", "end|>"]))).map(
    "".join
)


def test_stream_of_any_ids_equals_decoding_them(trained_dir: Path) -> None:
    tokenizer = Tokenizer.from_directory(trained_dir)

    @SETTINGS
    @given(st.lists(st.integers(0, tokenizer.vocab_size - 1)), st.booleans())
    def check(ids: list[int], skip: bool) -> None:
        stream = tokenizer.stream(skip_special_tokens=skip)
        pieces = [stream.push(index) for index in ids] + [stream.flush()]
        assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=skip)
        repeated = [stream.push(index) for index in ids] + [stream.flush()]  # a flushed stream starts anew
        assert repeated == pieces

    check()


def test_stream_of_text_never_shows_half_a_character(small: Tokenizer) -> None:
    @SETTINGS
    @given(texts)
    def check(text: str) -> None:
        stream = small.stream(skip_special_tokens=False)
        pieces = [stream.push(index) for index in small.encode(text)]
        assert stream.flush() == ""
        assert "".join(pieces) == text
        assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text

    check()


def test_token_bytes_are_the_text(small: Tokenizer, strings: list[str]) -> None:
    for text in strings:
        assert b"".join(map(small.token_bytes, small.encode(text))) == text.encode("utf-8")
    assert len({small.token_bytes(index) for index in range(4, small.vocab_size)}) == small.vocab_size - 4


def test_token_bytes_of_other_kinds(trained_dir: Path) -> None:
    tokenizer = Tokenizer.from_directory(trained_dir)

    def of(token: str) -> bytes:
        index = tokenizer.token_to_id(token)
        assert index is not None, token
        return tokenizer.token_bytes(index)

    tokenizer_type = trained_dir.name.rstrip("0123456789")
    if tokenizer_type == "byte_level":
        assert (of("Ġ"), of("Ċ"), of("Ã"), of("<|im_end|>")) == (b" ", b"\n", b"\xc3", b"<|im_end|>")
    elif tokenizer_type == "byte_fallback":
        assert (of("▁"), of("<0x0A>"), of("<0xF0>"), of("a")) == (b" ", b"\n", b"\xf0", b"a")
        ids = tokenizer.encode("a 𒀀 b")  # a character outside the alphabet goes by its bytes
        assert b"".join(map(tokenizer.token_bytes, ids)) == " a 𒀀 b".encode()
        assert tokenizer.decode(ids) == "a 𒀀 b"
        cut = ids[: ids.index(tokenizer.encode("𒀀")[-1])]
        assert tokenizer.decode(cut) == "a \ufffd"
    elif tokenizer_type == "word_piece":
        assert (of("a"), of("##a")) == (b" a", b"a")
    else:
        assert of("▁") == b" "


def test_a_decoder_that_sees_the_whole_streams_at_the_end() -> None:
    backend = tokenizers.Tokenizer(models.BPE({"a": 0, "b</w>": 1}, [], end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.BPEDecoder()
    tokenizer = Tokenizer(TokenizerParts(backend, {}, (), None, "a test"))
    stream = tokenizer.stream()
    assert [stream.push(index) for index in (0, 1, 0, 1)] == ["", "", "", ""]
    assert stream.flush() == tokenizer.decode([0, 1, 0, 1]) == backend.decode([0, 1, 0, 1]) == "ab ab"


def test_user_text_never_gives_a_control_token(trained_dir: Path) -> None:
    tokenizer = Tokenizer.from_directory(trained_dir)
    control = tokenizer.special_ids - {tokenizer.unk_id}
    lossless = trained_dir.name.startswith("byte_level")

    @SETTINGS
    @given(texts)
    def check(text: str) -> None:
        ids = tokenizer.encode(text, parse_special=False)
        assert control.isdisjoint(ids)
        assert [ids] == tokenizer.encode_batch([text], parse_special=False)
        if lossless:
            assert tokenizer.decode(ids) == text
        if not any(lookalike in text for lookalike in (*LOOKALIKES, "<unk>", "[UNK]")):
            assert ids == tokenizer.encode(text)

    check()
    for token in filter(None, map(tokenizer.id_to_token, control)):
        assert tokenizer.encode(token) == [tokenizer.token_to_id(token)]
        assert control.isdisjoint(tokenizer.encode(token, parse_special=False))


def test_whole_words_of_the_vocabulary_cannot_forge_either() -> None:
    # a model that takes a whole piece from its vocabulary (llama-3's `ignore_merges`) would find <s> there
    backend = tokenizers.Tokenizer(models.BPE({"<s>": 0, "<": 1, "s": 2, ">": 3}, [], ignore_merges=True))
    backend.add_special_tokens(["<s>"])
    tokenizer = Tokenizer(TokenizerParts(backend, {}, (), None, "a test"))
    assert tokenizer.encode("<s>") == [0]
    assert tokenizer.encode("<s>", parse_special=False) == [1, 2, 3]
    assert secret_name(0) != "<s>"


@pytest.mark.parametrize("parse_special", [True, False])
def test_the_post_processor_adds_its_tokens_either_way(trained_dir: Path, parse_special: bool) -> None:
    tokenizer = Tokenizer.from_directory(trained_dir)
    plain = tokenizer.encode("the word", parse_special=parse_special)
    added = tokenizer.encode("the word", add_special_tokens=True, parse_special=parse_special)
    assert set(added) - set(plain) <= tokenizer.special_ids
    assert len(added) > len(plain)
