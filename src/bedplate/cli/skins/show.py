"""`bedplate skins show`: what a skin consists of."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bedplate.cli import paths

if TYPE_CHECKING:
    from bedplate.skins.catalog import Catalog
    from bedplate.skins.classical import Classical
    from bedplate.skins.skin import Skin


def show(
    skin: Annotated[
        str, typer.Argument(help="A directory, or a name or id in the catalogue.", callback=paths.catalog_target)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a skin consists of, and what the catalogue knows of its lineage."""
    from bedplate.skins.catalog import Catalog
    from bedplate.skins.files import read_skin, skin_id

    with Catalog.open() as catalog:
        read = read_skin(catalog.skin_directory(skin))
        fields = _fields(read) | _lineage(catalog, skin_id(read))
    if as_json:
        print(json.dumps(fields))
        return
    for key, value in fields.items():
        if value not in (None, [], {}):
            print(f"{key:<16} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")


def _fields(skin: Skin) -> dict[str, Any]:
    from bedplate.skins.files import skin_id

    return {
        "name": skin.name,
        "id": skin_id(skin),
        "kind": skin.kind,
        "path": str(skin.directory),
        "bases": {role: reference.model_dump() for role, reference in skin.bases.items()},
        "inputs": {name: field.model_dump() for name, field in skin.inputs.items()},
        "output": skin.output.model_dump(),
        "prompt": {"format": skin.prompt.format, "system": skin.prompt.system, "template": skin.prompt.template},
        "demonstrations": len(skin.demonstrations),
        "lora": None if skin.lora is None else skin.lora.config.model_dump(),
        "probe": None if skin.probe is None else {"layer": skin.probe.layer, "pooling": skin.probe.pooling},
        "classical": None if skin.classical is None else _classical(skin.classical),
        "index": None if skin.index is None else {"rows": len(skin.index), "k": skin.index.k, "size": skin.index.size},
        "evaluated_with": None if skin.evaluated_with is None else skin.evaluated_with.model_dump(),
        "provenance": skin.provenance.model_dump(),
    }


def _classical(model: Classical) -> dict[str, Any]:
    return {"terms": len(model.terms), "words": list(model.words), "sublinear": model.sublinear}


def _lineage(catalog: Catalog, id_: str) -> dict[str, Any]:
    from bedplate.core.errors import UnknownItemError

    try:
        lineage = catalog.lineage(id_)
    except UnknownItemError:
        return {"ancestors": [], "descendants": [], "unrecorded": []}
    return {
        "ancestors": [record.to_json() for record in lineage.ancestors],
        "descendants": [record.to_json() for record in lineage.descendants],
        "unrecorded": list(lineage.unknown),
    }
