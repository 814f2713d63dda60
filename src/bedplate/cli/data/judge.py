"""A skin as a judge of texts, for the rule `judged`: its one input is the text, the answer a label's probability."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bedplate.core.errors import ConfigError

if TYPE_CHECKING:
    from bedplate.data.corpus.curate.draft import Judge


def judge_of(path: Path, label: str) -> Judge:
    """The skin, loaded. ConfigError where it has several inputs, or no such label."""
    from bedplate.inference.predict.loaded import LoadedSkin, load

    loaded = load(path)
    if not isinstance(loaded, LoadedSkin):
        raise ConfigError(f"rules.judged: {path} is no skin with weights on a base of this machine, such as a probe")
    inputs, labels = list(loaded.skin.inputs), getattr(loaded.skin.output, "labels", ())
    if len(inputs) != 1 or label not in labels:
        raise ConfigError(
            f"rules.judged: {path} reads {', '.join(inputs)} and answers {', '.join(labels) or 'no label'}; a skin "
            f"with one input and the label {label!r} is wanted"
        )

    def judge(texts: Sequence[str]) -> list[float]:
        answers = loaded.predict([{inputs[0]: text} for text in texts])
        return [math.exp(answer.scores[label]) for answer in answers]

    return judge
