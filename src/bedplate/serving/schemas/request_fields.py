"""Base class and field types of request models, and the one message about what is wrong in a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from bedplate.core.config import plain_message
from bedplate.core.errors import RequestError


class RequestFields(BaseModel):
    """Base of request models: exact types, no unknown fields, no NaN."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    @property
    def choices(self) -> int:
        """Number of answers per prompt."""
        return 1

    @property
    def skin_inputs(self) -> Sequence[str | dict[str, str]]:
        """The inputs for a skin: texts for its only input, or objects by input name."""
        return ()


def any_of_types(*types: type, message: str) -> BeforeValidator:
    """For a field that may be of several types: one message, where a union's would speak of each of them."""

    def check(value: Any) -> Any:
        if value is not None and not isinstance(value, types):
            raise ValueError(message)
        return value

    return BeforeValidator(check)


def openapi_queries(**schemas: dict[str, Any]) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads these optional query parameters."""
    optional = {"in": "query", "required": False}
    return {"parameters": [{"name": name, **optional, "schema": schema} for name, schema in schemas.items()]}


def first_mistake(error: ValidationError, model: type[BaseModel]) -> RequestError:
    """One message for the first thing that is wrong."""
    mistake = error.errors(include_url=False, include_context=False, include_input=False)[0]
    location = ""
    for part in mistake["loc"]:
        location += f"[{part}]" if isinstance(part, int) else f".{part}" if location else str(part)
    message = plain_message(mistake["msg"])
    if mistake["type"] == "extra_forbidden":
        problem = f"unknown field {location!r}"
        field_names = ", ".join(sorted(model.model_fields))
        return RequestError(f"{problem}; the fields are {field_names}", param=location, code="unknown_parameter")
    if mistake["type"] == "missing":
        return RequestError(f"{location} is missing", param=location, code="missing_required_parameter")
    if not location:  # checks over several fields begin with the one to change
        return RequestError(message, param=message.split(":", 1)[0], code="invalid_value")
    return RequestError(f"{location}: {message}", param=location, code="invalid_value")


MAX_STOPS = 16
"""The API itself takes 4; evaluation harnesses send more."""
MAX_STOP = 1024
"""Characters of one: what a text ends with is compared with their beginnings, at every token."""
MAX_BIASES = 1024
MAX_METADATA = 16
TOKEN_LIMIT = 2**31
SEED_LOW, SEED_HIGH = -(2**63), 2**63 - 1


def is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < TOKEN_LIMIT


def _stops_of(stop: Any) -> Any:
    stops = [stop] if isinstance(stop, str) else stop
    if isinstance(stops, list):
        if len(stops) > MAX_STOPS:
            raise ValueError(f"at most {MAX_STOPS} stop strings are supported")
        if not all(isinstance(text, str) and text for text in stops):
            raise ValueError("stop must be a string that is not empty, or a list of such strings")
        if any(len(text) > MAX_STOP for text in stops):
            raise ValueError(f"a stop string has at most {MAX_STOP:,} characters")
        return tuple(stops)
    return stops


def _biases_of(biases: Any) -> Any:
    """{token id as text: bias} as pairs."""
    if biases is None:
        return None
    if not isinstance(biases, dict) or len(biases) > MAX_BIASES:
        raise ValueError(f"it must be an object of at most {MAX_BIASES:,} biases by token id")
    for key, bias in biases.items():
        if not (isinstance(key, str) and key.isascii() and key.isdecimal() and int(key[:11]) < TOKEN_LIMIT):
            raise ValueError(f"{str(key)[:40]!r} is not a token id")
        if type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise ValueError(f"the bias of token {key} must be a number between -100 and 100")
    return tuple((int(key), float(bias)) for key, bias in biases.items())


def _ids_of(ids: Any) -> Any:
    if ids is not None and not (isinstance(ids, list) and len(ids) <= MAX_BIASES and all(map(is_id, ids))):
        raise ValueError(f"it must be a list of at most {MAX_BIASES:,} token ids")
    return ids if ids is None else tuple(ids)


def _metadata_of(value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, dict) or len(value) > MAX_METADATA:
        raise ValueError(f"metadata must be an object of at most {MAX_METADATA} texts")
    if not all(len(key) <= 64 and isinstance(text, str) and len(text) <= 512 for key, text in value.items()):
        raise ValueError("metadata holds texts of at most 512 characters under names of at most 64")
    return value


Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(gt=0, le=1)]
TopK = Annotated[int, Field(ge=-1, le=TOKEN_LIMIT), AfterValidator(lambda count: max(count, 0))]
"""0 is off, and so is −1, as vLLM has it."""
MinP = Annotated[float, Field(ge=0, le=1)]
RepetitionPenalty = Annotated[float, Field(gt=0, le=100)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Seed = Annotated[int, Field(ge=SEED_LOW, le=SEED_HIGH)]
Stops = Annotated[tuple[str, ...], BeforeValidator(_stops_of, json_schema_input_type=str | list[str])]
Biases = Annotated[tuple[tuple[int, float], ...], BeforeValidator(_biases_of, json_schema_input_type=dict[str, float])]
TokenIds = Annotated[tuple[int, ...], BeforeValidator(_ids_of, json_schema_input_type=list[int])]
Metadata = Annotated[dict[str, str], BeforeValidator(_metadata_of)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
"""How much is to be reasoned before the answer; for models whose template asks for it."""
