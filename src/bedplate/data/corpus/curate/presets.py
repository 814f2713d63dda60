"""Every rule by name, and which of them make up a preset, in order; with the rules that ask a model: the language of a
text, by fastText's model of 176 languages (Joulin et al., https://arxiv.org/abs/1607.01759), and the judgement of a
skin, which whoever runs the build hands in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

from bedplate.core.config import Strict, first_problem
from bedplate.core.errors import ConfigError
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.data.corpus.curate import quality
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


@dataclass(frozen=True)
class RuleKind:
    """Settings, what makes a rule of them, and modules of the extra `data` that it imports."""

    settings: type[Strict]
    build: Callable[[Any, Tools], Rule]
    needs: tuple[str, ...] = ()


_WORDS = ("datatrove", "spacy")


RULES: dict[str, RuleKind] = {
    "length": RuleKind(quality.LengthSettings, quality.length),
    "language": RuleKind(LanguageSettings, language, ("fasttext",)),
    "repetition": RuleKind(quality.RepetitionSettings, quality.repetition, _WORDS),
    "gopher": RuleKind(quality.GopherSettings, quality.gopher, _WORDS),
    "c4": RuleKind(quality.C4Settings, quality.c4, _WORDS),
    "fineweb": RuleKind(quality.FineWebSettings, quality.fineweb, _WORDS),
    "code": RuleKind(quality.CodeSettings, quality.code),
    "judged": RuleKind(JudgedSettings, judged),
    "personal": RuleKind(quality.PersonalSettings, quality.personal),
}
"""In the order that they are applied."""

PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    # FineWeb's own order and settings (https://arxiv.org/abs/2406.17557, appendix)
    "prose": {
        "length": {},
        "language": {},
        "repetition": {},
        "gopher": {},
        "c4": {"punctuated": False},
        "fineweb": {},
        "personal": {},
    },
    "code": {"length": {}, "code": {}, "personal": {}},
    "none": {"length": {}},
}
"""Rules with the settings that are not their defaults. `mixed` is `code` for what is source code, else `prose`."""


def rules_of(
    preset: str, over: Mapping[str, Mapping[str, Any] | None], tools: Tools, *, recipes: bool = True
) -> list[tuple[str, Rule]]:
    """The rules of a preset with the recipe's settings over its own: null takes one out, what it lacks is put in its
    place. recipes: whether the preset is the recipe's own; to any other, only a rule that no preset has is added, for
    settings of another preset's rule are meant for that one. Raises ConfigError for a rule or setting that there is
    not."""
    chosen: dict[str, Mapping[str, Any]] = dict(PRESETS[preset])
    owned = set[str]().union(*PRESETS.values())
    checked(over)
    for name, settings in over.items():
        if settings is None:
            chosen.pop(name, None)
        elif recipes or name in chosen or name not in owned:
            chosen[name] = {**chosen.get(name, {}), **settings}
    return [(name, rule.build(_settings(name, chosen[name]), tools)) for name, rule in RULES.items() if name in chosen]


def checked(over: Mapping[str, Mapping[str, Any] | None]) -> None:
    """ConfigError for a rule or a setting that there is not; nothing is loaded."""
    for name, settings in over.items():
        if name not in RULES:
            hint = did_you_mean(nearest(name, RULES)) or f"the rules are {', '.join(RULES)}"
            raise ConfigError(f"rules: there is no rule {name!r}; {hint}")
        if settings is not None:
            _settings(name, settings)


def _settings(name: str, settings: Mapping[str, Any]) -> Strict:
    model = RULES[name].settings
    try:
        return model.model_validate(dict(settings))
    except pydantic.ValidationError as error:
        raise ConfigError(first_problem(error, "rules", name)) from error
