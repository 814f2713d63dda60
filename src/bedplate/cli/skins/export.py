"""`bedplate skins export`: a skin as files of other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bedplate.cli import paths
from bedplate.cli.options import Overwrite


def export(
    skin: Annotated[str, typer.Argument(help="A skin's directory.", callback=paths.skin_directory)],
    out: Annotated[Path, typer.Option(help="The directory to write.", callback=paths.directory)],
    base: Annotated[str | None, typer.Option(help="Where the skin's base is now.", callback=paths.base)] = None,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a skin for other programs.

    prompt.json says what is asked: template, messages, output. For LoRA weights and soft prompts there is what peft
    loads; for probes and classical skins model.onnx, and numpy arrays with a recipe that needs nothing else.
    """
    paths.free(out, overwrite, "prompt.json")
    from bedplate.skins.export import export_skin
    from bedplate.skins.files import read_skin

    read = read_skin(skin)
    files = export_skin(read, out, base=base, replace=overwrite)
    if as_json:
        print(json.dumps({"name": read.name, "kind": read.kind, "out": str(out), "files": files}))
        return
    print(f"{out}: {', '.join(files)}")
