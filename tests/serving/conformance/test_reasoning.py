"""Reasoning that a base writes before its answer, apart from it, through each API's own client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.serving.conftest import Server, running
from tests.tiny import CHATML, NATIVE_SHAPE, tokenizer_json, write_tiny_base
from tokenizers import AddedToken, Tokenizer

from bedplate.inference.chat import ChatEndpoint, Conversation, open_local
from bedplate.inference.remote.endpoint import Endpoint
from bedplate.serving.server.app import loaded_server

from .conftest import anthropic_messages

MESSAGES: list[Any] = [{"role": "user", "content": "is it great?"}]
OPENED = CHATML.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n") + "{# </think> #}"


@pytest.fixture(scope="module")
def reasoner_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base whose prompts open its reasoning, and that has a token to close it."""
    backend = Tokenizer.from_str(tokenizer_json())
    backend.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    directory = write_tiny_base(
        tmp_path_factory.mktemp("reasoner") / "tiny", vocab_size=backend.get_vocab_size(), **NATIVE_SHAPE
    )
    backend.save(str(directory / "tokenizer.json"))
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": OPENED}))
    return directory


@pytest.fixture(scope="module")
def reasoner(reasoner_dir: Path) -> Iterator[Server]:
    with loaded_server(reasoner_dir) as state, running(state) as url:
        yield Server(url, state, {})


def reasoning_request(server: Server) -> dict[str, Any]:
    """A call whose reply reasons and then answers: closing is made likely, and a seed is found that does it once."""
    close = server.tokenizer.token_to_id("</think>")
    for seed in range(200):
        call = {"model": "tiny", "messages": MESSAGES, "max_tokens": 24, "temperature": 1.0, "seed": seed}
        call["logit_bias"] = {str(close): 4}
        message = server.post("/v1/chat/completions", json=call).json()["choices"][0]["message"]
        if message["content"] and "think>" not in message["content"] and message.get("reasoning_content"):
            return call
    raise AssertionError("no reply of 200 both reasons and answers")


def test_a_reply_is_told_apart_whole_and_streamed(reasoner: Server) -> None:
    call = reasoning_request(reasoner)
    with reasoner.client as client:
        whole = client.chat.completions.create(**call)
        chunks = list(client.chat.completions.create(**call, stream=True, stream_options={"include_usage": True}))
    message = whole.choices[0].message
    thought = message.model_extra["reasoning_content"]
    assert "think>" not in thought + message.content
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == message.content
    assert "".join(delta.model_extra.get("reasoning_content") or "" for delta in deltas) == thought
    for usage in (whole.usage, chunks[-1].usage):
        counted = usage.completion_tokens_details.reasoning_tokens
        assert 0 < counted == min(len(reasoner.tokenizer.encode(thought)), usage.completion_tokens)


def test_responses_and_messages_have_it_as_a_part_of_its_own(reasoner: Server) -> None:
    with reasoner.client as client:
        reply = client.responses.create(model="tiny", input="is it great?", max_output_tokens=8, temperature=0)
    (reasoning, *_) = reply.output
    assert reasoning.type == "reasoning"
    thought = reasoning.content[0].text
    counted = reply.usage.output_tokens_details.reasoning_tokens
    assert 0 < counted == min(len(reasoner.tokenizer.encode(thought)), reply.usage.output_tokens)
    with anthropic_messages(reasoner) as messages:
        message = messages.create(model="tiny", max_tokens=8, messages=MESSAGES, extra_body={"temperature": 0})
    assert (message.content[0].type, message.content[0].thinking) == ("thinking", thought)


def test_a_chat_keeps_only_what_was_answered(reasoner: Server, reasoner_dir: Path) -> None:
    settings = {"temperature": 0.0, "max_tokens": 6}
    turns = []
    with Endpoint(reasoner.url) as endpoint:
        for partner in (ChatEndpoint(endpoint, "tiny"), open_local(str(reasoner_dir))):
            conversation = Conversation(partner, settings=settings)
            reply = conversation.begin(MESSAGES[0]["content"])
            pieces = list(reply.pieces())
            turn = conversation.finish(reply)
            assert "".join(piece.text for piece in pieces if piece.section == "reasoning") == turn.reasoning != ""
            assert conversation.messages[-1] == {"role": "assistant", "content": turn.text}
            partner.close()
            turns.append((turn.reasoning, turn.text))
    assert turns[0] == turns[1]
