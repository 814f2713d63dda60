"""Holding a model to valid calls: the grammar of a reply with tools, framed as the base's format frames calls.

Arguments that are written as literals (`calls.literals`) follow from the schema as rules in Lark's notation; where the
notation writes JSON for a value, the library's own rules hold it. What can be told in neither way is refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bedplate.core.errors import RequestError
from bedplate.text.calls.call_formats import BY_NAME, HERMES, NAME, CallFormat, Literals, LiteralWriter, Tags, in_order
from bedplate.text.calls.literals import is_plain_key
from bedplate.text.calls.reading import is_text
from bedplate.text.calls.tools import Tool
from bedplate.text.json_schema import ANNOTATIONS, INVALID, check_schema, parse_schema, resolved

_SPACED = {"item_separator": ", ", "key_separator": ": "}


def as_json(schema: Any, spacing: Mapping[str, str] = _SPACED) -> str:
    """A rule's right side: JSON of the schema."""
    options = {"whitespace_flexible": False, **spacing}
    return f"%json {json.dumps({**schema, 'x-guidance': options})}"


class Spelling:
    """Texts in the grammar's notation. Special tokens are no text for it, and stand there by their numbers."""

    def __init__(self, marks: Mapping[str, int]) -> None:
        self._marks = marks
        longest = sorted(marks, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, longest)) + ")") if marks else None

    def __call__(self, text: str) -> str:
        parts = [text] if self._split is None else self._split.split(text)
        return " ".join(
            f"<[{self._marks[part]}]>" if part in self._marks else json.dumps(part, ensure_ascii=False)
            for part in parts
            if part
        )

    def after_text(self, name: str, mark: str, text: str = "TEXT") -> str:
        """A rule for any text up to a mark, and the mark."""
        if mark in self._marks:
            return f"{name}: {text} {self(mark)}"
        return f"{name}[lazy]: {text} {self(mark)}"


_DEFINITIONS = frozenset(("$defs", "definitions"))
_KEYWORDS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
    "string": set[str](),
    "boolean": set[str](),
    "null": set[str](),
}


_SINGLE = r"""/'([^'\\\x00-\x1f]|\\['"\\nrt])*'/"""
"""A text of Python's between single quotes."""
_SINGLE_INSIDE = re.compile(r"[^'\\\x00-\x1f]*")
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "integer": (int,),
    "number": (int, float),
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
}


class Unwritable(Exception):
    """The keyword or the parameter of a schema that cannot be held to in this notation."""


def _fits(value: Any, node: Mapping[str, Any]) -> bool:
    """Whether a listed value is of the schema's types, and its constant if it has one."""
    declared: Any = node.get("type", list(_TYPES))
    types: Sequence[str] = [declared] if isinstance(declared, str) else declared
    typed = any(
        isinstance(value, _TYPES[type_name])
        for type_name in types
        if isinstance(value, bool) is (type_name == "boolean")
    )
    return typed and value == node.get("const", value)


