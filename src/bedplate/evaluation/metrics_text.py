"""How near a text is to the right one: word F1, ROUGE and chrF, each in 0 to 1 for one row.

Word F1 and exact match: SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250). ROUGE: Lin (2004), W04-1013, F1 without
stemming. chrF: Popović (2015), W15-3049, with sacreBLEU's defaults (character 1- to 6-grams, recall weighs double).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Hashable, Sequence

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


def rouge_1(target: str, prediction: str | None) -> float:
    """F1 of single words."""
    return _rouge_n(target, prediction, 1)


def rouge_2(target: str, prediction: str | None) -> float:
    """F1 of pairs of neighbouring words: 0 where the target has but one word, as in the published scorers."""
    return _rouge_n(target, prediction, 2)


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


def _rouge_n(target: str, prediction: str | None, n: int) -> float:
    target_grams, predicted_grams = _grams(rouge_words(target), n), _grams(rouge_words(prediction or ""), n)
    return _f1(_shared(target_grams, predicted_grams), len(target_grams), len(predicted_grams))


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
