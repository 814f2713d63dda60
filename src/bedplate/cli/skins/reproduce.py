"""`bedplate skins reproduce`: a skin made again from what it recorded, and compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bedplate.cli import paths

if TYPE_CHECKING:
    from bedplate.adaptation.postprocess.reproduce import Reproduction


def reproduce(
    skin: Annotated[
        str, typer.Argument(help="A directory, or a name or id in the catalogue.", callback=paths.catalog_target)
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
    from bedplate.adaptation.postprocess.reproduce import reproduce as again
    from bedplate.skins.catalog import Catalog
    from bedplate.skins.files import read_skin

    with Catalog.open() as catalog:
        directory = catalog.skin_directory(skin)
    reproduction = again(directory, out or Path(f"{read_skin(directory).name}-again"), task_file=task)
    if as_json:
        print(json.dumps(reproduction.to_json(), allow_nan=False))
    else:
        _show(reproduction)
    if not reproduction.reproduced:
        raise typer.Exit(1)


def _show(result: Reproduction) -> None:
    print(f"{result.skin}: {result.status.replace('_', ' ')}: {result.reason}")
    for change in result.differences:
        print(
            f"{'changed' if change.decides else 'note   '} {change.what}: was {change.was[:24]}, is {change.now[:24]}"
        )
    for note in result.notes:
        print(f"note    {note}")
    for part in result.parts:
        by = "" if part.equal or part.largest is None else f" by at most {part.largest:.3g}"
        print(f"{'same   ' if part.equal else 'differs'} {part.name}{by}")
    if result.comparison is not None:
        c = result.comparison
        scores = f"{c.metric} {c.b:.3f}, now {c.a:.3f}"
        print(f"valid   {result.equal_answers} of {result.rows} answers are the same; {scores}")
    if result.recorded is not None and result.estimate is not None:
        print(f"then    {result.recorded:.3f} was recorded, {result.estimate:.3f} was measured in making it again")
    if result.directory is not None:
        print(f"skin    {result.directory}")
