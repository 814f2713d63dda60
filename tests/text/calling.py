"""Chat templates in the shapes of the families that call tools, each with its marks as special tokens, and a tokenizer
for them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tests.tiny import SPECIAL, tokenizer_json
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from bedplate.text.tokenizer import Tokenizer

_THOUGHT = "{% if m.reasoning_content %}OPEN{{ m.reasoning_content }}CLOSE{% endif %}"
_DEEP = (
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>",
)
_JSON = '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'


@dataclass(frozen=True)
class Shape:
    """assistant: how a turn of it is written, for m. special: its marks that are special tokens. parallel: several
    calls in one turn. thinking: reasoning is written."""

    assistant: str
    special: tuple[str, ...] = ()
    parallel: bool = True
    thinking: bool = False
    prompt: str = "<|im_start|>assistant\n"
    end: str = "<|im_end|>\n"
    signs: str = ""

    @property
    def template(self) -> str:
        """The whole template."""
        return (
            "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}"
            f"{self.signs}<|im_end|>\n{{% endif %}}"
            "{% for m in messages %}{% if m.role == 'assistant' %}"
            f"{self.assistant}"
            "{% elif m.role == 'tool' %}<|im_start|>tool\n{{ m.content }}<|im_end|>\n{% else %}"
            "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
            f"{{% if add_generation_prompt %}}{self.prompt}{{% endif %}}"
        )


def _turn(calls: str, **options: object) -> Shape:
    thought = str(options.pop("thought", ""))
    body = f"{thought}{{{{ m.content }}}}{{% if m.tool_calls %}}{calls}{{% endif %}}"
    return Shape(f"<|im_start|>assistant\n{body}<|im_end|>\n", **options)  # type: ignore[arg-type]


def _thought(opening: str, closing: str) -> str:
    return _THOUGHT.replace("OPEN", opening).replace("CLOSE", closing)


def _call_loop(call: str, separator: str = "") -> str:
    return f"{{% for c in m.tool_calls %}}{call}{{% if not loop.last %}}{separator}{{% endif %}}{{% endfor %}}"


_PARAMETERS = (
    "{% for k, v in c.function.arguments | items %}BEGIN{{ k }}MID{{ v if v is string else v | tojson }}END{% endfor %}"
)
_NAMED_VALUES = (
    "{% for k, v in c.function.arguments | items %}{{ k }}=VALUE{% if not loop.last %}, {% endif %}{% endfor %}"
)
_PYTHON_VALUE = """{{ "'" ~ v ~ "'" if v is string else v | tojson if v is mapping else v | string }}"""
_SPOKEN_VALUE = (
    "{% macro spoken(v) %}{% if v is string %}<|\"|>{{ v }}<|\"|>{% elif v is boolean %}{{ 'true' if v else 'false' }}"
    "{% elif v is mapping %}{{ '{' }}{{ members(v) }}{{ '}' }}"
    "{% elif v is sequence %}[{% for one in v %}{{ spoken(one) }}{% if not loop.last %},{% endif %}{% endfor %}]"
    "{% else %}{{ v }}{% endif %}{% endmacro %}"
    "{% macro members(m) %}{% for k, v in m | dictsort %}{{ k }}:{{ spoken(v) }}{% if not loop.last %},{% endif %}"
    "{% endfor %}{% endmacro %}"
)
_CHANNELS = (
    "{% if m.thinking %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
    "{% if m.tool_calls %}{% set c = m.tool_calls[0] %}"
    "<|start|>assistant to=functions.{{ c.function.name }}<|channel|>commentary json<|message|>"
    "{{ c.function.arguments | tojson }}<|call|>"
    "{% else %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>{% endif %}"
)

SHAPES = {
    "hermes": _turn(
        _call_loop("\n<tool_call>\n" + _JSON + "\n</tool_call>"),
        thought=_thought("<think>\n", "\n</think>\n\n"),
        thinking=True,
    ),
    "tagged": _turn(
        _call_loop(
            "\n<tool_call>\n<function={{ c.function.name }}>\n"
            + _PARAMETERS.replace("BEGIN", "<parameter=").replace("MID", ">\n").replace("END", "\n</parameter>\n")
            + "</function>\n</tool_call>"
        ),
        thought=_thought("<think>\n", "\n</think>\n\n"),
        thinking=True,
    ),
    "keyed": _turn(
        _call_loop(
            "\n<tool_call>{{ c.function.name }}\n"
            + _PARAMETERS.replace("BEGIN", "<arg_key>")
            .replace("MID", "</arg_key>\n<arg_value>")
            .replace("END", "</arg_value>\n")
            + "</tool_call>"
        ),
        thought=_thought("<think>", "</think>\n"),
        special=(
            "<tool_call>",
            "</tool_call>",
            "<arg_key>",
            "</arg_key>",
            "<arg_value>",
            "</arg_value>",
            "<think>",
            "</think>",
        ),
        thinking=True,
    ),
    "list": _turn(
        "[TOOL_CALLS] [" + _call_loop(_JSON[:-1] + ', "id": "{{ c.id }}"}', ", ") + "]",
        special=("[TOOL_CALLS]",),
    ),
    "named": _turn(
        _call_loop("[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}"),
        thought=_thought("[THINK]", "[/THINK]"),
        special=("[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]"),
        thinking=True,
    ),
    "pythonic": _turn(
        "<|tool_call_start|>["
        + _call_loop("{{ c.function.name }}(" + _NAMED_VALUES.replace("VALUE", _PYTHON_VALUE) + ")", ", ")
        + "]<|tool_call_end|>",
        thought=_thought("<think>", "</think>"),
        special=("<|tool_call_start|>", "<|tool_call_end|>"),
        thinking=True,
    ),
    "lines": _turn(
        "<function_calls>"
        + _call_loop("{{ c.function.name }}(" + _NAMED_VALUES.replace("VALUE", "{{ v | tojson }}") + ")", "\n")
        + "</function_calls>",
    ),
    "closed": _turn(
        "<|tool_call|>[" + _call_loop(_JSON, ", ") + "]<|/tool_call|>", special=("<|tool_call|>", "<|/tool_call|>")
    ),
    "spoken": _turn(
        _SPOKEN_VALUE
        + _call_loop(
            "<|tool_call>call:{{ c.function.name }}{{ '{' }}{{ members(c.function.arguments) }}{{ '}' }}<tool_call|>"
        ),
        thought=_thought("<|channel>thought\n", "\n<channel|>"),
        special=("<|tool_call>", "<tool_call|>", '<|"|>', "<|channel>", "<channel|>"),
        thinking=True,
    ),
    "granite": _turn("<|tool_call|>[" + _call_loop(_JSON, ", ") + "]", special=("<|tool_call|>",)),
    "fenced": _turn(
        _DEEP[0]
        + _call_loop(
            f"{_DEEP[1]}function{_DEEP[2]}{{{{ c.function.name }}}}\n```json\n"
            f"{{{{ c.function.arguments }}}}\n```{_DEEP[3]}",
            "\n",
        )
        + _DEEP[4],
        special=_DEEP,
    ),
    "marked": _turn(
        _DEEP[0]
        + _call_loop(f"{_DEEP[1]}{{{{ c.function.name }}}}{_DEEP[2]}{{{{ c.function.arguments }}}}{_DEEP[3]}")
        + _DEEP[4],
        special=_DEEP,
        thought=_thought("<think>", "</think>"),
        prompt="<|im_start|>assistant\n<think>",
        thinking=True,
    ),
    "bare": _turn(
        '{% set c = m.tool_calls[0] %}{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}',  # noqa: E501
        special=("<|python_tag|>",),
        parallel=False,
        signs="Environment: ipython",
    ),
    "channels": Shape(
        _CHANNELS,
        ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>"),
        parallel=False,
        thinking=True,
        prompt="<|start|>assistant",
        end="<|call|>",
    ),
}


def shaped_tokenizer(directory: Path, shape: Shape) -> Tokenizer:
    """A byte-level tokenizer with the shape's special tokens and template."""
    backend = Backend.from_str(tokenizer_json())
    backend.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in shape.special])
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(backend.to_str())
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL[2],
        "chat_template": shape.template,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.from_directory(directory)
