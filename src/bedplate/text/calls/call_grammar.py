"""Holding a model to valid calls: the grammar of a reply with tools, framed as the base's format frames calls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from bedplate.core.errors import RequestError
from bedplate.text.calls.call_formats import BY_NAME, HERMES, NAME, CallFormat, Tags
from bedplate.text.calls.literal_grammar import LiteralRules, Spelling, Unwritable, as_json
from bedplate.text.calls.reading import is_text
from bedplate.text.calls.tools import Tool
from bedplate.text.json_schema import INVALID, check_schema, parse_schema

_FREE = "TEXT: /(.|\\n)*/"


def call_grammar_source(
    tools: Sequence[Tool],
    *,
    required: bool,
    parallel: bool,
    written: CallFormat = HERMES,
    thinking: tuple[str, str] | None = None,
    opened: bool = False,
    marks: Mapping[str, int] | None = None,
    answer: Mapping[str, Any] | str | None = None,
) -> str:
    """What a grammar of kind `tool_calls` says: which calls may be written, whether there must be one, in which form
    (`text.calls.reply_form`), and the JSON schema that an answer without calls follows, if one is asked for."""
    listed = [{"name": tool.name, "parameters": tool.schema} for tool in tools]
    form: dict[str, Any] = {"format": written.name, "thinking": thinking, "opened": opened, "answer": answer}
    form["marks"] = dict(sorted((marks or {}).items()))
    # not sorted: arguments are written in the order in which their schema has them
    return json.dumps({"tools": listed, "required": required, "parallel": parallel, **form})


def call_grammar(source: str) -> str:
    """The rules (in llguidance's dialect of Lark) for such a text: free text or calls, and a call that was begun is
    valid to its end. RequestError (code invalid_grammar) names the tool whose parameters cannot be enforced."""
    spec = json.loads(source)
    written, spell = BY_NAME[spec["format"]], Spelling(spec["marks"])
    rules = [
        rule
        for number, tool in enumerate(spec["tools"])
        for rule in _tool_rules(number, tool["name"], tool["parameters"], written, spell)
    ]
    body = " | ".join(f"tool{number}" for number in range(len(spec["tools"])))
    answer = None if spec["required"] else _answer(spec["answer"], written)
    if answer is not None:
        rules.append(f"reply: {answer}")
    spec["held"] = answer is not None
    frame = _channels(spec, spell) if written.channels else _frame(spec, written, spell)
    return "\n".join((*frame, f"body: {body}", _FREE, *rules))


def _answer(schema: Any, written: CallFormat) -> str | None:
    """What an answer without calls is held to."""
    if schema is None:
        return None
    if written.bare:
        message = (
            "this model's calls are JSON and the whole reply, so an answer in JSON would be taken for one; leave tools "
            "out"
        )
        raise RequestError(message, param="response_format", code="unsupported_parameter")
    try:
        schema = parse_schema(schema) if isinstance(schema, str) else schema
    except RequestError as error:
        raise RequestError(error.message, param="response_format", code=INVALID) from None
    if schema is False:
        raise RequestError("no value satisfies the JSON schema false", param="response_format", code=INVALID)
    return as_json({} if schema is True else schema, {})


def _tool_rules(number: int, name: str, parameters: Any, written: CallFormat, spell: Spelling) -> list[str]:
    try:
        check_schema(parameters)
    except RequestError as error:
        raise _refused(name, f": {error.message}") from None
    if parameters["type"] != "object":
        raise _refused(name, " must be of type object")
    if written.channels:
        head, tail = f"functions.{name} <|constrain|>json<|message|>", ""
    else:
        # Spaced as Python's json writes it, which is how templates show calls.
        head, tail = written.heads[0].replace(NAME, name), written.tails[0]
    literals = written.literals_behind(written.heads[0])
    if literals is not None:
        rules = LiteralRules(f"l{number}", parameters, literals, spell)
        try:
            arguments = rules.arguments()
        except Unwritable as odd:
            raise _refused(name, f" ({odd}) cannot be held to in the notation of this model's calls") from None
        return [f"tool{number}: {spell(head)} {arguments}", *rules.rules]
    if written.tags is not None:
        return [f"tool{number}: {spell(head)} args{number}", *_tagged(number, name, parameters, written.tags, spell)]
    return [f"tool{number}: {spell(head)} args{number} {spell(tail)}", f"args{number}: {as_json(parameters)}"]


def _tagged(number: int, name: str, parameters: Mapping[str, Any], tags: Tags, spell: Spelling) -> list[str]:
    """Parameters between tags, in the schema's order; what is not required may be missing."""
    properties = parameters.get("properties", {})
    odd = sorted(parameters.keys() - {"type", "properties", "required", "additionalProperties", "$defs", "definitions"})
    odd += sorted(key for key in parameters.get("required", ()) if key not in properties)
    if odd or (isinstance(parameters.get("additionalProperties"), Mapping) and not properties):
        raise _refused(name, f" ({', '.join(odd) or 'additionalProperties'}) cannot be written one by one between tags")
    shared = {key: parameters[key] for key in ("$defs", "definitions") if key in parameters}
    parts, rules = list[str](), list[str]()
    for place, (key, schema) in enumerate(properties.items()):
        rule = f"p{number}x{place}"
        parts.append(rule if key in parameters.get("required", ()) else f"{rule}?")
        begin = spell(f"{tags.key[0]}{key}{tags.key[1]}{tags.value[0]}{tags.pad}")
        end = f"{tags.pad}{tags.value[1]}"
        if not is_text(schema):
            rules.append(f"{rule}: {begin} {rule}v {spell(end)}\n{rule}v: {as_json({**_schema(schema), **shared})}")
        elif "enum" in schema or "const" in schema:
            one_of = " | ".join(spell(text + end) for text in schema.get("enum", [schema.get("const")]))
            rules.append(f"{rule}: {begin} ({one_of})")
        else:
            constraints = sorted(
                schema.keys() & {"pattern", "format", "minLength", "maxLength", "anyOf", "oneOf", "allOf"}
            )
            if constraints:
                raise _refused(
                    name, f": {constraints[0]} of {key!r} cannot be enforced in texts that stand between tags"
                )
            rules.append(f"{rule}: {begin} {rule}v\n{spell.after_text(rule + 'v', end)}")
    body = " ".join([*parts, spell(tags.end)]).strip()
    return [f"args{number}: {body}" if body else f'args{number}: ""', *rules]


def _schema(schema: Any) -> Mapping[str, Any]:
    return {} if schema is True else schema


def _frame(spec: Mapping[str, Any], written: CallFormat, spell: Spelling) -> list[str]:
    """Calls behind their mark, or text that may become them; and before either, reasoning."""
    opening, close = spell(written.opening), spell(written.close)
    is_parallel = spec["parallel"] and not written.single
    if written.separator is None:
        repeated_calls = f"({spell(written.gap + written.begin)} {opening} body {close})*" if is_parallel else ""
        calls = f"{opening} body {close} {repeated_calls}"
    else:
        repeated_bodies = f"({spell(written.separator)} body)*" if is_parallel else ""
        calls = f"{opening} body {repeated_bodies} {close}"
    thought, rules = _thought(spec, spell)
    rules.append(f"calls: {calls}")
    begin = "" if written.bare else spell(written.begin)
    if spec["required"]:
        return [f"start: {thought} {begin} calls", *rules]
    if spec["held"]:
        return [f"start: {thought} (reply | {begin} calls)", *rules]
    # What begins like a call that is the whole reply has to be one.
    text, bare = ("PLAIN?", " | calls") if written.bare else ("TEXT", "")
    head = spell.after_text("head", written.begin, text)
    return [f"start: {thought} (text | head calls{bare})", f"text: {text}", head, "PLAIN: /[^{\\s](.|\\n)*/", *rules]


def _thought(spec: Mapping[str, Any], spell: Spelling) -> tuple[str, list[str]]:
    """What stands for reasoning in the start rule, and its rules. Where it may begin and text may follow without it,
    text is all that it is for the grammar, unless its mark is a token of its own."""
    if spec["thinking"] is None:
        return "", []
    opening, closing = spec["thinking"]
    rules = [spell.after_text("thought", closing), "SPACE: /\\s+/"]
    is_constrained = spec["required"] or spec["held"]
    space = "SPACE?" if is_constrained else ""
    if spec["opened"]:
        return f"thought {space}", rules
    if is_constrained or any(mark in opening for mark in spec["marks"]):
        return f"({spell(opening)} thought {space})?", rules
    return "", []


def _channels(spec: Mapping[str, Any], spell: Spelling) -> list[str]:
    """Reasoning and preambles, then one call or the answer. The token that ends it ends the reply."""
    channel, message = spell("<|channel|>"), spell("<|message|>")
    last = "call" if spec["required"] else "(call | answer)"
    text = "reply" if spec["held"] else "TEXT"
    return [
        f"start: (told {spell('<|start|>assistant')})* {last}",
        f'told: {channel} ("analysis" | "commentary") {message} said',
        spell.after_text("said", "<|end|>"),
        f'answer: {channel} "final" {message} {text}',
        f'call: {channel} "commentary to=" body',
    ]


def _refused(name: str, why: str) -> RequestError:
    return RequestError(f"the parameters of tool {name!r}{why}", param="tools", code=INVALID)
