"""A Base: one pretrained model with its tokenizer and its identity, loaded from any supported form of checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bedplate.core.errors import CheckpointError, UnsupportedModelError
from bedplate.core.files import file_state
from bedplate.core.progress import Progress
from bedplate.hub.pull import resolve
from bedplate.models.checkpoints.directory import open_weights
from bedplate.models.checkpoints.generation import gguf_generation, never_written, read_generation
from bedplate.models.checkpoints.gguf import GgufReader, StoredBlocks
from bedplate.models.checkpoints.headless import is_headless
from bedplate.models.checkpoints.identity import (
    NO_TEMPLATE,
    NO_TOKENIZER,
    Identity,
    LazyValue,
    dense_id,
    with_dense,
)
from bedplate.models.checkpoints.json_file import read_object
from bedplate.models.checkpoints.packed import unpacked
from bedplate.models.checkpoints.safetensors import SafetensorsReader
from bedplate.models.checkpoints.sentence import gguf_sentence, read_scored, read_sentence
from bedplate.models.checkpoints.text_part import TextPart
from bedplate.models.checkpoints.tokenizer_files import fitting, gguf_tokenizer, read_tokenizer, written_id
from bedplate.models.checkpoints.weight_loading import Filling, Unfinished
from bedplate.models.families import Family, find_family
from bedplate.models.families.claims import claimed_family, refuse_other_classes
from bedplate.models.families.fields import located
from bedplate.models.families.multimodal import find_multimodal
from bedplate.models.layers.sentence import Sentence
from bedplate.models.model import Ability, Model
from bedplate.models.precision import resolve_device, resolve_dtype
from bedplate.models.specs import TextSpec, TransformerSpec
from bedplate.models.specs.transformer import LongRopeScaling
from bedplate.text.tokenizer import Tokenizer

BASE_FILE = "base.json"
Leave = Callable[[Model, Mapping[str, str]], Collection[str]]
"""Of a model without values, and of the types of its matrices that a GGUF file holds in blocks ("Q4_1"): the names of
those that whoever loads it reads from the file themselves."""


@dataclass(kw_only=True)
class Base:
    """A loaded base. Its parameters do not require gradients until something trains them.

    `raw_model`: its model, or what completes it. `identified`: its identity, or what finds it out. `tokenizer` is None for a
    directory without one: such a base takes token ids only. `sentence`: what its own library makes vectors by; None
    where it says nothing of it. `headless`: the files are of a decoder's body alone, an embedder's, so that what its
    model makes of the token table is no prediction.
    """

    spec: TextSpec
    raw_model: Model | Unfinished
    tokenizer: Tokenizer | None
    family: Family
    identified: Identity | LazyValue
    source: str
    path: Path
    dtype: torch.dtype
    device: torch.device
    stored_dtype: str
    generation_defaults: dict[str, Any] = field(default_factory=dict[str, Any])
    lineage: dict[str, Any] = field(default_factory=dict[str, Any])
    sentence: Sentence | None = None
    headless: bool = False

    @property
    def model(self) -> Model:
        """With all its weights; those that were left in the file are read when it is first asked for."""
        return self.raw_model.get() if isinstance(self.raw_model, Unfinished) else self.raw_model

    @property
    def outline(self) -> Model:
        """The model as far as it was read: what was left in the file has its shape and dtype only (device "meta")."""
        return self.raw_model.model if isinstance(self.raw_model, Unfinished) else self.raw_model

    @property
    def can(self) -> frozenset[Ability]:
        """What its outputs are for."""
        return self.raw_model.can - {"generate", "score"} if self.headless else self.raw_model.can

    @property
    def causal(self) -> bool:
        """Whether its tokens see those before them alone, whose keys and values are kept."""
        return "generate" in self.raw_model.can

    @property
    def identity(self) -> Identity:
        """Hashed when it is first read."""
        return self.identified.get() if isinstance(self.identified, LazyValue) else self.identified

    @property
    def embedding_size(self) -> int:
        """Numbers of a vector that nothing else is asked of."""
        hidden = self.spec.hidden_size
        return hidden if self.sentence is None else self.sentence.spec.output_size(hidden)

    @property
    def name(self) -> str:
        """A short name: the source's last part, without an ending."""
        last = self.source.rstrip("/").rsplit("/", 1)[-1]
        return last.removesuffix(".gguf")

    @property
    def decoder_start(self) -> tuple[int, ...]:
        """What the decoder of an encoder–decoder writes after: its start, and a first token that is forced where the
        files name one. () for others. CheckpointError where the files do not say."""
        if "encode" not in self.can:
            return ()
        defaults = self.generation_defaults
        start = defaults.get("decoder_start_token_id", defaults.get("bos_token_id"))
        if start is None:
            raise CheckpointError(
                f"{self.source} does not say what its decoder starts with; add decoder_start_token_id to its "
                "generation_config.json"
            )
        named = {"decoder_start_token_id": start, "forced_bos_token_id": defaults.get("forced_bos_token_id")}
        present = ((name, value) for name, value in named.items() if value is not None)
        return tuple(written_id(value, self.spec.vocab_size, name, self.source) for name, value in present)

    def prompt_room(self, answer: int = 0) -> int:
        """Tokens that a prompt may have before an answer of so many, which an encoder–decoder writes elsewhere; below
        one where there is no room for the answer itself."""
        if "encode" not in self.can:
            return self.spec.context_length - answer
        fits = answer + len(self.decoder_start) <= self.spec.main.context_length
        return self.spec.context_length if fits else 0

    @property
    def text_ends(self) -> frozenset[int]:
        """The tokens that end a text."""
        eos = self.generation_defaults.get("eos_token_id")
        listed = eos if isinstance(eos, list) else [] if eos is None else [eos]
        return frozenset(listed) | frozenset(self.tokenizer.eos_ids if self.tokenizer is not None else ())

    @property
    def never_written(self) -> frozenset[int]:
        """Tokens that the files say are no part of any text."""
        return frozenset(
            token_id for token_id in never_written(self.generation_defaults) if 0 <= token_id < self.spec.vocab_size
        )

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
    leave: Leave | None = None,
) -> Base:
    """Loads a base from a catalogue name, a directory, a .gguf file or hf:owner/name.

    dtype: "auto" keeps the checkpoint's own, and is bfloat16 for quantised files, on every machine. `bedplate.load`
    opens a base in what is fastest here. leave: what stays in a GGUF file until `model` is first asked for.
    Raises HubError, CheckpointError (missing, truncated, inconsistent files) or UnsupportedModelError.
    """
    path, target = locate(source), resolve_device(device)
    with Progress(f"loading {source}", unit=""):
        if path.is_file():
            return _load_gguf(str(source), path, dtype, target, leave)
        return _load_hf(str(source), path, dtype, target)


