"""A Base: one pretrained model with its tokenizer and its identity, loaded from any supported form of checkpoint.

1. `load_base` opens the checkpoint (`checkpoint.py`), which reads its header and finds its family and spec.
2. The dtype is resolved; the tokenizer is read in a thread beside the weights.
3. `WeightLoader` builds an empty model on device "meta", and the family's rules map the checkpoint's tensors to its
   parameters. Tensors are read in parallel, each checked for NaN and converted at once, so that none stays in memory
   in another dtype than the model's. Blocks that a kernel takes from the file stay where they are.
4. With a base.json, its hash is checked; otherwise weights are hashed when the identity is first read (`identity.py`):
   the values as stored, which are read once more for it. The hash is cached by the state of the files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bedplate.core.errors import CheckpointError
from bedplate.core.files import FileState, file_state, sha256_json
from bedplate.core.measurements import measured_once
from bedplate.core.progress import Progress
from bedplate.models.build import build
from bedplate.models.checkpoints.checkpoint import Checkpoint, open_checkpoint
from bedplate.models.checkpoints.conversion import ConversionStep, Get, read, readings
from bedplate.models.checkpoints.gguf import GgufReader, StoredBlocks
from bedplate.models.checkpoints.hf_checkpoint import BASE_FILE
from bedplate.models.checkpoints.identity import (
    NO_TEMPLATE,
    NO_TOKENIZER,
    Identity,
    Lazy,
    WeightsHash,
    dense_id,
    with_dense,
)
from bedplate.models.checkpoints.text_files import fitting, never_written, written_id
from bedplate.models.families import Family
from bedplate.models.layers.sentence_layers import SentenceLayers
from bedplate.models.model import Ability, Model
from bedplate.models.precision import resolve_device, resolve_dtype
from bedplate.models.specs import TextSpec
from bedplate.text.tokenizer import Tokenizer

Leave = Callable[[Model, Mapping[str, str]], Collection[str]]
"""Given a model without values and the block types of its matrices in a GGUF file ("Q4_1"), the names of the parameters
that a kernel reads from the file itself."""


T = TypeVar("T")
_READERS = 4
"""Tensors that are read at once, at most: each may need room beside the model."""
_PART = 1 << 20
_KEPT_FROM = 1 << 25
"""Bytes of files from which a hash is kept; of fewer it takes no longer than looking for it."""
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)


@dataclass(frozen=True)
class WeightLoader:
    """Loads the tensors `names` of a checkpoint into a model. copies: names of tensors that duplicate others."""

    spec: TextSpec
    family: Family
    names: Sequence[str]
    origin: str
    copies: frozenset[str] = frozenset()

    def load(
        self,
        get: Get,
        dtype: torch.dtype,
        device: torch.device,
        states: Sequence[FileState],
        leave: Callable[[Model], Collection[str]] | None = None,
        on_recast: Callable[[str], None] | None = None,
    ) -> tuple[Model, Lazy[None] | None]:
        """Builds a model with every parameter read from the checkpoint and every tensor of the checkpoint used.

        on_recast: called with each tensor that was converted to another dtype. Parameters that `leave` names have a
        shape and dtype, but no values (device "meta"), until the second result is evaluated, with a CheckpointError
        where the files have changed since `states` were taken. CheckpointError, naming the tensor, for values that are
        not finite or not real numbers.
        """
        model = self._empty(dtype)
        deferred, plan = frozenset(leave(model) if leave else ()), self._readings(model.state_dict(keep_vars=True))
        later = [reading for reading in plan if deferred.issuperset(reading.step.ours)]
        now = [reading for reading in plan if not deferred.issuperset(reading.step.ours)]
        self._read(model, now, get, device, on_recast)

        def read_deferred() -> None:
            self._unchanged(states)
            with torch.inference_mode(False):  # they may be trained on later
                self._read(model, later, get, device)
            self._unchanged(states)

        return model, Lazy(read_deferred) if later else None

    def _read(
        self,
        model: Model,
        plan: Sequence[ConversionStep],
        get: Get,
        device: torch.device,
        on_recast: Callable[[str], None] | None = None,
    ) -> None:
        parameters = model.state_dict(keep_vars=True)

        def load_reading(reading: ConversionStep) -> list[tuple[str, Tensor]]:
            tensors = read(reading, self.spec, get, parameters, self.origin)
            converted = [(name, self._checked(name, tensor, parameters[name]).to(device)) for name, tensor in tensors]
            if on_recast is not None and all(
                target.dtype != source.dtype for (_, target), (_, source) in zip(converted, tensors, strict=True)
            ):
                for name in reading.theirs:
                    on_recast(name)
            return converted

        state = {name: tensor for named_tensors in _in_parallel(load_reading, plan) for name, tensor in named_tensors}
        model.load_state_dict(parameters | state, assign=True)
        model.requires_grad_(False)
        model.eval()

    def weights_id(self, get: Get) -> str:
        """The hash of the values as they are stored (see `Identity`)."""
        parameters, digest = self._empty(torch.float32).state_dict(keep_vars=True), WeightsHash()

        def add(reading: ConversionStep) -> None:
            for name, tensor in read(reading, self.spec, get, parameters, self.origin, stored=True):
                digest.add(name, tensor)

        for _ in _in_parallel(add, self._readings(parameters)):
            pass
        return digest.hexdigest()

    def kept_id(self, get: Callable[[], str], states: Sequence[FileState], packing: object) -> str:
        """The hash that `get` computes, or a cached one of the same files. CheckpointError where they have changed
        since the model was read."""
        self._unchanged(states)
        if sum(state.size for state in states) < _KEPT_FROM or not all(state.settled for state in states):
            digest = get()
        else:
            steps = [[step.ours, step.theirs] for step in self.family.weights.steps(self.spec)]
            key: dict[str, Any] = {"version": 1, "files": [list(state) for state in states], "packing": packing}
            key |= {"family": list(self.family.key), "spec": self.spec.key(), "names": sha256_json(steps)}
            digest = measured_once("weights", key, get, str, _hash, timed=False)
        self._unchanged(states)
        return digest

    def _unchanged(self, states: Iterable[FileState]) -> None:
        try:
            changed = next((state.path for state in states if file_state(Path(state.path)) != state), None)
        except OSError as error:
            raise CheckpointError(f"{self.origin} is gone, and cannot be hashed: {error}") from error
        if changed is not None:
            raise CheckpointError(f"{changed} has changed since it was loaded; load the base again")

    def _empty(self, dtype: torch.dtype) -> Model:
        try:
            return build(self.spec, dtype, "meta")
        except (RuntimeError, TypeError, OverflowError) as error:  # sizes that no tensor can have
            raise CheckpointError(f"{self.origin}: a model of these sizes cannot be built ({error})") from error

    def _readings(self, parameters: Mapping[str, Tensor]) -> list[ConversionStep]:
        names = [name for name in self.names if name not in self.copies]
        return readings(self.family, self.spec, names, parameters, self.origin)

    def _checked(self, name: str, tensor: Tensor, parameter: Tensor) -> Tensor:
        """The tensor in its parameter's dtype. CheckpointError for values that are not finite, or do not fit it."""
        dtype_name = str(tensor.dtype).removeprefix("torch.")
        if tensor.dtype in _FLOAT8 or (parameter.is_floating_point() and not tensor.is_floating_point()):
            raise CheckpointError(
                f"{self.origin}: {name} holds {dtype_name} values where real numbers are expected; a quantised "
                "checkpoint needs its scales, and quantization_config in its config.json"
            )
        converted = tensor.to(parameter.dtype)
        if not _finite(converted):
            if converted.dtype != tensor.dtype and _finite(tensor):
                short = str(converted.dtype).removeprefix("torch.")
                raise CheckpointError(f"{self.origin}: {name} holds values that {short} cannot; load it as float32")
            raise CheckpointError(f"{self.origin}: {name} holds NaN or infinite values; the checkpoint is damaged")
        return converted


