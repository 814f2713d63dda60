"""What `skin.json` alone says of a skin: enough to list thousands, and to know whose base they need, cheaply."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bedplate.adapters.tensor_files import MAX_JSON_BYTES, read_bytes
from bedplate.core.errors import BedplateError
from bedplate.core.files import sha256_bytes
from bedplate.skins.files import CASCADED, skin_id
from bedplate.skins.manifest import REPORT_FILE, SKIN_FILE, manifest_id, read_manifest
from bedplate.skins.output import Output
from bedplate.skins.prompt import Format
from bedplate.skins.skin import BaseReference, EndpointReference, EvaluatedWith, Skin, kind_of


@dataclass(frozen=True, slots=True)
class Card:
    """id: the content hash (`skin_id`). base: None where none is needed. directory: where it lies, None for a skin that
    was never written."""

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
        """The kind of the skin (`Skin.kind`)."""
        return kind_of(self.parts)

    @property
    def labels(self) -> tuple[str, ...]:
        """What it chooses from, one or some of them; () where it writes what it answers."""
        return self.output.scored_labels


def read_card(directory: Path | str) -> Card:
    """A skin's card, with no other file read: nothing is verified but `skin.json` itself. SkinError."""
    directory = Path(directory)
    manifest = read_manifest(directory)
    embedded = manifest.knn or manifest.retrieval
    return Card(
        manifest_id(manifest),
        manifest.name,
        manifest.parts,
        manifest.bases.get("main"),
        tuple(manifest.inputs),
        manifest.output,
        manifest.prompt.format,
        manifest.evaluated_with,
        directory.absolute(),
        _weights(manifest.bases.get("embedder")),
        manifest.bases.get("second"),
        None if embedded is None else embedded.embedded_with,
        REPORT_FILE in manifest.files,
    )


def report_of(card: Card) -> bytes | None:
    """The page that says how the skin was judged: the very bytes that `skin.json` lists, or None. A link, and what is
    not listed or has changed since, is no report of it."""
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


def card_of(skin: Skin) -> Card:
    """The card of a skin in memory."""
    inputs = tuple(skin.inputs)
    return Card(
        skin_id(skin),
        skin.name,
        skin.parts,
        skin.bases.get("main"),
        inputs,
        skin.output,
        skin.prompt.format,
        skin.evaluated_with,
        skin.directory,
        skin.embedder,
        skin.bases.get("second"),
        skin.embedded_with,
        skin.directory is not None and (skin.directory / REPORT_FILE).is_file(),
    )


def _weights(reference: BaseReference | EndpointReference | None) -> BaseReference | None:
    return reference if isinstance(reference, BaseReference) else None


def skin_directories(root: Path) -> Iterator[Path]:
    """Every directory below `root` that has a `skin.json`, in order. Links are not followed; a skin holds no skins."""
    if (root / SKIN_FILE).is_file():
        yield root
        return
    for child in sorted(root.iterdir()):
        if child.is_dir() and not child.is_symlink() and not child.name.startswith("."):
            yield from skin_directories(child)
