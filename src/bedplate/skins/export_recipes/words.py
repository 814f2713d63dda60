"""The answers of this skin with numpy alone: `python recipe.py "a text"`, or `from recipe import answers, scores`.

A text is what the template of prompt.json makes of the inputs: of a skin with one input, that input as it is. Its words
and pairs of words are counted, weighed by how rare they are (TF-IDF), and a linear model gives each label a number.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from bedplate.skins.export_recipes.labels import labels_of, log_probabilities

DIRECTORY = Path(__file__).parent
PROMPT_SPEC: dict[str, Any] = json.loads((DIRECTORY / "prompt.json").read_text("utf-8"))
with np.load(DIRECTORY / "weights.npz") as file:
    WEIGHTS = dict(file)
TERMS: list[str] = json.loads((DIRECTORY / "vocabulary.json").read_text("utf-8"))["terms"]
PLACE = {term: number for number, term in enumerate(TERMS)}
WORD = re.compile(PROMPT_SPEC["head"]["word"])
FEWEST, MAX_NGRAM = PROMPT_SPEC["head"]["words"]


def features(text: str) -> np.ndarray:
    """TF-IDF of one text, [V], of unit length where the text has a known term."""
    words = WORD.findall(text.lower())
    terms = [" ".join(words[i : i + n]) for n in range(FEWEST, MAX_NGRAM + 1) for i in range(len(words) - n + 1)]
    vector = np.zeros(len(TERMS))
    for term, count in Counter(terms).items():
        if term in PLACE:
            vector[PLACE[term]] = 1 + np.log(count) if PROMPT_SPEC["head"]["sublinear"] else count
    vector = vector * WEIGHTS["idf"]
    return vector / (np.linalg.norm(vector) or 1.0)


def scores(texts: list[str]) -> np.ndarray:
    """Log-probabilities [N, C] of the labels, in the order of prompt.json: of each among them all, or where any number
    may be right, of each by itself."""
    logits = np.stack([features(text) for text in texts]) @ WEIGHTS["weight"].T + WEIGHTS["bias"]
    return log_probabilities(logits, PROMPT_SPEC["output"])


def answers(texts: list[str]) -> list[Any]:
    """The label of each text (or what is said where it is too unsure), or its list of labels."""
    return labels_of(scores(texts), PROMPT_SPEC["output"])


if __name__ == "__main__":
    for answer in answers(sys.argv[1:]):
        print(answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False))