def _in_parallel(work: Callable[[ConversionStep], T], plan: Sequence[ConversionStep]) -> Iterator[T]:
    """Runs `work` over the plan in parallel threads, in order. The first failure ends it."""
    with ThreadPoolExecutor(max(1, min(_READERS, torch.get_num_threads()))) as pool:
        yield from pool.map(work, plan)


def _finite(tensor: Tensor) -> bool:
    """Whether all values are finite. A finite sum shows it at once; a sum that overflowed is followed by a full
    check."""
    if not tensor.is_floating_point() or math.isfinite(float(tensor.sum())):
        return True
    return all(bool(part.isfinite().all()) for part in tensor.reshape(-1).split(_PART))


def _hash(digest: Any) -> str:
    if not isinstance(digest, str) or len(digest) != 64:
        raise ValueError("not a hash")
    return digest


@dataclass(kw_only=True)
class Base:
    """A loaded base. Its parameters do not require gradients until something trains them.

    raw_model: its model; what `deferred` has still to read has its shape and dtype only (device "meta"). identified:
    its identity, or a `Lazy` that hashes the weights. tokenizer: None for a directory without one; such a base takes
    token ids only. sentence: how its own library turns states into sentence vectors, where the files say so. headless:
    the files hold a decoder's body without its head, as embedding models do, so that its logits are no predictions.
    gguf: the tensors of the file, where the base came from a GGUF file."""

    spec: TextSpec
    raw_model: Model
    tokenizer: Tokenizer | None
    family: Family
    identified: Identity | Lazy[Identity]
    source: str
    path: Path
    dtype: torch.dtype
    device: torch.device
    stored_dtype: str
    generation_defaults: dict[str, Any] = field(default_factory=dict[str, Any])
    lineage: dict[str, Any] = field(default_factory=dict[str, Any])
    sentence: SentenceLayers | None = None
    headless: bool = False
    gguf: GgufReader | None = None
    deferred: Lazy[None] | None = None

    @property
    def model(self) -> Model:
        """The model with all its weights; those that were left in the file are read on first use."""
        if self.deferred is not None:
            self.deferred.get()
        return self.raw_model

    @property
    def can(self) -> frozenset[Ability]:
        """The abilities of the model, less those that need a head where there is none."""
        return self.raw_model.can - {"generate", "score"} if self.headless else self.raw_model.can

    @property
    def causal(self) -> bool:
        """Whether attention is causal, so that keys and values can be cached."""
        return self.raw_model.writes

    @property
    def writes(self) -> bool:
        """Whether it writes text."""
        return self.raw_model.writes and not self.headless

    @property
    def has_encoder(self) -> bool:
        """Whether an encoder reads the prompt beside the decoder that writes the answer."""
        return self.raw_model.has_encoder

    @property
    def continues(self) -> bool:
        """Whether it is a decoder alone, so that what it has read stays as it is when more follows."""
        return self.causal and not self.has_encoder

    @property
    def identity(self) -> Identity:
        """Hashed when it is first read."""
        return self.identified.get() if isinstance(self.identified, Lazy) else self.identified

    @property
    def embedding_size(self) -> int:
        """Size of an embedding when the request does not shorten it."""
        hidden = self.spec.hidden_size
        return hidden if self.sentence is None else self.sentence.spec.output_size(hidden)

    @property
    def name(self) -> str:
        """A short name: the source's last part, without an ending."""
        last = self.source.rstrip("/").rsplit("/", 1)[-1]
        return last.removesuffix(".gguf")

    @property
    def decoder_start(self) -> tuple[int, ...]:
        """The tokens that the decoder of an encoder–decoder starts from: its start token, and a forced first token
        where the files name one. () for other bases. CheckpointError where the files do not name a start token."""
        if not self.has_encoder:
            return ()
        defaults = self.generation_defaults
        start = defaults.get("decoder_start_token_id", defaults.get("bos_token_id"))
        if start is None:
            raise CheckpointError(f"{self.source} has no decoder_start_token_id; add it to its generation_config.json")
        named = {"decoder_start_token_id": start, "forced_bos_token_id": defaults.get("forced_bos_token_id")}
        present = ((name, value) for name, value in named.items() if value is not None)
        return tuple(written_id(value, self.spec.vocab_size, name, self.source) for name, value in present)

    def prompt_room(self, answer: int = 0) -> int:
        """How many tokens a prompt may have when the answer has `answer` tokens, which take no room beside the prompt
        in an encoder–decoder; below one where the answer itself does not fit."""
        if not self.has_encoder:
            return self.spec.context_length - answer
        fits = answer + len(self.decoder_start) <= self.spec.main.context_length
        return self.spec.context_length if fits else 0

    def answer_room(self, prompt: int) -> int:
        """How many tokens can follow a prompt of `prompt` tokens."""
        if self.has_encoder:
            return self.spec.main.context_length - len(self.decoder_start)
        return self.spec.context_length - prompt

    @property
    def text_ends(self) -> frozenset[int]:
        eos = self.generation_defaults.get("eos_token_id")
        listed = eos if isinstance(eos, list) else [] if eos is None else [eos]
        return frozenset(listed) | frozenset(self.tokenizer.eos_ids if self.tokenizer is not None else ())

    @property
    def never_written(self) -> frozenset[int]:
        """Tokens that the files exclude from generated text."""
        return frozenset(
            token_id for token_id in never_written(self.generation_defaults) if 0 <= token_id < self.spec.vocab_size
        )

    def need_tokenizer(self) -> Tokenizer:
        """The tokenizer, or a CheckpointError for a base that came without one."""
        if self.tokenizer is None:
            raise CheckpointError(f"{self.source} has no tokenizer; add its tokenizer.json to {self.path}")
        return self.tokenizer


