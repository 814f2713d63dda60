"""`bedplate skins reproduce`: a skin made again from what it recorded, and compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bedplate.cli import paths

if TYPE_CHECKING:
    from bedplate.adaptation.after.reproduce import Reproduction


def reproduce(
    skin: Annotated[
        str,
        typer.Argument(help="A directory, or a name or id in the catalogue.", show_default=False, callback=paths.known),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The new run's directory. By default the skin's name with -again, here.", callback=paths.directory
        ),
    ] = None,
    task: Annotated[
        Path | None,
        typer.Option(help="The task file, where the run is gone or its task file has moved.", callback=paths.existing),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make a skin again from what it recorded (task, seed, plan of its rung), and compare the two.

    Only its rung is climbed, and what that builds on; test is not opened. It says what of data, splits, bases, parent,
    code and libraries is not what it was, which files are the same, by how much numbers differ, and how many answers on
    valid are the same. A hosted skin's endpoint is asked again, within the task's max_usd.

    \b
      identical     every file is the same, bit for bit
      equivalent    numbers in files differ, no answer on valid does
      different     something else differs                               exit code 1
      not_possible  data, splits, a base or the parent cannot be had     exit code 1

    Ctrl-C is safe: the same command resumes where it stopped.
    """
    from bedplate.adaptation.after.reproduce import reproduce as again
    from bedplate.skins.catalog import Catalog
    from bedplate.skins.files import read_skin

    with Catalog.open() as catalog:
        directory = catalog.skin_directory(skin)
    found = again(directory, out or Path(f"{read_skin(directory).name}-again"), task_file=task)
    if as_json:
        print(json.dumps(found.to_json(), allow_nan=False))
    else:
        _show(found)
    if not found.reproduced:
        raise typer.Exit(1)


def _show(found: Reproduction) -> None:
    print(f"{found.skin}: {found.status.replace('_', ' ')}: {found.reason}")
    for one in found.differences:
        print(f"{'changed' if one.decides else 'note   '} {one.what}: was {one.was[:24]}, is {one.now[:24]}")
    for note in found.notes:
        print(f"note    {note}")
    for part in found.parts:
        by = "" if part.equal or part.largest is None else f" by at most {part.largest:.3g}"
        print(f"{'same   ' if part.equal else 'differs'} {part.name}{by}")
    if found.comparison is not None:
        c = found.comparison
        print(
            f"valid   {found.equal_answers} of {found.rows} answers are the same; {c.metric} {c.b:.3f}, now {c.a:.3f}"
        )
    if found.recorded is not None and found.estimate is not None:
        print(f"then    {found.recorded:.3f} was recorded, {found.estimate:.3f} was found in making it again")
    if found.directory is not None:
        print(f"skin    {found.directory}")
