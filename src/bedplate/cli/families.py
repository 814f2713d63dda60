"""`bedplate families`: which published families of models are supported, and the proof of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from bedplate.cli.options import Wide
from bedplate.core.errors import UsageError
from bedplate.core.progress import progress
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.core.tables import Column, show

if TYPE_CHECKING:
    from bedplate.inference.measure.parity import Reading

_SEEDS = 3


def families(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Families, by the model_type of their config.json; none: all."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Prove them against transformers.")] = False,
    wide: Wide = False,
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

    known = [name for format_, name in FAMILIES if format_ == "hf"]
    for name in names or ():
        if name not in known:
            hint = did_you_mean(nearest(name, known)) or f"the families are {', '.join(known)}"
            raise UsageError(f"there is no family {name!r}; {hint}")
    wanted = names or known
    if check:
        _check(wanted, as_json)
    else:
        _list(wanted, as_json)


def _list(wanted: Sequence[str], as_json: bool) -> None:
    from bedplate.inference.measure.support import supported

    found = [one for one in supported() if one.family in wanted]
    if as_json:
        print(json.dumps([asdict(one) for one in found]))
        return
    rows: list[tuple[str, ...]] = []
    for one in found:
        kernel = "yes" if one.kernel is None else f"no: {one.kernel}"
        can, adapters, text_of = (", ".join(names) for names in (one.can, one.adapters, one.text_of))
        rows.append((one.family, one.kind, can, adapters, kernel, one.gguf or "", text_of))
    can, adapters = Column("can", prose=True), Column("adapters", prose=True)
    kernel, text_of = Column("kernel", prose=True), Column("text of", prose=True, extra=True)
    show(("family", "kind", can, adapters, kernel, Column("gguf", extra=True), text_of), rows)


def _check(wanted: Sequence[str], as_json: bool) -> None:
    import warnings

    warnings.filterwarnings("ignore", module="transformers")
    found = {name: list(progress(_readings(name), f"checking {name}")) for name in wanted}
    if as_json:
        print(json.dumps([asdict(one) | {"holds": one.holds} for readings in found.values() for one in readings]))
    else:
        _show_check(found)
    if not all(one.holds for readings in found.values() for one in readings):
        sys.exit(1)


def _readings(name: str) -> Iterator[Reading]:
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from bedplate.inference.measure.parity import DType, read
    from bedplate.models.families import FAMILIES

    family = FAMILIES["hf", name]
    dtypes: tuple[DType, ...] = ("float32", "float64")
    with TemporaryDirectory() as scratch:
        for example in range(len(family.examples)):
            for seed in range(_SEEDS):
                for dtype in dtypes:
                    yield from read(family, Path(scratch) / f"{example}-{seed}-{dtype}", example, seed, dtype)


def _show_check(found: dict[str, list[Reading]]) -> None:
    rows: list[tuple[str, ...]] = []
    for name, readings in found.items():
        for what in dict.fromkeys((one.what, one.dtype) for one in readings):
            alike = [one for one in readings if (one.what, one.dtype) == what]
            worst = max(alike, key=lambda one: one.difference)
            said = "holds" if all(one.holds for one in alike) else "DIFFERS"
            numbers = (str(len(alike)), f"{worst.difference:.1g}", f"{worst.bound:.0g}")
            rows.append((name, f"{what[0]}, {what[1]}", *numbers, said))
    show(("family", "compared", "times", "largest difference", "at most", "result"), rows)
