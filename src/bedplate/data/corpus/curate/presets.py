"""Every rule by name, and which of them make up a preset, in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pydantic

from bedplate.core.config import Strict
from bedplate.core.errors import ConfigError
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.data.corpus.curate import classifiers, quality
from bedplate.data.corpus.curate.draft import Rule, Tools


@dataclass(frozen=True)
class RuleKind:
    """Settings, what makes a rule of them, and modules of the extra `data` that it imports."""

    settings: type[Strict]
    build: Callable[[Any, Tools], Rule]
    needs: tuple[str, ...] = ()


_WORDS = ("datatrove", "spacy")


RULES: dict[str, RuleKind] = {
    "length": RuleKind(quality.LengthSettings, quality.length),
    "language": RuleKind(classifiers.LanguageSettings, classifiers.language, ("fasttext",)),
    "repetition": RuleKind(quality.RepetitionSettings, quality.repetition, _WORDS),
    "gopher": RuleKind(quality.GopherSettings, quality.gopher, _WORDS),
    "c4": RuleKind(quality.C4Settings, quality.c4, _WORDS),
    "fineweb": RuleKind(quality.FineWebSettings, quality.fineweb, _WORDS),
    "code": RuleKind(quality.CodeSettings, quality.code),
    "judged": RuleKind(classifiers.JudgedSettings, classifiers.judged),
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
        first = error.errors(include_url=False)[0]
        location = ".".join(map(str, ("rules", name, *first["loc"])))
        raise ConfigError(f"{location}: {first['msg']}") from error
