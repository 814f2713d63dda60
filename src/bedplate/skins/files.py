"""Skins as directories: written whole and always with the same bytes, read with every doubt raised.

`skin.json` lists the sha256 of every other file. Nothing is unpickled, followed out of the directory, or ignored.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import cast

from bedplate.adapters.head import HEAD_FILE, read_head
from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.table import ADAPTERS
from bedplate.adapters.tensor_files import (
    CONFIG_FILE,
    MAX_JSON_BYTES,
    MAX_TENSOR_BYTES,
    SOFT_PROMPT_FILE,
    read_bytes,
    read_json_object,
)
from bedplate.core.errors import BedplateError, SkinError
from bedplate.core.files import atomic_directory, sha256_bytes
from bedplate.models.families import FAMILIES, Family
from bedplate.skins import lookup_index
from bedplate.skins.classical import (
    CLASSICAL_FILE,
    MAX_CLASSICAL_BYTES,
    MAX_VOCABULARY_BYTES,
    VOCABULARY_FILE,
    Classical,
    read_classical,
)
from bedplate.skins.manifest import (
    EXTRAS,
    REPORT_FILE,
    SCHEMA_VERSION,
    SKIN_FILE,
    CascadeFields,
    ChunkRow,
    ClassicalFields,
    DemonstrationRow,
    KnnFields,
    M,
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
from bedplate.skins.output import Output
from bedplate.skins.prompt import Demonstration, Format, Prompt
from bedplate.skins.skin import (
    BaseReference,
    CascadePart,
    EndpointReference,
    EvaluatedWith,
    LoraPart,
    ProbePart,
    Skin,
    kind_of,
)

PROMPT_FILE = "prompt.jinja"
DEMONSTRATIONS_FILE = "demonstrations.jsonl"
_OF_PART = {
    "lora": ADAPTERS["lora"].files,
    "soft_prompt": ADAPTERS["soft_prompt"].files,
    "knn": (lookup_index.VECTORS_FILE, lookup_index.ROWS_FILE),
    "retrieval": (lookup_index.VECTORS_FILE, lookup_index.PASSAGES_FILE),
    "probe": ADAPTERS["head"].files,
    "classical": (CLASSICAL_FILE, VOCABULARY_FILE),
}
"""The files of a part, all of which are there where it is."""
_FILE_NAMES = frozenset((PROMPT_FILE, DEMONSTRATIONS_FILE, *EXTRAS, *chain.from_iterable(_OF_PART.values())))
CASCADED = ("first", "second")
"""Directories of a cascade's two skins."""
_LIMITS = {
    lookup_index.ROWS_FILE: lookup_index.MAX_ROWS_BYTES,
    lookup_index.PASSAGES_FILE: lookup_index.MAX_ROWS_BYTES,
    CLASSICAL_FILE: MAX_CLASSICAL_BYTES,
    VOCABULARY_FILE: MAX_VOCABULARY_BYTES,
}
"""Bytes of files that may be larger or smaller than others of their form."""


def skin_files(skin: Skin, extras: Mapping[str, bytes] | None = None) -> dict[str, bytes]:
    """File name → content of a skin's directory, `skin.json` included."""
    files = _part_files(skin)
    for name, content in (extras or {}).items():
        if name not in EXTRAS:
            raise SkinError(f"a skin cannot carry a file {name!r}; besides its own it may have: {', '.join(EXTRAS)}")
        files[name] = content
    files[SKIN_FILE] = manifest_bytes(_manifest(skin, files))
    return files


def _part_files(skin: Skin) -> dict[str, bytes]:
    files: dict[str, bytes] = {PROMPT_FILE: skin.prompt.template.encode()}
    if skin.demonstrations:
        rows = [{"inputs": dict(d.inputs), "answer": d.answer} for d in skin.demonstrations]
        files[DEMONSTRATIONS_FILE] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if skin.lora is not None:
        from bedplate.adapters.peft import peft_files, task_type_of

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
    if skin.index is not None:
        files |= skin.index.files()
    if skin.cascade is not None:
        for place, part in zip(CASCADED, (skin.cascade.first, skin.cascade.second), strict=True):
            files |= {f"{place}/{name}": content for name, content in skin_files(part).items()}
    return files


