"""Labels as remote models give them: read out of what they say, and their likelihoods out of its first token."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from bedplate.core.errors import RequestError
from bedplate.data.splits import normalise
from bedplate.inference.remote.endpoint import RemoteAnswer
from bedplate.skins.output import LabelOutput

_AROUND = " \t\n\r.,;:!?\"'`*_()[]{}<>«»“”‘’-–—"


def read_label(labels: Sequence[str], text: str) -> str | None:
    """The label that an answer gives, or None where it gives none, or more than one.

    The answer is the label (whatever the case, and the quotes and punctuation around it), or names exactly one of them
    as whole words; a label within a longer one that is named does not count.
    """
    said = text.strip()
    if said in labels:
        return said
    folded = {normalise(label): label for label in labels}
    if len(folded) < len(labels):  # labels that differ in their case only are read exactly
        folded = {label: label for label in labels}
    else:
        said = normalise(said)
    whole = said.strip(_AROUND)
    if whole in folded:
        return folded[whole]
    found: set[str] = set()
    rest = said
    for name in sorted(folded, key=len, reverse=True):
        pattern = rf"(?<!\w){re.escape(name)}(?!\w)"
        if re.search(pattern, rest):
            found.add(folded[name])
            rest = re.sub(pattern, "\0", rest)
    return found.pop() if len(found) == 1 else None


def label_scores(output: LabelOutput, label: str, answer: RemoteAnswer) -> dict[str, float]:
    """Each label's log-probability among the labels, for an answer that was read as `label`; {} where it tells too
    little.

    They are Bedplate's own scores, or those of the first token's likeliest alternatives, each counted for the label
    that it alone begins; a label that none of them begins is as likely as the least of them at most. What an answer
    begins with says nothing of a label that comes later in it.
    """
    told = answer.extension.get("scores")
    if isinstance(told, Mapping) and set(told) == set(output.labels):
        return _normalised(output, [float(told[one]) for one in output.labels])
    if not answer.text.strip().casefold().startswith(label.casefold()):
        return {}
    alternatives = answer.alternatives
    mass = dict.fromkeys(output.labels, 0.0)
    for token, logprob in alternatives:
        begun = token.strip().casefold()
        owners = [one for one in output.labels if begun and one.casefold().startswith(begun)]
        if len(owners) == 1:
            mass[owners[0]] += math.exp(logprob)
    if not any(mass.values()):
        return {}
    least = math.exp(min(logprob for _, logprob in alternatives))
    return _normalised(output, [math.log(max(mass[one], least, 1e-30)) for one in output.labels])


def _normalised(output: LabelOutput, totals: Sequence[float]) -> dict[str, float]:
    try:
        return output.parse(totals)[1]
    except RequestError:  # NaN, or nothing but minus infinity
        return {}
