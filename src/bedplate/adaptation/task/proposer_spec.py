"""`adapt.proposer`: who writes other instructions for the prompt search."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from bedplate.core.config import Strict
from bedplate.core.errors import UsageError
from bedplate.inference.remote.endpoint import Endpoint
from bedplate.skins.skin import EndpointReference


class ProposerSpec(Strict):
    """A model behind an OpenAI-compatible API (`url`, `model`, and `api_key_env`, the environment variable that holds
    the key), or a base that runs here (`base`). number: how many instructions it is asked for."""

    url: str | None = None
    model: str | None = None
    api_key_env: str | None = None
    base: str | None = None
    number: Annotated[int, Field(ge=1, le=64)] = 8
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    retries: Annotated[int, Field(ge=0, le=20)] = 4

    @field_validator("url")
    @classmethod
    def _address(cls, url: str | None) -> str | None:
        try:
            if url is not None:
                Endpoint(url).close()
        except UsageError as error:
            raise ValueError(error.message) from None
        return url

    @model_validator(mode="after")
    def _one(self) -> ProposerSpec:
        if self.url is not None and self.base is not None:
            raise ValueError("a proposer is either a `url` with its `model`, or a `base`")
        if (self.url is None) != (self.model is None) or (self.url is None and self.api_key_env is not None):
            raise ValueError("`url`, `model` and `api_key_env` belong together")
        return self

    @property
    def reference(self) -> EndpointReference | None:
        """The endpoint, where it is one."""
        if self.url is None or self.model is None:
            return None
        return EndpointReference(
            url=self.url,
            model=self.model,
            api_key_env=self.api_key_env,
            timeout_s=self.timeout_s,
            retries=self.retries,
        )
