"""What request models are made of, and the one message about what is wrong in a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from bedplate.core.errors import RequestError


class RequestFields(BaseModel):
    """What every request model is: exact types, no unknown fields, no NaN."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    @property
    def choices(self) -> int:
        """How many answers to each prompt it asks for."""
        return 1

    @property
    def skin_inputs(self) -> Sequence[str | dict[str, str]]:
        """What a skin would be asked with: texts that stand for its only input, or inputs by name."""
        return ()


def any_of_types(*types: type, message: str) -> BeforeValidator:
    """For a field that may be of several types: one message, where a union's would speak of each of them."""

    def check(value: Any) -> Any:
        if value is not None and not isinstance(value, types):
            raise ValueError(message)
        return value

    return BeforeValidator(check)


def first_mistake(error: ValidationError, model: type[BaseModel]) -> RequestError:
    """One message for the first thing that is wrong."""
    mistake = error.errors(include_url=False, include_context=False, include_input=False)[0]
    location = ""
    for part in mistake["loc"]:
        location += f"[{part}]" if isinstance(part, int) else f".{part}" if location else str(part)
    message = mistake["msg"].removeprefix("Value error, ")
    if mistake["type"] == "extra_forbidden":
        problem = f"unknown field {location!r}"
        field_names = ", ".join(sorted(model.model_fields))
        return RequestError(f"{problem}; the fields are {field_names}", param=location, code="unknown_parameter")
    if mistake["type"] == "missing":
        return RequestError(f"{location} is missing", param=location, code="missing_required_parameter")
    if not location:  # checks over several fields begin with the one to change
        return RequestError(message, param=message.split(":", 1)[0], code="invalid_value")
    return RequestError(f"{location}: {message}", param=location, code="invalid_value")
