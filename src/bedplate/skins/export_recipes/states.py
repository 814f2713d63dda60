"""The answers of this skin's head with numpy alone: `from recipe import answers, scores`.

The head reads states of the base for the prompt that prompt.json describes: `head.layer` says after how many blocks
(what transformers calls `hidden_states` of that number), `head.pooling` whether of the prompt's last token, its first,
or the mean of all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from bedplate.skins.export_recipes.labels import labels_of, log_probabilities

DIRECTORY = Path(__file__).parent
PROMPT_SPEC: dict[str, Any] = json.loads((DIRECTORY / "prompt.json").read_text("utf-8"))
with np.load(DIRECTORY / "weights.npz") as file:
    WEIGHTS = dict(file)


def pooled(states: np.ndarray) -> np.ndarray:
    """The features [D] of one prompt, from the states [T, D] of its tokens."""
    how = PROMPT_SPEC["head"]["pooling"]
    return states.mean(axis=0) if how == "mean" else states[-1 if how == "last" else 0]


def scores(features: np.ndarray) -> np.ndarray:
    """Log-probabilities [N, C] of the labels, in the order of prompt.json, from features [N, D]: of each label among
    them all, or where any number may be right, of each by itself."""
    return log_probabilities(features @ WEIGHTS["weight"].T + WEIGHTS["bias"], PROMPT_SPEC["output"])


def answers(features: np.ndarray) -> list[Any]:
    """The label of each row (or what is said where it is too unsure), or its list of labels."""
    return labels_of(scores(features), PROMPT_SPEC["output"])