def locate(source: str | Path) -> Path:
    """The directory or .gguf file that `load_base` reads for `source`, pulled if need be. Raises HubError."""
    path = resolve(str(source))
    if path.is_dir():
        ggufs = sorted(path.glob("*.gguf"))
        if not (path / "config.json").is_file() and len(ggufs) == 1:
            return ggufs[0]
    return path


def _load_gguf(source: str, path: Path, dtype: str | torch.dtype, device: torch.device, leave: Leave | None) -> Base:
    reader = GgufReader(path)
    family = find_family("gguf", reader.architecture, str(path))
    embedding = family.weights.to_external("embedding.weight") or ""
    if embedding not in reader.names:
        raise CheckpointError(f"{path} has no tensor {embedding!r}; it is not a whole model")
    tables = reader.tables()
    extra: dict[str, Any] = {
        "tensor_names": reader.names,
        "embedding_rows": reader.shape(embedding)[0],
        "tables": tables,
    }
    spec = _spec(family, {**reader.metadata, **extra}, reader.names, str(path))
    family = family.of(spec)
    quantised = set(reader.types.values()) - {"F32", "F16", "BF16"}
    stored = None if quantised else torch.float32
    target_dtype = resolve_dtype(dtype, stored)
    states = [file_state(path)]
    filling = Filling(spec, family, reader.names, str(path), _copies(spec, family, reader.names, reader.get, str(path)))
    weights_reader = GgufReader(path, tensors_only=True)  # for what is read later: without the vocabulary
    with ThreadPoolExecutor(1) as executor:
        reading = executor.submit(gguf_tokenizer, reader.metadata)
        if leave is None:
            raw_model = filling.model(weights_reader.get, target_dtype, device)
        else:
            block_types = StoredBlocks(path, family.weights, spec.main).block_types
            raw_model = filling.part(
                weights_reader.get, target_dtype, device, states, lambda model: leave(model, block_types)
            )
        tokenizer = fitting(reading.result(), spec, str(path))
    sentence = gguf_sentence(reader.metadata, family.key[1], str(path))
    defaults: dict[str, Any] = {}
    if "encode" in raw_model.can:
        tokenizer = None if tokenizer is None else tokenizer.for_encoder(first_is_forced=False)
        defaults = gguf_generation(reader.metadata, reader.architecture)

    def hashed() -> str:
        return filling.weights_id(lambda name, _: weights_reader.get(name))

    return Base(
        spec=spec,
        raw_model=raw_model,
        tokenizer=tokenizer,
        family=family,
        identified=LazyValue(lambda: _identify(filling.kept_id(hashed, states, None), tokenizer)),
        source=source,
        path=path,
        dtype=target_dtype,
        device=device,
        stored_dtype="+".join(sorted(set(reader.types.values()))).lower(),
        generation_defaults=defaults,
        lineage={"name": reader.metadata.get("general.name"), "licence": reader.metadata.get("general.license")},
        sentence=None if sentence is None else sentence.to(device),
    )


