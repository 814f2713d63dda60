"""A second server: a decoder and an encoder side by side, and a skin that judges pairs."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest
import tokenizers
from tests.references import reference_bert
from tests.serving.conftest import Server, judged_with, running
from tests.tiny import NATIVE_SHAPE, write_tiny_base

from bedplate.models.checkpoints.base import load_base
from bedplate.serving.server.app import loaded_server
from bedplate.serving.settings.server_config import BaseConfig, ServerConfig
from bedplate.skins.output import LabelOutput
from bedplate.skins.prompt import Prompt
from bedplate.skins.skin import BaseReference, InputField, Skin

WORDS = ("the", "answer", "is", "yes", "no", "product", "great", "broke", "##s", "a", "day", "after", "it")


def write_tiny_encoder(directory: Path) -> Path:
    """A random BERT of transformers, with a WordPiece tokenizer that sets [CLS] and [SEP]."""
    reference_bert(0, vocab_size=write_wordpiece(directory, WORDS)).save_pretrained(directory)
    return directory


def write_wordpiece(directory: Path, words: Sequence[str]) -> int:
    """Such a tokenizer of these words; its size."""
    vocabulary = {word: i for i, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *words))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    return len(vocabulary)


@pytest.fixture(scope="session")
def encoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("encoder") / "bert")


# Closed at the end: what waits for the collector may leave an open socket to a later test.
@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.client as client:
        yield client


@pytest.fixture
def wide_client(mixed_server: Server) -> Iterator[openai.OpenAI]:
    with mixed_server.client as client:
        yield client


@contextlib.contextmanager
def anthropic_messages(server: Server) -> Generator[Any]:
    """What sends messages by Anthropic's own client, which takes seconds to import: only where it is asked for."""
    import anthropic

    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client.messages


@pytest.fixture
def wide_messages(mixed_server: Server) -> Iterator[Any]:
    with anthropic_messages(mixed_server) as messages:
        yield messages


WEATHER = {
    "type": "object",
    "properties": {"day": {"enum": ["mon", "tue"]}, "hot": {"type": "boolean"}},
    "required": ["day", "hot"],
    "additionalProperties": False,
}
"""Parameters of the tool that the tests offer."""


HI: list[Any] = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "weather", "description": "of a day", "parameters": WEATHER}}
CLOCK_TOOL = {"type": "function", "function": {"name": "now"}}


def called(id_: str, name: str, arguments: str, **extra: Any) -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}, **extra}


def content_of(server: Server, **fields: Any) -> Any:
    """The message that answers a chat."""
    reply = server.chat(**{"temperature": 0, "max_tokens": 6} | fields)
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]["message"]


@pytest.fixture(scope="session")
def wide_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with room for the schemas of tools."""
    return write_tiny_base(tmp_path_factory.mktemp("wide") / "tiny", context_length=4096, **NATIVE_SHAPE)


@pytest.fixture(scope="session")
def mixed_server(wide_dir: Path, encoder_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Models tiny, bert, and the skin judge, which finds documents relevant or not."""
    judge = Skin(
        name="judge",
        bases={"main": BaseReference.of("tiny", "llama", load_base(wide_dir).identity)},
        evaluated_with=judged_with(load_base(wide_dir)),
        inputs={"query": InputField(), "document": InputField()},
        output=LabelOutput(labels=("irrelevant", "relevant"), continuations=(" no", " yes")),
        prompt=Prompt("{{ query }}: {{ document }} ="),
    )
    bases = (BaseConfig(source=str(wide_dir)), BaseConfig(source=str(encoder_dir), name="bert", dtype="float32"))
    config = ServerConfig(bases=bases, state=tmp_path_factory.mktemp("wide-state"))
    with loaded_server(config, [judge]) as state, running(state) as url:
        yield Server(url, state, {})