class LiteralRules:
    """Rules for one tool's arguments. prefix: of their names; root: the schema of them all."""

    def __init__(self, prefix: str, root: Mapping[str, Any], written: Literals, spell: Spelling) -> None:
        self._prefix, self._root, self._written, self._spell = prefix, root, written, spell
        self._names: dict[str, str] = {}
        self._json_words = written.words == ("true", "false", "null") and not written.bare
        self.rules: list[str] = []

    def arguments(self) -> str:
        """The rule of all arguments, with what ends them. Unwritable."""
        self._check(self._root.keys() - ANNOTATIONS - _DEFINITIONS - _KEYWORDS["object"] - {"type"})
        inside = self._object(self._root, self._written.equals, self._spell)
        return self._rule(f"{inside} {self._spell(self._written.end)}")

    def _rule(self, right: str) -> str:
        name = f"{self._prefix}x{len(self._names)}"
        self._names[name] = name
        self.rules.append(f"{name}: {right}")
        return name

    def _shared(self, key: str, right: Callable[[], str]) -> str:
        """The rule under this key, made on first use; it may contain itself."""
        if key not in self._names:
            name = self._names[key] = f"{self._prefix}x{len(self._names)}"
            self.rules.append(f"{name}: {right()}")
        return self._names[key]

    def _json(self, schema: Mapping[str, Any]) -> str:
        return as_json({**schema, **{key: self._root[key] for key in _DEFINITIONS if key in self._root}})

    def _value(self, schema: Any) -> str:
        node = resolved(self._root, schema)
        if node is False:
            raise Unwritable("false")
        if node is True or not node.keys() - ANNOTATIONS:
            return self._rule(as_json({})) if self._json_words else self._any()

        def right() -> str:
            if self._json_words:
                return self._json(node)
            try:
                return " | ".join(list(self._alternatives(node)))
            except Unwritable:
                if self._written.bare:
                    raise
                return self._json(node)

        return self._shared(f"node {id(node)}", right)

    def _alternatives(self, node: Mapping[str, Any]) -> Iterator[str]:
        keywords = node.keys() - ANNOTATIONS - _DEFINITIONS
        if keywords & {"enum", "const"}:
            self._check(keywords - {"enum", "const", "type"})
            listed = [candidate for candidate in node.get("enum", [node.get("const")]) if _fits(candidate, node)]
            self._check(set() if listed else keywords)
            for constant in listed:
                yield self._spell(LiteralWriter(self._written).value(constant))
                if isinstance(constant, str) and not self._written.bare and _SINGLE_INSIDE.fullmatch(constant):
                    yield self._spell(f"'{constant}'")
            return
        if "anyOf" in keywords:
            self._check(keywords - {"anyOf"})
            for branch in node["anyOf"]:
                yield self._value(branch)
            return
        declared: Any = node.get("type", "object" if "properties" in node else ())
        types: Sequence[str] = [declared] if isinstance(declared, str) else declared
        self._check(keywords - {"type"}.union(*(_KEYWORDS[name] for name in types)))
        for type_name in types:
            yield self._rule_of_type(type_name, node)

    def _check(self, odd: Sequence[str] | set[str] | frozenset[str]) -> None:
        if odd:
            raise Unwritable(min(odd))

    def _rule_of_type(self, type_name: str, node: Mapping[str, Any]) -> str:
        true, false, null = (self._spell(word) for word in self._written.words)
        if type_name == "boolean":
            return f"({true} | {false})"
        if type_name == "null":
            return null
        if type_name == "string":
            return self._text()
        if type_name == "array":
            return self._array(node)
        if type_name == "object":
            colon = self._written.equals if self._written.bare else ": "
            return f'"{{" {self._object(node, colon, self._key_of)} "}}"'
        bounds = {key: node[key] for key in _KEYWORDS[type_name] if key in node}
        return self._rule(as_json({**bounds, "type": type_name}))

    def _key_of(self, key: str) -> str:
        return self._spell(key if self._written.bare else json.dumps(key, ensure_ascii=False))

    def _text(self) -> str:
        if not self._written.bare:
            double = self._shared("double", lambda: as_json({"type": "string"}))
            return self._shared("text", lambda: f"{double} | {_SINGLE}")
        quote = self._written.quote
        if "text" not in self._names:
            name = self._names["text"] = f"{self._prefix}x{len(self._names)}"
            self.rules.append(self._spell.after_text(f"{name}t", quote))
            self.rules.append(f"{name}: {self._spell(quote)} {name}t")
        return self._names["text"]

    def _array(self, node: Mapping[str, Any]) -> str:
        item_rule, separator = self._value(node.get("items", True)), self._spell(self._written.separator)
        min_items, max_items = node.get("minItems", 0), node.get("maxItems")
        if max_items is not None and max_items < min_items:
            raise Unwritable(f"minItems {min_items} above maxItems {max_items}")
        if max_items == 0:
            return '"[" "]"'
        count = f"{{{max(min_items - 1, 0)},{'' if max_items is None else max_items - 1}}}"
        count = "*" if min_items < 2 and max_items is None else count
        inside = f"{item_rule} ({separator} {item_rule}){count}"
        return f'"[" {inside} "]"' if min_items else f'"[" ({inside})? "]"'

    def _any(self) -> str:
        def right() -> str:
            return " | ".join(self._rule_of_type(type_name, {}) for type_name in _KEYWORDS if type_name != "integer")

        return self._shared("any", right)

    def _object(self, node: Mapping[str, Any], equals: str, spelled: Callable[[str], str]) -> str:
        """The members of an object, in the schema's order or their names'; what is not required may be missing."""
        properties: Mapping[str, Any] = node.get("properties", {})
        plain = self._written.bare or equals == self._written.equals
        self._check({key for key in properties if plain and not is_plain_key(key, self._written)})
        required: Sequence[str] = node.get("required", ())
        self._check(set(required) - set(properties))
        if not properties:
            return self._free(node.get("additionalProperties", True), equals)
        if isinstance(node.get("additionalProperties"), Mapping):
            raise Unwritable("additionalProperties")
        separator = self._spell(self._written.separator)
        first, after = '""', '""'  # what may follow while none was written, and after one was
        for key in reversed(in_order(properties, self._written)):
            member = f"{spelled(key)} {self._spell(equals)} {self._value(properties[key])}"
            tail = self._rule(f"{separator} {member} {after}" + ("" if key in required else f" | {after}"))
            first = self._rule(f"{member} {after}" + ("" if key in required else f" | {first}"))
            after = tail
        return first

    def _free(self, values: Any, equals: str) -> str:
        """Members of any name."""
        if values is False:
            return '""'
        plain = self._written.bare or equals == self._written.equals
        key = self._shared("key", lambda: "/[A-Za-z_][A-Za-z0-9_]*/") if plain else self._text()
        member = f"{key} {self._spell(equals)} {self._value(values)}"
        return f"({member} ({self._spell(self._written.separator)} {member})*)?"


_TEXT_CONSTRAINTS = {"pattern", "format", "minLength", "maxLength", "anyOf", "oneOf", "allOf"}
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
        raise RequestError(
            "this model's calls are JSON and the whole reply, so an answer in JSON would be one too; leave tools out",
            param="response_format",
            code="unsupported_parameter",
        )
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
            value = {**({} if schema is True else schema), **shared}
            rules.append(f"{rule}: {begin} {rule}v {spell(end)}\n{rule}v: {as_json(value)}")
        elif "enum" in schema or "const" in schema:
            one_of = " | ".join(spell(text + end) for text in schema.get("enum", [schema.get("const")]))
            rules.append(f"{rule}: {begin} ({one_of})")
        else:
            if constraints := schema.keys() & _TEXT_CONSTRAINTS:
                why = f": {min(constraints)} of {key!r} cannot be enforced in texts that stand between tags"
                raise _refused(name, why)
            rules.append(f"{rule}: {begin} {rule}v\n{spell.after_text(rule + 'v', end)}")
    body = " ".join([*parts, spell(tags.end)]).strip()
    return [f"args{number}: {body}" if body else f'args{number}: ""', *rules]


def _frame(spec: Mapping[str, Any], written: CallFormat, spell: Spelling) -> list[str]:
    """Calls behind their mark, or text that may become them; and before either, reasoning."""
    opening, close = spell(written.openings[0]), spell(written.closes[0])
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
