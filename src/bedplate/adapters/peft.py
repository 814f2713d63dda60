"""LoRA and DoRA adapters in PEFT's layout, both ways: `adapter_config.json` and `adapter_model.safetensors`.

The files are what `peft`, vLLM and lm-eval load. Names go through the family's weight table, so that no family is
known here. Reading is strict: whatever would silently serve something else than was trained is a SkinError.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic
import regex
from pydantic import ValidationError
from torch import Tensor

from bedplate.adapters import peft_layouts
from bedplate.adapters.linear_adapter import MAGNITUDE, Adaptable
from bedplate.adapters.lora import ALL_LINEAR, LoraConfig, are_experts, match_targets
from bedplate.adapters.modules import check_tensors, hf_module_name
from bedplate.adapters.tensor_files import (
    CONFIG_FILE,
    TENSORS_FILE,
    read_json_object,
    read_metadata,
    read_tensors,
    tensor_bytes,
)
from bedplate.core.config import first_problem
from bedplate.core.errors import BedplateError, SkinError, UnsupportedModelError
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.models.families.weights import WeightMap
from bedplate.models.specs import TextSpec
from bedplate.models.specs.encoder_decoder import EncoderDecoderSpec
from bedplate.models.specs.flat import grouped_stacks, plain_fields
from bedplate.models.specs.transformer import TransformerSpec

TaskType = Literal["CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION"]
SPEC = "bedplate.spec"
"""In the tensors' metadata: the model's shape, where rows must be cut by it."""
_KEY = re.compile(
    rf"base_model\.model\.(?P<module>.+)\.(?:(?P<side>lora_[AB])\.weight|(?P<magnitude>{MAGNITUDE})(?:\.weight)?)"
)


def peft_files(
    config: LoraConfig,
    tensors: Mapping[str, Tensor],
    weights: WeightMap,
    *,
    base_name: str,
    task_type: TaskType = "CAUSAL_LM",
    spec: TextSpec | None = None,
) -> dict[str, bytes]:
    """File name → content, the same bytes for the same adapter. `weights` is the family's Hugging Face table. spec: of
    the model, where its family keeps several adapted projections in one matrix; the file then says it."""
    groups = any(peft_layouts.is_part(weights, name.rsplit(".", 1)[0]) for name in tensors)
    config, tensors = peft_layouts.joined(config, tensors, weights, spec)
    paths = in_order({name.rsplit(".", 1)[0] for name in tensors})
    hf = {path: path if weights.is_group(f"{path}.weight") else hf_module_name(weights, path) for path in paths}
    experts = {path: name for path, name in hf.items() if are_experts(path)}
    # These peft reaches by their weights only, which take neither magnitudes nor dropout there.
    ambiguous = (
        () if config.dora or config.dropout else (p for p in hf if peft_layouts.is_taken_for_experts(weights, p, hf[p]))
    )
    parameters = experts | {path: f"{hf[path]}.weight" for path in ambiguous}
    named = _stored_tensors(tensors, weights, hf, experts)
    if config.dora:
        named |= {f"base_model.model.{hf[path]}.{MAGNITUDE}": tensors[f"{path}.{MAGNITUDE}"] for path in paths}
    fields: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": config.r,
        "lora_alpha": int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "bias": "none",
        "fan_in_fan_out": any(weights.is_turned(f"{name}.weight") for name in hf.values()),
        "init_lora_weights": True,
        "target_modules": _target_modules(config, [hf[path] for path in paths if path not in parameters], weights),
        **dict.fromkeys(("auto_mapping", "revision", "exclude_modules", "modules_to_save")),
        **dict.fromkeys(("layers_to_transform", "layers_pattern")),
        # peft reads these keys as regular expressions
        "rank_pattern": {re.escape((hf | parameters)[p]): r for p, r in sorted(config.ranks.items())},
        "alpha_pattern": {re.escape((hf | parameters)[p]): a for p, a in sorted(config.alphas.items())},
    }
    if parameters:
        fields["target_parameters"] = _target_parameters(config, parameters.values())
    text = json.dumps(fields, indent=2, sort_keys=True, allow_nan=False) + "\n"
    metadata = {SPEC: spec_text(spec)} if groups and spec is not None else {}
    return {CONFIG_FILE: text.encode(), TENSORS_FILE: tensor_bytes(named, metadata)}


def _stored_tensors(
    tensors: Mapping[str, Tensor], weights: WeightMap, hf: Mapping[str, str], experts: Mapping[str, str]
) -> dict[str, Tensor]:
    places = {**hf, **peft_layouts.expert_keys(experts)}
    stored: dict[str, Tensor] = {}
    for path, place in places.items():
        pair = tensors[f"{path}.lora_A"], tensors[f"{path}.lora_B"]
        a, b = peft_layouts.to_peft(weights, path, *pair) if path in experts else pair
        stored |= {f"base_model.model.{place}.lora_A.weight": a, f"base_model.model.{place}.lora_B.weight": b}
    return stored


def task_type_of(weights: WeightMap) -> TaskType:
    """What peft wraps a model of a family as."""
    if weights.to_external("decoder.layers.0.cross.q.weight") is not None:
        return "SEQ_2_SEQ_LM"
    return "FEATURE_EXTRACTION" if weights.to_external("lm_head.weight") is None else "CAUSAL_LM"


def read_peft(
    directory: Path,
    weights: WeightMap,
    modules: Mapping[str, Adaptable] | None = None,
    *,
    contents: Mapping[str, bytes] | None = None,
    spec: TextSpec | None = None,
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Read an adapter: its configuration and its tensors by our names (`{path}.lora_A` [r, in], `.lora_B` [out, r], and
    with DoRA `.lora_magnitude_vector` [out]).

    With `modules` (the model's `block_linears`) names and shapes are checked against the model at once; otherwise
    `Bank.add` does. `contents` holds the files' bytes when they are at hand. spec: as `peft_files` has it, where the
    file does not say it itself (peft's do not). Raises SkinError for other adapter kinds,
    modules that do not match, missing halves, wrong shapes or ranks, NaN, pickles, links.
    """
    file_contents = contents or {}
    config_path, tensors_path = directory / CONFIG_FILE, directory / TENSORS_FILE
    if TENSORS_FILE not in file_contents and not tensors_path.exists() and (directory / "adapter_model.bin").exists():
        raise SkinError(
            f"{directory / 'adapter_model.bin'} is a pickle, which can run code; "
            "save the adapter as safetensors (peft: save_pretrained(..., safe_serialization=True))"
        )
    fields = read_json_object(config_path, file_contents.get(CONFIG_FILE))
    check_fields(fields, config_path, weights)
    stored = read_tensors(tensors_path, file_contents.get(TENSORS_FILE))
    places = [match["module"] for key in stored if (match := _KEY.fullmatch(key))]
    parameters = peft_layouts.linear_parameters(places, fields.get("target_parameters"), config_path)
    parameters |= peft_layouts.parameter_names(places, fields.get("target_parameters"), config_path)
    of = read_spec(directory, contents) if spec is None else spec
    model_names = None if of is None else set(peft_layouts.row_counts(of))
    tensors, hf = _named_tensors(stored, weights, tensors_path, bool(fields.get("use_dora")), parameters, model_names)
    linears = {path: name for path, name in hf.items() if not are_experts(path)}
    by_module = {path: name for path, name in linears.items() if name not in parameters.values()}
    check_targets(fields.get("target_modules"), by_module, config_path)
    config = lora_config(fields, hf, config_path)
    for path in hf.keys() - linears.keys():
        names = f"{path}.lora_A", f"{path}.lora_B"
        pair = peft_layouts.from_peft(
            weights, path, tensors[names[0]], tensors[names[1]], config.rank(path), tensors_path
        )
        tensors |= dict(zip(names, pair, strict=True))
    _check_ranks(config, linears, tensors, tensors_path)
    if any(weights.is_group(f"{path}.weight") for path in linears):
        config, tensors = peft_layouts.split_fused(config, tensors, weights, of, str(tensors_path))
        hf = {path: hf_module_name(weights, path) for path in config.targets}
    if modules is not None:
        unknown = sorted(hf.keys() - modules.keys())
        if unknown:
            raise SkinError(f"{tensors_path} adapts {hf[unknown[0]]}, which is neither a linear nor experts here")
        config = config.model_copy(update={"targets": short_targets(hf, modules)})
        check_tensors(config, {path: modules[path] for path in modules if path in hf}, tensors)
    return config, tensors


