"""Skins as directories: written whole and always with the same bytes, read with every doubt raised.

`skin.json` lists the sha256 of every other file. Nothing is unpickled, followed out of the directory, or ignored.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import cast

from bedplate.adapters.head import HEAD_FILE, read_head
from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.peft import CONFIG_FILE, peft_files, read_peft, read_spec, task_type_of
from bedplate.adapters.soft_prompt import SOFT_PROMPT_FILE, read_soft_prompt
from bedplate.adapters.table import ADAPTERS
from bedplate.adapters.tensor_files import MAX_JSON_BYTES, MAX_TENSOR_BYTES, read_bytes, read_json_object
from bedplate.core.errors import BedplateError, SkinError
from bedplate.core.files import atomic_directory, sha256_bytes
from bedplate.models.families import FAMILIES, Family
from bedplate.skins.classical import (
    CLASSICAL_FILE,
    MAX_CLASSICAL_BYTES,
    MAX_VOCABULARY_BYTES,
    VOCABULARY_FILE,
    Classical,
    read_classical,
)
from bedplate.skins.lookup_index import (
    INDEX_DIRECTORY,
    MAX_ROWS_BYTES,
    PASSAGES_FILE,
    ROWS_FILE,
    VECTORS_FILE,
    Neighbours,
    Passages,
    read_chunks,
    read_pool_rows,
    read_vectors,
)
from bedplate.skins.manifest import (
    EXTRAS,
    SCHEMA_VERSION,
    SKIN_FILE,
    CascadeFields,
    ClassicalFields,
    DemonstrationRow,
    KnnFields,
    ProbeFields,
    PromptFields,
    RetrievalFields,
    SkinManifest,
    manifest_bytes,
    manifest_id,
    parse_manifest,
    read_manifest,
    validate,
)
from bedplate.skins.prompt import Demonstration, Prompt
from bedplate.skins.skin import BaseReference, CascadePart, LoraPart, ProbePart, Skin

PROMPT_FILE = "prompt.jinja"
DEMONSTRATIONS_FILE = "demonstrations.jsonl"
_OF_PART = {
    "lora": ADAPTERS["lora"].files,
    "soft_prompt": ADAPTERS["soft_prompt"].files,
    "knn": (VECTORS_FILE, ROWS_FILE),
    "retrieval": (VECTORS_FILE, PASSAGES_FILE),
    "probe": ADAPTERS["head"].files,
    "classical": (CLASSICAL_FILE, VOCABULARY_FILE),
}
"""The files of a part, all of which are there where it is."""
_FILE_NAMES = frozenset((PROMPT_FILE, DEMONSTRATIONS_FILE, *EXTRAS, *chain.from_iterable(_OF_PART.values())))
CASCADED = ("first", "second")
"""Directories of a cascade's two skins."""
_LIMITS = {
    ROWS_FILE: MAX_ROWS_BYTES,
    PASSAGES_FILE: MAX_ROWS_BYTES,
    CLASSICAL_FILE: MAX_CLASSICAL_BYTES,
    VOCABULARY_FILE: MAX_VOCABULARY_BYTES,
}
"""Bytes of files that may be larger or smaller than others of their form."""


