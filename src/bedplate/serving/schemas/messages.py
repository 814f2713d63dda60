"""The messages of a conversation, in the OpenAI API's shape.

Clients send replies back as they got them, with fields that said nothing, and put them together from a stream's deltas:
what is null or empty there is taken as left out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, cast

from pydantic import BeforeValidator, Field, model_validator

from bedplate.serving.schemas.request_fields import RequestFields
from bedplate.serving.schemas.tool_fields import ToolCall

MAX_MESSAGES = 10_000
"""Most messages of a conversation: more fit no model's context, and checking them would take the time of other tenants'
requests."""
_ROLES = ("system", "developer", "user", "assistant", "tool")
# A prompt's beginning is always cached.
_PART_HINTS = frozenset(("cache_control",))


def _text_of(content: Any) -> Any:
    """A message's content as one text: a string, or the joined parts of type text."""
    if not isinstance(content, list):
        return content
    texts: list[str] = []
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise ValueError('a content part must be an object such as {"type": "text", "text": "…"}')
        if part["type"] != "text":
            raise ValueError(f"content parts of type {part['type'][:60]!r} are not supported; only text is")
        if set(part) - _PART_HINTS != {"type", "text"} or not isinstance(part["text"], str):
            raise ValueError("a text part has the fields type, text and perhaps cache_control, and text is a string")
        texts.append(part["text"])
    if not texts:
        raise ValueError("the content has no parts; give a string or parts of type text")
    return "".join(texts)


def _role_of(role: Any) -> Any:
    if isinstance(role, str) and role not in _ROLES:
        raise ValueError(f"there is no role {role[:60]!r} here; the roles are {', '.join(_ROLES)}")
    return role


CONTENT = BeforeValidator(_text_of, json_schema_input_type=str | list[dict[str, Any]])


class Message(RequestFields):
    """One turn of a conversation."""

    role: Annotated[Literal["system", "developer", "user", "assistant", "tool"], BeforeValidator(_role_of)]
    content: Annotated[str, CONTENT]
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _nothing_said(cls, message: Any) -> Any:
        if not isinstance(message, dict):
            return message
        fields = cast("dict[str, Any]", message)
        if fields.get("tool_calls") == []:
            fields = {**fields, "tool_calls": None}
        silent = fields.get("content") in (None, [])
        if silent and (
            fields.get("tool_calls") or ("content" in fields and fields.get("role") in ("assistant", "tool"))
        ):
            fields = {**fields, "content": ""}
        return fields

    @model_validator(mode="after")
    def _fields_of_the_role(self) -> Self:
        if self.tool_calls is not None and self.role != "assistant":
            raise ValueError("only an assistant's message has tool_calls")
        if self.reasoning_content is not None and self.role != "assistant":
            raise ValueError("only an assistant's message has reasoning_content")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("a message of role tool has a tool_call_id, and no other has")
        return self

    def plain(self) -> dict[str, Any]:
        """As chat templates see it."""
        optional_fields: dict[str, Any] = {
            name: getattr(self, name) for name in ("name", "tool_call_id", "reasoning_content")
        }
        if self.tool_calls is not None:
            optional_fields["tool_calls"] = [call.model_dump(exclude={"index"}) for call in self.tool_calls]
        role = "system" if self.role == "developer" else self.role
        return {
            "role": role,
            "content": self.content,
            **{key: value for key, value in optional_fields.items() if value is not None},
        }
