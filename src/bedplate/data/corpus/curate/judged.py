"""A model's judgement of quality, such as a probe skin's: what judges is handed in by whoever runs the build."""

from __future__ import annotations

from collections.abc import Sequence

from bedplate.core.config import Strict
from bedplate.core.errors import ConfigError
from bedplate.data.corpus.curate.draft import DraftDocument, Together, Tools


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