def skin_files(skin: Skin, extras: Mapping[str, bytes] | None = None) -> dict[str, bytes]:
    """File name → content of a skin's directory, `skin.json` included."""
    files: dict[str, bytes] = {PROMPT_FILE: skin.prompt.template.encode()}
    if skin.demonstrations:
        rows = [{"inputs": dict(d.inputs), "answer": d.answer} for d in skin.demonstrations]
        files[DEMONSTRATIONS_FILE] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if skin.lora is not None:
        family = family_of(skin.base.family)
        weights = family.weights_with(skin.lora.tensors)
        files |= peft_files(
            skin.lora.config,
            skin.lora.tensors,
            weights,
            base_name=skin.base.name,
            task_type=task_type_of(weights),
            spec=skin.lora.spec,
        )
    if skin.probe is not None:
        files[HEAD_FILE] = skin.probe.head.to_bytes()
    if skin.classical is not None:
        files |= skin.classical.files()
    if skin.soft_prompt is not None:
        files[SOFT_PROMPT_FILE] = skin.soft_prompt.to_bytes()
    files |= index_of(skin)
    if skin.cascade is not None:
        for place, part in zip(CASCADED, (skin.cascade.first, skin.cascade.second), strict=True):
            files |= {f"{place}/{name}": content for name, content in skin_files(part).items()}
    for name, content in (extras or {}).items():
        if name not in EXTRAS:
            raise SkinError(f"a skin cannot carry a file {name!r}; besides its own it may have: {', '.join(EXTRAS)}")
        files[name] = content
    manifest = SkinManifest(
        schema_version=SCHEMA_VERSION,
        name=skin.name,
        kind=skin.kind,
        bases=dict(skin.bases),
        inputs=dict(skin.inputs),
        output=skin.output,
        prompt=PromptFields(format=skin.prompt.format, system=skin.prompt.system),
        lora=None if skin.lora is None else skin.lora.config,
        probe=None if skin.probe is None else ProbeFields(layer=skin.probe.layer, pooling=skin.probe.pooling),
        knn=knn_fields(skin),
        retrieval=retrieval_fields(skin),
        cascade=_cascade_fields(skin),
        classical=_classical_fields(skin.classical),
        provenance=skin.provenance,
        generation=dict(skin.generation),
        limits=skin.limits,
        evaluated_with=skin.evaluated_with,
        files={name: sha256_bytes(content) for name, content in files.items()},
    )
    files[SKIN_FILE] = manifest_bytes(manifest)
    return files


def _cascade_fields(skin: Skin) -> CascadeFields | None:
    if skin.cascade is None:
        return None
    first, second = skin_id(skin.cascade.first), skin_id(skin.cascade.second)
    return CascadeFields(threshold=skin.cascade.threshold, first=first, second=second)


def _classical_fields(model: Classical | None) -> ClassicalFields | None:
    return None if model is None else ClassicalFields(words=model.words, sublinear=model.sublinear)


def skin_id(skin: Skin) -> str:
    """sha256 that names a skin by everything it consists of (reports and other extras apart)."""
    return sha256_bytes(skin_files(skin)[SKIN_FILE])


def write_skin(
    skin: Skin, directory: Path | str, extras: Mapping[str, bytes] | None = None, *, replace: bool = False
) -> Path:
    """Write a skin's directory, whole or not at all; the same skin gives the same bytes. Returns the directory.

    UsageError when the directory exists (unless `replace`) or cannot be written; SkinError when what was written would
    not be read back.
    """
    directory = Path(directory)
    files = skin_files(skin, extras)
    with atomic_directory(directory, replace=replace) as temporary:
        for name, content in sorted(files.items()):
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(content)
        read_skin(temporary)
    return directory


def read_skin(directory: Path | str) -> Skin:
    """Read a skin. SkinError for anything that is not exactly what `write_skin` wrote: a changed, missing or unlisted
    file, a path or link that leads outside, a pickle, NaN, wrong shapes or ranks, a newer schema."""
    return read_identified(directory)[1]


def read_identified(directory: Path | str) -> tuple[str, Skin]:
    """`read_skin`, with the skin's id, which costs nothing here: every file's hash has been compared."""
    directory = Path(directory)
    manifest = read_manifest(directory)
    contents = _read_listed(directory, manifest)
    try:
        skin = dataclasses.replace(_assemble(directory, manifest, contents), directory=directory.absolute())
        return manifest_id(manifest), skin
    except SkinError:
        raise
    except BedplateError as error:
        raise SkinError(f"{directory}: {error.message}") from error


def family_of(name: str) -> Family:
    family = FAMILIES.get(("hf", name))
    if family is None:
        family_names = ", ".join(sorted(key[1] for key in FAMILIES if key[0] == "hf"))
        raise SkinError(
            f"the skin's base is of the family {name!r}, which is not known here; known are: {family_names}"
        )
    return family


def _read_listed(directory: Path, manifest: SkinManifest) -> dict[str, bytes]:
    """The listed files' bytes, read once, so that what was hashed is what is used."""
    for name in manifest.files:
        if not _is_known(name):
            raise SkinError(
                f"{directory / SKIN_FILE} lists the file {name!r}, which is not a part of a skin "
                f"(paths are plain names; known are {', '.join(sorted(_FILE_NAMES))})"
            )
    for path in _entries(directory):
        name = path.relative_to(directory).as_posix()
        if name != SKIN_FILE and name not in manifest.files:
            raise SkinError(f"{path} is not listed in {SKIN_FILE}; remove it, or write the skin again")
    contents: dict[str, bytes] = {}
    for name, digest in manifest.files.items():
        limit = MAX_TENSOR_BYTES if name.endswith(".safetensors") else MAX_JSON_BYTES
        inner_name = name.partition("/")[2] if name.partition("/")[0] in CASCADED else name
        content = read_bytes(directory / name, _LIMITS.get(inner_name, limit))
        if sha256_bytes(content) != digest:
            raise SkinError(f"{directory / name} is not the file that {SKIN_FILE} lists: its sha256 differs")
        contents[name] = content
    return contents


