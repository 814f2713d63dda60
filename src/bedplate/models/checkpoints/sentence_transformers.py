"""Directories of sentence-transformers: `modules.json`, what it names, and two config files beside it, both ways."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from bedplate.core.errors import CheckpointError, UnsupportedModelError
from bedplate.core.files import atomic_write
from bedplate.models.checkpoints import safetensors
from bedplate.models.families.encoders.bert import is_raw
from bedplate.models.families.fields import Fields, shown
from bedplate.models.families.gguf_metadata import POOLING
from bedplate.models.layers.sentence_layers import SentenceLayers
from bedplate.models.specs import TextSpec
from bedplate.models.specs.sentence import Dense, DenseActivation, Pooling, SentenceSpec
from bedplate.models.specs.transformer import TransformerSpec

MODULES = "modules.json"
_CONFIG, _BODY_CONFIG = "config_sentence_transformers.json", "sentence_bert_config.json"

# In the order in which the library puts several side by side, whatever the order in the file.
_POOLINGS: dict[str, tuple[str, Pooling]] = {
    "pooling_mode_cls_token": ("cls", "first"),
    "pooling_mode_max_tokens": ("max", "max"),
    "pooling_mode_mean_tokens": ("mean", "mean"),
    "pooling_mode_mean_sqrt_len_tokens": ("mean_sqrt_len_tokens", "root_mean"),
    "pooling_mode_weightedmean_tokens": ("weightedmean", "weighted_mean"),
    "pooling_mode_lasttoken": ("lasttoken", "last"),
}
_GGUF_POOLINGS: dict[int, Pooling] = {1: "mean", 2: "first", 3: "last"}
_BY_NAME: dict[str, Pooling] = dict(_POOLINGS.values())
_ACTIVATIONS: dict[str, DenseActivation] = {
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
}
_MAX_MODULES = 100
"""Modules; published encoders have two to five."""
_SIMILARITIES = {name: name for name in ("cosine", "dot", "euclidean", "manhattan")}


def read_sentence(directory: Path, hidden_size: int) -> SentenceLayers | None:
    """How the directory's base makes vectors; None where it says nothing of it, as a cross-encoder does.

    UnsupportedModelError, by name, for a module or a setting that is not supported.
    """
    if not (directory / MODULES).is_file():
        return None
    modules = _modules(directory / MODULES)
    (module_type, first), later_modules = modules[0], modules[1:]
    if module_type != "Transformer" or first:
        raise UnsupportedModelError(
            f"{directory / MODULES}: the first module must be a Transformer in the directory itself"
        )
    if not later_modules:
        return None
    if later_modules[0][0] != "Pooling":
        raise UnsupportedModelError(
            f"{directory / MODULES}: a {later_modules[0][0]} after the Transformer is not supported"
        )
    poolings, pools_prompt = _pooling(directory / later_modules[0][1] / "config.json", hidden_size)
    steps: list[Any] = []
    denses: list[Path] = []
    for module_type, place in later_modules[1:]:
        folder = directory / place
        if module_type == "Dense":
            steps.append(_dense(folder / "config.json"))
            denses.append(folder)
        elif module_type == "Normalize":
            _plain(Fields(_optional(folder / "config.json"), str(folder / "config.json")))
            steps.append("normalise")
        else:
            raise UnsupportedModelError(f"{directory / MODULES}: the module {module_type} is not supported")
    spec = SentenceSpec(poolings, tuple(steps), pools_prompt, **_texts(directory))
    spec.output_size(hidden_size)
    return _filled(spec, denses)


def gguf_sentence(metadata: Mapping[str, Any], architecture: str, origin: str) -> SentenceLayers | None:
    """How a GGUF file's base makes vectors (Qwen3-Embedding), as llama.cpp's server does: pooled, and of unit length.
    None where it says nothing of it; UnsupportedModelError for a file that ranks."""
    pooling_code = metadata.get(f"{architecture}.{POOLING}")
    if not pooling_code:
        return None
    if pooling_code not in _GGUF_POOLINGS:
        supported = ", ".join(map(str, (0, *_GGUF_POOLINGS)))
        raise UnsupportedModelError(
            f"{origin}: {architecture}.{POOLING} = {pooling_code} is not supported (only {supported})"
        )
    return SentenceLayers(SentenceSpec((_GGUF_POOLINGS[pooling_code],), ("normalise",))).eval()


def read_scored(directory: Path, spec: TextSpec) -> TextSpec:
    """A cross-encoder's spec, with what its library's newer file says of its scores (version 6; before that it stood in
    `config.json`)."""
    path = directory / _CONFIG
    if not isinstance(spec, TransformerSpec) or spec.classifier is None or not path.is_file():
        return spec
    fields = Fields(safetensors.read_object(path), str(path))
    name = fields.pop("activation_fn")
    if name is None:
        return spec
    return spec.with_(classifier=replace(spec.classifier, raw=is_raw(name, str(path))))


def _modules(path: Path) -> list[tuple[str, str]]:
    """(class, place) of each module, in order."""
    try:
        listed = sorted(safetensors.read_json(path), key=lambda module: module["idx"])
        modules = [(str(record["type"]), str(record["path"])) for record in listed]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a list of modules ({error!r})") from error
    if not modules:
        raise CheckpointError(f"{path} lists no modules")
    if len(modules) > _MAX_MODULES:
        raise CheckpointError(f"{path} lists {len(modules):,} modules; up to {_MAX_MODULES} are read")
    for class_name, place in modules:
        if not class_name.startswith("sentence_transformers."):
            raise UnsupportedModelError(f"{path}: {class_name} is code of the checkpoint's own, which is not run")
        parts = Path(place).parts
        if Path(place).is_absolute() or ".." in parts or not all(map(safetensors.is_file_name, parts)):
            raise CheckpointError(f"{path} names a module outside the directory: {shown(place)}")
    return [(module_class.rpartition(".")[2], place) for module_class, place in modules]


def _pooling(path: Path, hidden_size: int) -> tuple[tuple[Pooling, ...], bool]:
    """Both spellings: a list of names (version 5.5), and a switch for each (before)."""
    config = safetensors.read_object(path)
    fields = Fields(config, str(path))
    size = fields.pop("embedding_dimension", fields.pop("word_embedding_dimension"))
    if size is not None and size != hidden_size:
        raise CheckpointError(f"{path} pools {size} features, but the model has {hidden_size}")
    named = fields.pop("pooling_mode")
    switches = _POOLINGS.keys() & config.keys()
    on = [name for name in _POOLINGS if fields.flag(name, False)]
    pools_prompt = fields.flag("include_prompt", True)
    fields.finish()
    if named is None and switches and not on:
        raise UnsupportedModelError(f"{path}: none of its poolings is on; set one of {', '.join(_POOLINGS)} to true")
    if named is None:
        return tuple(_POOLINGS[name][1] for name in on) or ("mean",), pools_prompt
    names = [named] if isinstance(named, str) else Fields({"pooling_mode": named}, str(path)).sequence("pooling_mode")
    return tuple(
        Fields({"pooling_mode": name}, str(path)).named("pooling_mode", "", _BY_NAME) for name in names or ()
    ), pools_prompt


def _dense(path: Path) -> Dense:
    fields = Fields(safetensors.read_object(path), str(path))
    _plain(fields)
    fields.only("use_residual", False)
    activation = fields.named("activation_function", next(iter(_ACTIVATIONS)), _ACTIVATIONS)
    inputs, outputs, bias = fields.size("in_features"), fields.size("out_features"), fields.flag("bias", True)
    fields.finish()
    return Dense(inputs, outputs, bias, activation)


def _plain(fields: Fields) -> None:
    """Refuses a module that does not replace one vector by another."""
    fields.only("module_input_name", "sentence_embedding")
    fields.only("module_output_name", "sentence_embedding", None)


def _texts(directory: Path) -> dict[str, Any]:
    """The settings for texts (length, case, prompts) and for comparing their vectors."""
    body = Fields(_optional(directory / _BODY_CONFIG), str(directory / _BODY_CONFIG))
    longest, lower = body.whole("max_seq_length"), body.flag("do_lower_case", False)
    if longest is not None and longest < 1:
        raise UnsupportedModelError(f"{directory / _BODY_CONFIG}: max_seq_length is {longest}: it must be at least 1")
    body.only("transformer_task", "feature-extraction")
    body.only("module_output_name", "token_embeddings")
    body.ignore(("modality_config", "unpad_inputs"))  # of other inputs; how a batch is laid out
    body.finish()
    config = Fields(_optional(directory / _CONFIG), str(directory / _CONFIG))
    config.only("model_type", "SentenceTransformer")
    config.ignore(("__version__",))
    prompts: Mapping[str, Any] = config.part("prompts")
    default = config.pop("default_prompt_name")
    similarity = config.named("similarity_fn_name", "cosine", _SIMILARITIES)
    config.only("truncate_dim", None)
    config.finish()
    texts = Fields(prompts, f"{directory / _CONFIG} prompts")
    return {
        "max_tokens": longest,
        "lower": lower,
        "prompts": tuple((name, texts.text(name, "")) for name in prompts),
        "default_prompt": default,
        "similarity": similarity,
    }


def _filled(spec: SentenceSpec, places: list[Path]) -> SentenceLayers:
    """The maps with their weights; nothing is made of the sizes that their configs ask for before these are
    compared."""
    state: dict[str, Tensor] = {}
    for number, place in enumerate(places):
        with safetensors.SafetensorsReader(place) as reader:
            for name in reader.names:
                tensor = reader.get(name)
                if not tensor.is_floating_point() or not bool(tensor.float().isfinite().all()):
                    raise CheckpointError(f"{place}: {name} holds values that are no finite real numbers")
                state[f"dense.{number}.{name.removeprefix('linear.')}"] = tensor.float()
    sentence = SentenceLayers(spec, "meta")
    try:
        sentence.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{', '.join(map(str, places))}: not what the configs ask for: {error}") from error
    return sentence.requires_grad_(False).eval()


def _optional(path: Path) -> dict[str, Any]:
    return safetensors.read_object(path) if path.is_file() else {}


def write_sentence(directory: Path, sentence: SentenceLayers, hidden_size: int) -> None:
    """The directory's own weights and config are written already."""
    spec = sentence.spec
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    _write(directory / "1_Pooling" / "config.json", _pooling_config(spec, hidden_size))
    weights = iter(sentence.dense)
    for number, step in enumerate(spec.steps, start=2):
        module_type = "Normalize" if step == "normalise" else "Dense"
        modules.append((module_type, f"{number}_{module_type}"))
        if isinstance(step, Dense):
            place = directory / f"{number}_{module_type}"
            _write(place / "config.json", _dense_config(step))
            tensors = next(weights).named_parameters()
            safetensors.write_safetensors(place, ((f"linear.{name}", tensor) for name, tensor in tensors))
    listed = [
        {"idx": number, "name": str(number), "path": place, "type": f"sentence_transformers.models.{module_class}"}
        for number, (module_class, place) in enumerate(modules)
    ]
    _write(directory / MODULES, listed)
    _write(directory / _BODY_CONFIG, {"max_seq_length": spec.max_tokens, "do_lower_case": spec.lower})
    _write(
        directory / _CONFIG,
        {
            "prompts": dict(spec.prompts),
            "default_prompt_name": spec.default_prompt,
            "similarity_fn_name": spec.similarity,
        },
    )


def _pooling_config(spec: SentenceSpec, hidden_size: int) -> dict[str, Any]:
    """By switches, which every version of the library reads, where their order is the library's."""
    fields = {"word_embedding_dimension": hidden_size, "include_prompt": spec.pools_prompt}
    in_order = tuple(ours for _, ours in _POOLINGS.values() if ours in spec.poolings)
    if in_order == spec.poolings:
        return fields | {name: ours in spec.poolings for name, (_, ours) in _POOLINGS.items()}
    names = {ours: theirs for theirs, ours in _BY_NAME.items()}
    return fields | {"pooling_mode": [names[pooling] for pooling in spec.poolings]}


def _dense_config(step: Dense) -> dict[str, Any]:
    activation = next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == step.activation)
    return {
        "in_features": step.inputs,
        "out_features": step.outputs,
        "bias": step.bias,
        "activation_function": activation,
    }


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    atomic_write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
