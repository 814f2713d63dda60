"""The answers of this skin's head with numpy alone: `from recipe import answers, scores`, or of a skin that counts
words `python recipe.py "a text"`. (`bedplate skins export` writes this file beside the weights; nothing imports it.)

A head on words reads texts: what the template of prompt.json makes of the inputs; with one input, that as it is. Their
words and pairs of words are counted and weighed by how rare they are (TF-IDF). Another head reads states of the base
for the prompt that prompt.json describes: `head.layer` says after how many blocks (what transformers calls
`hidden_states` of that number), `head.pooling` whether of the prompt's last token, its first, or the mean of all.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

DIRECTORY = Path(__file__).parent
PROMPT_SPEC: dict[str, Any] = json.loads((DIRECTORY / "prompt.json").read_text("utf-8"))
HEAD, OUTPUT = PROMPT_SPEC["head"], PROMPT_SPEC["output"]
with np.load(DIRECTORY / "weights.npz") as file:
    WEIGHTS = dict(file)
COUNTS_WORDS = "word" in HEAD
TERMS = json.loads((DIRECTORY / "vocabulary.json").read_text("utf-8"))["terms"] if COUNTS_WORDS else []
PLACE = {term: number for number, term in enumerate(TERMS)}


def pooled(states: np.ndarray) -> np.ndarray:
    """The features [D] of one prompt, from the states [T, D] of its tokens."""
    return states.mean(axis=0) if HEAD["pooling"] == "mean" else states[-1 if HEAD["pooling"] == "last" else 0]


def features(text: str) -> np.ndarray:
    """TF-IDF of one text, [V], of unit length where the text has a known term."""
    words, (fewest, most) = re.findall(HEAD["word"], text.lower()), HEAD["words"]
    terms = [" ".join(words[i : i + n]) for n in range(fewest, most + 1) for i in range(len(words) - n + 1)]
    vector = np.zeros(len(TERMS))
    for term, count in Counter(terms).items():
        if term in PLACE:
            vector[PLACE[term]] = 1 + np.log(count) if HEAD["sublinear"] else count
    vector = vector * WEIGHTS["idf"]
    return vector / (np.linalg.norm(vector) or 1.0)


def scores(inputs: Any) -> np.ndarray:
    """Log-probabilities [N, C] of the labels, in the order of prompt.json, from texts or from features [N, D]: of each
    label among them all, or where any number may be right, of each by itself."""
    rows = np.stack([features(str(text)) for text in inputs]) if COUNTS_WORDS else np.asarray(inputs)
    logits = rows @ WEIGHTS["weight"].T + WEIGHTS["bias"]
    if OUTPUT["kind"] == "labels":
        return -np.logaddexp(0.0, -logits)
    highest = logits.max(axis=1, keepdims=True)
    return logits - highest - np.log(np.exp(logits - highest).sum(axis=1, keepdims=True))


def answers(inputs: Any) -> list[Any]:
    """The label of each row (or what is said where it is too unsure), or its list of labels."""
    log_scores, unsure = scores(inputs), OUTPUT.get("abstain")
    if OUTPUT["kind"] == "labels":
        chosen = log_scores >= np.log(OUTPUT["threshold"])
        return [[label for label, is_chosen in zip(OUTPUT["labels"], row, strict=True) if is_chosen] for row in chosen]
    labels = [OUTPUT["labels"][i] for i in log_scores.argmax(axis=1)]
    if unsure is None:
        return labels
    below = log_scores.max(axis=1) < np.log(unsure["below"])
    return [unsure["answer"] if no else label for label, no in zip(labels, below, strict=True)]


if __name__ == "__main__":
    for answer in answers(sys.argv[1:]):
        print(answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False))