def _is_known(name: str) -> bool:
    """Whether a skin can have such a file; the skins in a cascade have no extras."""
    place, _, inner_name = name.partition("/")
    return (
        inner_name == SKIN_FILE or inner_name in _FILE_NAMES - set(EXTRAS) if place in CASCADED else name in _FILE_NAMES
    )


def _entries(directory: Path, inner: Sequence[str] = (INDEX_DIRECTORY, *CASCADED)) -> list[Path]:
    """What lies in a skin's directory and in those within it, which must be directories and no links to some."""
    entries: list[Path] = []
    for path in sorted(directory.iterdir()):
        if path.name in inner and path.is_dir() and not path.is_symlink():
            entries += _entries(path, (INDEX_DIRECTORY,) if path.name in CASCADED else ())
        else:
            entries.append(path)
    return entries


def _assemble(directory: Path, manifest: SkinManifest, contents: Mapping[str, bytes]) -> Skin:
    cascade = None if manifest.cascade is None else _cascade(directory, manifest.cascade, contents)
    if cascade is not None:
        contents = {name: content for name, content in contents.items() if name.partition("/")[0] not in CASCADED}
    required = {PROMPT_FILE, *chain.from_iterable(_OF_PART.get(part, ()) for part in manifest.parts)}
    optional = {DEMONSTRATIONS_FILE, *EXTRAS}
    if not required <= contents.keys() or not contents.keys() <= required | optional:
        odd = sorted((required - contents.keys()) | (contents.keys() - required - optional))
        raise SkinError(f"{directory}: {odd[0]} does not fit a skin of kind {manifest.kind!r}")
    embedded = manifest.knn or manifest.retrieval
    return Skin(
        name=manifest.name,
        bases=manifest.bases,
        inputs=manifest.inputs,
        output=manifest.output,
        prompt=Prompt(_text(directory / PROMPT_FILE, contents), manifest.prompt.format, manifest.prompt.system),
        demonstrations=_demonstrations(directory / DEMONSTRATIONS_FILE, contents),
        lora=None if manifest.lora is None else _lora(directory, manifest, manifest.lora, contents),
        probe=_probe(directory, manifest, contents),
        soft_prompt=None
        if SOFT_PROMPT_FILE not in required
        else read_soft_prompt(directory / SOFT_PROMPT_FILE, contents[SOFT_PROMPT_FILE]),
        neighbours=read_neighbours(directory, manifest.knn, contents),
        passages=read_passages(directory, manifest.retrieval, contents),
        cascade=cascade,
        classical=_classical(directory, manifest, contents),
        embedded_with=None if embedded is None else embedded.embedded_with,
        provenance=manifest.provenance,
        generation=manifest.generation,
        limits=manifest.limits,
        evaluated_with=manifest.evaluated_with,
    )


def _cascade(directory: Path, fields: CascadeFields, contents: Mapping[str, bytes]) -> CascadePart:
    parts: list[Skin] = []
    for place, digest in zip(CASCADED, (fields.first, fields.second), strict=True):
        path = directory / place / SKIN_FILE
        files = {name.partition("/")[2]: content for name, content in contents.items() if name.startswith(f"{place}/")}
        raw_manifest = files.pop(SKIN_FILE, None)
        if raw_manifest is None:
            raise SkinError(f"{path} is missing: it is one of the two skins of a cascade")
        manifest = parse_manifest(path, read_json_object(path, raw_manifest))
        if manifest_id(manifest) != digest or manifest.files != {k: sha256_bytes(v) for k, v in files.items()}:
            raise SkinError(f"{path.parent} is not the skin that {directory / SKIN_FILE} names: it was exchanged")
        parts.append(_assemble(path.parent, manifest, files))
    return CascadePart(parts[0], parts[1], fields.threshold)


