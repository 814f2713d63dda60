"""A Base: one pretrained model with its tokenizer and its identity, loaded from any supported form of checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bedplate.core.errors import CheckpointError, DataError
from bedplate.core.files import read_text
from bedplate.hub.pull import resolve
from bedplate.models.build import build
from bedplate.models.checkpoints.gguf import GgufReader, permute_rope
from bedplate.models.checkpoints.identity import NO_TEMPLATE, NO_TOKENIZER, Identity, WeightsHash
from bedplate.models.checkpoints.safetensors import SafetensorsReader
from bedplate.models.families import Family, find_family
from bedplate.models.model import Model
from bedplate.models.precision import resolve_device, resolve_dtype
from bedplate.models.specs.transformer import TransformerSpec
from bedplate.text.tokenizer import Tokenizer

BASE_FILE = "base.json"


@dataclass
class Base:
    """A loaded base. Its parameters do not require gradients until something trains them.

    `tokenizer` is None for a directory without one: such a base takes token ids only.
    """

    spec: TransformerSpec
    model: Model
    tokenizer: Tokenizer | None
    family: Family
    identity: Identity
    source: str
    path: Path
    dtype: torch.dtype
    device: torch.device
    stored_dtype: str
    generation_defaults: dict[str, Any] = field(default_factory=dict[str, Any])
    lineage: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def name(self) -> str:
        """A short name: the source's last part, without an ending."""
        last = self.source.rstrip("/").rsplit("/", 1)[-1]
        return last.removesuffix(".gguf")

    def need_tokenizer(self) -> Tokenizer:
        """The tokenizer, or a CheckpointError for a base that came without one."""
        if self.tokenizer is None:
            raise CheckpointError(
                f"{self.source} has no tokenizer, so it takes token ids only; add its tokenizer.json to {self.path}"
            )
        return self.tokenizer


def load_base(
    source: str | Path,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
) -> Base:
    """Loads a base from a catalogue name, a directory, a .gguf file or hf:owner/name.

    dtype: "auto" keeps the checkpoint's own, and is bfloat16 for quantised files, on every machine. `bedplate.load`
    opens a base in what is fastest here.
    Raises HubError, CheckpointError (missing, truncated, inconsistent files) or UnsupportedModelError.
    """
    path, target = locate(source), resolve_device(device)
    return (
        _load_gguf(str(source), path, dtype, target) if path.is_file() else _load_hf(str(source), path, dtype, target)
    )


def locate(source: str | Path) -> Path:
    """The directory or .gguf file that `load_base` reads for `source`, pulled if need be. Raises HubError."""
    path = resolve(str(source))
    if path.is_dir():
        ggufs = sorted(path.glob("*.gguf"))
        if not (path / "config.json").is_file() and len(ggufs) == 1:
            return ggufs[0]
    return path


def _load_gguf(source: str, path: Path, dtype: str | torch.dtype, device: torch.device) -> Base:
    reader = GgufReader(path)
    family = find_family("gguf", reader.architecture, str(path))
    embedding = family.weights.to_external("embedding.weight") or ""
    if embedding not in reader.names:
        raise CheckpointError(f"{path} has no tensor {embedding!r}; it is not a whole model")
    extra = {"tensor_names": reader.names, "embedding_rows": reader.shape(embedding)[0]}
    spec = _spec(family, reader.metadata | extra, len(reader.names), str(path))
    quantised = set(reader.types.values()) - {"F32", "F16", "BF16"}
    stored = None if quantised else torch.float32
    wanted = resolve_dtype(dtype, stored)

    def fetch(ours: str, theirs: str) -> Tensor:
        heads = spec.heads if family.weights.transform(ours) == "rope_interleaved_q" else spec.kv_heads
        return permute_rope(reader.get(theirs), heads, family.weights.transform(ours), inverse=True)

    model, weights_id = _fill(spec, family, reader.names, fetch, wanted, device, str(path))
    tokenizer = Tokenizer.from_fields(reader.metadata) if "tokenizer.ggml.model" in reader.metadata else None
    return Base(
        spec=spec,
        model=model,
        tokenizer=tokenizer,
        family=family,
        identity=_identify(weights_id, tokenizer),
        source=source,
        path=path,
        dtype=wanted,
        device=device,
        stored_dtype="+".join(sorted(set(reader.types.values()))).lower(),
        lineage={"name": reader.metadata.get("general.name"), "licence": reader.metadata.get("general.license")},
    )


