"""What a run minimises. OBJECTIVES is the table of those that learn from texts as they are; `Sft` needs examples with a
completion, `Classification` labels and a head, `Contrastive` texts that are known to belong together (in the table, two
crops of one text do)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from bedplate.core.errors import ConfigError
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.training.objectives.classification import ClassificationObjective
from bedplate.training.objectives.contrastive import Contrastive
from bedplate.training.objectives.corrupting import CorruptedSource, Corrupting, CorruptionVocabulary
from bedplate.training.objectives.crops import Crops
from bedplate.training.objectives.language import MultiTokenPrediction, NextToken, Sft
from bedplate.training.objectives.masked import Masked
from bedplate.training.objectives.middle import FillInMiddle
from bedplate.training.objectives.objective import AnyModel, Models, Objective, Scope, Term
from bedplate.training.objectives.pairs import PairBatch, PairSource, TextPair, pack_pairs
from bedplate.training.objectives.spans import MixtureOfDenoisers, SpanCorruption

OBJECTIVES: dict[str, Callable[..., Objective[Any]]] = {
    "next_token": NextToken,
    "masked": Masked,
    "span_corruption": SpanCorruption,
    "mixture_of_denoisers": MixtureOfDenoisers,
    "fill_in_middle": FillInMiddle,
    "contrastive": Crops,
}
"""By name; called without arguments, or with their settings."""


def kinds_of(objective: Objective[Any]) -> tuple[str, ...]:
    """Of models that can learn it; none where it does not say, and any may be tried."""
    return objective.architectures if isinstance(objective, NextToken | Corrupting) else ()


def objective_of(name: str, settings: Mapping[str, Any], modules: int = 0) -> Objective[Any]:
    """A row of the table with these settings. modules: of the model, that predict further tokens; next_token teaches
    them, with the weight `further` (0.3). ConfigError for what the objective does not have."""
    if name == Sft.name:
        raise ConfigError(
            "the objective sft learns the completions of examples, and texts have none: use next_token, or tune a base "
            "with `bedplate adapt`"
        )
    if name not in OBJECTIVES:
        raise ConfigError(f"there is no objective {name!r}; use {', '.join(OBJECTIVES)}")
    settings = dict(settings)
    if name == "next_token":
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


__all__ = [
    "OBJECTIVES",
    "AnyModel",
    "ClassificationObjective",
    "Contrastive",
    "CorruptedSource",
    "Corrupting",
    "CorruptionVocabulary",
    "Crops",
    "FillInMiddle",
    "Masked",
    "MixtureOfDenoisers",
    "Models",
    "MultiTokenPrediction",
    "NextToken",
    "Objective",
    "PairBatch",
    "PairSource",
    "Scope",
    "Sft",
    "SpanCorruption",
    "Term",
    "TextPair",
    "kinds_of",
    "objective_of",
    "pack_pairs",
]
