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
    def given(self) -> Sequence[str | dict[str, str]]:
        """What a skin would be asked with: texts that stand for its only input, or inputs by name."""
        return ()


def either(*kinds: type, said: str) -> BeforeValidator:
    """For a field that may be of several kinds: one message, where a union's would speak of each of them."""

    def check(value: Any) -> Any:
        if value is not None and not isinstance(value, kinds):
            raise ValueError(said)
        return value

    return BeforeValidator(check)


def first_mistake(error: ValidationError, model: type[BaseModel]) -> RequestError:
    """One message for the first thing that is wrong."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ""
    for part in found["loc"]:
        where += f"[{part}]" if isinstance(part, int) else f".{part}" if where else str(part)
    message = found["msg"].removeprefix("Value error, ")
    if found["type"] == "extra_forbidden":
        what = f"unknown field {where!r}"
        known = ", ".join(sorted(model.model_fields))
        return RequestError(f"{what}; the fields are {known}", param=where, code="unknown_parameter")
    if found["type"] == "missing":
        return RequestError(f"{where} is missing", param=where, code="missing_required_parameter")
    if not where:  # checks over several fields begin with the one to change
        return RequestError(message, param=message.split(":", 1)[0], code="invalid_value")
    return RequestError(f"{where}: {message}", param=where, code="invalid_value")
