"""Tokenizers from GGUF metadata: the same ids as llama.cpp; what cannot be read is refused by name."""

from __future__ import annotations

import importlib.util
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from bedplate.core.errors import TokenizerError
from bedplate.models.gguf_header import read_header
from bedplate.text.gguf_fields import PRE_TOKENIZERS
from bedplate.text.tokenizer import Tokenizer

from .conftest import load, small_fields

BY_CATEGORY = ("deepseek-v3", "hunyuan-dense")
"""Pre-tokenizers that ask whether a character is punctuation or a symbol."""


def unassigned(character: str) -> bool:
    return unicodedata.category(character) == "Cn"


def fields_of(path: Path) -> dict[str, Any]:
    return read_header(path).metadata


def assert_same(ours: Tokenizer, expected: dict[str, Any], strings: list[str]) -> None:
    assert len(strings) >= 200
    for special in (True, False):
        expected_ids = expected[str(special)]
        wrong = [
            s for s, ids in zip(strings, expected_ids, strict=True) if ours.encode(s, parse_special=special) != ids
        ]
        assert wrong == []


@pytest.mark.real
@pytest.mark.slow
def test_smollm2_equals_llamacpp(
    smollm2_gguf: Path, llamacpp: dict[str, Any], strings: list[str], tmp_path: Path
) -> None:
    import transformers

    ours = Tokenizer.from_fields(fields_of(smollm2_gguf))
    assert_same(ours, llamacpp["smollm2"], strings)
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.unk_id, ours.eos_ids) == (1, 2, 2, 0, (2,))
    assert ours.vocab_size == 49152
    ours.save(tmp_path)
    reloaded, theirs = Tokenizer.from_directory(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert reloaded.identity == ours.identity
    assert theirs(strings, add_special_tokens=True)["input_ids"] == ours.encode_batch(strings, add_special_tokens=True)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id, theirs.unk_token_id) == (1, 2, 2, 0)
    assert set(theirs.all_special_ids) <= ours.special_ids
    messages = [{"role": "user", "content": "Hello"}]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ours.encode_chat(messages) == reloaded.encode_chat(messages) == expected
    # this vocabulary has no token for some control characters, and says so


@pytest.mark.parametrize("number", range(len(PRE_TOKENIZERS)), ids=PRE_TOKENIZERS)
def test_pre_tokenizers_equal_llamacpp(number: int, llamacpp: dict[str, Any], strings: list[str]) -> None:
    """Each on a third of the strings."""
    name = list(PRE_TOKENIZERS)[number]
    stored = llamacpp["names"]["gpt-2" if name == "gpt2" else name]  # gpt2 is transformers' spelling of it
    expected = llamacpp["names"][stored] if isinstance(stored, str) else stored
    ours = Tokenizer.from_fields(small_fields(llamacpp, name))
    # what a character is that no version of Unicode knows yet, tables differ on
    indices = [
        i for i in range(number % 3, len(strings), 3) if name not in BY_CATEGORY or not any(map(unassigned, strings[i]))
    ]
    assert_same(
        ours,
        {special: [expected[special][i] for i in indices] for special in ("True", "False")},
        [strings[i] for i in indices],
    )
    assert [ours.encode("Hello", add_special_tokens=True)] == expected["bos"]
    reloaded = Tokenizer.from_fields(ours.to_fields())
    assert reloaded.identity == ours.identity


def test_bos_is_added_when_the_file_says_so(llamacpp: dict[str, Any], tmp_path: Path) -> None:
    import transformers

    ours = Tokenizer.from_fields(small_fields(llamacpp, "smollm", add_bos_token=True, add_eos_token=True))
    plain = ours.encode("Hello")
    assert ours.encode("Hello", add_special_tokens=True) == [1, *plain, 2]
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("Hello")["input_ids"] == [1, *plain, 2]
    assert (
        Tokenizer.from_fields(ours.to_fields()).identity == Tokenizer.from_directory(tmp_path).identity == ours.identity
    )


def test_end_of_turn_ids_end_a_generation(llamacpp: dict[str, Any]) -> None:
    fields = small_fields(llamacpp, "smollm", eot_token_id=0)
    assert Tokenizer.from_fields(fields).eos_ids == (2, 0)


def test_what_cannot_be_read_is_named(llamacpp: dict[str, Any]) -> None:
    def refused(message: str, **changes: Any) -> None:
        fields = {**small_fields(llamacpp, "smollm"), **{f"tokenizer.ggml.{k}": v for k, v in changes.items()}}
        with pytest.raises(TokenizerError, match=message):
            Tokenizer.from_fields({key: value for key, value in fields.items() if value is not None})

    refused("pre-tokenizer 'viking' is not known; known: default, gpt-2", pre="viking")
    refused("model is 'bert'; supported: 'gpt2'", model="bert")
    refused("tokens is missing", tokens=None)
    refused("merges is missing", merges=None)
    refused("token types; the file is inconsistent", token_type=[1, 1])
    refused("merges is a str, not a list", merges="a b")
    refused("merge 0 .'a zzzzqqqq'. does not join", merges=["a zzzzqqqq"])
    for merge in ("ab", "", " ", " b", "a "):
        refused(f"merge 0 .'{merge}'. does not join", merges=[merge])
    refused("eos_token_id is 99999, outside the vocabulary", eos_token_id=99999)
    refused("bos_token", add_bos_token=True, bos_token_id=None)
    duplicated = [*llamacpp["small"]["tokens"][:-1], "a"]
    refused("'a' is in the vocabulary twice", tokens=duplicated)


def test_a_word_piece_vocabulary_cannot_become_a_gguf(trained_dir: Path) -> None:
    ours = Tokenizer.from_directory(trained_dir)
    if ours.token_bytes(300) and trained_dir.name.startswith("byte_level"):
        assert ours.to_fields()["tokenizer.ggml.pre"] == "gpt-2"
    else:
        with pytest.raises(TokenizerError, match=r"cannot|can be written|do not follow from a score"):
            ours.to_fields()


@pytest.mark.slow
@pytest.mark.real
def test_the_stored_ids_are_llamacpps(smollm2_gguf: Path, llamacpp: dict[str, Any]) -> None:
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed (the bench extra)")
    fixture = load("make_llamacpp_ids").make(smollm2_gguf, llamacpp["small"])
    fixture.pop("llama_cpp_python")
    assert fixture == {key: value for key, value in llamacpp.items() if key != "llama_cpp_python"}