def _load_hf(source: str, path: Path, dtype: str | torch.dtype, device: torch.device) -> Base:
    config, location = _read_json(path / "config.json", required=True), str(path / "config.json")
    outer = find_multimodal(config)
    config = config if outer is None else outer.text_config(config, location)
    family = claimed_family(config, location)
    packing = config.pop("quantization_config", None)
    with open_weights(path, family.weights) as files:
        part = None if outer is None else TextPart(files, outer, location)
        reader = unpacked(part or files, packing, location)
        config = config if outer is None else outer.with_head(config, reader.names)
        spec = read_scored(path, _spec(family, config, reader.names, location))
        refuse_other_classes(config, family, location)
        headless = is_headless(spec, family, reader.names, config, path)
        spec = spec.with_(tied_head=True) if headless and isinstance(spec, TransformerSpec) else spec
        family = family.of(spec)
        embedding = next((n for n in reader.names if family.weights.from_external(n) == "embedding.weight"), None)
        if embedding is None:
            raise CheckpointError(f"{path} has no embedding tensor; it is not a whole {config['model_type']} model")
        # Of packed matrices the others' dtype; else the narrowest that holds every matrix as it is stored.
        widest = None if packing is not None else files.widest(None if part is None else part.stored_names)
        stored = widest or reader.get(embedding).dtype
        target_dtype = resolve_dtype(dtype, stored)
        states = [file_state(path / name) for name in files.files]
        copies = _copies(spec, family, reader.names, reader.get, str(path))
        filling = Filling(spec, family, reader.names, str(path), copies)
        release = files.release if reader is files and isinstance(files, SafetensorsReader) else None
        model = filling.model(lambda name, _: reader.get(name), target_dtype, device, release)
    sentence = read_sentence(path, spec.hidden_size)
    dense = dense_id(sentence)

    def hashed() -> str:
        with open_weights(path, family.weights) as files:
            weights_reader = unpacked(files if outer is None else TextPart(files, outer, location), packing, location)
            return filling.weights_id(lambda name, _: weights_reader.get(name))

    defaults = read_generation(path, config)
    tokenizer = read_tokenizer(path, spec, first_is_forced=defaults.get("forced_bos_token_id") is not None)
    tokenizer = fitting(tokenizer, spec, str(path))
    record = _read_json(path / BASE_FILE)
    lineage: dict[str, Any] = record.get("lineage", {})
    if outer is not None and part is not None:
        part.log_omitted(source, outer)
        lineage = lineage | {"text_of": {"model_type": outer.name, "left_out": part.left_out}}
    equivalent_of = record.get("equivalent_of")
    identity = LazyValue(
        lambda: _identify(with_dense(filling.kept_id(hashed, states, packing), dense), tokenizer, equivalent_of)
    )
    if record and record.get("weights_id") != identity.get().weights_id:
        raise CheckpointError(
            f"{path}: the weights are not those that {BASE_FILE} describes; export the base again, "
            f"or delete {BASE_FILE} if the change is intended"
        )
    return Base(
        spec=spec,
        raw_model=model,
        tokenizer=tokenizer,
        family=family,
        identified=identity,
        source=source,
        path=path,
        dtype=target_dtype,
        device=device,
        stored_dtype=str(stored).removeprefix("torch."),
        generation_defaults=defaults,
        lineage=lineage,
        sentence=None if sentence is None else sentence.to(device),
        headless=headless,
    )