def _load_hf(source: str, path: Path, dtype: str | torch.dtype, device: torch.device) -> Base:
    config = _read_json(path / "config.json", required=True)
    family = find_family("hf", config.get("model_type"), str(path / "config.json"))
    with SafetensorsReader(path) as reader:
        spec = _spec(family, config, len(reader.names), str(path / "config.json"))
        if spec.kind == "encoder" and any(
            family.weights.from_external(name) == "pooler.weight" for name in reader.names
        ):
            spec = spec.with_(pooler=True)
        embedding = next((n for n in reader.names if family.weights.from_external(n) == "embedding.weight"), None)
        if embedding is None:
            raise CheckpointError(f"{path} has no embedding tensor; it is not a whole {config['model_type']} model")
        stored = reader.get(embedding).dtype
        wanted = resolve_dtype(dtype, stored)
        model, weights_id = _fill(
            spec, family, reader.names, lambda _, theirs: reader.get(theirs), wanted, device, str(path)
        )
    tokenizer = Tokenizer.from_directory(path) if (path / "tokenizer.json").is_file() else None
    record = _read_json(path / BASE_FILE)
    identity = _identify(weights_id, tokenizer, record.get("equivalent_of"))
    if record and record.get("weights_id") != identity.weights_id:
        raise CheckpointError(
            f"{path}: the weights are not those that {BASE_FILE} describes; export the base again, "
            f"or delete {BASE_FILE} if the change is intended"
        )
    return Base(
        spec=spec,
        model=model,
        tokenizer=tokenizer,
        family=family,
        identity=identity,
        source=source,
        path=path,
        dtype=wanted,
        device=device,
        stored_dtype=str(stored).removeprefix("torch."),
        generation_defaults=_read_json(path / "generation_config.json"),
        lineage=record.get("lineage", {}),
    )


def _spec(family: Family, config: Mapping[str, Any], tensors: int, where: str) -> TransformerSpec:
    """The family's spec. A damaged config must not build a model that its `tensors` cannot fill."""
    try:
        spec = family.to_spec(config)
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise CheckpointError(f"{where}: a field has a value of the wrong kind ({error})") from error
    if spec.layers > tensors:
        raise CheckpointError(f"{where} asks for {spec.layers} layers, but the checkpoint holds {tensors} tensors")
    return spec


def _identify(weights_id: str, tokenizer: Tokenizer | None, equivalent_of: str | None = None) -> Identity:
    if tokenizer is None:
        return Identity(weights_id, equivalent_of=equivalent_of)
    template_id = tokenizer.chat.identity if tokenizer.chat is not None else NO_TEMPLATE
    return Identity(weights_id, tokenizer.identity or NO_TOKENIZER, template_id, equivalent_of)


def _read_json(path: Path, required: bool = False) -> dict[str, Any]:
    if not path.is_file():
        if required:
            raise CheckpointError(f"{path.parent} has no {path.name}; a base directory needs one (Hugging Face layout)")
        return {}
    try:
        value = json.loads(read_text(path))
    except (ValueError, DataError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return value


def _fill(
    spec: TransformerSpec,
    family: Family,
    names: tuple[str, ...],
    fetch: Callable[[str, str], Tensor],
    dtype: torch.dtype,
    device: torch.device,
    where: str,
) -> tuple[Model, str]:
    """A model with every parameter read from the checkpoint and every tensor of the checkpoint used."""
    try:
        model = build(spec, dtype, "meta")
    except RuntimeError as error:  # sizes whose product no tensor can have
        raise CheckpointError(f"{where}: a model of these sizes cannot be built ({error})") from error
    theirs: dict[str, str] = {}
    for name in names:
        ours = family.weights.from_external(name)
        if ours is not None:
            theirs[ours] = name
        elif not family.weights.is_ignorable(name):
            raise CheckpointError(f"{where}: the tensor {name!r} has no place in a {family.key[1]} model")
    expected = dict(model.named_parameters())
    _drop_tied_copy(spec, theirs, fetch, where)
    missing = sorted(set(expected) - set(theirs))
    surplus = sorted(set(theirs) - set(expected))
    if missing or surplus:
        what = (
            f"lacks {missing[0]!r}" if missing else f"holds {theirs[surplus[0]]!r}, for which the config has no place"
        )
        raise CheckpointError(f"{where}: the checkpoint {what} ({len(missing)} missing, {len(surplus)} surplus)")
    digest = WeightsHash()
    state: dict[str, Tensor] = {}
    for name, tensor in _read_all(theirs, fetch):
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{where}: {theirs[name]!r} has shape {list(tensor.shape)}, "
                f"but the config asks for {list(expected[name].shape)}"
            )
        digest.add(name, tensor)
        state[name] = tensor.to(device, dtype)
    model.load_state_dict(state, assign=True)
    model.requires_grad_(False)
    return model.eval(), digest.hexdigest()


def _read_all(theirs: dict[str, str], fetch: Callable[[str, str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    for ours, name in theirs.items():
        yield ours, fetch(ours, name)


def _drop_tied_copy(
    spec: TransformerSpec, theirs: dict[str, str], fetch: Callable[[str, str], Tensor], where: str
) -> None:
    """Some writers store a tied head twice; the copy must equal the embedding."""
    if not spec.tied_head or "lm_head.weight" not in theirs:
        return
    head = fetch("lm_head.weight", theirs["lm_head.weight"])
    if not torch.equal(head, fetch("embedding.weight", theirs["embedding.weight"])):
        raise CheckpointError(
            f"{where}: the config ties the head to the embedding, but {theirs['lm_head.weight']!r} differs from it; "
            "set tie_word_embeddings to false in config.json"
        )
    del theirs["lm_head.weight"]


def parameter_count(model: nn.Module) -> int:
    """Parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
