"""`bedplate skins`: the skins there are, what one consists of and came from, whether it is whole and fits a base; and
skins written out for other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bedplate.core.errors import UsageError
from bedplate.core.progress import console

if TYPE_CHECKING:
    from bedplate.skins.catalog import Catalog, Entry
    from bedplate.skins.skin import Skin


def skins(
    action: Annotated[
        Literal["list", "show", "verify", "export", "merge"], typer.Argument(help="What to do.", show_default=False)
    ],
    target: Annotated[
        list[str] | None,
        typer.Argument(
            help="list: directories to look through and record; show: a directory, name or id; others: a directory.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="export, merge: the directory to write; it must not exist yet.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="verify: check the skin against this base too. export, merge: where the skin's base is now."),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(help="verify --base: how the base's weights would be held. merge: how weights are stored."),
    ] = "auto",
    allow_other_weights: Annotated[
        bool, typer.Option("--allow-other-weights", help="verify: other weights than it was judged with only warn.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the catalogue's skins, show one with its lineage, verify one's files and its base, or write one out.

    export writes prompt.json (template, messages, output) and, for LoRA weights and soft prompts, the files that peft
    loads. merge adds LoRA weights to the base's and writes a Hugging Face directory that transformers loads; it says
    how far that is from base and adapter."""
    given = target or []
    if (out is not None) != (action in ("export", "merge")):
        raise UsageError("`bedplate skins export` and `merge` need --out DIRECTORY, and the other actions take none")
    if action == "list":
        _list(given, as_json)
        return
    if len(given) != 1:
        raise UsageError(f"`bedplate skins {action}` takes exactly one skin, got {len(given)}")
    if action == "show":
        _show(given[0], as_json)
    elif action == "export" and out is not None:
        _export(given[0], out, base, as_json)
    elif action == "merge" and out is not None:
        _merge(given[0], out, base, None if dtype == "auto" else dtype, as_json)
    else:
        _verify(given[0], base, dtype, allow_other_weights, as_json)


def _list(directories: list[str], as_json: bool) -> None:
    from bedplate.skins.catalog import Catalog

    problems: list[str] = []
    with Catalog.open() as catalog:
        if directories:
            problems = catalog.add(directories).problems
        entries = catalog.entries("skin")
    if as_json:
        print(json.dumps({"skins": [_row(entry) for entry in entries], "problems": problems}))
        return
    from rich.table import Table

    table = Table("name", "kind", "task", "base", "id", "path", box=None)
    for entry in entries:
        cells = (str(entry.details.get(key) or "") for key in ("kind", "task", "base"))
        gone = "" if entry.path and Path(entry.path).is_dir() else " (gone)"
        table.add_row(entry.name, *cells, entry.id[:12], f"{entry.path}{gone}")
    console().print(table)
    for problem in problems:
        print(f"not recorded: {problem}")


def _show(target: str, as_json: bool) -> None:
    from bedplate.skins.catalog import Catalog
    from bedplate.skins.files import read_skin, skin_id

    with Catalog.open() as catalog:
        if Path(target).is_dir():
            skin = read_skin(target)
        else:
            entry = catalog.find(target)
            if entry.what != "skin" or entry.path is None:
                raise UsageError(f"{target!r} is a {entry.what}, not a skin with a directory")
            skin = read_skin(entry.path)
        fields = _fields(skin)
        fields |= _lineage(catalog, skin_id(skin))
    if as_json:
        print(json.dumps(fields))
        return
    for key, value in fields.items():
        if value not in (None, [], {}):
            print(f"{key:<16} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")


def _verify(target: str, base: str | None, dtype: str, allow_other_weights: bool, as_json: bool) -> None:
    from bedplate.skins.files import read_skin, skin_id
    from bedplate.skins.verify import verify_skin

    skin = read_skin(target)
    warnings: list[str] = []
    if base is not None:
        from bedplate.models.checkpoints.base import load_base

        warnings = verify_skin(skin, load_base(base, dtype=dtype), allow_other_weights=allow_other_weights)
    if as_json:
        said = {"name": skin.name, "id": skin_id(skin), "files": "ok", "base": base, "warnings": warnings}
        print(json.dumps(said))
        return
    print(f"{skin.name}: every file is as it was written{'' if base is None else f', and it fits {base}'}")
    for warning in warnings:
        print(f"warning: {warning}")


def _export(target: str, out: Path, base: str | None, as_json: bool) -> None:
    from bedplate.skins.export import export_skin
    from bedplate.skins.files import read_skin

    skin = read_skin(target)
    files = export_skin(skin, out, base=base)
    if as_json:
        print(json.dumps({"name": skin.name, "kind": skin.kind, "out": str(out), "files": files}))
        return
    print(f"{out}: {', '.join(files)}")


def _merge(target: str, out: Path, base: str | None, dtype: str | None, as_json: bool) -> None:
    from dataclasses import asdict

    from bedplate.skins.files import read_skin
    from bedplate.skins.merge import merge_skin

    merged = merge_skin(read_skin(target), out, base=base, dtype=dtype)
    if as_json:
        print(json.dumps(asdict(merged) | {"out": str(out)}))
        return
    print(f"{out}: the base with the skin's weights, stored as {merged.stored}")
    if merged.dequantised is not None:
        print(f"source     quantised ({merged.dequantised}): merged into the dequantised weights, not quantised again")
    print(f"weights_id {merged.weights_id}")
    drift = merged.drift
    print(
        f"drift      against base and adapter in float32, {drift.tokens} tokens: logits differ by at most "
        f"{drift.logit:.2g}, mean KL {drift.kl:.2g} nats, the likeliest token is the same at {drift.same_top:.1%}"
    )


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
        "index": None if skin.index is None else {"rows": len(skin.index), "k": skin.index.k, "size": skin.index.size},
        "evaluated_with": None if skin.evaluated_with is None else skin.evaluated_with.model_dump(),
        "provenance": skin.provenance.model_dump(),
    }


def _lineage(catalog: Catalog, id_: str) -> dict[str, Any]:
    from bedplate.core.errors import UnknownItemError

    try:
        lineage = catalog.lineage(id_)
    except UnknownItemError:
        return {"ancestors": [], "descendants": [], "unrecorded": []}
    return {
        "ancestors": [_row(entry) for entry in lineage.ancestors],
        "descendants": [_row(entry) for entry in lineage.descendants],
        "unrecorded": list(lineage.unknown),
    }


def _row(entry: Entry) -> dict[str, Any]:
    return {"what": entry.what, "id": entry.id, "name": entry.name, "path": entry.path, **entry.details}
