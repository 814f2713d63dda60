"""Skins as the judges of a corpus recipe's rule `judged`."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bedplate.core.errors import ConfigError
from bedplate.data.corpus.curate.draft import Judge
from bedplate.data.corpus.recipe import CorpusRecipe
from bedplate.inference.predict.classical import ClassicalPredictor
from bedplate.inference.predict.loaded import load
from bedplate.inference.predict.skin_bases import LoadedSkin


@contextmanager
def judges_of(recipe: CorpusRecipe, directory: Path) -> Generator[dict[str, Judge]]:
    """The skins that the rule `judged` asks, by the name that the recipe gives, loaded while it is open. directory:
    where the recipe's paths begin. ConfigError where a skin has several inputs, or no such label."""
    settings = recipe.rules.get("judged")
    if not settings or not isinstance(settings.get("skin"), str) or not isinstance(settings.get("label"), str):
        yield {}  # what is missing is said where the rules are checked
        return
    name = settings["skin"]
    path = directory / Path(name).expanduser()
    with load(path) as loaded:
        yield {name: _judge(loaded, path, settings["label"])}


def _judge(loaded: object, path: Path, label: str) -> Judge:
    """Judges a text, the skin's one input, by the probability of a label."""
    if not isinstance(loaded, LoadedSkin | ClassicalPredictor):
        raise ConfigError(f"rules.judged: {path} is not a skin whose weights run on this machine")
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
