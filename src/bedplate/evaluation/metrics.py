"""Metrics: a mean of row scores, or a statistic of all rows at once (macro-F1), and their table `METRICS`.

Targets and predictions are texts: a label, a text, JSON in canonical form, or a JSON list of labels or document ids.
"""

from __future__ import annotations

import json
import math
import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from bedplate.core.values import Values
from bedplate.data.splits import normalise

Counts = NDArray[np.float64]
"""[..., 3, L]: for each label how often it was rightly given, wanted, and given."""

Scoring = Literal["binary", "real", "counts", "answered"]
"""What a metric's number is made of, declared and never guessed from values: the mean of rows that score 0 or 1, of all
or of those that were answered (both: bounds on the effective n), the mean of rows that score in 0 to 1, or a statistic
of label counts (both: cluster bootstrap)."""


@dataclass(frozen=True)
class AnsweredRow:
    """What a row's score may depend on. `prediction` is canonical; None where nothing could be parsed."""

    id: str
    inputs: Values
    target: str
    prediction: str | None


class Scorer(Protocol):
    """Scores rows in 0 to 1, one number for each in order. `name` and `scoring` are kept with the evaluation."""

    @property
    def name(self) -> str: ...
    @property
    def scoring(self) -> Scoring: ...
    def ready(self) -> None:
        """Raises what would otherwise come out after a model was asked for everything: a key that is not set."""
        ...

    def score(self, rows: Sequence[AnsweredRow]) -> list[float]: ...


@dataclass(frozen=True)
class Metric:
    """`row(target, prediction)` scores one row in 0 to 1 (prediction None: nothing could be parsed, always 0). `real`:
    rows may score between 0 and 1. `selective`: rows without an answer, where the skin abstained, do not count.
    `statistic`, where there is one, replaces the mean of rows: it takes counts [..., 3, L] summed over rows, and gives
    [...]. `per_label`: it is a mean over labels. `outputs` are the kinds of output the metric fits."""

    name: str
    outputs: tuple[str, ...]
    row: Callable[[str, str | None], float]
    real: bool = False
    selective: bool = False
    statistic: Callable[[Counts], NDArray[np.float64]] | None = None
    per_label: bool = False

    @property
    def scoring(self) -> Scoring:
        if self.statistic is not None:
            return "counts"
        if self.selective:
            return "answered"
        return "real" if self.real else "binary"

    def ready(self) -> None:
        """A metric of the table needs nothing."""

    def score(self, rows: Sequence[AnsweredRow]) -> list[float]:
        return [self.row(row.target, row.prediction) for row in rows]


def _exact_match(target: str, prediction: str | None) -> float:
    """Equal as they are: labels, and JSON in its canonical form."""
    return float(target == prediction)


def _same_normalised(target: str, prediction: str | None) -> float:
    """Equal after NFKC, case folding and collapsing whitespace; punctuation and articles count."""
    return float(prediction is not None and normalise(target) == normalise(prediction))


def macro_f1(counts: Counts) -> NDArray[np.float64]:
    """Mean of the labels' F1 = 2tp / (2tp + fp + fn), over the labels that occur as a target or a prediction."""
    right, total = counts[..., 0, :], counts[..., 1, :] + counts[..., 2, :]
    occurs = total > 0
    label_f1 = np.divide(2 * right, total, out=np.zeros_like(right), where=occurs)
    return label_f1.sum(-1) / np.maximum(occurs.sum(-1), 1)


def micro_f1(counts: Counts) -> NDArray[np.float64]:
    """F1 of all (row, label) pairs together; 1 where no label is wanted and none is given."""
    right, total = counts[..., 0, :].sum(-1), (counts[..., 1, :] + counts[..., 2, :]).sum(-1)
    return np.divide(2 * right, total, out=np.ones_like(right), where=total > 0)


def example_f1(target: str, prediction: str | None) -> float:
    """F1 of one row's set of labels: 1 where none is wanted and none is given."""
    if prediction is None:
        return 0.0
    targets, predicted = set(json.loads(target)), set(json.loads(prediction))
    return 2 * len(targets & predicted) / (len(targets) + len(predicted)) if targets or predicted else 1.0


# --- JSON, field by field