def load_base(
    source: str | Path,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    leave: Leave | None = None,
    checkpoint: Checkpoint | None = None,
) -> Base:
    """Loads a base from a catalogue name, a directory, a .gguf file or hf:owner/name.

    dtype: "auto" keeps the checkpoint's own, and is bfloat16 for quantised files, on every machine. `bedplate.load`
    opens a base in what is fastest here. leave: what stays in a GGUF file until `model` is first asked for.
    checkpoint: the source's, where it was opened before; it is closed.
    Raises HubError, CheckpointError (missing, truncated, inconsistent files) or UnsupportedModelError.
    """
    target = resolve_device(device)
    with Progress(f"loading {source}", unit=""), closing(checkpoint or open_checkpoint(source)) as opened:
        return _load(str(source), opened, dtype, target, leave)


def _load(
    source: str, checkpoint: Checkpoint, dtype: str | torch.dtype, device: torch.device, leave: Leave | None
) -> Base:
    """Steps 2 to 4 of loading, on an opened checkpoint."""
    spec, family, path, gguf = checkpoint.spec, checkpoint.family, checkpoint.path, checkpoint.gguf
    target_dtype = resolve_dtype(dtype, checkpoint.stored_dtype)
    copies = _copies(spec, family, checkpoint.names, checkpoint.get, str(path))
    filling = WeightLoader(spec, family, checkpoint.names, str(path), copies)

    def left(model: Model) -> Collection[str]:
        if leave is None or gguf is None:
            return ()
        return leave(model, StoredBlocks(gguf, family.weights, spec.main).block_types)

    with ThreadPoolExecutor(1) as executor:
        reading = executor.submit(checkpoint.tokenizer)
        get = checkpoint.get if gguf is None else gguf.get
        raw_model, deferred = filling.load(get, target_dtype, device, checkpoint.states, left, checkpoint.release)
        tokenizer = fitting(reading.result(), spec, str(path))
    sentence = checkpoint.sentence()
    dense, reopen, states, packing = dense_id(sentence), checkpoint.reopener(), checkpoint.states, checkpoint.packing
    record = checkpoint.record

    def hashed() -> str:
        with reopen() as get:
            return filling.weights_id(lambda name, _: get(name))

    def identify() -> Identity:
        weights_id = with_dense(filling.kept_id(hashed, states, packing), dense)
        return _identify(weights_id, tokenizer, record.get("equivalent_of"))

    identity = Lazy(identify)
    if record and record.get("weights_id") != identity.get().weights_id:
        raise CheckpointError(
            f"{path}: the weights are not those that {BASE_FILE} describes; export again or delete {BASE_FILE}"
        )
    checkpoint.log_omitted(source)
    return Base(
        spec=spec,
        raw_model=raw_model,
        tokenizer=tokenizer,
        family=family,
        identified=identity,
        source=source,
        path=path,
        dtype=target_dtype,
        device=device,
        stored_dtype=checkpoint.stored_types,
        generation_defaults=checkpoint.generation,
        lineage=checkpoint.lineage,
        sentence=None if sentence is None else sentence.to(device),
        headless=checkpoint.headless,
        gguf=gguf,
        deferred=deferred,
    )


def _identify(weights_id: str, tokenizer: Tokenizer | None, equivalent_of: str | None = None) -> Identity:
    if tokenizer is None:
        return Identity(weights_id, equivalent_of=equivalent_of)
    template_id = tokenizer.chat.identity if tokenizer.chat is not None else NO_TEMPLATE
    return Identity(weights_id, tokenizer.identity or NO_TOKENIZER, template_id, equivalent_of)


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