def _spec(family: Family, config: Mapping[str, Any], names: tuple[str, ...], location: str) -> TextSpec:
    """The family's spec. A damaged config must not build a model that the named tensors cannot fill."""
    try:
        spec = family.by_names(family.to_spec(config), names)
    except UnsupportedModelError as error:
        raise located(error, location) from error
    except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError, RecursionError) as error:
        raise CheckpointError(f"{location}: a field has a value of the wrong kind ({error})") from error
    refuse_deeper(spec, len(names), location)
    _refuse_later_turns(spec, location)
    return spec


def refuse_deeper(spec: TextSpec, tensors: int, location: str) -> None:
    """CheckpointError for a spec of more layers than the checkpoint has tensors, before a model is built of it."""
    if spec.deepest > tensors:
        raise CheckpointError(f"{location} asks for {spec.deepest} layers, but the checkpoint holds {tensors} tensors")


def _refuse_later_turns(spec: TextSpec, location: str) -> None:
    """UnsupportedModelError for a decoder whose context goes beyond what LongRoPE turns in one way: what a cache holds
    would be other keys than those of the whole text. (Phi's family ends its context there.)"""
    rope = spec.position.rope if isinstance(spec, TransformerSpec) and spec.kind == "decoder" else None
    scaling = None if rope is None else rope.scaling
    if (
        not isinstance(scaling, LongRopeScaling)
        or scaling.is_uniform
        or spec.context_length <= scaling.original_context
    ):
        return
    raise UnsupportedModelError(
        f"{location}: longrope turns the positions of a text of more than {scaling.original_context} tokens otherwise "
        "(short_factor and long_factor differ), which is supported for phi3 alone; where long_factor stands for "
        "short_factor as well, every text is read as a long one"
    )


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
    return read_object(path)


def _copies(
    spec: TextSpec, family: Family, names: tuple[str, ...], get: Callable[[str], Tensor], location: str
) -> frozenset[str]:
    """Some writers store what is tied to the token table once more: the copies' names, which must equal it."""
    weights = family.weights
    external_names = {weights.from_external(name): name for name in names}
    heads = [name for name in names if spec.tied_head and weights.from_external(name) == "lm_head.weight"]
    copies = [*heads, *(name for name in names if weights.bare(name) in weights.copies)]
    table = external_names.get("target_embedding.weight") or external_names.get("embedding.weight")
    if table is None or not copies:
        return frozenset()
    values = get(table)
    for copy in copies:
        if not torch.equal(get(copy), values):
            hint = "; set tie_word_embeddings to false in config.json" if copy in heads else ""
            raise CheckpointError(
                f"{location}: the config ties {copy!r} to the embedding, but it differs from {table!r}{hint}"
            )
    return frozenset(copies)


def parameter_count(model: nn.Module) -> int:
    """Parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
