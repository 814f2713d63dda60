"""`skin.json`: what a skin says of itself, as it is written and checked when it is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.tensor_files import read_json_object
from bedplate.core.config import Strict, first_problem
from bedplate.core.errors import SkinError, UsageError
from bedplate.core.files import sha256_bytes
from bedplate.skins import skin
from bedplate.skins.lookup_index import Order, PoolPooling
from bedplate.skins.output import Output
from bedplate.skins.prompt import Format

SCHEMA_VERSION = 1
SKIN_FILE = "skin.json"
REPORT_FILE = "report.html"
EXTRAS = ("report.json", REPORT_FILE, "README.md")
"""Files that a skin may carry and that do not change what it does."""

M = TypeVar("M", bound=BaseModel)


class PromptFields(Strict):
    format: Format
    system: str | None = None


class ProbeFields(Strict):
    layer: str = Field(pattern=r"^layers\.\d{1,6}$")
    pooling: Literal["last", "mean", "first"]


class KnnFields(Strict):
    k: Annotated[int, Field(ge=1)]
    order: Order
    pooling: PoolPooling
    depth: Annotated[int, Field(ge=0)] | None = None
    embedded_with: skin.EvaluatedWith | None = None


class RetrievalFields(Strict):
    k: Annotated[int, Field(ge=1)]
    pooling: PoolPooling
    depth: Annotated[int, Field(ge=0)] | None = None
    embedded_with: skin.EvaluatedWith | None = None


class CascadeFields(Strict):
    threshold: Annotated[float, Field(gt=0, le=1)]
    first: skin.Digest
    second: skin.Digest


class ClassicalFields(Strict):
    """terms: what they are made of."""

    terms: Literal["words"] = "words"
    words: tuple[int, int]
    sublinear: bool


class Row(BaseModel):
    """A line of a JSON lines file."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class DemonstrationRow(Row):
    inputs: dict[str, str]
    answer: str


class ChunkRow(Row):
    document: str
    start: Annotated[int, Field(ge=0)]
    text: str


class SkinManifest(Strict):
    """`skin.json`. Its kind is the names of its parts; of a soft prompt nothing else tells here."""

    schema_version: int
    name: str
    kind: str
    bases: dict[str, skin.BaseReference | skin.EndpointReference]
    inputs: dict[str, skin.InputField]
    output: Annotated[Output, Field()]
    prompt: PromptFields
    lora: LoraConfig | None = None
    probe: ProbeFields | None = None
    knn: KnnFields | None = None
    retrieval: RetrievalFields | None = None
    cascade: CascadeFields | None = None
    classical: ClassicalFields | None = None
    provenance: skin.Provenance = skin.Provenance()
    generation: dict[str, Any] = Field(default_factory=dict)
    limits: skin.Limits = skin.Limits()
    evaluated_with: skin.EvaluatedWith | None = None
    files: dict[str, skin.Digest] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _kind_of_the_parts(self) -> SkinManifest:
        if self.kind != skin.kind_of(self.parts):
            raise ValueError(
                f"the kind {self.kind!r} does not fit the parts, which are of a {skin.kind_of(self.parts)!r}"
            )
        skin.check_parts(self.name, self.bases, self.parts)
        return self

    @property
    def parts(self) -> tuple[str, ...]:
        own = {name: getattr(self, name) for name in ("cascade", "classical", "lora", "knn", "retrieval", "probe")}
        soft_prompt = True if "soft_prompt" in self.kind.split("+") else None
        return skin.name_parts(self.bases, self.output, soft_prompt=soft_prompt, **own)


def manifest_bytes(manifest: SkinManifest) -> bytes:
    # "inputs" keeps its order, which is the order of the fields in the prompt; the order of keys is fixed otherwise
    fields = manifest.model_dump(mode="json")
    for name in ("knn", "retrieval", "cascade", "classical"):  # skins from before there were such parts keep their id
        if fields[name] is None:
            del fields[name]
    return (json.dumps(fields, indent=2, ensure_ascii=False) + "\n").encode()


def manifest_id(manifest: SkinManifest) -> str:
    """The `skin_id` of the skin that this `skin.json` belongs to, from the hashes that it lists."""
    files = {name: digest for name, digest in manifest.files.items() if name not in EXTRAS}
    return sha256_bytes(manifest_bytes(manifest.model_copy(update={"files": files})))


def read_manifest(directory: Path) -> SkinManifest:
    """`skin.json` alone: what the skin says of itself. SkinError where it is missing, a link, or not valid."""
    if not directory.is_dir():
        raise SkinError(f"{directory} is not a directory; a skin is a directory with a {SKIN_FILE}")
    path = directory / SKIN_FILE
    if not path.exists() and not path.is_symlink():
        raise SkinError(f"{directory} has no {SKIN_FILE}: it is not a skin")
    return parse_manifest(path, read_json_object(path))


def parse_manifest(path: Path, fields: dict[str, Any]) -> SkinManifest:
    version = fields.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise SkinError(f"{path}: schema_version must be a positive number, got {version!r}")
    if version > SCHEMA_VERSION:
        newest = f"this Bedplate reads up to {SCHEMA_VERSION}; update Bedplate"
        raise SkinError(f"{path} has schema version {version}, {newest}")
    return validate(SkinManifest, fields, path)


def validate(model: type[M], fields: Any, path: Path) -> M:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise SkinError(f"{path}: {first_problem(error)}") from error
    except UsageError as error:  # of an endpoint's address
        raise SkinError(f"{path}: {error.message}") from error
