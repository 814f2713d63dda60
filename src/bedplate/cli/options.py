"""Options that several verbs share: overrides of a file, execution plans, amounts and times, pages."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from bedplate.cli import paths
from bedplate.core.errors import UsageError
from bedplate.core.files import atomic_write
from bedplate.core.progress import console
from bedplate.core.quantities import count_of, seconds_of
from bedplate.core.tables import Column, show, show_wide

# Options for a path, which is checked while the command line is read.
input_file = partial(typer.Option, callback=paths.existing)
input_directory = partial(typer.Option, callback=paths.existing_directory)
output_file = partial(typer.Option, callback=paths.new_file)
output_directory = partial(typer.Option, callback=paths.directory)

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Values that override the file's.", show_default=False)
]
BaseSource = Annotated[
    str,
    typer.Argument(
        help="Catalogue name, directory, .gguf file or hf:owner/name.", show_default=False, callback=paths.base
    ),
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16", "float64"],
    typer.Option(help="Data type of the loaded base. auto: the measured fastest without loss."),
]
Weights = Annotated[
    Literal["auto", "float32", "bfloat16", "int8", "int4"],
    typer.Option(help="Format of the weights. auto: the measured fastest without loss (see doctor)."),
]
Kernel = Annotated[
    Literal["auto", "torch", "native"],
    typer.Option(help="torch, or the compiled decoder for CPUs. auto: the measured faster."),
]
JudgedDtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16", "float64"] | None,
    typer.Option(help="Data type of the loaded base. Default: what the skin was judged with.", show_default=False),
]
JudgedWeights = Annotated[
    Literal["auto", "float32", "bfloat16", "int8", "int4"] | None,
    typer.Option(help="Format of the weights. Default: what the skin was judged with.", show_default=False),
]
JudgedKernel = Annotated[
    Literal["auto", "torch", "native"] | None,
    typer.Option(help="Backend: torch or native. Default: what the skin was judged with.", show_default=False),
]
AllowOtherWeights = Annotated[
    bool,
    typer.Option(
        "--allow-other-weights", help="Only warn where weights or kernel are not those the skin was judged with."
    ),
]

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]

CorpusDirectory = Annotated[
    Path,
    typer.Argument(metavar="DIR", help="The corpus directory.", show_default=False, callback=paths.existing_directory),
]
Hardware = Annotated[Path | None, input_file(help="A YAML file of your own devices.", show_default=False)]
Formulas = Annotated[bool, typer.Option("--formulas", help="Also how each figure is computed, and the source.")]


def show_formulas(formulas: Mapping[str, tuple[str, str]]) -> None:
    """By figure: the formula, and where it is from."""
    columns = ("figure", Column("formula", prose=True), Column("source", prose=True))
    show(columns, [(name.replace("_", " "), *cells) for name, cells in formulas.items()])


def show_lines(lines: Iterable[str], indent: str = "") -> None:
    """One below the other, each behind a dash."""
    for line in lines:
        console().print(f"{indent}- {line}", markup=False)


AllColumns = Annotated[
    bool,
    typer.Option("--wide", help="Show every column of a table, however narrow the terminal is.", callback=show_wide),
]


def _counted(raw: str | float) -> float:
    value = count_of(raw) if isinstance(raw, str) else raw
    if value is None:
        raise typer.BadParameter(f"{raw!r} is not a number; write for example 300, 50k or 1.5M")
    return value


def unset(help: str) -> Any:
    """An option whose help says what holds where it is not given."""
    return typer.Option(help=help, show_default=False)


def count(*names: str, help: str, metavar: str = "COUNT") -> Any:
    """An option for a number, which may be written as 50k or 15.6T; a parameter of type float."""
    return typer.Option(*names, help=help, parser=_counted, metavar=metavar)


def whole(*names: str, help: str, minimum: int = 1, shown: bool = False) -> Any:
    """An option for a whole number, not below `minimum`, written as with `count`; a parameter of type int. shown:
    whether the help adds the default."""

    def parsed(raw: str | int) -> int:
        value = _counted(raw)
        if value < minimum or not float(value).is_integer():
            bound = "above 0" if minimum == 1 else f"from {minimum:,} on"
            raise typer.BadParameter(f"{raw!r} is not a whole number {bound}")
        return int(value)

    return typer.Option(*names, help=help, parser=parsed, metavar="COUNT", show_default=shown)


def milliseconds(*names: str, help: str) -> Any:
    """An option for a short time, a number of ms or such as 0.5s; a parameter of type float, in milliseconds."""

    def parsed(raw: str | float) -> float:
        value = to_seconds(raw if isinstance(raw, str) else raw / 1000, "ms")
        if not value:
            raise typer.BadParameter(f"{raw!r} is not a length of time above 0")
        return value * 1000

    return typer.Option(*names, help=help, parser=parsed, metavar="TIME", show_default=False)


def duration(*names: str, help: str) -> Any:
    """An option for a length of time, such as 90s or 10m; a parameter of type float, in seconds. The help says the
    default."""
    return typer.Option(*names, help=help, parser=to_seconds, metavar="TIME", show_default=False)


def to_seconds(raw: str | float, unit: str = "s") -> float:
    """A length of time as it is typed. BadParameter, after which a prompt asks again."""
    value = seconds_of(raw, unit) if isinstance(raw, str) else raw
    if value is None or not 0 <= value < math.inf:
        raise typer.BadParameter(f"{raw!r} is not a length of time; write for example 500ms, 90s, 10m or 1.5h")
    return value


def program() -> str:
    """What the command is called by here: a shell finds it by its name only where its directory is on the path."""
    path = Path(sys.argv[0])
    return str(path) if path.name == "bedplate" and shutil.which("bedplate") is None else "bedplate"


def _checked_page(path: Path | None) -> Path | None:
    """Before anything is computed; what else may be wrong with a path is found when it is written."""
    if path is not None and (path.suffix.lower() not in {".html", ".htm"} or path.is_dir()):
        raise UsageError(f"--page is {path}: name a file that ends in .html")
    return paths.new_file(path)


PageFile = Annotated[
    Path | None,
    typer.Option(
        "--page",
        metavar="FILE.html",
        help="Also write one page to work with: sliders, plots, formulas. It fetches nothing.",
        show_default=False,
        callback=_checked_page,
    ),
]


def write_page(path: Path, page: str) -> None:
    """Says where it is on stderr: stdout is the answer's."""
    atomic_write(path, page)
    print(f"page written to {path}", file=sys.stderr)


def as_given(context: typer.Context, without: Collection[str] = ()) -> list[str]:
    """The command line's words, without the options of these parameters' names; a page shows them."""
    words = context.command_path.split()
    for parameter in context.command.params:
        if parameter.name in without:
            continue
        source = context.get_parameter_source(parameter.name)
        if source is not None and source.name == "COMMANDLINE":
            words += _words(parameter, context.params[parameter.name])
    return words


def _words(parameter: Any, value: Any) -> Iterator[str]:
    for word in value if isinstance(value, list | tuple) else (value,):
        if parameter.param_type_name == "option":
            yield parameter.opts[0]
        if word is not True:
            yield str(word)
