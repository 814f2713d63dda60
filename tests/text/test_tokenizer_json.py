"""Tokenizers from tokenizer.json: the same ids as transformers, before and after saving; bad files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import write_tiny_base

from bedplate.core.errors import DataError, TokenizerError
from bedplate.text.tokenizer import Tokenizer


def reference(path: Path) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(path)


def assert_same(ours: Tokenizer, theirs: Any, strings: list[str]) -> None:
    assert len(strings) >= 500
    for add in (False, True):
        expected = theirs(strings, add_special_tokens=add, truncation=False)["input_ids"]
        wrong = [
            s
            for s, a, b in zip(strings, ours.encode_batch(strings, add_special_tokens=add), expected, strict=True)
            if a != b
        ]
        assert wrong == []
        assert ours.encode(strings[-1], add_special_tokens=add) == expected[-1]


def test_trained_tokenizers_equal_transformers(trained_dir: Path, strings: list[str]) -> None:
    ours, theirs = Tokenizer.from_directory(trained_dir), reference(trained_dir)
    assert_same(ours, theirs, strings)
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.unk_id) == (
        theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id, theirs.unk_token_id,
    )  # fmt: skip
    assert ours.special_ids == {i for i, token in theirs.added_tokens_decoder.items() if token.special}
    assert ours.vocab_size == len(theirs)


def test_saved_tokenizer_is_the_same_in_transformers(trained_dir: Path, strings: list[str], tmp_path: Path) -> None:
    ours = Tokenizer.from_directory(trained_dir)
    ours.save(tmp_path / "out")
    theirs, reloaded = reference(tmp_path / "out"), Tokenizer.from_directory(tmp_path / "out")
    assert_same(ours, theirs, strings)
    assert reloaded.identity == ours.identity
    assert reloaded.eos_ids == ours.eos_ids
    assert theirs.model_max_length == 512
    assert ours.chat is not None
    assert theirs.chat_template == ours.chat.source
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (ours.bos_id, ours.eos_id, ours.pad_id)


def test_decoding_equals_transformers(trained_dir: Path, strings: list[str]) -> None:
    ours, theirs = Tokenizer.from_directory(trained_dir), reference(trained_dir)
    for text in strings:
        ids = ours.encode(text, add_special_tokens=True)
        for skip in (True, False):
            expected = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert ours.decode(ids, skip_special_tokens=skip) == expected


@pytest.mark.real
def test_minilm_equals_transformers(minilm_dir: Path, strings: list[str], tmp_path: Path) -> None:
    ours = Tokenizer.from_directory(minilm_dir)
    assert_same(ours, reference(minilm_dir), strings)
    ours.save(tmp_path)
    assert_same(ours, reference(tmp_path), strings)
    assert Tokenizer.from_directory(tmp_path).identity == ours.identity
    # its tokenizer.json asks for truncation to 128 ids and padding up to them: neither happens silently
    assert len(ours.encode("word " * 1000)) == 1000
    assert len(ours.encode("word")) == 1


def test_identity_sees_what_decides_ids(trained_dir: Path, tmp_path: Path) -> None:
    ours = Tokenizer.from_directory(trained_dir)
    content = json.loads((trained_dir / "tokenizer.json").read_text(encoding="utf-8"))
    config = (trained_dir / "tokenizer_config.json").read_text(encoding="utf-8")

    def identity_of(changed: dict[str, Any], name: str) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(changed), encoding="utf-8")
        (tmp_path / name / "tokenizer_config.json").write_text(config, encoding="utf-8")
        return Tokenizer.from_directory(tmp_path / name).identity

    assert identity_of({**content, "truncation": None, "padding": None}, "same") == ours.identity
    lower = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, {"type": "NFD"}]}
    assert identity_of({**content, "normalizer": lower}, "normalizer") != ours.identity
    assert identity_of({**content, "post_processor": None}, "post") != ours.identity
    vocab = content["model"]["vocab"]
    a, b = (vocab[300], vocab[301]) if isinstance(vocab, list) else [t for t, i in vocab.items() if i in (300, 301)]
    if isinstance(vocab, list):
        swapped: Any = [*vocab[:300], b, a, *vocab[302:]]
    else:
        swapped = {**vocab, a: vocab[b], b: vocab[a]}
    assert identity_of({**content, "model": {**content["model"], "vocab": swapped}}, "vocab") != ours.identity


def test_eos_ids_come_from_the_generation_config(trained_dir: Path, tmp_path: Path) -> None:
    Tokenizer.from_directory(trained_dir).save(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 5]}', encoding="utf-8")
    assert Tokenizer.from_directory(tmp_path).eos_ids == (2, 5)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "x"}', encoding="utf-8")
    with pytest.raises(TokenizerError, match="eos_token_id is 'x'"):
        Tokenizer.from_directory(tmp_path)


def test_template_file_comes_before_the_config(trained_dir: Path, tmp_path: Path) -> None:
    Tokenizer.from_directory(trained_dir).save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("from the file {{ messages[0].content }}", encoding="utf-8")
    chat = Tokenizer.from_directory(tmp_path).chat
    assert chat is not None
    assert chat.render([{"role": "user", "content": "x"}]) == "from the file x"


def test_files_that_cannot_be_used(trained_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"has no tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "vocab.txt").write_text("a", encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"vocab\.txt is there; convert"):
        Tokenizer.from_directory(tmp_path)
    Tokenizer.from_directory(trained_dir).save(tmp_path)
    whole = (tmp_path / "tokenizer.json").read_bytes()
    half = whole.decode("utf-8")[: len(whole) // 3]  # cut between characters: the next case is about half of one
    (tmp_path / "tokenizer.json").write_text(half, encoding="utf-8")
    with pytest.raises(TokenizerError, match="not a readable tokenizer"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe" + whole)
    with pytest.raises(TokenizerError, match="UTF-8"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(whole)
    (tmp_path / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json is not JSON"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<nowhere>"}', encoding="utf-8")
    with pytest.raises(TokenizerError, match="eos_token is '<nowhere>', which is not in the vocabulary"):
        Tokenizer.from_directory(tmp_path)


def test_wrong_ids_and_text_are_named(trained_dir: Path) -> None:
    ours = Tokenizer.from_directory(trained_dir)
    for index in (-1, ours.vocab_size):
        with pytest.raises(TokenizerError, match=f"no token {index}"):
            ours.decode([index])
    with pytest.raises(DataError, match=r"U\+D800 at character 2"):
        ours.encode("ab\ud800")
    assert ours.token_to_id("<nothing like it>") is None
    assert ours.id_to_token(ours.vocab_size) is None


def test_a_template_beside_an_older_processor_is_found(tmp_path: Path) -> None:
    directory = write_tiny_base(tmp_path / "tiny")
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text())
    template = config.pop("chat_template")
    path.write_text(json.dumps(config))
    assert Tokenizer.from_directory(directory).chat is None
    (directory / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    chat = Tokenizer.from_directory(directory).chat
    assert chat is not None
    assert chat.source == template