def _manifest(skin: Skin, files: Mapping[str, bytes]) -> SkinManifest:
    knn = retrieval = cascade = classical = None
    embedded = skin.embedded_with
    if (pool := skin.neighbours) is not None:
        knn = KnnFields(k=pool.k, order=pool.order, pooling=pool.pooling, depth=pool.depth, embedded_with=embedded)
    if (index := skin.passages) is not None:
        retrieval = RetrievalFields(k=index.k, pooling=index.pooling, depth=index.depth, embedded_with=embedded)
    if (part := skin.cascade) is not None:
        cascade = CascadeFields(threshold=part.threshold, first=skin_id(part.first), second=skin_id(part.second))
    if (model := skin.classical) is not None:
        classical = ClassicalFields(words=model.words, sublinear=model.sublinear)
    return SkinManifest(
        schema_version=SCHEMA_VERSION,
        name=skin.name,
        kind=skin.kind,
        bases=dict(skin.bases),
        inputs=dict(skin.inputs),
        output=skin.output,
        prompt=PromptFields(format=skin.prompt.format, system=skin.prompt.system),
        lora=None if skin.lora is None else skin.lora.config,
        probe=None if skin.probe is None else ProbeFields(layer=skin.probe.layer, pooling=skin.probe.pooling),
        knn=knn,
        retrieval=retrieval,
        cascade=cascade,
        classical=classical,
        provenance=skin.provenance,
        generation=dict(skin.generation),
        limits=skin.limits,
        evaluated_with=skin.evaluated_with,
        files={name: sha256_bytes(content) for name, content in files.items()},
    )


def manifest_of(skin: Skin) -> SkinManifest:
    """The `skin.json` of a skin without extras."""
    return _manifest(skin, _part_files(skin))


def skin_id(skin: Skin) -> str:
    """sha256 that names a skin by everything it consists of (reports and other extras apart)."""
    return manifest_id(manifest_of(skin))


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
        raise SkinError(f"the family {name!r} of the skin's base is not known here; known are: {family_names}")
    return family


def _read_listed(directory: Path, manifest: SkinManifest) -> dict[str, bytes]:
    """The listed files' bytes, read once, so that what was hashed is what is used."""
    for name in manifest.files:
        if not _is_known(name):
            message = f"{directory / SKIN_FILE} lists the file {name!r}, which is not a part of a skin"
            raise SkinError(f"{message} (paths are plain names; known are {', '.join(sorted(_FILE_NAMES))})")
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
    return inner_name in {SKIN_FILE, *_FILE_NAMES} - set(EXTRAS) if place in CASCADED else name in _FILE_NAMES


