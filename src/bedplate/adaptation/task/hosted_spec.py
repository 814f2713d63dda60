"""`adapt.hosted`: remote models as candidates, each with its price and a cap on what it may cost the climb."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from bedplate.core.endpoint_spec import EndpointSpec

if TYPE_CHECKING:
    from bedplate.inference.remote.account import TokenPrices
    from bedplate.skins.skin import EndpointReference

Dollars = Annotated[float, Field(ge=0)]


class HostedSpec(EndpointSpec):
    """An endpoint as a candidate. The prices are the provider's list as of a date. max_usd: what all questions of this
    climb may cost."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    usd_per_million_input: Dollars
    usd_per_million_cached_input: Dollars | None = None
    usd_per_million_output: Dollars
    as_of: datetime.date
    max_usd: Annotated[float, Field(gt=0)] = 1.0

    @property
    def price(self) -> TokenPrices:
        """Cached tokens cost what others do where nothing else is said."""
        from bedplate.inference.remote.account import TokenPrices

        cached = self.usd_per_million_cached_input
        whole = self.usd_per_million_input
        return TokenPrices(whole, whole if cached is None else cached, self.usd_per_million_output)

    @property
    def reference(self) -> EndpointReference:
        """The endpoint as a skin names it."""
        from bedplate.skins.skin import EndpointReference  # a task file is read without torch

        return EndpointReference(**self.model_dump(include=set(EndpointSpec.model_fields)))
