"""A reply that was cut off gives no part of a mark as content, in any of the forms that bases write."""

from __future__ import annotations

import pytest

from bedplate.serving.schemas.tool_fields import Spoken
from bedplate.text.calls.call_formats import HERMES
from bedplate.text.calls.reading import CallReader, ChannelReader
from bedplate.text.calls.reply_form import THINKING, ReplyForm
from bedplate.text.calls.tools import CALL, CALL_END

WHOLE = f'so it is {CALL}\n{{"name": "f", "arguments": {{"a": 1}}}}\n{CALL_END}'


def reply_message(form: ReplyForm, text: str, reason: str) -> dict[str, object]:
    whole = Spoken(form).message(text, reason)
    streamed = Spoken(form)
    pieces = [piece for char in text for piece in streamed.push(char)]
    delta = streamed.delta([*pieces, *streamed.finish(reason)])
    assert delta.get("content", "") == (whole["content"] or "")
    assert delta.get("reasoning_content") == whole.get("reasoning_content")
    return whole


@pytest.mark.parametrize("length", range(len("so it is"), len(WHOLE)))
def test_a_call_cut_off_anywhere_leaves_no_tag_behind(length):
    text = WHOLE[:length]
    assert str(reply_message(ReplyForm(HERMES), text, "length")["content"]).rstrip() == "so it is"
    if length < WHOLE.index('"f"'):  # what ends of itself is all that was said
        assert reply_message(ReplyForm(HERMES), text, "stop")["content"] == text


@pytest.mark.parametrize("pair", THINKING)
def test_reasoning_cut_off_in_its_marks_leaves_no_part_of_them(pair):
    opened, closed = pair
    for count in range(1, len(opened)):
        message = reply_message(ReplyForm(thinking=pair), opened[:count], "length")
        assert (message["content"], message.get("reasoning_content")) == ("", None)
    for count in range(1, len(closed)):
        message = reply_message(ReplyForm(thinking=pair), f"{opened}hm{closed[:count]}", "length")
        assert (message["content"], message["reasoning_content"]) == ("", "hm")


def test_channels_cut_off_in_their_marks_leave_no_part_of_them():
    text = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>so it is<|end|>"
    for length in range(1, len(text)):
        message = reply_message(ReplyForm(HERMES, channels=True), text[:length], "length")
        for said_text in (message["content"] or "", message.get("reasoning_content", "")):
            assert "<" not in str(said_text)


def test_what_was_cut_off_in_a_call_says_that_it_is_not_whole():
    for reader, text in ((CallReader(HERMES), WHOLE[:-3]), (CallReader(HERMES), WHOLE[: len("so it is <tool_call>")])):
        reader.push(text)
        reader.finish(cut=True)
        assert not reader.closed
    assert ChannelReader().finish(cut=True) == []