def json_fields(target: str, prediction: str | None) -> float:
    """Mean over the leaf fields that either value has: 1 where they agree, 0 where one lacks the field. A leaf is a
    number, text, boolean, null or empty list or object; its field is the names on the way to it. Numbers are compared
    by value (4 = 4.0), texts as exact_match compares them. The items of a list share one field, whatever their order:
    it scores those found in both over the longer list. Nothing parsed (None) scores 0."""
    if prediction is None:
        return 0.0
    a, b = _fields(json.loads(target)), _fields(json.loads(prediction))
    names = a.keys() | b.keys()
    return sum((a[name] & b[name]).total() / max(a[name].total(), b[name].total()) for name in names) / len(names)


def _fields(value: Any) -> defaultdict[tuple[str, ...], Counter[Hashable]]:
    fields: defaultdict[tuple[str, ...], Counter[Hashable]] = defaultdict(Counter)
    for name, leaf in _leaves(value, ()):
        fields[name][leaf] += 1
    return fields


def _leaves(value: Any, name: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Hashable]]:
    """Every leaf as (field, what is compared). Lists add nothing to the name."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*name, key))
    elif isinstance(value, list) and value:
        for child in value:
            yield from _leaves(child, name)
    elif isinstance(value, str):
        yield name, ("text", normalise(value))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, ("number", value)  # 4 and 4.0 are equal and hash alike
    else:
        yield name, ("other", json.dumps(value))


# --- ranked documents: targets are JSON lists of the relevant ids, predictions of ranked ones
# nDCG: Järvelin & Kekäläinen (2002), ACM TOIS 20:422, with binary gains and log2 discounts, as in BEIR (2104.08663).

RowScore = Callable[[str, str | None], float]


def ndcg_at(k: int) -> RowScore:
    """Discounted gain of the first k over that of the best order. A query without relevant documents scores 0."""

    def row(target: str, prediction: str | None) -> float:
        relevant, ranked = _read(target, prediction)
        gain = sum(1 / math.log2(place + 2) for place, document in enumerate(ranked[:k]) if document in relevant)
        best = sum(1 / math.log2(place + 2) for place in range(min(k, len(relevant))))
        return gain / best if best else 0.0

    return row


def recall_at(k: int) -> RowScore:
    """Share of the relevant documents that are among the first k."""

    def row(target: str, prediction: str | None) -> float:
        relevant, ranked = _read(target, prediction)
        return len(relevant.intersection(ranked[:k])) / len(relevant) if relevant else 0.0

    return row


def reciprocal_rank_at(k: int) -> RowScore:
    """1 over the place of the first relevant document, 0 where it is not among the first k."""

    def row(target: str, prediction: str | None) -> float:
        relevant, ranked = _read(target, prediction)
        return next((1 / (place + 1) for place, document in enumerate(ranked[:k]) if document in relevant), 0.0)

    return row


def _read(target: str, prediction: str | None) -> tuple[set[str], list[str]]:
    return set(json.loads(target)), [] if prediction is None else json.loads(prediction)


# --- texts, each score in 0 to 1 for one row
# Word F1 and exact match: SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250). ROUGE: Lin (2004), W04-1013, F1 without
# stemming. chrF: Popović (2015), W15-3049, with sacreBLEU's defaults (character 1- to 6-grams, recall weighs double).

CHRF_ORDER, CHRF_BETA = 6, 2

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WORDS = re.compile(r"[^\W_]+")


def squad_words(text: str) -> list[str]:
    """The words that SQuAD's script compares: lower case, without ASCII punctuation and without a, an, the."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def squad_exact(target: str, prediction: str | None) -> float:
    """1 where the same words stand in the same order, case, punctuation and articles apart."""
    return float(prediction is not None and squad_words(target) == squad_words(prediction))


def token_f1(target: str, prediction: str | None) -> float:
    """F1 of the words that both have, repeats counted. Where either has no words: 1 if neither has, else 0."""
    if prediction is None:
        return 0.0
    target_words, predicted_words = squad_words(target), squad_words(prediction)
    if not target_words or not predicted_words:
        return float(target_words == predicted_words)
    return _f1(_shared(target_words, predicted_words), len(target_words), len(predicted_words))


