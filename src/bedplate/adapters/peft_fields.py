"""What an `adapter_config.json` says, read strictly: fields that are not known, or that change what is computed in a
way that is not built, are refused by their names."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import regex
from pydantic import ValidationError

from bedplate.adapters.lora import ALL_LINEAR, LoraConfig
from bedplate.core.errors import SkinError
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.models.families.weights import WeightMap

_PATTERN_CHARACTERS, _PATTERN_SECONDS = 4000, 1.0

_READ = (
    *("peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora"),
    *("target_modules", "target_parameters", "rank_pattern", "alpha_pattern", "init_lora_weights"),
)
# Fields that change what the adapter computes, with the values under which they change nothing.
_INERT: dict[str, tuple[Any, ...]] = {
    "bias": (None, "none"),
    "lora_bias": (None, False),
    "fan_in_fan_out": (None, False),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "use_qalora": (None, False),
    "use_bdlora": (None, False),
    "alora_invocation_tokens": (None, []),
    "arrow_config": (None,),
    "velora_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
}
_FREE = (
    # where it is from, and how it is held and run
    *("task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version"),
    *("megatron_config", "megatron_core", "runtime_config", "merge_weights"),
    # which modules were chosen: the tensors say it
    *("exclude_modules", "layers_to_transform", "layers_pattern"),
    # details of other fields, each without effect where that one has none
    *("qalora_group_size", "ensure_weight_tying", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
)
"""Without effect on what a finished adapter computes."""

_BASE_KEPT = ("gaussian", "eva", "orthogonal", "mica")
"""Initialisations that leave the base's weights as they are, and so concern training alone."""
_BASE_CHANGED = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""Initialisations that subtract their start from the base's weights (or quantise them): the saved adapter belongs to
the changed base."""


def check_fields(fields: Mapping[str, Any], path: Path, weights: WeightMap) -> None:
    """SkinError for another kind of adapter than LoRA and DoRA, or one that was trained on other weights than the
    base's. A field that is not known may be there while it says nothing (null, false, empty), as newer versions of peft
    write theirs."""
    if fields.get("peft_type") != "LORA":
        raise SkinError(f"{path}: peft_type {fields.get('peft_type')!r} is not supported; only 'LORA' is")
    turned = any(rule.turned for rule in weights.rules)
    for name, inert in _INERT.items():
        # Matrices that are multiplied by from the other side: peft says so of them, and stores A and B as ever.
        if fields.get(name) not in inert and not (name == "fan_in_fan_out" and turned):
            supported = "LoRA and DoRA on linears, and LoRA on experts,"
            raise SkinError(f"{path}: {name}={fields[name]!r} is not supported; only {supported} are")
    field_names = (*_READ, *_INERT, *_FREE)
    for name, value in fields.items():
        if name not in field_names and value not in (None, False, [], {}):
            hint = did_you_mean(
                nearest(name, field_names), "set it to null if it does not change what the adapter computes"
            )
            raise SkinError(f"{path}: {name}={value!r} is not a field that is known here; {hint}")
    _check_start(fields.get("init_lora_weights"), path)


def _check_start(start: Any, path: Path) -> None:
    """How A and B began: PiSSA (arXiv 2404.02948), OLoRA (2406.01775), CorDA (2406.05223), LoRA-GA (2407.05000) and
    LoftQ (2310.08659) change the base itself."""
    if start is None or isinstance(start, bool):
        return
    name = start.lower() if isinstance(start, str) else start
    if name in _BASE_KEPT:
        return
    if isinstance(name, str) and name.startswith(_BASE_CHANGED):
        how = (
            "train on plain weights, or on the quantised ones exported as a base"
            if name.startswith("loftq")
            else "save it as a plain one: save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
        raise SkinError(
            f"{path}: init_lora_weights={start!r} changed the base's weights, and the adapter belongs to those; on the "
            f"base itself its answers would be wrong. With peft, {how}"
        )
    raise SkinError(
        f"{path}: init_lora_weights={start!r} is not known, so that it may have changed the base's weights; "
        f"true, false and {', '.join(_BASE_KEPT)} do not"
    )


def check_targets(targets: Any, hf: Mapping[str, str], path: Path) -> None:
    """Every module must be one that `target_modules` names, and every name must be that of some module."""
    if targets == ALL_LINEAR or targets is None:
        return
    if isinstance(targets, str):
        unnamed = _unmatched(targets, hf.values(), path)
    elif isinstance(targets, list) and all(isinstance(t, str) for t in targets):
        matches = {t: [n for n in hf.values() if n == t or n.endswith("." + t)] for t in targets}
        empty = [t for t, matched in matches.items() if not matched]
        if empty:
            raise SkinError(f"{path}: target_modules names {empty[0]!r}, but the adapter has no tensors for it")
        named = {name for matched in matches.values() for name in matched}
        unnamed = [name for name in hf.values() if name not in named]
    else:
        raise SkinError(f"{path}: target_modules must be a list of names or a regular expression, got {targets!r}")
    if unnamed:
        raise SkinError(f"{path}: the adapter has tensors for {unnamed[0]}, which target_modules does not name")


def _unmatched(pattern: str, names: Iterable[str], path: Path) -> list[str]:
    """The modules that a regular expression does not match as a whole, which is how peft reads one; it may be anyone's,
    so its length and the time it takes are bounded."""
    advice = "write the module names as a list"
    if len(pattern) > _PATTERN_CHARACTERS:
        raise SkinError(f"{path}: target_modules is a regular expression of {len(pattern):,} characters; {advice}")
    try:
        compiled = regex.compile(pattern)
        ends = time.monotonic() + _PATTERN_SECONDS
        return [n for n in names if not compiled.fullmatch(n, timeout=max(ends - time.monotonic(), 1e-3))]
    except (regex.error, RecursionError) as error:
        raise SkinError(f"{path}: target_modules is not a regular expression ({error}); {advice}") from error
    except TimeoutError as error:
        raise SkinError(f"{path}: target_modules is a regular expression that takes too long; {advice}") from error


def lora_config(fields: Mapping[str, Any], hf: Mapping[str, str], path: Path) -> LoraConfig:
    """The fields as a configuration of ours. hf: our path of each adapted module → its name in the file."""
    ranks, alphas = (_by_path(fields.get(name) or {}, hf, path) for name in ("rank_pattern", "alpha_pattern"))
    try:
        return LoraConfig(
            r=fields.get("r", 8),
            alpha=fields.get("lora_alpha", 8),
            dropout=fields.get("lora_dropout") or 0.0,
            rslora=fields.get("use_rslora") or False,
            dora=fields.get("use_dora") or False,
            targets=tuple(in_order(hf)),
            ranks=ranks,
            alphas=alphas,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise SkinError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _by_path(patterns: Any, hf: Mapping[str, str], path: Path) -> dict[str, Any]:
    r"""peft's name → value table, resolved for each module: the first name that is a module's, or the end of it.

    peft reads the names as regular expressions, (.*\.)?(NAME)$; only escaped and plain names are accepted here, with
    ^ (then it is the whole name), $ (as ever) or .*\. around them, because a stranger's expression can take for ever.
    """
    if not isinstance(patterns, dict):
        raise SkinError(f"{path}: rank_pattern and alpha_pattern must be objects, got {patterns!r}")
    named: list[tuple[str, bool, bool, Any]] = []
    for pattern, value in patterns.items():
        whole, inner = pattern.startswith("^"), pattern.startswith(".*\\.")
        name = pattern.removeprefix("^").removeprefix(".*\\.").removesuffix("$").replace("\\.", ".")
        if not re.fullmatch(r"[\w.-]+", name):
            problem = "rank_pattern or alpha_pattern is not a module name"
            raise SkinError(f"{path}: {pattern!r} in {problem}; write plain names")
        named.append((name, whole, inner, value))
    resolved: dict[str, Any] = {}
    for module, theirs in hf.items():
        for name, whole, inner, value in named:
            if (theirs == name and not inner) or (theirs.endswith("." + name) and not whole):
                resolved[module] = value
                break
    return resolved


def in_order(names: Iterable[str]) -> list[str]:
    """Sorted, layer 10 after layer 9."""
    return sorted(names, key=natural)


def natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key under which layer 10 comes after layer 9."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in name.split(".")]
