"""Training objectives: OBJECTIVES, the table of those that learn from plain texts.

Callers construct the others: `Sft` from examples with a completion, `ClassificationObjective` from labels,
`Contrastive` from pairs of texts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from bedplate.core.errors import ConfigError
from bedplate.core.suggestions import did_you_mean, nearest

if TYPE_CHECKING:
    from bedplate.training.objectives.objective import TextObjective


class Deferred:
    """A class named as "module:name", imported when it is called, so that reading the table's names (the first check of
    a run file) loads no torch."""

    def __init__(self, path: str) -> None:
        self.path = f"bedplate.training.objectives.{path}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)

    @property
    def __wrapped__(self) -> Callable[..., Any]:  # the attribute that `inspect.signature` follows
        module, _, name = self.path.partition(":")
        return getattr(import_module(module), name)


OBJECTIVES: dict[str, Callable[..., TextObjective]] = {
    "next_token": Deferred("language:NextToken"),
    "masked": Deferred("corruption:Masked"),
    "span_corruption": Deferred("corruption:SpanCorruption"),
    "mixture_of_denoisers": Deferred("corruption:MixtureOfDenoisers"),
    "fill_in_middle": Deferred("corruption:FillInMiddle"),
    "contrastive": Deferred("contrastive:Crops"),
}
"""By name; called without arguments, or with their settings."""


def check_objective(name: str) -> None:
    """ConfigError for a name that is not in the table."""
    if name not in OBJECTIVES:
        hint = did_you_mean(nearest(name, OBJECTIVES)) or f"use {', '.join(OBJECTIVES)}"
        raise ConfigError(f"there is no objective {name!r}; {hint}")


def objective_of(name: str, settings: Mapping[str, Any], modules: int = 0) -> TextObjective:
    """The objective of this name with these settings. modules: number of the model's modules that predict further
    tokens; next_token trains them with the weight `further` (0.3). ConfigError for settings that the objective does not
    have."""
    check_objective(name)
    settings = dict(settings)
    if name == "next_token":
        from bedplate.training.objectives.language import MultiTokenPrediction

        weight = settings.pop("further", MultiTokenPrediction.weight)
        if not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise ConfigError(f"the settings of the objective {name}: further is {weight!r}: it is a weight, 0 or more")
        settings["further"] = MultiTokenPrediction(modules, weight) if modules and weight else None
    parameters = inspect.signature(OBJECTIVES[name]).parameters
    for key in settings:
        if key not in parameters:
            hint = did_you_mean(nearest(key, parameters)) or f"its settings are {', '.join(parameters) or 'none'}"
            raise ConfigError(f"the objective {name} has no setting {key!r}; {hint}")
    try:
        return OBJECTIVES[name](**settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the settings of the objective {name}: {error}") from error
