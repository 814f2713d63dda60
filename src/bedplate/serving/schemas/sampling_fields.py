"""The kinds of the sampling fields, for every API that has them: their ranges, and the shapes that they may come in."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

MAX_STOPS = 16
"""The API itself takes 4; evaluation harnesses send more."""
MAX_STOP = 1024
"""Characters of one: what a text ends with is compared with their beginnings, at every token."""
MAX_BIASES = 1024
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
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
"""How much is to be reasoned before the answer; for models whose template asks for it."""
