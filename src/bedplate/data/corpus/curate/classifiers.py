"""Rules that ask a model: the language of a text, by fastText's model of 176 languages (Joulin et al.,
https://arxiv.org/abs/1607.01759), and the judgement of a skin, which whoever runs the build hands in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bedplate.core.config import Strict
from bedplate.core.errors import ConfigError
from bedplate.data.corpus.curate.draft import DraftDocument, Rule, Together, Tools

MODEL = "lid-176"
"""The model's name in the catalogue."""


class LanguageSettings(Strict):
    """languages: by default the recipe's; at_least: the model's probability (FineWeb's: 0.65). characters: so many from
    a text's beginning are read."""

    languages: tuple[str, ...] | None = None
    at_least: float = 0.65
    characters: int = 1000


def language(settings: LanguageSettings, tools: Tools) -> Rule:
    """In another language than wanted, or in none that is told for sure."""
    model: Any = load()
    languages = settings.languages or (tools.language,)

    def rule(draft: DraftDocument) -> str | None:
        text = draft.text[: settings.characters].replace("\n", " ")
        [(score, label)] = model.f.predict(text + "\n", 1, 0.0, "strict") or [(0.0, "__label__none")]
        detected = label.removeprefix("__label__")
        if detected in languages and score >= settings.at_least:
            return None
        return f"{detected}: {score:.2f}" + (f", below {settings.at_least:g}" if detected in languages else "")

    return rule


def load() -> Any:
    """fastText's model, pulled where it is not cached."""
    from fasttext import FastText

    from bedplate.hub.pull import pull

    path = Path(pull(MODEL, quiet=True).path)
    return FastText._FastText(str(path))  # pyright: ignore[reportPrivateUsage] (load_model prints a warning)


class JudgedSettings(Strict):
    """skin: its directory; label: which of its labels is worth keeping; at_least: how probable that must be.
    characters: so many from a text's beginning are judged."""

    skin: str
    label: str
    at_least: float = 0.5
    characters: int = 2000


def judged(settings: JudgedSettings, tools: Tools) -> Together:
    """ConfigError where nobody can run the skin."""
    judge = tools.judges.get(settings.skin)
    if judge is None:
        raise ConfigError(f"rules.judged: {settings.skin!r} was not loaded; `bedplate data build` does that")

    def rule(drafts: Sequence[DraftDocument]) -> list[str | None]:
        scores = judge([draft.text[: settings.characters] for draft in drafts])
        return [None if score >= settings.at_least else f"{settings.label}: {score:.3f}" for score in scores]

    return Together(rule)
