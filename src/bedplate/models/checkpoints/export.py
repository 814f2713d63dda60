"""Writing a Base out: a Hugging Face directory that transformers loads, or a GGUF file that llama.cpp loads."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bedplate.core.errors import CheckpointError, UsageError
from bedplate.core.files import atomic_directory, atomic_write, sha256_file
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.models.checkpoints.conversion import write_parameters
from bedplate.models.checkpoints.gguf import GgufReader, write_gguf
from bedplate.models.checkpoints.hf_checkpoint import BASE_FILE
from bedplate.models.checkpoints.safetensors import write_safetensors
from bedplate.models.checkpoints.sentence_transformers import write_sentence
from bedplate.models.families import Family, in_format
from bedplate.models.precision import DTYPES, dtype_name
from bedplate.text.gguf_fields import filled


def export_base(
    base: Base, directory: Path, *, dtype: str | None = None, shard_bytes: int = 5 * 10**9, replace: bool = False
) -> Path:
    """Writes `base` as a Hugging Face directory: config, weights, tokenizer, generation config and base.json.

    dtype: how weights are stored; by default the type they are loaded in. The export is loaded back and its values
    compared before the directory appears under its name. replace: in the place of what is there, which stays whole
    until then. Raises CheckpointError when they differ.
    """
    family = family_in(base, "hf")
    stored = base.dtype if dtype is None else DTYPES.get(dtype)
    if stored is None:
        raise UsageError(f"dtype {dtype!r} is not known; use one of {', '.join(DTYPES)}")
    if directory.exists() and not replace:
        raise UsageError(f"{directory} exists already; choose another directory or remove it")
    with atomic_directory(directory, replace) as draft:
        write_safetensors(draft, _stored(base, family, stored), shard_bytes)
        config = family.to_config(base.spec) | {"dtype": dtype_name(stored)} | _starts(base) | _token_ids(base)
        if base.headless:  # the fields by which a decoder without its head is known
            stem = str(config["architectures"][0]).split("For")[0]
            config |= {"architectures": [f"{stem}Model"], "tie_word_embeddings": False}
        atomic_write(draft / "config.json", json.dumps(config, indent=2) + "\n")
        if base.tokenizer is not None:
            base.tokenizer.save(draft, types=base.spec.main.token_types > 1)
        if base.sentence is not None:
            write_sentence(draft, base.sentence, base.spec.hidden_size)
        if base.writes:
            defaults = _token_ids(base) | base.generation_defaults
            atomic_write(draft / "generation_config.json", json.dumps(defaults, indent=2) + "\n")
        atomic_write(draft / BASE_FILE, json.dumps(_record(base, draft), indent=2) + "\n")
    return directory


def _stored(base: Base, family: Family, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """The tensors as they are written: what is not trained keeps the type that it is computed with."""
    exact = {family.weights.to_external(name) for name, _ in base.model.named_buffers()}
    tensors = write_parameters(family, base.spec, base.model.state_dict(keep_vars=True))
    return ((name, tensor if name in exact else tensor.to(dtype)) for name, tensor in tensors)


def _record(base: Base, draft: Path) -> dict[str, Any]:
    """base.json, from the files as they were written: what a later load will compute."""
    written = load_base(draft, device="cpu")
    if written.spec != base.spec:
        stored = written.spec.flat()
        name, value = next((name, value) for name, value in base.spec.flat().items() if value != stored.get(name))
        raise CheckpointError(f"the {base.family.name} family cannot say what this model has: {name} = {value!r}")
    weights_match = written.identity.weights_id == base.identity.weights_id
    if written.dtype == base.dtype:
        read = written.model.state_dict()
        for name, ours in base.model.state_dict().items():
            if not torch.equal(ours.cpu(), read[name]):
                raise CheckpointError(f"the export of {name} does not read back as it was written; check the disk")
    if written.tokenizer is not None and written.identity.tokenizer_id != base.identity.tokenizer_id:
        raise CheckpointError("the exported tokenizer does not read back as it was written")
    is_same_file = weights_match and base.path.is_file()
    return {
        "schema": 1,
        "weights_id": written.identity.weights_id,
        "tokenizer_id": written.identity.tokenizer_id,
        "template_id": written.identity.template_id,
        # Claimed only when every value of the source file is the same here.
        "equivalent_of": sha256_file(base.path) if is_same_file else base.identity.equivalent_of,
        # What was trained from nothing has no weights before it.
        "lineage": base.lineage
        | {"parent": base.identity.weights_id or None, "source": base.source.rsplit("/", 1)[-1]}
        | {"same_values": weights_match},
    }


def export_gguf(base: Base, path: Path, ggml_type: str, *, replace: bool = False) -> Path:
    """Writes `base` as one GGUF file with matrices of type `ggml_type` (see gguf.WRITABLE). replace: in the place of
    what is there."""
    family = family_in(base, "gguf")
    if base.headless:
        raise UsageError(f"{base.name} has no head, which GGUF files are to have; export a Hugging Face directory")
    if path.exists() and not replace:
        raise UsageError(f"{path} exists already; choose another name or remove it")
    draft = path.with_name(path.name + ".tmp")
    about = {"general.name": base.lineage.get("name") or base.name, "general.license": base.lineage.get("licence")}
    named = {key: str(value) for key, value in about.items() if value is not None}
    metadata = named | family.to_config(base.spec) | dict(tokenizer_fields(base))
    if base.has_encoder and base.generation_defaults:
        metadata[f"{family.key[1]}.decoder_start_token_id"] = base.decoder_start[0]
    tensors = write_parameters(family, base.spec, base.model.state_dict(keep_vars=True))
    tables = ((name, torch.tensor(values)) for name, values in family.tables(base.spec).items())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_gguf(draft, family.key[1], metadata, chain(tables, tensors), ggml_type, family.whole)
        draft.replace(path)
    except OSError as error:
        # numpy reports a short write without the system's reason
        reason = error.strerror or f"{error}: the disk may be full"
        raise UsageError(f"cannot write {path}: {reason}; choose a place that can be written") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
    return path


def tokenizer_fields(base: Base) -> Mapping[str, Any]:
    """The `tokenizer.*` metadata of a GGUF file: as read, when the base came from one. Without a tokenizer it says so,
    which llama.cpp wants to be told."""
    if base.path.is_file():
        return {k: v for k, v in GgufReader(base.path).metadata.items() if k.startswith("tokenizer.")}
    if base.tokenizer is None:
        return {"tokenizer.ggml.model": "none"}
    return filled(base.tokenizer.to_fields(), base.spec.vocab_size)


def family_in(base: Base, format_: str) -> Family:
    """The base's family in another format, or CheckpointError where there is none."""
    target_family = in_format(base.family, format_)
    if target_family is None:
        raise CheckpointError(f"the {base.family.name} family cannot be written as {format_}")
    return target_family


def _starts(base: Base) -> dict[str, Any]:
    """What the class of an encoder–decoder reads in its config: the token that its decoder starts with, and others."""
    if not base.has_encoder:
        return {}
    names = ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
    token_ids = {name: base.generation_defaults.get(name) for name in names}
    return {name: value for name, value in token_ids.items() if value is not None}


def _token_ids(base: Base) -> dict[str, Any]:
    tokenizer = base.tokenizer
    if tokenizer is None:
        return {}
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    return {name: value for name, value in ids.items() if value is not None}
