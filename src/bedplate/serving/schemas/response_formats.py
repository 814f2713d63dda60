"""`response_format` and the guided-decoding fields of other servers, as grammars.

Reference: the OpenAI API's structured outputs. The schema holds whether `strict` is set or not; a keyword that cannot
be enforced is refused. `guided_json`, `guided_regex`, `guided_choice`, `guided_grammar` and `structured_outputs` are
vLLM's names; grammars are in Lark's notation.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from bedplate.core.errors import RequestError
from bedplate.inference.engine.requests import Grammar
from bedplate.serving.schemas.request_fields import RequestFields
from bedplate.serving.schemas.schema_dialects import as_held


def _schema_of(value: Any) -> Any:
    """A schema or its JSON text; what is no JSON is refused where it is compiled."""
    if isinstance(value, dict):
        return as_held(value)
    if value is not None and not isinstance(value, str):
        raise ValueError("it must be a JSON schema: an object, or its JSON text")
    return value


SCHEMA = BeforeValidator(_schema_of)


class NamedSchema(RequestFields):
    """A schema under a name, which nothing but the client uses."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None

    @property
    def enforced_schema(self) -> dict[str, Any]:
        """In the words that are enforced."""
        return as_held(self.schema_, strict=bool(self.strict))

    @model_validator(mode="after")
    def _words(self) -> Self:
        as_held(self.schema_)
        return self


class ResponseFormat(RequestFields):
    """`response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to the type json_schema, and to no other")
        return self

    @property
    def grammar(self) -> Grammar | None:
        if self.json_schema is not None:
            return Grammar("json_schema", json.dumps(self.json_schema.enforced_schema, ensure_ascii=False))
        return None if self.type == "text" else Grammar("json_object")


class StructuredOutputs(RequestFields):
    """`structured_outputs`: exactly one of its fields."""

    json_: Annotated[dict[str, Any] | str | None, SCHEMA, Field(alias="json")] = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None

    @model_validator(mode="after")
    def _check_single(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError("give exactly one of json, regex, choice, grammar, json_object")
        return self

    @property
    def requested_grammar(self) -> Grammar | None:
        if self.json_object is not None:
            return Grammar("json_object") if self.json_object else None
        return guided(self.json_, self.regex, self.choice, self.grammar)


def guided(
    schema: dict[str, Any] | str | None, regex: str | None, choice: list[str] | None, rules: str | None
) -> Grammar | None:
    """The grammar of the one that is given."""
    if schema is not None:
        return Grammar("json_schema", schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False))
    if regex is not None:
        return Grammar("regex", regex)
    if choice is not None:
        return Grammar("choice", json.dumps(choice, ensure_ascii=False))
    return None if rules is None else Grammar("ebnf", rules)


def compiled(
    compile_grammar: Callable[[Grammar, str], Grammar], named_grammar: tuple[str, Grammar] | None, tenant: str
) -> Grammar | None:
    """The grammar that a field asks for, ready to be used. RequestError names the field. tenant: who asks."""
    if named_grammar is None:
        return None
    field, grammar = named_grammar
    try:
        return replace(compile_grammar(grammar, tenant), named=field)
    except RequestError as error:
        if error.param == "grammar":
            error.param = field
        raise
