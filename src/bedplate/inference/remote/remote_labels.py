"""Reads labels out of remote models' answers, and labels' likelihoods out of an answer's first token."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from bedplate.core.errors import RequestError
from bedplate.data.splits import normalise
from bedplate.inference.remote.endpoint import ChatAnswer
from bedplate.skins.output import Output

_AROUND = " \t\n\r.,;:!?\"'`*_()[]{}<>«»“”‘’-–—"


def read_label(labels: Sequence[str], text: str) -> str | None:
    """The label that an answer gives, or None where it gives none, or more than one. The answer is the label (whatever
    the case, and the quotes and punctuation around it), or names exactly one of them as whole words; a label within a
    longer one that is named does not count."""
    reply = text.strip()
    if reply in labels:
        return reply
    folded = {normalise(label): label for label in labels}
    if len(folded) < len(labels):  # labels that differ in their case only are read exactly
        folded = {label: label for label in labels}
    else:
        reply = normalise(reply)
    whole = reply.strip(_AROUND)
    if whole in folded:
        return folded[whole]
    matches: set[str] = set()
    remaining = reply
    for name in sorted(folded, key=len, reverse=True):
        pattern = rf"(?<!\w){re.escape(name)}(?!\w)"
        if re.search(pattern, remaining):
            matches.add(folded[name])
            remaining = re.sub(pattern, "\0", remaining)
    return matches.pop() if len(matches) == 1 else None


def label_scores(output: Output, label: str, answer: ChatAnswer) -> dict[str, float]:
    """Each label's log-probability among the labels, for an answer that was read as `label`; {} where it tells too
    little. They are Bedplate's own scores, or those of the first token's likeliest alternatives, each counted for the
    label that it alone begins; a label that none of them begins is as likely as the least of them at most. What an
    answer begins with says nothing of a label that comes later in it."""
    labels = output.scored_labels
    reported_scores = answer.extension.get("scores")
    if isinstance(reported_scores, Mapping) and set(reported_scores) == set(labels):
        return _normalised(output, [float(reported_scores[candidate]) for candidate in labels])
    if not answer.text.strip().casefold().startswith(label.casefold()):
        return {}
    alternatives = answer.alternatives
    mass = dict.fromkeys(labels, 0.0)
    for token, logprob in alternatives:
        begun = token.strip().casefold()
        owners = [candidate for candidate in labels if begun and candidate.casefold().startswith(begun)]
        if len(owners) == 1:
            mass[owners[0]] += math.exp(logprob)
    if not any(mass.values()):
        return {}
    floor = math.exp(min(logprob for _, logprob in alternatives))
    return _normalised(output, [math.log(max(mass[candidate], floor, 1e-30)) for candidate in labels])


def _normalised(output: Output, totals: Sequence[float]) -> dict[str, float]:
    try:
        return output.read_scores(totals)[1]
    except RequestError:  # NaN, or nothing but minus infinity
        return {}
