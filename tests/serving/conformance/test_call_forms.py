"""Calls in every format, as each API gives them: whole and as they come, with ids, and cut off."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from tests.text.calling import SHAPES
from tests.text.test_reply_form import CALLS, TOOLS, form_of

from bedplate.serving.api.anthropic_reply import _block
from bedplate.serving.api.turns import AssistantTurn
from bedplate.serving.models.served import Answer
from bedplate.serving.wire.tools import Spoken
from bedplate.text.calls.formats import BY_NAME
from bedplate.text.calls.reply_form import ReplyForm
from bedplate.text.calls.writing import written_calls

FORMS = [name for name in SHAPES if name != "channels"]


def reply_of(name: str) -> tuple[ReplyForm, str, list[tuple[str, dict[str, Any]]]]:
    """A reply with reasoning, a word and calls."""
    written, form = BY_NAME[name], form_of(name)
    calls = CALLS[:1] if written.single else CALLS
    reasoning = "" if form.thinking is None else f"{form.thinking[0]}\nhm{form.thinking[1]}\n"
    said = "" if written.bare else "Well. "
    return form, reasoning + said + written_calls(calls, written), calls


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
    assert all(len(one) == 9 if form.calls and form.calls.id_letters else one.startswith("call_") for one in ids)

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
    blocks = [_block(block) for block in turn.blocks if block.kind == "call"]
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
