"""Strings and small tokenizers, made here."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tokenizers
from tests.scripts import script
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from bedplate.text.tokenizer import Tokenizer

FIXTURES = Path(__file__).parent / "fixtures"
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def load(name: str) -> ModuleType:
    """A module of the fixtures directory."""
    return script(FIXTURES / f"{name}.py")


@pytest.fixture(scope="session")
def strings() -> list[str]:
    return load("strings").varied_strings()


@pytest.fixture(scope="session")
def llamacpp() -> dict[str, Any]:
    """llama.cpp's ids (see fixtures/make_llamacpp_ids.py), of the strings as they are now."""
    stored = json.loads(gzip.decompress((FIXTURES / "smollm2_llamacpp_ids.json.gz").read_bytes()))
    module = load("strings")
    assert module.strings_hash(module.varied_strings()) == stored["strings"], "run fixtures/make_llamacpp_ids.py again"
    return stored


@pytest.fixture(scope="session")
def llamacpp_sentencepiece() -> dict[str, Any]:
    """The same of SentencePiece vocabularies."""
    stored = json.loads(gzip.decompress((FIXTURES / "gemma3_llamacpp_ids.json.gz").read_bytes()))
    module = load("strings")
    assert module.strings_hash(module.varied_strings()) == stored["strings"], "run fixtures/make_llamacpp_ids.py again"
    return stored


def small_fields(llamacpp: dict[str, Any], name: str, **extra: Any) -> dict[str, Any]:
    """GGUF metadata of the small vocabulary with a pre-tokenizer's name."""
    fields = {**llamacpp["small"], "pre": name, **extra}
    return {f"tokenizer.ggml.{key}": value for key, value in fields.items()} | {"tokenizer.chat_template": CHATML}


@pytest.fixture(scope="session")
def small(llamacpp: dict[str, Any]) -> Tokenizer:
    """1,500 tokens, byte-level, ChatML, control tokens <|im_start|> …"""
    return Tokenizer.from_fields(small_fields(llamacpp, "smollm"))


def _byte_level(corpus: list[str]) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1200, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    backend.train_from_iterator(corpus, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", pair="<|endoftext|> $A $B", special_tokens=[("<|endoftext|>", 0)]
    )
    return backend, {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def _word_piece(corpus: list[str]) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(
        corpus, trainers.WordPieceTrainer(vocab_size=900, special_tokens=special, show_progress=False)
    )
    ids = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    roles = {
        "unk_token": "[UNK]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    return backend, roles


def _unigram(corpus: list[str]) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=900, special_tokens=special, unk_token="<unk>", show_progress=False, max_piece_length=8
    )
    backend.train_from_iterator(corpus, trainer)
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return backend, {
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": {"__type": "AddedToken", "content": "</s>", "lstrip": False},
    }


def _byte_fallback(corpus: list[str]) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """Llama-2's arrangement: SentencePiece BPE, spaces as ▁, unknown characters as bytes."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
        limit_alphabet=150, show_progress=False, max_token_length=10,
    )  # fmt: skip
    trained.train_from_iterator([word for text in corpus for word in text.split(" ") if len(word) < 30], trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    backend = tokenizers.Tokenizer(
        models.BPE(model["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = trained.normalizer
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(special)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return backend, {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


MAKERS = {
    "byte_level": _byte_level, "word_piece": _word_piece, "unigram": _unigram, "byte_fallback": _byte_fallback,
}  # fmt: skip


@pytest.fixture(scope="session", params=list(MAKERS))
def trained_dir(request: pytest.FixtureRequest, strings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tokenizer.json trained here, of each kind."""
    backend, roles = MAKERS[request.param](strings[:500])
    path = tmp_path_factory.mktemp(request.param)
    backend.save(str(path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHATML, "model_max_length": 512, **roles}
    (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path
