# ruff: noqa: E501 (tables and templates read better on their own lines)
"""Chat templates: the same text as transformers, and no template runs away."""

from __future__ import annotations

import threading
import time
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bedplate.core.errors import TemplateError
from bedplate.text import sandbox
from bedplate.text.chat_template import TEMPLATE_BYTES, ChatTemplate

from .conftest import CHATML

LLAMA3 = """{{- bos_token }}
{%- if tools is not none and tools %}
    {{- "<|start_header_id|>system<|end_header_id|>\\n\\nTools:\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
    {{- "<|eot_id|>" }}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + tool_call.name + '", ' -}}
        {{- '"parameters": ' }}{{- tool_call.arguments | tojson }}{{- "}" }}
        {{- "<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
MISTRAL = """{{ bos_token }}{% for message in messages %}
{% if message['role'] == 'system' %}{% continue %}{% endif %}
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}{{ message['content'].strip() ~ eos_token }}
{% elif message['role'] == 'tool' %}[TOOL] {{ message | tojson }}
{% endif %}
{% endfor %}"""
NAMESPACED = """{%- set ns = namespace(n=0, seen={}, last='') -%}
{%- for m in messages -%}
  {%- set ns.n = ns.n + 1 -%}
  {%- set ns.last = m.content or '' -%}
  {%- macro line(role, text) -%}{{ role|upper }}: {{ text.split('\\n')|map('trim')|join(' / ') }}{%- endmacro -%}
  {{ loop.index0 }}/{{ loop.length }} {{ line(m.role, ns.last) }}{% if not loop.last %};{% endif %}
  {%- if m.role == 'assistant' -%}{% generation %}<a>{{ m.content }}</a>{% endgeneration %}{%- endif -%}
{%- endfor %}
{% set d = dict(a=1, b=[1, 2.5, none]) %}{{ d|tojson }} {{ d.items()|list|length }} {{ '%s-%05d' % ('x', ns.n) }}
{{ (messages|selectattr('role', 'equalto', 'user')|list|last).content|replace('a', 'bb')|default('none') }}
{{ tools|length if tools else 'no tools' }} {{ messages[::-1][0]['role'] }} {{ 'x' * 3 }} {{ ns.last[:5]|tojson(ensure_ascii=True) }}"""
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL, "namespaced": NAMESPACED}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather", "description": "Wetter <heute> & morgen 'é'",
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Köln", "<b>"]}}},
        },
    }
]  # fmt: skip

contents = st.text(max_size=40) | st.sampled_from([" padded ", "\n\nlines\n", "<|im_end|>", "{{ 1 }}", "{% x %}"])
arguments = st.dictionaries(
    st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none() | st.booleans(), max_size=3
)
calls = st.builds(lambda a: [{"type": "function", "function": {"name": "weather", "arguments": a}}], arguments)
turns = st.one_of(
    st.tuples(contents, contents).map(
        lambda t: [{"role": "user", "content": t[0]}, {"role": "assistant", "content": t[1]}]
    ),
    st.tuples(contents, calls, contents).map(
        lambda t: [
            {"role": "user", "content": t[0]},
            {"role": "assistant", "content": "", "tool_calls": t[1]},
            {"role": "tool", "content": t[2], "name": "weather"},
        ]
    ),
)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    system = [{"role": "system", "content": draw(contents)}] if draw(st.booleans()) else []
    middle = [message for turn in draw(st.lists(turns, max_size=3)) for message in turn]
    return [*system, *middle, {"role": "user", "content": draw(contents)}]


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_templates_render_as_in_transformers(name: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    template = ChatTemplate(TEMPLATES[name], bos="<s>", eos="</s>")

    @settings(max_examples=40, deadline=None)
    @given(conversations(), st.booleans(), st.booleans())
    def check(messages: list[dict[str, Any]], prompt: bool, with_tools: bool) -> None:
        tools = TOOLS if with_tools else None
        expected, _ = render_jinja_template(
            conversations=[messages], tools=tools, chat_template=TEMPLATES[name], add_generation_prompt=prompt,
            bos_token="<s>", eos_token="</s>",
        )  # fmt: skip
        assert template.render(messages, add_generation_prompt=prompt, tools=tools) == expected[0]

    check()


def test_what_templates_may_use() -> None:
    user = [{"role": "user", "content": "x"}]
    year = ChatTemplate("{{ strftime_now('%Y') }} {{ enable_thinking }}").render(user, enable_thinking=False)
    assert year == f"{datetime.now().year} False"
    with pytest.raises(TemplateError, match="roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render(user)
    absent = [{"role": "user", "content": None, "x": 1}]
    assert ChatTemplate("{{ 'content' in messages[0] }}").render(absent) == "False"
    assert ChatTemplate("{{ bos_token is defined }}").render(user) == "False"
    assert ChatTemplate("a", bos="<s>").identity == ChatTemplate("a").identity != ChatTemplate("b").identity


def test_wrong_templates_and_conversations_are_named() -> None:
    with pytest.raises(TemplateError, match=r"does not parse: line 2: "):
        ChatTemplate("a\n{% for %}")
    with pytest.raises(TemplateError, match="bytes; at most"):
        ChatTemplate("é" * TEMPLATE_BYTES)
    with pytest.raises(TemplateError, match="does not compile"):
        ChatTemplate("{{" + "(" * 5000 + "1" + ")" * 5000 + "}}")
    template = ChatTemplate("{{ messages[0].content + 1 }}")
    for messages, message in (
        ([], "is empty"),
        ("hello", "list of messages"),
        (["hello"], "message 0 is a str"),
        ([{"role": "user", "content": object()}], "holds a object"),
        ([{"role": "user", "content": "x"}], "failed: TypeError"),
        ([{"role": "user"}], "refused the conversation: 'dict object' has no attribute 'content'"),
    ):
        with pytest.raises(TemplateError, match=message):
            template.render(messages)  # type: ignore[arg-type]


HOSTILE = [
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 10**9 }}",
    "{{ 10**9 * 'a' }}",
    "{{ [messages] * 10**8 }}",
    "{{ 9 ** (9 ** 9) }}",
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x|tojson }}",
    "{% set n = namespace(x={}) %}{% for i in range(60) %}{% set n.x = dict(a=n.x, b=n.x) %}{% endfor %}{{ n.x|string }}",
    "{{ 'a'|center(10**9) }}",
    "{{ 'a'.ljust(10**9) }}",
    "{{ '1'.zfill(10**9) }}",
    "{{ '\\t'.expandtabs(10**9) }}",
    "{{ 'a'.translate({97: 'b' * 4000000}) * 2 }}",
    "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "{{ ('a' * 100000)|replace('a', 'b' * 100000) }}",
    "{{ range(99999)|map('string')|join('x' * 1000)|length }}",
    "{{ ('a' * 1000000).join(range(99999)|map('string')) }}",
    "{{ [1]|batch(10**9, 'x')|list }}",
    "{{ [1]|slice(10**9, 'x')|list }}",
    "{{ ('a\\n' * 10000)|indent(10**6) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{w}}'.format(1, w=10**9) }}",
    "{{ strftime_now('%Y' * 100000) }}",
    "{{ {'a': 1}|tojson(indent=10**9) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "{% for i in range(99999) %}{{ 'a' * 100 }}{% endfor %}",
    "{% for i in range(99999) %}" + "literal " * 100 + "{% endfor %}",
    "{% set x %}{% for i in range(99999) %}" + "literal " * 1000 + "{% endfor %}{% endset %}",
    "{% set x %}{% for i in range(99999) %}{{ 'a' * 10000 }}{% endfor %}{% endset %}",
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.append(1) }}",
    "{{ lipsum(n=10**8) }}",
    "{% include '/etc/passwd' %}",
    "{{ namespace(_x=1) }}",
]


@pytest.mark.parametrize("source", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_templates_are_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "STEPS", 50_000)
    if "namespace(x=" in source:  # what holds itself twice, and again, is walked until it weighs too much
        monkeypatch.setattr(sandbox, "OUTPUT_CHARACTERS", 1 << 20)
    start = time.process_time()  # not the clock's: the machine may be busy
    with pytest.raises(TemplateError):
        ChatTemplate(source).render([{"role": "user", "content": "x"}])
    assert time.process_time() - start < 10


def test_time_runs_out_in_any_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bedplate.text.chat_template.RENDER_SECONDS", 0.05)
    monkeypatch.setattr(sandbox, "STEPS", 10**12)
    template = ChatTemplate("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")
    errors: list[BaseException] = []

    def run() -> None:
        try:
            template.render([{"role": "user", "content": "x"}])
        except TemplateError as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert ["took more than 0.05 seconds" in str(error) for error in errors] == [True] * 3


def test_long_honest_conversations_are_not_stopped() -> None:
    messages = [
        {"role": "user" if i % 2 == 0 else "assistant", "content": f"{i} " + "word " * 200} for i in range(1000)
    ]
    for source in TEMPLATES.values():
        assert len(ChatTemplate(source, bos="<s>", eos="</s>").render(messages)) > 900_000
