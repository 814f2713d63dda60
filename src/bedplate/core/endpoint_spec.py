"""A model behind an OpenAI-compatible API, as files name it; and the kinds of its fields, for files that name some."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from bedplate.core.address import api_address
from bedplate.core.config import Strict
from bedplate.core.errors import UsageError


def _address(url: str) -> str:
    try:
        api_address(url)
    except UsageError as error:
        raise ValueError(error.message) from None
    return url


ApiUrl = Annotated[str, AfterValidator(_address)]
ModelName = Annotated[str, Field(min_length=1)]
KeyVariable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""The environment variable that holds a key; a key itself is written into no file."""
Silence = Annotated[float, Field(gt=0)]
"""Seconds without a byte after which an answer is given up."""
Concurrency = Annotated[int, Field(ge=1, le=256)]
"""Rows that are asked at once."""
Retries = Annotated[int, Field(ge=0, le=20)]
"""How often a request is sent again after a failure that may pass."""


class EndpointSpec(Strict):
    """Where a model is and how it is asked. logprobs: ask for a label's likelihood, where the server offers it."""

    url: ApiUrl
    model: ModelName
    api_key_env: KeyVariable | None = None
    timeout_s: Silence = 60.0
    concurrency: Concurrency = 8
    retries: Retries = 4
    logprobs: bool = True
