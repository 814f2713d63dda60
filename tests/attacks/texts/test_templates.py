"""What a checkpoint's template makes on its way, and holds, is bounded in bytes."""

from __future__ import annotations

import tracemalloc

import pytest

from bedplate.core.errors import TemplateError
from bedplate.text import sandbox
from bedplate.text.chat_template import ChatTemplate

BYTE_LIMIT = 8 * 1024 * 1024
LARGE_STRING = "{% set s = '\U0001f600' * 200000 %}"

GREEDY = {
    "large replacements in a list": (
        "{% set a = ['a' * 2000] * 500 %}{% set x = a|map('replace', 'a', 'b' * 100)|list %}{{ x|length }}"
    ),
    "slices under many names": LARGE_STRING + "".join(f"{{% set a{i} = s[1:] %}}" for i in range(60)),
    "slices in a namespace": LARGE_STRING
    + "{% set n = namespace() %}{% for i in range(60) %}{% set n.x = (n.x, s[i:]) %}{% endfor %}",
    "texts in the frames of a macro": (
        "{% macro f(n) %}" + LARGE_STRING + "{% if n %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    ),
    "buffers of macros": (
        "{% macro f() %}{% for i in range(90) %}{{ 'a' * 9000 }}{% endfor %}{% endmacro %}"
        "{% set n = namespace(x=[]) %}{% for i in range(60) %}{% set n.x = [n.x, f()] %}{% endfor %}"
    ),
    "parts of a text": "{% set a = 'aa ' * 60000 %}" + "".join(f"{{% set a{i} = a.split() %}}" for i in range(9)),
    "white space of JSON": "{{ [[[[[[[[[[range(20000)|list]]]]]]]]]]|tojson(indent=64)|length }}",
    "one replacement": "{{ ('\U0001f600' * 4000)|replace('\U0001f600', '\U0001f600' * 15000)|length }}",
}


@pytest.fixture(autouse=True)
def smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MADE_BYTES", BYTE_LIMIT)


@pytest.mark.parametrize("name", GREEDY)
def test_what_a_template_holds_is_bounded(name):
    template = ChatTemplate(GREEDY[name])
    tracemalloc.start()
    try:
        with pytest.raises(TemplateError, match="was stopped"):
            template.render([{"role": "user", "content": "x"}])
        assert tracemalloc.get_traced_memory()[1] < 2 * BYTE_LIMIT
    finally:
        tracemalloc.stop()


def test_large_texts_may_still_be_changed():
    messages = [{"role": "user", "content": "a line\n" * 30_000}]
    source = "{{ messages[0].content|trim|replace('\\n', '\\\\n')|replace('a line', '')|length }}"
    assert ChatTemplate(source).render(messages) == str(2 * 29_999)
    assert len(ChatTemplate("{{ messages[0].content|indent(4) }}").render(messages)) > 300_000
    assert ChatTemplate("{{ messages[0].content.split('\\n')|join('<br />')|length }}").render(messages) == "360000"
