"""Families' own chat templates, as trl keeps them: conversations with tools are shown as transformers shows them, and
the turn that a template writes is read back."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from tests.text.test_reply_form import CALLS, TOOLS, called, read
from transformers.utils.chat_template_utils import render_jinja_template

from bedplate.text.calls.call_formats import BY_NAME, format_of, shows_tools
from bedplate.text.calls.reply_form import ReplyForm, thinking_of, with_reasoning
from bedplate.text.calls.tools import as_shown, told_tools
from bedplate.text.chat_template import ChatTemplate

# the end of a turn, which is a token that ends the reply
ENDS = (
    "<|im_end|>\n",
    "<|im_end|>",
    "<|eot_id|>",
    "<turn|>\n",
    "<|tool_response>",
    "<|call|>",
    "<｜end▁of▁sentence｜>",
)
NAMES = {
    "lfm2": "pythonic",
    "lfm2_v2": "pythonic",
    "lfm2_2_5": "pythonic",
    "gemma4": "spoken",
    "gemma4_v2": "spoken",
    "glm4moe": "keyed",
    "gptoss": "channels",
    "llama3_1": "bare",
    "qwen3": "hermes",
    "qwen3_5_think": "tagged",
    "deepseekv3": "fenced",
    "deepseek_r1_distill": "fenced",
}
REASONED = {"lfm2_2_5", "gemma4", "glm4moe", "gptoss", "qwen3", "qwen3_5_think"}
"""Whose templates show the reasoning of a turn that calls."""


def template_of(name: str) -> ChatTemplate:
    spec = importlib.util.find_spec("trl")
    places = [] if spec is None else spec.submodule_search_locations or []
    files = [path for place in places if (path := Path(place) / "chat_templates" / f"{name}.jinja").is_file()]
    if not files:
        pytest.skip(f"no trl here that keeps the template {name}")
    return ChatTemplate(files[0].read_text(encoding="utf-8"), bos="<s>", eos="</s>")


def reference(template: ChatTemplate, messages: list[dict[str, Any]], prompt: bool, **variables: Any) -> str:
    conversations: Any = [messages]
    rendered, _ = render_jinja_template(
        conversations, chat_template=template.source, add_generation_prompt=prompt, **template.tokens, **variables
    )
    return rendered[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_family_s_own_template(name: str) -> None:
    template = template_of(name)
    written = format_of(template.source)
    assert written is not None
    assert written is BY_NAME[NAMES[name]]
    calls = CALLS[:1] if written.single else CALLS
    thinking: dict[str, Any] = {"enable_thinking": True} if "enable_thinking" in template.variables else {}
    lists: dict[str, Any] = {"tools": [tool.plain() for tool in TOOLS]} if shows_tools(template.source) else {}
    turn = {"role": "assistant", "content": "", "tool_calls": called(calls), "reasoning_content": "hm, so"}
    results = [{"role": "tool", "content": f"r{i}", "tool_call_id": f"{i:09}"} for i in range(len(calls))]
    prompt_turns: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "go"}]
    talk = [*prompt_turns, turn, *results, {"role": "assistant", "content": "Done."}, {"role": "user", "content": "ok"}]

    def shown(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        with_tools = messages if lists else told_tools(messages, TOOLS, written, str)
        return as_shown(with_reasoning(with_tools, template.source), written, template, TOOLS)

    def text(messages: list[dict[str, Any]], prompt: bool) -> str:
        return template.render(shown(messages), add_generation_prompt=prompt, **lists, **thinking)

    for messages, prompt in ((talk, True), (talk[:3], False)):
        as_is = [dict(message) for message in shown(messages)]
        assert text(messages, prompt) == reference(template, as_is, prompt, **lists, **thinking)
        turned = as_is[2]
        if name == "gemma4_v2":
            assert [response["name"] for response in turned.get("tool_responses", ())] == [
                n for n, _ in calls[: len(messages) - 3]
            ]
        if name in ("lfm2", "deepseek_r1_distill"):  # which would leave them out
            assert "tool_calls" not in turned
        else:
            arguments = [call["function"]["arguments"] for call in turned["tool_calls"]]
            assert arguments == [json.dumps(a) if written.arguments == "text" else a for _, a in calls]
    whole = text(talk, True)
    assert all(part in whole for part in ("r0", "Done.", "Be brief.", "get-it", TOOLS[1].name))

    before, after = text(prompt_turns, True), text(talk[:3], False)
    # after its own turns one family shows no reasoning, which its prompts begin
    reply = after.removeprefix(before) if after.startswith(before) else after.split("<｜Assistant｜>")[1]
    reply = next((reply.removesuffix(end) for end in ENDS if reply.endswith(end)), reply)
    marks = None if written.channels else thinking_of(template.source)
    opened = marks is not None and after.startswith(before) and before.endswith(f"{marks[0]}\n")
    form = ReplyForm(written, tuple(TOOLS), marks, opened, written.channels)
    reasoned = "hm, so" if name in REASONED else ""
    for pieces in ([reply], list(reply)):
        assert read(form.reader(), pieces) == ("", reasoned, calls, True)
