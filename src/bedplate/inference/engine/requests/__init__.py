"""The request types of the engine: one file per type, with its request, its result and its job.

`base` defines what all requests and results share, `job` how the engine runs a request, `table` which job class runs
which type.
"""

from bedplate.inference.engine.requests.base import (
    NO_TERMS,
    FinishReason,
    LookupContext,
    PromptVectors,
    Request,
    RequestTiming,
    Result,
    Retrieval,
    Step,
    Stream,
    Usage,
)
from bedplate.inference.engine.requests.generate import Generate, Generation
from bedplate.inference.engine.requests.pooled import Classification, Classify, Embed, Embedding, Label
from bedplate.inference.engine.requests.score import Score, Scores
from bedplate.inference.engine.sampling import MAX_ALTERNATIVES, MAX_SEED, Grammar, GrammarKind, Sampling
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
    "LookupContext",
    "Pooling",
    "PromptVectors",
    "Request",
    "RequestTiming",
    "Result",
    "Retrieval",
    "Sampling",
    "Score",
    "Scores",
    "Step",
    "Stream",
    "Usage",
]
