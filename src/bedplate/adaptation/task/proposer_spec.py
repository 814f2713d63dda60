"""`adapt.proposer`: who writes other instructions for the prompt search."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from bedplate.core.config import Strict
from bedplate.core.endpoint_spec import ApiUrl, EndpointSpec, KeyVariable, ModelName, Retries, Silence


class ProposerSpec(Strict):
    """A model behind an OpenAI-compatible API (`url`, `model`, and `api_key_env`, the environment variable that holds
    the key), or a base that runs here (`base`). number: how many instructions it is asked for."""

    url: ApiUrl | None = None
    model: ModelName | None = None
    api_key_env: KeyVariable | None = None
    base: str | None = None
    number: Annotated[int, Field(ge=1, le=64)] = 8
    timeout_s: Silence = 60.0
    retries: Retries = 4

    @model_validator(mode="after")
    def _check_source(self) -> ProposerSpec:
        if self.url is not None and self.base is not None:
            raise ValueError("a proposer is either a `url` with its `model`, or a `base`")
        if (self.url is None) != (self.model is None) or (self.url is None and self.api_key_env is not None):
            raise ValueError("`url`, `model` and `api_key_env` belong together")
        return self

    @property
    def endpoint(self) -> EndpointSpec | None:
        """The endpoint, where it is one."""
        named = self.model_dump(include=set(EndpointSpec.model_fields))
        return None if self.url is None else EndpointSpec.model_validate(named)
