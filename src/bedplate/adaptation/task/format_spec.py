"""The `formats` of a task file: the quantised weights that a skin may be served in, where they are faster here and not
shown to cost quality."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import Field, field_validator, model_validator

from bedplate.core.config import Strict

Format = Literal["int8", "int4"]
FORMATS: tuple[Format, ...] = ("int8", "int4")


class FormatsSpec(Strict):
    """weights: "auto" tries those that this machine was measured to be faster in, a list these, an empty one (or
    `formats: none`) nothing. margin: a skin keeps a format whose metric on valid is shown to be worse by less.

    `formats: auto`, `formats: int8` and `formats: [int8, int4]` are short for `weights` alone.
    """

    weights: Literal["auto"] | tuple[Format, ...] = "auto"
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.01

    @model_validator(mode="before")
    @classmethod
    def _short(cls, values: Any) -> Any:
        # YAML reads `off` as false
        if values is None or values is False or values == "none":
            return {"weights": ()}
        if isinstance(values, str):
            return {"weights": values if values == "auto" else (values,)}
        if isinstance(values, list | tuple):
            return {"weights": cast("Any", values)}
        return values

    @field_validator("weights")
    @classmethod
    def _distinct(cls, weights: str | tuple[Format, ...]) -> str | tuple[Format, ...]:
        if len(set(weights)) < len(weights) and weights != "auto":
            raise ValueError("a format is named twice")
        return weights

    @property
    def allowed(self) -> tuple[Format, ...]:
        """The formats that may be tried."""
        return FORMATS if self.weights == "auto" else self.weights