def rouge_n(target: str, prediction: str | None, n: int) -> float:
    """F1 of n neighbouring words: 0 where the target has fewer words, as in the published scorers."""
    target_grams, predicted_grams = _grams(rouge_words(target), n), _grams(rouge_words(prediction or ""), n)
    return _f1(_shared(target_grams, predicted_grams), len(target_grams), len(predicted_grams))


def rouge_l(target: str, prediction: str | None) -> float:
    """F1 of the longest common subsequence of words, over the whole text as one sequence."""
    target_words, predicted_words = rouge_words(target), rouge_words(prediction or "")
    return _f1(_longest_common(target_words, predicted_words), len(target_words), len(predicted_words))


def rouge_words(text: str) -> list[str]:
    """Runs of letters and digits, lower case: the published scorers' tokens for ASCII, whole words in other scripts."""
    return _WORDS.findall(text.lower())


def chrf(target: str, prediction: str | None) -> float:
    """Character n-gram F-score of one row; white space does not count."""
    target_text, predicted_text = "".join(target.split()), "".join((prediction or "").split())
    precision = recall = 0.0
    orders = min(CHRF_ORDER, len(target_text), len(predicted_text))  # only orders of which both have n-grams
    for n in range(1, orders + 1):
        hits = _shared(_grams(target_text, n), _grams(predicted_text, n))
        precision += hits / (len(predicted_text) - n + 1) / orders
        recall += hits / (len(target_text) - n + 1) / orders
    if precision + recall == 0:
        return 0.0
    weight = CHRF_BETA**2
    return (1 + weight) * precision * recall / (weight * precision + recall)


def _f1(hits: int, target_count: int, predicted_count: int) -> float:
    return 2 * hits / (target_count + predicted_count) if hits else 0.0


def _grams(tokens: Sequence[str], n: int) -> list[Hashable]:
    whole = tokens if isinstance(tokens, str) else tuple(tokens)
    return [whole[i : i + n] for i in range(len(whole) - n + 1)]


def _shared(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """How many items both have, repeats counted."""
    return (Counter(a) & Counter(b)).total()


def _longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, all of a column at once as the bits of an integer (Crochemore et al.
    2001, Information Processing Letters 80:279)."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        hit = row & places.get(word, 0)
        row = (row + hit | row - hit) & full
    return len(a) - row.bit_count()


METRICS: dict[str, Metric] = {
    "accuracy": Metric("accuracy", ("label",), _exact_match),
    "macro_f1": Metric("macro_f1", ("label", "labels"), _exact_match, statistic=macro_f1, per_label=True),
    "selective_accuracy": Metric("selective_accuracy", ("label",), _exact_match, selective=True),
    "micro_f1": Metric("micro_f1", ("labels",), _exact_match, statistic=micro_f1),
    "labels_match": Metric("labels_match", ("labels",), _exact_match),
    "example_f1": Metric("example_f1", ("labels",), example_f1, real=True),
    "json_match": Metric("json_match", ("json",), _exact_match),
    "json_fields": Metric("json_fields", ("json",), json_fields, real=True),
    "exact_match": Metric("exact_match", ("text", "label"), _same_normalised),
    "squad_exact": Metric("squad_exact", ("text",), squad_exact),
    "token_f1": Metric("token_f1", ("text",), token_f1, real=True),
    "rouge_1": Metric("rouge_1", ("text",), partial(rouge_n, n=1), real=True),
    "rouge_2": Metric("rouge_2", ("text",), partial(rouge_n, n=2), real=True),
    "rouge_l": Metric("rouge_l", ("text",), rouge_l, real=True),
    "chrf": Metric("chrf", ("text",), chrf, real=True),
    "ndcg@10": Metric("ndcg@10", ("embedding",), ndcg_at(10), real=True),
    "mrr@10": Metric("mrr@10", ("embedding",), reciprocal_rank_at(10), real=True),
    "recall@1": Metric("recall@1", ("embedding",), recall_at(1), real=True),
    "recall@10": Metric("recall@10", ("embedding",), recall_at(10), real=True),
    "recall@100": Metric("recall@100", ("embedding",), recall_at(100), real=True),
}
