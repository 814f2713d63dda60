"""Modules that predict further tokens, as DeepSeek-V3's files number them: like layers after the last."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import replace

from bedplate.models.families.weights import Rule, renamed
from bedplate.models.specs.transformer import TransformerSpec

_LAYER = "layers.{i}."
COPIES = (r"model\.layers\.\d+\.(embed_tokens|shared_head\.head)\.weight",)
"""Each module's files hold the token table and the head once more."""


def prediction_rules(layer_rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The rules of the modules, whose blocks are stored as those of the layers."""
    theirs = f"model.{_LAYER}".replace("{i}", "{m}")
    return (
        renamed("predictions.{m}.token_norm.weight", f"{theirs}enorm.weight"),
        renamed("predictions.{m}.state_norm.weight", f"{theirs}hnorm.weight"),
        renamed("predictions.{m}.join.weight", f"{theirs}eh_proj.weight"),
        renamed("predictions.{m}.norm.weight", f"{theirs}shared_head.norm.weight"),
        *(
            replace(
                rule,
                ours=tuple(f"predictions.{{m}}.block.{name.removeprefix(_LAYER)}" for name in rule.ours),
                theirs=tuple(name.replace("{i}", "{m}") for name in rule.theirs),
            )
            for rule in layer_rules
        ),
    )


def held_modules(spec: TransformerSpec, names: Collection[str]) -> TransformerSpec:
    """With as many modules as the files hold: a config speaks of them also where they were left out."""
    module_layers = {
        match[1] for name in names if (match := re.fullmatch(r"model\.layers\.(\d+)\.eh_proj\.weight", name))
    }
    return spec.with_(prediction_modules=len(module_layers))
