"""`adapt.hosted`: remote models as candidates, each with its price and a cap on what it may cost the climb."""

from __future__ import annotations

import datetime
from typing import Annotated

from pydantic import Field, field_validator

from bedplate.core.config import Strict
from bedplate.core.errors import UsageError
from bedplate.inference.remote.account import Price
from bedplate.inference.remote.endpoint import Endpoint
from bedplate.skins.skin import EndpointReference

Dollars = Annotated[float, Field(ge=0)]


class HostedSpec(Strict):
    """A model behind an OpenAI-compatible API. The prices are the provider's list as of a date; a key is never written
    here, but kept in the environment variable `api_key_env`. max_usd: what all questions of this climb may cost.
    logprobs: ask for the likelihoods of labels, where the server offers them."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    url: str
    model: Annotated[str, Field(min_length=1)]
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    usd_per_million_input: Dollars
    usd_per_million_cached_input: Dollars | None = None
    usd_per_million_output: Dollars
    as_of: datetime.date
    concurrency: Annotated[int, Field(ge=1, le=256)] = 8
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    retries: Annotated[int, Field(ge=0, le=20)] = 4
    max_usd: Annotated[float, Field(gt=0)] = 1.0
    logprobs: bool = True

    @field_validator("url")
    @classmethod
    def _address(cls, url: str) -> str:
        try:
            Endpoint(url).close()
        except UsageError as error:
            raise ValueError(error.message) from None
        return url

    @property
    def price(self) -> Price:
        """Cached tokens cost what others do where nothing else is said."""
        cached = self.usd_per_million_cached_input
        whole = self.usd_per_million_input
        return Price(whole, whole if cached is None else cached, self.usd_per_million_output)

    @property
    def reference(self) -> EndpointReference:
        """The endpoint as a skin names it."""
        return EndpointReference(
            url=self.url,
            model=self.model,
            api_key_env=self.api_key_env,
            timeout_s=self.timeout_s,
            concurrency=self.concurrency,
            retries=self.retries,
            logprobs=self.logprobs,
        )