def _entries(directory: Path, inner: Sequence[str] = (lookup_index.INDEX_DIRECTORY, *CASCADED)) -> list[Path]:
    """What lies in a skin's directory and in those within it, which must be directories and no links to some."""
    entries: list[Path] = []
    for path in sorted(directory.iterdir()):
        if path.name in inner and path.is_dir() and not path.is_symlink():
            entries += _entries(path, (lookup_index.INDEX_DIRECTORY,) if path.name in CASCADED else ())
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
    try:
        template = contents[PROMPT_FILE].decode()
    except UnicodeDecodeError as error:
        raise SkinError(f"{directory / PROMPT_FILE} is not UTF-8 at byte {error.start}") from error
    neighbours = passages = None
    if (knn := manifest.knn) is not None:
        rows = _demonstrations(directory / lookup_index.ROWS_FILE, contents[lookup_index.ROWS_FILE])
        vectors = lookup_index.read_vectors(directory / lookup_index.VECTORS_FILE, contents[lookup_index.VECTORS_FILE])
        neighbours = lookup_index.Neighbours(vectors, rows, knn.k, knn.order, knn.pooling, knn.depth)
    if (retrieval := manifest.retrieval) is not None:
        rows = _rows(ChunkRow, directory / lookup_index.PASSAGES_FILE, contents[lookup_index.PASSAGES_FILE])
        chunks = tuple(lookup_index.Chunk(row.document, row.start, row.text) for row in rows)
        vectors = lookup_index.read_vectors(directory / lookup_index.VECTORS_FILE, contents[lookup_index.VECTORS_FILE])
        passages = lookup_index.Passages(vectors, chunks, retrieval.k, retrieval.pooling, retrieval.depth)
    soft_prompt = None
    if SOFT_PROMPT_FILE in required:
        from bedplate.adapters.soft_prompt import read_soft_prompt

        soft_prompt = read_soft_prompt(directory / SOFT_PROMPT_FILE, contents[SOFT_PROMPT_FILE])
    embedded = manifest.knn or manifest.retrieval
    return Skin(
        name=manifest.name,
        bases=manifest.bases,
        inputs=manifest.inputs,
        output=manifest.output,
        prompt=Prompt(template, manifest.prompt.format, manifest.prompt.system),
        demonstrations=_demonstrations(directory / DEMONSTRATIONS_FILE, contents.get(DEMONSTRATIONS_FILE, b"")),
        lora=None if manifest.lora is None else _lora(directory, manifest, manifest.lora, contents),
        probe=_probe(directory, manifest, contents),
        soft_prompt=soft_prompt,
        neighbours=neighbours,
        passages=passages,
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


def _rows(model: type[M], path: Path, content: bytes) -> Iterator[M]:
    """The objects of a JSON lines file. SkinError naming the line."""
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line:
            place = Path(f"{path}, line {number}")
            yield validate(model, read_json_object(place, line), place)


def _demonstrations(path: Path, content: bytes) -> tuple[Demonstration, ...]:
    return tuple(Demonstration(row.inputs, row.answer) for row in _rows(DemonstrationRow, path, content))


def _lora(directory: Path, manifest: SkinManifest, config: LoraConfig, contents: Mapping[str, bytes]) -> LoraPart:
    """The adapter, with `skin.json`'s configuration, which must say what the PEFT files say."""
    from bedplate.adapters.peft import read_peft, read_spec

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
    return read_classical(directory, contents, labels, fields.words, fields.sublinear)


def _told_apart(directory: Path, manifest: SkinManifest, part_name: str) -> tuple[str, ...]:
    """The labels that a head scores. SkinError where the output has none."""
    labels = manifest.output.scored_labels
    if not labels:
        message = f"{directory / SKIN_FILE}: {part_name}'s output must be a label, or labels with a threshold, not the"
        raise SkinError(f"{message} {manifest.output.kind} that it names")
    return labels


@dataclass(frozen=True, slots=True)
class Card:
    """id: the skin_id. base: None where none is needed. directory: None for a skin that was never written."""

    id: str
    name: str
    parts: tuple[str, ...]
    base: BaseReference | EndpointReference | None
    inputs: tuple[str, ...]
    output: Output
    format: Format
    evaluated_with: EvaluatedWith | None
    directory: Path | None
    embedder: BaseReference | None = None
    """The base that chooses its demonstrations, where it is another than the main one."""
    second: BaseReference | EndpointReference | None = None
    """What a cascade passes on to."""
    embedded_with: EvaluatedWith | None = None
    """How the embedder was held."""
    report: bool = False
    """Whether a page that says how it was judged is one of its files."""

    @property
    def kind(self) -> str:
        return kind_of(self.parts)

    @property
    def labels(self) -> tuple[str, ...]:
        """What it chooses from, one or some of them; () where it writes what it answers."""
        return self.output.scored_labels


def read_card(directory: Path | str) -> Card:
    """A skin's card, with no other file read: nothing is verified but `skin.json` itself. SkinError."""
    directory = Path(directory)
    return _card(read_manifest(directory), directory.absolute())


def card_of(skin: Skin) -> Card:
    manifest, directory = manifest_of(skin), skin.directory
    if directory is not None and (directory / REPORT_FILE).is_file():
        manifest = manifest.model_copy(update={"files": {**manifest.files, REPORT_FILE: ""}})
    return _card(manifest, directory)


def _card(manifest: SkinManifest, directory: Path | None) -> Card:
    embedder, embedded = manifest.bases.get("embedder"), manifest.knn or manifest.retrieval
    return Card(
        id=manifest_id(manifest),
        name=manifest.name,
        parts=manifest.parts,
        base=manifest.bases.get("main"),
        inputs=tuple(manifest.inputs),
        output=manifest.output,
        format=manifest.prompt.format,
        evaluated_with=manifest.evaluated_with,
        directory=directory,
        embedder=embedder if isinstance(embedder, BaseReference) else None,
        second=manifest.bases.get("second"),
        embedded_with=None if embedded is None else embedded.embedded_with,
        report=REPORT_FILE in manifest.files,
    )


def report_of(card: Card) -> bytes | None:
    """The page that says how the skin was judged: the very bytes that `skin.json` lists, or None."""
    if card.directory is None:
        return None
    try:
        listed = read_manifest(card.directory).files.get(REPORT_FILE)
        content = None if listed is None else read_bytes(card.directory / REPORT_FILE, MAX_JSON_BYTES)
    except BedplateError:
        return None
    return content if content is not None and sha256_bytes(content) == listed else None


def parts_of(card: Card) -> list[Card]:
    """The cards of a cascade's two skins, in their order; [] for every other skin, and for one that lies nowhere."""
    if "cascade" not in card.parts or card.directory is None:
        return []
    return [read_card(card.directory / place) for place in CASCADED]


def skin_directories(root: Path) -> Iterator[Path]:
    """Every directory below `root` that has a `skin.json`, in order. Links are not followed; a skin holds no skins."""
    if (root / SKIN_FILE).is_file():
        yield root
        return
    for child in sorted(root.iterdir()):
        if child.is_dir() and not child.is_symlink() and not child.name.startswith("."):
            yield from skin_directories(child)