def read_spec(directory: Path, contents: Mapping[str, bytes] | None = None) -> TextSpec | None:
    """The spec of the model that an adapter's file is for, where the file has it (see `peft_files`)."""
    path = directory / TENSORS_FILE
    spec_json = read_metadata(path, (contents or {}).get(TENSORS_FILE)).get(SPEC)
    try:
        return None if spec_json is None else spec_of(spec_json)
    except UnsupportedModelError as error:
        raise SkinError(f"{path}: its metadata {SPEC}: {error}") from error


def short_targets(paths: Iterable[str], modules: Iterable[str]) -> Literal["all-linear"] | tuple[str, ...]:
    """The shortest `LoraConfig.targets` that name exactly `paths` among a model's `modules`."""
    chosen, all_modules = set(paths), list(modules)
    if chosen == {path for path in all_modules if not are_experts(path)}:
        return ALL_LINEAR
    endings = sorted({re.sub(r"^.*\.\d+\.", "", path) for path in chosen})
    if set(match_targets(endings, all_modules)) == chosen:
        return tuple(endings)
    return tuple(in_order(chosen))


def _named_tensors(
    stored: Mapping[str, Tensor],
    weights: WeightMap,
    path: Path,
    dora: bool,
    parameters: Mapping[str, str],
    model_names: Collection[str] | None,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by our names, and the Hugging Face name of each adapted module path."""
    tensors: dict[str, Tensor] = {}
    hf: dict[str, str] = {}
    for key, tensor in stored.items():
        match = _KEY.fullmatch(key)
        if match is None or (match["magnitude"] and not dora):
            raise SkinError(f"{path}: tensor {key!r} is not part of a plain LoRA adapter on linears")
        parameter = parameters.get(match["module"])
        name = parameter or match["module"] + ".weight"
        ours = name if weights.is_group(name) else weights.from_external(name, model_names)
        inside = ours is not None and ("layers" in ours.split(".") or ours == name)
        if ours is None or not inside or "norm" in ours.split(".")[-2]:
            raise SkinError(f"{path}: {match['module']} is not a linear inside this family's blocks")
        module = ours.removesuffix(".weight")
        name = f"{module}.{match['side'] or MAGNITUDE}"
        if name in tensors:
            raise SkinError(f"{path}: two tensors stand for {name}, one of them {key!r}")
        tensors[name], hf[module] = tensor, parameter or match["module"]
    for module, theirs in hf.items():
        for part in ("lora_A", "lora_B", *([MAGNITUDE] if dora else [])):
            if f"{module}.{part}" not in tensors:
                hint = "; the adapter is incomplete" if part != MAGNITUDE else ", although the adapter says use_dora"
                raise SkinError(f"{path}: {theirs} has no {part}{hint}")
    if not tensors:
        raise SkinError(f"{path} holds no adapter tensors")
    return tensors, hf


def _check_ranks(config: LoraConfig, hf: Mapping[str, str], tensors: Mapping[str, Tensor], path: Path) -> None:
    for module, name in hf.items():
        a, b, r = tensors[f"{module}.lora_A"], tensors[f"{module}.lora_B"], config.rank(module)
        if a.dim() != 2 or b.dim() != 2 or a.shape[0] != r or b.shape[1] != r:
            raise SkinError(
                f"{path}: {name} has lora_A {list(a.shape)} and lora_B {list(b.shape)}, "
                f"but the configuration says rank {r} ([{r}, in] and [out, {r}])"
            )
        if config.dora and tensors[f"{module}.{MAGNITUDE}"].shape != b.shape[:1]:
            shape = list(tensors[f"{module}.{MAGNITUDE}"].shape)
            raise SkinError(f"{path}: {name} has a {MAGNITUDE} {shape}, its lora_B says [{b.shape[0]}]")


def _target_modules(config: LoraConfig, hf: Iterable[str], weights: WeightMap) -> list[str]:
    """Names for peft: the shortest endings that match the adapted modules and no others of the family. Full names when
    some target picks single layers, or when an ending would match too much."""
    names = in_order(hf)
    single_layers = config.targets != ALL_LINEAR and any(re.search(r"(^|\.)\d+(\.|$)", t) for t in config.targets)
    if single_layers:
        return names
    chosen = {re.sub(r"(?<=\.)\d+(?=\.)", "{i}", name, count=1) for name in names}
    all_names = {n.removesuffix(".weight") for r in weights.rules for n in r.theirs if n.endswith(".weight")}
    endings: set[str] = set()
    for name in chosen:
        parts = name.rsplit("{i}.", 1)[-1].split(".")
        options = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        fit = next((o for o in options if all(n in chosen for n in all_names if n.endswith("." + o))), None)
        if fit is None:
            return names
        endings.add(fit)
    return sorted(endings)


def _target_parameters(config: LoraConfig, names: Iterable[str]) -> list[str]:
    """The parameters' names from their layers on, or whole ones where some target picks single layers."""
    single_layers = any(re.search(r"(^|\.)\d+(\.|$)", target) for target in config.targets)
    return in_order({name if single_layers else re.sub(r"^.*\.\d+\.", "", name) for name in names})


# --- adapter_config.json, read strictly: what would change the result unknown to us is refused by name

_PATTERN_CHARACTERS, _PATTERN_SECONDS = 4000, 1.0

_READ = (
    *("peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora"),
    *("target_modules", "target_parameters", "rank_pattern", "alpha_pattern", "init_lora_weights"),
)
_UNSUPPORTED = (
    *("bias", "lora_bias", "fan_in_fan_out", "modules_to_save", "layer_replication", "trainable_token_indices"),
    *("use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "velora_config", "kasa_config"),
    "monteclora_config",
)
"""Fields that change what the adapter computes, unless they say nothing."""
_NOTHING = (None, False, [], {}, "none")
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
    for name in _UNSUPPORTED:
        # Matrices that are multiplied by from the other side: peft says so of them, and stores A and B as ever.
        if fields.get(name) not in _NOTHING and not (name == "fan_in_fan_out" and turned):
            supported = "LoRA and DoRA on linears, and LoRA on experts,"
            raise SkinError(f"{path}: {name}={fields[name]!r} is not supported; only {supported} are")
    field_names = (*_READ, *_UNSUPPORTED, *_FREE)
    for name, value in fields.items():
        if name not in field_names and value not in _NOTHING:
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
        how = "save it as a plain one: save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        if name.startswith("loftq"):
            how = "train on plain weights, or on the quantised ones exported as a base"
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
        raise SkinError(f"{path}: {first_problem(error)}") from error


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


_ADAPTER: pydantic.TypeAdapter[TransformerSpec | EncoderDecoderSpec] = pydantic.TypeAdapter(
    TransformerSpec | EncoderDecoderSpec, config=None
)


def spec_text(spec: TransformerSpec | EncoderDecoderSpec) -> str:
    """JSON (with Infinity as a number), the same for the same spec."""
    return json.dumps(plain_fields(spec), sort_keys=True, separators=(",", ":"))


def spec_of(text: str) -> TransformerSpec | EncoderDecoderSpec:
    """The inverse. UnsupportedModelError for anything else."""
    try:
        return _ADAPTER.validate_python(grouped_stacks(TransformerSpec, json.loads(text)))
    except (ValueError, TypeError, AttributeError, RecursionError, BedplateError) as error:
        raise UnsupportedModelError("the text does not describe a model") from error
