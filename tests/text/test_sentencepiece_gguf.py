"""SentencePiece vocabularies of GGUF files: the same ids as llama.cpp, and as transformers from the export."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from bedplate.core.errors import TokenizerError
from bedplate.text.tokenizer import Tokenizer

from .conftest import load
from .test_tokenizer_gguf import fields_of

VARIANTS = ("prefix", "no_prefix", "phi3")
# Phi-3's tokens swallow any white space in transformers, only ASCII's in llama.cpp; and none of them is itself space.
UNLIKE_PHI3 = re.compile(r"[>][\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]|\n\n|     ")


def variant(stored: dict[str, Any], name: str, **overrides: Any) -> dict[str, Any]:
    fields = {
        f"tokenizer.ggml.{key}": value for key, value in {**stored["small"], **overrides}.items() if value is not None
    }
    return fields | stored["variants"][name]["more"]


def assert_same(ours: Tokenizer, expected: dict[str, Any], strings: list[str], but: str = "(?!)") -> None:
    """llama.cpp's ids. Where it joins user text to a control token, ours gives none."""
    indices = [i for i, text in enumerate(strings) if not re.search(but, text)]
    assert len(indices) >= 500
    assert [strings[i] for i in indices if ours.encode(strings[i]) != expected["True"][i]] == []
    joined = 0
    for i in indices:
        ids = ours.encode(strings[i], parse_special=False)
        assert ours.special_ids.isdisjoint(ids)
        if ours.special_ids.isdisjoint(expected["False"][i]):
            assert ids == expected["False"][i], strings[i]
        else:
            joined += 1
    assert joined <= 40


@pytest.mark.parametrize("name", VARIANTS)
def test_a_small_vocabulary_equals_llamacpp(
    name: str, llamacpp_sentencepiece: dict[str, Any], strings: list[str], tmp_path: Path
) -> None:
    import transformers

    expected = llamacpp_sentencepiece["variants"][name]
    ours = Tokenizer.from_fields(variant(llamacpp_sentencepiece, name))
    assert_same(ours, expected, strings, UNLIKE_PHI3.pattern if name == "phi3" else "(?!)")
    assert [ours.encode("Hello", add_special_tokens=True)] == expected["bos"]
    assert (ours.bos_id, ours.eos_id, ours.unk_id) == (1, 2, 0)
    ours.save(tmp_path)
    reloaded, theirs = Tokenizer.from_directory(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert reloaded.identity == ours.identity == Tokenizer.from_fields(ours.to_fields()).identity
    assert theirs(strings, add_special_tokens=True)["input_ids"] == ours.encode_batch(strings, add_special_tokens=True)
    if name == "no_prefix":
        plain = [text for text in strings if "▁" not in text]
        assert [ours.decode(ours.encode(text), skip_special_tokens=False) for text in plain] == plain


def test_what_cannot_be_read_or_written_is_named(llamacpp_sentencepiece: dict[str, Any], tmp_path: Path) -> None:
    small = llamacpp_sentencepiece["small"]

    def refused(message: str, **changes: Any) -> None:
        with pytest.raises(TokenizerError, match=message):
            Tokenizer.from_fields(variant(llamacpp_sentencepiece, "prefix", **changes))

    refused("scores is missing", scores=None)
    refused("1604 tokens but 2 scores|tokens but 2 scores", scores=[0.0, 1.0])
    refused("no tokens for 1 bytes, the first '<0x41>'", tokens=[t if t != "<0x41>" else "A!" for t in small["tokens"]])
    refused("eos_token_id is 99999, outside", eos_token_id=99999)
    # one cut of each token is no table of scores
    ours = Tokenizer.from_fields(variant(llamacpp_sentencepiece, "prefix"))
    ours.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"] = content["model"]["merges"][::2]
    path.write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match="do not follow from a score"):
        Tokenizer.from_directory(tmp_path).to_fields()


