"""`bedplate families`: lists the supported families of published models, and checks them against transformers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from bedplate.cli.options import AllColumns
from bedplate.core.errors import UsageError
from bedplate.core.progress import progress
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.core.tables import Column, show

if TYPE_CHECKING:
    from bedplate.inference.measure.parity import ParityCheck

_SEEDS = 3


def families(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Families, by the model_type of their config.json; none: all."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Compare them with transformers.")] = False,
    all_columns: AllColumns = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the families of models whose checkpoints can be loaded, and what can be done with each.

    \b
      can        what its outputs are for
      adapters   what can be trained on top of a frozen base of it
      kernel     whether the native CPU kernel runs it; otherwise the field that it has no answer for (torch runs it)
      gguf       the architecture's name in GGUF files, where they are read and written
      text of    multimodal checkpoints (by model_type) whose text model is loaded as this family, without their media

    Every family is loaded from a Hugging Face directory, trained, and exported to one again. --check builds tiny random
    models of transformers and compares, for two shapes and three seeds each: outputs, loss and gradients in float32 and
    float64, padded rows, 32 generated tokens, and every exported weight. It ends with code 1 where one differs.
    """
    from bedplate.models.families import FAMILIES

    family_names = [name for format_, name in FAMILIES if format_ == "hf"]
    for name in names or ():
        if name not in family_names:
            hint = did_you_mean(nearest(name, family_names)) or f"the families are {', '.join(family_names)}"
            raise UsageError(f"there is no family {name!r}; {hint}")
    selected = names or family_names
    if check:
        _check(selected, as_json)
    else:
        _list(selected, as_json)


def _list(selected: Sequence[str], as_json: bool) -> None:
    from bedplate.inference.measure.parity import supported

    selected_families = [family for family in supported() if family.family in selected]
    if as_json:
        print(json.dumps([asdict(family) for family in selected_families]))
        return
    rows: list[tuple[str, ...]] = []
    for family in selected_families:
        kernel = "yes" if family.kernel is None else f"no: {family.kernel}"
        can, adapters, text_of = (", ".join(names) for names in (family.can, family.adapters, family.text_of))
        rows.append((family.family, family.kind, can, adapters, kernel, family.gguf or "", text_of))
    can, adapters = Column("can", prose=True), Column("adapters", prose=True)
    kernel, text_of = Column("kernel", prose=True), Column("text of", prose=True, extra=True)
    show(("family", "kind", can, adapters, kernel, Column("gguf", extra=True), text_of), rows)


def _check(selected: Sequence[str], as_json: bool) -> None:
    import warnings

    warnings.filterwarnings("ignore", module="transformers")
    readings_by_family = {name: list(progress(_readings(name), f"checking {name}")) for name in selected}
    checks = [check for readings in readings_by_family.values() for check in readings]
    if as_json:
        print(json.dumps([asdict(check) | {"holds": check.passes} for check in checks]))
    else:
        _show_check(readings_by_family)
    if not all(check.passes for check in checks):
        sys.exit(1)


def _readings(name: str) -> Iterator[ParityCheck]:
    from bedplate.inference.measure.parity import DType, read
    from bedplate.models.families import FAMILIES

    family = FAMILIES["hf", name]
    dtypes: tuple[DType, ...] = ("float32", "float64")
    with TemporaryDirectory() as scratch:
        for example, seed, dtype in product(range(len(family.examples)), range(_SEEDS), dtypes):
            yield from read(family, Path(scratch) / f"{example}-{seed}-{dtype}", example, seed, dtype)


def _show_check(readings_by_family: dict[str, list[ParityCheck]]) -> None:
    rows: list[tuple[str, ...]] = []
    for name, readings in readings_by_family.items():
        for comparison in dict.fromkeys((reading.what, reading.dtype) for reading in readings):
            matching = [reading for reading in readings if (reading.what, reading.dtype) == comparison]
            worst = max(matching, key=lambda reading: reading.difference)
            verdict = "holds" if all(reading.passes for reading in matching) else "DIFFERS"
            numbers = (str(len(matching)), f"{worst.difference:.1g}", f"{worst.bound:.0g}")
            rows.append((name, f"{comparison[0]}, {comparison[1]}", *numbers, verdict))
    show(("family", "compared", "times", "largest difference", "at most", "result"), rows)