def _text(path: Path, contents: Mapping[str, bytes]) -> str:
    try:
        return contents[path.name].decode("utf-8")
    except UnicodeDecodeError as error:
        raise SkinError(f"{path} is not UTF-8 at byte {error.start}") from error


def _demonstrations(path: Path, contents: Mapping[str, bytes]) -> tuple[Demonstration, ...]:
    if path.name not in contents:
        return ()
    lines = [line for line in _text(path, contents).split("\n") if line]
    rows = [validate(DemonstrationRow, read_json_object(path, line.encode()), path) for line in lines]
    return tuple(Demonstration(row.inputs, row.answer) for row in rows)


def _lora(directory: Path, manifest: SkinManifest, config: LoraConfig, contents: Mapping[str, bytes]) -> LoraPart:
    """The adapter, with `skin.json`'s configuration, which must say what the PEFT files say."""
    main = cast("BaseReference", manifest.bases["main"])  # of no endpoint: its manifest says so
    peft_config, tensors = read_peft(directory, family_of(main.family).weights, contents=contents)
    for path in cast("tuple[str, ...]", peft_config.targets):
        ours = (config.rank(path), config.scaling(path), config.dropout, config.dora)
        if ours != (peft_config.rank(path), peft_config.scaling(path), peft_config.dropout, peft_config.dora):
            raise SkinError(f"{directory}: {CONFIG_FILE} and {SKIN_FILE} disagree about the adapter of {path}")
    return LoraPart(config, tensors, read_spec(directory, contents))


def _probe(directory: Path, manifest: SkinManifest, contents: Mapping[str, bytes]) -> ProbePart | None:
    if manifest.probe is None:
        return None
    labels = _told_apart(directory, manifest, "a probe")
    head = read_head(directory / HEAD_FILE, labels, contents[HEAD_FILE])
    return ProbePart(head, manifest.probe.layer, manifest.probe.pooling)


def _classical(directory: Path, manifest: SkinManifest, contents: Mapping[str, bytes]) -> Classical | None:
    fields = manifest.classical
    if fields is None:
        return None
    labels = _told_apart(directory, manifest, "a classical model")
    weights_and_terms = contents[CLASSICAL_FILE], contents[VOCABULARY_FILE]
    places = directory / CLASSICAL_FILE, directory / VOCABULARY_FILE
    return read_classical(*places, labels, fields.words, fields.sublinear, weights_and_terms)


def _told_apart(directory: Path, manifest: SkinManifest, part_name: str) -> tuple[str, ...]:
    """The labels that a head scores. SkinError where the output has none."""
    labels = manifest.output.scored_labels
    if not labels:
        raise SkinError(
            f"{directory / SKIN_FILE}: {part_name}'s output must be a label, or labels with a threshold, not the "
            f"{manifest.output.kind} that it names"
        )
    return labels


def index_of(skin: Skin) -> dict[str, bytes]:
    """File name → content; empty for a skin without."""
    index = skin.index
    return {} if index is None else index.files()


def knn_fields(skin: Skin) -> KnnFields | None:
    pool = skin.neighbours
    if pool is None:
        return None
    return KnnFields(
        k=pool.k, order=pool.order, pooling=pool.pooling, depth=pool.depth, embedded_with=skin.embedded_with
    )


def retrieval_fields(skin: Skin) -> RetrievalFields | None:
    index = skin.passages
    if index is None:
        return None
    return RetrievalFields(k=index.k, pooling=index.pooling, depth=index.depth, embedded_with=skin.embedded_with)


def read_neighbours(directory: Path, fields: KnnFields | None, contents: Mapping[str, bytes]) -> Neighbours | None:
    """The pool of a skin of kind knn. SkinError."""
    if fields is None:
        return None
    vectors = read_vectors(directory / VECTORS_FILE, contents[VECTORS_FILE])
    rows = read_pool_rows(directory / ROWS_FILE, contents[ROWS_FILE])
    return Neighbours(vectors, rows, fields.k, fields.order, fields.pooling, fields.depth)


def read_passages(directory: Path, fields: RetrievalFields | None, contents: Mapping[str, bytes]) -> Passages | None:
    """The passages of a skin of kind retrieval. SkinError."""
    if fields is None:
        return None
    vectors = read_vectors(directory / VECTORS_FILE, contents[VECTORS_FILE])
    chunks = read_chunks(directory / PASSAGES_FILE, contents[PASSAGES_FILE])
    return Passages(vectors, chunks, fields.k, fields.pooling, fields.depth)
