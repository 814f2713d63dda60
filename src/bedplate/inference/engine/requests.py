"""What an engine can be asked, and what it answers: the names of `kinds`, for those who ask."""

from bedplate.inference.engine.kinds.classify import Classification, Classify
from bedplate.inference.engine.kinds.embed import Embed, Embedding
from bedplate.inference.engine.kinds.generate import Generate, Generation
from bedplate.inference.engine.kinds.label import Label
from bedplate.inference.engine.kinds.request import (
    NO_TERMS,
    FinishReason,
    LookedUp,
    LookupContext,
    Request,
    RequestTiming,
    Result,
    Step,
    Usage,
)
from bedplate.inference.engine.kinds.sampling import MAX_ALTERNATIVES, MAX_SEED, Grammar, GrammarKind, Sampling
from bedplate.inference.engine.kinds.score import Score, Scores
from bedplate.models.specs.sentence import Pooling

__all__ = [
    "MAX_ALTERNATIVES",
    "MAX_SEED",
    "NO_TERMS",
    "Classification",
    "Classify",
    "Embed",
    "Embedding",
    "FinishReason",
    "Generate",
    "Generation",
    "Grammar",
    "GrammarKind",
    "Label",
    "LookedUp",
    "LookupContext",
    "Pooling",
    "Request",
    "RequestTiming",
    "Result",
    "Sampling",
    "Score",
    "Scores",
    "Step",
    "Usage",
]
