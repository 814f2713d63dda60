"""`bedplate skins export`: a skin as files of other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bedplate.cli import paths


def export(
    skin: Annotated[str, typer.Argument(help="A skin's directory.", show_default=False, callback=paths.skin_directory)],
    out: Annotated[
        Path,
        typer.Option(
            help="The directory to write; it must not exist yet.", show_default=False, callback=paths.new_directory
        ),
    ],
    base: Annotated[str | None, typer.Option(help="Where the skin's base is now.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a skin for other programs.

    prompt.json says what is asked: template, messages, output. For LoRA weights and soft prompts there is what peft
    loads; for probes and classical skins model.onnx, and numpy arrays with a recipe that needs nothing else.
    """
    from bedplate.skins.export import export_skin
    from bedplate.skins.files import read_skin

    read = read_skin(skin)
    files = export_skin(read, out, base=base)
    if as_json:
        print(json.dumps({"name": read.name, "kind": read.kind, "out": str(out), "files": files}))
        return
    print(f"{out}: {', '.join(files)}")
