"""Calls in every format, as each API gives them: whole and as they come, with ids, and cut off."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

import pytest
from tests.serving.conftest import Server, running
from tests.text.calling import SHAPES, shaped_tokenizer
from tests.text.test_reply_form import CALLS, TOOLS, form_of
from tests.tiny import write_tiny_base

from bedplate.serving.api.anthropic import _block
from bedplate.serving.api.turns import AssistantTurn
from bedplate.serving.models.served import Answer
from bedplate.serving.schemas.tool_fields import Spoken
from bedplate.serving.server.app import loaded_server
from bedplate.text.calls.call_formats import BY_NAME, written_calls
from bedplate.text.calls.reply_form import ReplyForm

from .conftest import CLOCK_TOOL, HI, TOOL, anthropic_messages

FORMS = [name for name in SHAPES if name != "channels"]


def reply_of(name: str) -> tuple[ReplyForm, str, list[tuple[str, dict[str, Any]]]]:
    """A reply with reasoning, a word and calls."""
    written, form = BY_NAME[name], form_of(name)
    calls = CALLS[:1] if written.single else CALLS
    reasoning = "" if form.thinking is None else f"{form.thinking[0]}\nhm{form.thinking[1]}\n"
    preamble = "" if written.bare else "Well. "
    return form, reasoning + preamble + written_calls(calls, written), calls


@pytest.mark.parametrize("name", FORMS)
def test_each_api_gives_the_same_calls(name: str) -> None:
    form, text, calls = reply_of(name)
    spoken = Spoken(form)
    whole = spoken.message(text, "stop")
    assert [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in whole["tool_calls"]] == calls
    assert (whole.get("reasoning_content"), whole["content"] or "") == (
        None if form.thinking is None else "hm",
        "" if BY_NAME[name].bare else "Well.",
    )
    assert spoken.finish_reason("stop") == "tool_calls"
    ids = [call["id"] for call in whole["tool_calls"]]
    assert len(set(ids)) == len(calls)
    assert all(
        len(call_id) == 9 if form.calls and form.calls.id_letters else call_id.startswith("call_") for call_id in ids
    )

    streamed = Spoken(form)
    deltas = [streamed.delta(streamed.push(letter)) for letter in text] + [streamed.delta(streamed.finish("stop"))]
    parts = [call for delta in deltas for call in delta.get("tool_calls", ())]
    for index, (tool, arguments) in enumerate(calls):
        ours = [part["function"] for part in parts if part["index"] == index]
        assert [part["name"] for part in ours if "name" in part] == [tool]
        assert json.loads("".join(part["arguments"] for part in ours)) == arguments
        # a call that comes with many letters comes in many pieces
        assert len(ours) > 3 or len(arguments) < 2

    turn = AssistantTurn(Spoken(form))  # of responses and messages
    for letter in text:
        turn.push(letter)
    turn.end(cast("Answer", Ended("stop")))
    blocks = [_block(block) for block in turn.blocks if block.block_type == "call"]
    assert [(block["type"], block["name"], block["input"]) for block in blocks] == [
        ("tool_use", tool, arguments) for tool, arguments in calls
    ]
    assert turn.finish_reason == "tool_calls"


class Ended:
    def __init__(self, finish_reason: str) -> None:
        self.finish_reason = finish_reason


@pytest.mark.parametrize("name", ["pythonic", "lines", "closed", "spoken"])
def test_a_call_cut_off_anywhere_leaves_no_mark_in_the_content(name: str) -> None:
    form, text, _ = reply_of(name)
    begin = text.index(BY_NAME[name].begin)
    for length in range(begin, len(text)):
        spoken = Spoken(form)
        message = spoken.message(text[:length], "length")
        assert (message["content"] or "").rstrip() == "Well.", text[:length]
        assert message.get("reasoning_content") == (None if form.thinking is None else "hm")
        assert spoken.finish_reason("length") == "length"
        names = [call["function"]["name"] for call in message.get("tool_calls", ())]
        assert names == [tool.name for tool in TOOLS][: len(names)]


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A tiny base whose texts in calls stand between tokens of their own."""
    directory = tmp_path_factory.mktemp("speaker") / "tiny"
    vocabulary = shaped_tokenizer(directory, SHAPES["spoken"]).vocab_size
    write_tiny_base(directory, vocab_size=vocabulary, context_length=2048, tokenizer=False)
    with loaded_server(directory) as state, running(state) as url:
        yield Server(url, state, {})


def test_a_base_that_calls_with_tokens_of_its_own(speaker: Server) -> None:
    bias = {str(speaker.tokenizer.token_to_id("<|channel>")): -100}
    request: dict[str, Any] = {
        "model": "tiny",
        "messages": HI,
        "tools": [TOOL, CLOCK_TOOL],
        "max_tokens": 200,
        "seed": 1,
    }
    single_call = {**request, "tool_choice": "required", "parallel_tool_calls": False, "logit_bias": bias}
    named = {**single_call, "tool_choice": {"type": "function", "function": {"name": "weather"}}}
    flat: Any = {"type": "function", **TOOL["function"]}
    with speaker.client as client:
        whole = client.chat.completions.create(**single_call).choices[0]
        chunks = list(client.chat.completions.create(**single_call, stream=True))
        chosen = client.chat.completions.create(**named).choices[0]
        reply = client.responses.create(
            model="tiny", input="hi", tools=[flat], tool_choice="required", parallel_tool_calls=False, temperature=0
        )
        none = client.chat.completions.create(**{**request, "tool_choice": "none", "max_tokens": 8}).choices[0]
    parts = [part for chunk in chunks if chunk.choices for part in chunk.choices[0].delta.tool_calls or ()]
    for choice in (whole, chosen):
        assert choice.finish_reason == "tool_calls"
        [call] = choice.message.tool_calls
        arguments = json.loads(call.function.arguments)
        assert (call.function.name, arguments.keys()) in (("weather", {"day", "hot"}), ("now", set()))
        if choice is whole:
            assert "".join(part.function.name or "" for part in parts) == call.function.name
            assert json.loads("".join(part.function.arguments or "" for part in parts)) == arguments
    assert chosen.message.tool_calls[0].function.name == "weather"
    [function_call] = [output for output in reply.output if output.type == "function_call"]
    assert json.loads(function_call.arguments).keys() == {"day", "hot"}
    assert none.message.tool_calls is None

    offered: Any = [{"name": "weather", "input_schema": TOOL["function"]["parameters"]}]
    any_one: Any = {"type": "any", "disable_parallel_tool_use": True}
    with anthropic_messages(speaker) as messages:
        fields: Any = {"model": "tiny", "tools": offered, "max_tokens": 200, "extra_body": {"temperature": 0}}
        message = messages.create(messages=HI, tool_choice=any_one, **fields)
        [block] = [content_block for content_block in message.content if content_block.type == "tool_use"]
        assert (message.stop_reason, block.name, block.input.keys()) == ("tool_use", "weather", {"day", "hot"})
        # and back: what was called and what came of it
        result: Any = {"type": "tool_result", "tool_use_id": block.id, "content": "hot"}
        talk: Any = [*HI, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
        assert messages.create(messages=talk, **{**fields, "max_tokens": 4}).content
