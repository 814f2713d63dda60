"""What request models are made of."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Fields(BaseModel):
    """What every request model is: exact types, no unknown fields, no NaN."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


def either(*kinds: type, said: str) -> BeforeValidator:
    """For a field that may be of several kinds: one message, where a union's would speak of each of them."""

    def check(value: Any) -> Any:
        if value is not None and not isinstance(value, kinds):
            raise ValueError(said)
        return value

    return BeforeValidator(check)
