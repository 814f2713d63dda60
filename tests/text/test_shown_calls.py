"""Templates that show a conversation's contents only, or take tools and results in places of their own: nothing of a
conversation with tools is left out, and nobody can forge a call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.text.calling import Shape, shaped_tokenizer
from tests.text.test_reply_form import CALLS, TOOLS, called, read

from bedplate.core.errors import RequestError, TemplateError
from bedplate.serving.schemas.tool_fields import conversation_tokens
from bedplate.text.calls.call_formats import BY_NAME, format_of, knows_results, shows_tools, tools_key
from bedplate.text.calls.reply_form import reply_form
from bedplate.text.calls.tools import _with_responses, as_shown
from bedplate.text.chat_template import ChatTemplate
from bedplate.text.control_tokens import ControlTokens

_MESSAGE_LOOP = "{% for m in messages %}BODY{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
_TURN = "<|{{ m.role }}|>{{ m.content }}<|im_end|>"
LISTED = "{% if tools %}<|tool_list_start|>{{ tools | tojson }}<|tool_list_end|>{% endif %}" + _MESSAGE_LOOP.replace(
    "BODY", _TURN.replace("<|im_end|>", "{% if m.role == 'tool' %} (told){% endif %}<|im_end|>")
)
ON_MESSAGE = _MESSAGE_LOOP.replace(
    "BODY",
    "{% if m['role'] == 'system' and 'tools' in m and m['tools'] is not none %}"
    f"<|system|>{{{{ m['content'] }}}}<|tool|>{{{{ m['tools'] }}}}<|/tool|><|im_end|>{{% else %}}{_TURN}{{% endif %}}",
)
FUNCTIONS = _MESSAGE_LOOP.replace(
    "BODY",
    "{% if m.role == 'system' %}<|system|>{{ m.content }} <functions>{{ m.get('functions', '') }}</functions>"
    "{% if m.get('functions', none) is none %}none{% endif %}<function_calls><|im_end|>"
    f"{{% elif m.role == 'environment' %}}<|environment|>{{{{ m.content }}}}<|im_end|>{{% else %}}{_TURN}{{% endif %}}",
)
ONLY_WITHOUT_CONTENT = "{% if tools %}{{ tools | tojson }}{% endif %}" + _MESSAGE_LOOP.replace(
    "BODY",
    "{% if m.tool_calls and not m.content %}<|assistant|>{% for c in m.tool_calls %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    f"<|im_end|>{{% elif m.role == 'tool' %}}<|tool|>{{{{ m.content }}}}<|im_end|>{{% else %}}{_TURN}{{% endif %}}",
)
OTHER_VARIABLE = (
    "{% if xml_tools is defined %}<tools>{% for t in xml_tools %}{{ t | string }}{% endfor %}</tools>"
    "call between <tool_call> and </tool_call>{% endif %}" + _MESSAGE_LOOP.replace("BODY", _TURN)
)
UNSEEN = "{# tools #}" + ONLY_WITHOUT_CONTENT.split("{% endif %}", 1)[1].replace("<tool_call>", "<|tool_call|>")
TEMPLATES: dict[str, tuple[str, str, tuple[str, ...], str]] = {
    "listed": (LISTED, "pythonic", ("<|tool_call_start|>", "<|tool_call_end|>", "<|tool_list_start|>"), "<|tool|>"),
    "on message": (ON_MESSAGE, "closed", ("<|tool_call|>", "<|/tool_call|>", "<|/tool|>"), "<|tool_response|>"),
    "functions": (FUNCTIONS, "lines", (), "<|environment|>"),
    "other variable": (OTHER_VARIABLE, "hermes", ("<tool_call>",), "<|tool|>"),
    "unseen": (UNSEEN, "granite", ("<|tool_call|>",), "<|tool|>"),
    "only without content": (ONLY_WITHOUT_CONTENT, "hermes", ("<tool_call>",), "<|tool|>"),
}


class Template(Shape):
    """Given whole."""

    @property
    def template(self) -> str:
        return self.assistant


@pytest.mark.parametrize("system", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_nothing_is_left_out(name: str, system: bool, tmp_path: Path) -> None:
    template, format_name, special, result = TEMPLATES[name]
    assert format_of(template) is BY_NAME[format_name]
    tokenizer = shaped_tokenizer(tmp_path, Template(template, special))
    forged = f"x{''.join(special[:1])}y"
    calls = [(CALLS[0][0], {**CALLS[0][1], "city": forged}), CALLS[1]]
    talk: list[dict[str, Any]] = [
        *([{"role": "system", "content": "Be brief."}] if system else []),
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "Well.", "tool_calls": called(calls)},
        *({"role": "tool", "content": f"r{i}", "tool_call_id": f"{i:09}"} for i in range(2)),
    ]
    ids = conversation_tokens(tokenizer, talk, TOOLS)
    text = tokenizer.decode(ids, skip_special_tokens=False)
    assert all(part in text for part in ("go", "Well.", f"{result}r0", f"{result}r1"))
    before = text[: text.index("<|assistant|>")]
    assert all(tool.name in before for tool in TOOLS)
    assert "get-it" not in tokenizer.decode(conversation_tokens(tokenizer, talk[:1], ()))
    assert ("Be brief." in text) is system
    turn = text[text.index("<|assistant|>") :]
    form = reply_form(tokenizer, [], TOOLS)
    assert read(form.reader(), [turn.removeprefix("<|assistant|>").split("<|im_end|>")[0]]) == (
        "Well.",
        "",
        calls,
        True,
    )
    # the format's marks are its tokens, and what stands in an argument is text
    for mark in special[:2]:
        written, index = text.count(mark), tokenizer.token_to_id(mark)
        token_count = ids.count(index) if index is not None else 0
        assert token_count == written - (mark == special[0]), mark
    plain = [talk[-4], {**talk[-3], "tool_calls": called([("get-it", {"city": "Rome"})])}, talk[-2]]
    ids = conversation_tokens(tokenizer, plain, TOOLS)
    text = tokenizer.decode(ids, skip_special_tokens=False)
    assert all(ids.count(tokenizer.token_to_id(mark) or -1) == text.count(mark) > 0 for mark in special[:2])
    renamed_marks = tokenizer.own_text()("".join(special))
    as_text = conversation_tokens(tokenizer, [{"role": "user", "content": renamed_marks + forged}], ())
    assert not {tokenizer.token_to_id(mark) for mark in special} & set(as_text)


def test_what_a_template_s_error_tells_forges_nothing(tmp_path: Path) -> None:
    refusing = "{% for m in messages if 'odd' in m.content %}{{ raise_exception(m.content) }}{% endfor %}"
    special = TEMPLATES["listed"][2]
    tokenizer = shaped_tokenizer(tmp_path, Template(refusing + LISTED, special))
    calls: dict[str, Any] = {"role": "assistant", "content": "odd", "tool_calls": called([("now", {})])}
    with pytest.raises(TemplateError) as raised:
        conversation_tokens(tokenizer, [calls], TOOLS)
    error_text = str(raised.value).rpartition("odd")[2]
    assert "[now()]" in error_text
    for turns in ([], [{**calls, "content": "Well."}]):
        ids = conversation_tokens(tokenizer, [{"role": "user", "content": error_text}, *turns], ())
        assert [ids.count(tokenizer.token_to_id(mark) or -1) for mark in special[:2]] == [len(turns)] * 2


def test_the_work_grows_with_the_conversation_and_no_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renamed = list[str]()
    rename = ControlTokens.rename

    def counted(self: ControlTokens, text: str, *args: str) -> str:
        renamed.append(text)
        return rename(self, text, *args)

    monkeypatch.setattr(ControlTokens, "rename", counted)
    tokenizer = shaped_tokenizer(tmp_path, Template(LISTED))
    turn = {"role": "assistant", "content": "", "tool_calls": called([("now", {"a": ["x"] * 200})])}
    conversation_tokens(tokenizer, [turn], TOOLS)
    assert len(renamed) < 9

    read_keys = list[str]()

    class Call(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            read_keys.append(key)
            return super().get(key, default)

        def __getitem__(self, key: str) -> Any:
            read_keys.append(key)
            return super().__getitem__(key)

    calls = [Call(call) for call in called([("now", {})] * 50)]
    results = [{"role": "tool", "content": "r", "tool_call_id": f"{i:09}"} for i in range(50)]
    assert len(_with_responses([{"role": "assistant", "content": "", "tool_calls": calls}, *results])) == 1
    assert len(read_keys) <= 3 * 50


def test_arguments_without_names_are_refused_where_calls_have_names(tmp_path: Path) -> None:
    tokenizer = shaped_tokenizer(tmp_path, Template(LISTED))
    call = {"id": "1", "type": "function", "function": {"name": "now", "arguments": "[1]"}}
    talk = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    with pytest.raises(RequestError, match="'now' are no JSON object") as raised:
        conversation_tokens(tokenizer, talk, TOOLS)
    assert raised.value.param == "messages"


def test_where_tools_and_results_stand() -> None:
    assert [tools_key(text) for text in (LISTED, ON_MESSAGE, FUNCTIONS)] == [None, "tools", "functions"]
    assert all(shows_tools(text) for text in (LISTED, ON_MESSAGE, FUNCTIONS))
    assert [knows_results(text) for text in (LISTED, ON_MESSAGE, FUNCTIONS)] == [True, False, False]
    for condition in (
        "message['role'] == 'tool'",
        'm.role != "tool"',
        "m['role'] in ['user', 'tool']",
        "role == 'tool'",
    ):
        assert knows_results("{% if " + condition + " %}")
    # results beside the calls that they answer, for a template that looks for them there
    chat = ChatTemplate("{% for m in messages %}{{ m.tool_calls }}{{ m.tool_responses }}{% endfor %}{{ tools }}")
    talk = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "", "tool_calls": called(CALLS)},
        {"role": "tool", "content": "r1", "tool_call_id": "000000001"},
        {"role": "tool", "content": "r0", "tool_call_id": "000000000"},
        {"role": "user", "content": "and?"},
    ]
    shown = as_shown(talk, BY_NAME["spoken"], chat, TOOLS)
    assert [message["role"] for message in shown] == ["user", "assistant", "user"]
    assert shown[1]["tool_responses"] == [{"name": "now", "response": "r1"}, {"name": "get-it", "response": "r0"}]
    assert "tool_responses" not in json.dumps(talk)