def merged(stored: dict[str, Any], *, reached: bool) -> dict[str, Any]:
    """The small vocabulary with merges in the place of its scores, as Gemma 4's files have it. reached: whether merges
    lead to its runs of newlines."""
    small = stored["small"]
    tokens, types, scores = (list(small[key]) for key in ("tokens", "token_type", "scores"))
    types[tokens.index("\n\n")] = 1
    vocabulary, pairs = set(tokens), list[tuple[float, str]]()
    for token, score, token_type in zip(tokens, scores, types, strict=True):
        run = not token.strip("\n")
        if token_type not in (1, 4) or (run and not reached) or (score <= -1000 and not run):
            continue
        cuts = [(token[:at], token[at:]) for at in range(len(token) - 1, 0, -1)]
        pairs += [(-score, f"{left} {right}") for left, right in cuts if {left, right} <= vocabulary]
    merges = [pair for _, pair in sorted(pairs, key=lambda scored_pair: scored_pair[0])]
    fields = {"model": "gemma4", "tokens": tokens, "token_type": types, "merges": merges}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    return {f"tokenizer.ggml.{key}": value for key, value in (fields | ids).items()}


@pytest.mark.parametrize("reached", [True, False])
def test_merges_in_the_place_of_scores(
    reached: bool, llamacpp_sentencepiece: dict[str, Any], strings: list[str], tmp_path: Path
) -> None:
    fields = merged(llamacpp_sentencepiece, reached=reached)
    ours, tokens = Tokenizer.from_fields(fields), fields["tokenizer.ggml.tokens"]
    newline, two, three = (tokens.index("\n" * n) if "\n" * n in tokens else None for n in (1, 2, 3))
    assert ours.encode("\n\n\n") == [three]
    assert ours.encode("\n\n") == [two]
    if newline is None:  # its byte
        assert ours.encode("\n") == [tokens.index("<0x0A>")]
    assert ours.prompt_start == (1,)  # whatever the file says of it elsewhere
    plain = [text for text in strings if "▁" not in text]
    assert [ours.decode(ours.encode(text), skip_special_tokens=False) for text in plain] == plain
    ours.save(tmp_path)
    assert Tokenizer.from_directory(tmp_path).identity == ours.identity
    with pytest.raises(TokenizerError, match="can be written into a GGUF file"):
        ours.to_fields()
    if importlib.util.find_spec("llama_cpp") is not None:
        fixture_module = load("make_llamacpp_ids")
        fixture_module.write_fields(tmp_path / "x.gguf", fields)
        texts = [*strings, "a\n\n\nb", "a\n\n\n\n\nb", "  \n \n\n\n "]
        expected = {
            str(special): fixture_module.ids_of(tmp_path / "x.gguf", texts, special=special)
            for special in (True, False)
        }
        assert_same(ours, expected, texts)


@pytest.mark.real
def test_gemma3_equals_llamacpp(gemma3_gguf: Path, llamacpp_sentencepiece: dict[str, Any], strings: list[str]) -> None:
    ours = Tokenizer.from_fields(fields_of(gemma3_gguf))
    # `</s>`, an HTML tag of this vocabulary, is a control token to llama.cpp by its name
    expected = llamacpp_sentencepiece["gemma3"]
    assert len(strings) >= 500
    assert [s for s, ids in zip(strings, expected["True"], strict=True) if ours.encode(s) != ids] == []
    plain = [
        (ours.encode(text, parse_special=False), ids) for text, ids in zip(strings, expected["False"], strict=True)
    ]
    assert [
        ids for (encoded, ids), text in zip(plain, strings, strict=True) if encoded != ids and "</s>" not in text
    ] == []
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.unk_id, ours.eos_ids) == (2, 1, 0, 3, (1,))
    assert (ours.vocab_size, ours.prompt_start) == (262144, (2,))


@pytest.mark.slow
@pytest.mark.real
def test_gemma3s_export_is_the_same_to_transformers(gemma3_gguf: Path, strings: list[str], tmp_path: Path) -> None:
    import transformers

    ours = Tokenizer.from_fields(fields_of(gemma3_gguf))
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(strings)["input_ids"] == ours.encode_batch(strings, add_special_tokens=True)
    assert Tokenizer.from_directory(tmp_path).identity == ours.identity


@pytest.mark.slow
@pytest.mark.real
def test_the_stored_ids_are_llamacpps(gemma3_gguf: Path, llamacpp_sentencepiece: dict[str, Any]) -> None:
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed (the bench extra)")
    fixture = load("make_llamacpp_ids").make_sentencepiece(gemma3_gguf, llamacpp_sentencepiece["small"])
    assert fixture == llamacpp_sentencepiece
