"""`bedplate plan decide`: prompt, tune, retrieve, buy or build: the answer, why, and what would change it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bedplate.cli import paths
from bedplate.cli.options import AllColumns, PageFile, as_given, show_lines, write_page
from bedplate.core.errors import UsageError
from bedplate.core.files import atomic_write, read_text
from bedplate.core.progress import console
from bedplate.core.tables import Column, numbers, show

if TYPE_CHECKING:
    from rich.console import Console

    from bedplate.economics.costs.decisions import Decision, OptionOutcome

_FLIPS = 10


def decide(
    context: typer.Context,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CASE.yaml... [KEY=VALUE]...",
            help="Decision files; values over them. A price file among them is taken for --prices.",
            show_default=False,
        ),
    ] = None,
    init: Annotated[
        bool, typer.Option("--init", help="Write a commented decision file and a price file of EXAMPLE prices.")
    ] = False,
    prices: Annotated[
        Path | None,
        typer.Option(
            help="The price file. Default: the one that each case names.", show_default=False, callback=paths.existing
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also what does not flip the answer, and the bill of each option.")
    ] = False,
    page: PageFile = None,
    all_columns: AllColumns = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: one object, or {cases: [...]} of several files.")
    ] = False,
) -> None:
    """Prompt, tune, retrieve, buy or build: which option costs least and clears the bars, why, and what would flip it.

    A decision file states one task's traffic and text, the options, their quality (by hand, or a ladder's report.json)
    and the constraints; a price file states what things cost you, dated; --init writes both, commented, to start from.
    Any number may be {value, low, high}: intervals hold 90% of 200 draws from these ranges. Break-evens are volumes, or
    never. examples/decide has four.

    \b
    Example: bedplate plan decide case.yaml traffic.calls_per_day=50000 \\
               prices.hosted.hosted-small.usd_per_million_output=0.9
    """
    from bedplate.economics.costs.decisions import decide as decided
    from bedplate.economics.costs.decisions import load_case
    from bedplate.economics.costs.decisions.explanation import as_values

    if init:
        _init(arguments or ["case.yaml"])
        return
    files, overrides, prices = _sorted_out(arguments or (), prices)
    if page is not None and len(files) > 1:
        raise UsageError(f"--page is for one decision file; there are {len(files)}: {', '.join(map(str, files))}")
    cases = [load_case(path, prices, overrides) for path in files]
    decisions = [decided(*case) for case in cases]
    if page is not None:
        from bedplate.economics.pages.cost_pages import decision_page

        command = as_given(context, without=("everything", "page", "as_json"))
        write_page(page, decision_page(*cases[0], command=command))
    if as_json:
        values = [as_values(decision) for decision in decisions]
        print(json.dumps(values[0] if len(values) == 1 else {"cases": values}, allow_nan=False))
        return
    screen = console()
    for place, decision in enumerate(decisions):
        if place:
            screen.print()
        _show(decision, screen, everything)


def _init(arguments: Sequence[str]) -> None:
    """Writes a draft of the decision file that is named, and prices.yaml beside it, unless there is one."""
    from importlib.resources import files

    case, *more = map(Path, arguments)
    if more:
        raise UsageError(f"--init writes one decision file; there are {len(arguments)}: {', '.join(arguments)}")
    paths.new_file(case)
    if case.exists():
        raise UsageError(f"{case} exists already; name another file: bedplate plan decide --init NAME.yaml")
    drafts, prices = files("bedplate.economics.costs.decisions") / "drafts", case.with_name("prices.yaml")
    if not prices.exists():
        atomic_write(prices, (drafts / "prices.yaml").read_text("utf-8"))
    atomic_write(case, (drafts / "case.yaml").read_text("utf-8").replace("CASE.yaml", case.name))
    print(f"{case}: a commented decision, with prices in {prices}; next: bedplate plan decide {case}")


def _sorted_out(arguments: Sequence[str], prices: Path | None) -> tuple[list[Path], list[str], Path | None]:
    """Decision files, overrides, and the price file: one among the arguments counts where it is the only one."""
    overrides = [argument for argument in arguments if "=" in argument and not Path(argument).exists()]
    files = [Path(argument) for argument in arguments if argument not in overrides]
    price_files = [path for path in files if path.is_file() and _is_price_file(path)]
    if prices is None and len(price_files) > 1:
        raise UsageError(f"there are two price files: {price_files[0]} and {price_files[1]}; give one")
    files = [path for path in files if path not in price_files]
    for path in files:
        if path.suffix == ".json" and path.is_file() and '"schema_version"' in read_text(path):
            raise UsageError(
                f"{path} is a ladder's report; an option of a decision file names it, as `report: {{file: {path}, "
                "rung: NAME}` (docs/economics.md shows such a file)"
            )
    if not files:
        only = f"{price_files[0]} is a price file; " if price_files else ""
        raise UsageError(
            only + "name a decision file: bedplate plan decide CASE.yaml (--init writes one to start from)"
        )
    return files, overrides, prices or (price_files[0] if price_files else None)


def _is_price_file(path: Path) -> bool:
    """By its top keys, so that `decide DIRECTORY/*.yaml` works where the prices lie beside the cases."""
    text = read_text(path)
    return bool(re.search(r"^prices\s*:", text, re.MULTILINE)) and not re.search(r"^case\s*:", text, re.MULTILINE)


def _show(decision: Decision, screen: Console, everything: bool) -> None:
    from bedplate.economics.costs.decisions import explanation

    screen.print(decision.question.title, style="bold", markup=False)
    screen.print(f"{explanation.answer(decision)}\n", style="bold", markup=False)
    _table(decision)
    _list(screen, "why", explanation.reasons(decision))
    _list(screen, "break-even volumes", map(explanation.break_even, decision.break_evens))
    flipping, steady = (
        [explanation.flips(sensitivity) for sensitivity in decision.sensitivities if sensitivity.flips == flips]
        for flips in (True, False)
    )
    shown = flipping if everything else flipping[:_FLIPS]
    _list(screen, "what would change the answer, each alone, nearest first", shown or ["nothing that was varied"])
    if everything:
        _list(screen, "what would not", steady)
        for outcome in decision.outcomes:
            _list(screen, f"the bill of {outcome.name}", _bill(outcome))
    elif len(flipping) > _FLIPS or steady:
        remainder = f"{len(flipping) - len(shown)} more flip it further off, " if len(flipping) > _FLIPS else ""
        screen.print(f"  {remainder}{len(steady)} do not as far as looked (--all shows them)")
    notes = [f"{outcome.name}: {note}" for outcome in decision.outcomes for note in outcome.notes]
    _list(screen, "taken for granted", notes)
    _list(screen, "prices", decision.question.warnings)


def _list(screen: Console, title: str, lines: Iterable[str]) -> None:
    lines = list(lines)
    if lines:
        screen.print(f"\n{title}", markup=False)
    show_lines(lines, indent="  ")


def _table(decision: Decision) -> None:
    from bedplate.economics.numbers.money import short_usd, usd

    rows: list[tuple[str, ...]] = []
    for outcome in sorted(decision.outcomes, key=lambda candidate: (not candidate.feasible, candidate.net_usd)):
        low, high = outcome.total_interval
        least, quality = (outcome.quality_interval or (0.0, 0.0))[0], outcome.quality or 0.0
        doubt = f" ({least:.3f})" if least < quality else ""
        rows.append(
            (
                outcome.name,
                outcome.method_in_short,
                short_usd(outcome.total_usd),
                "" if low == high else f"{short_usd(low)} to {short_usd(high)}",
                usd(outcome.cost_per_call),
                "" if outcome.cost_per_right_answer is None else usd(outcome.cost_per_right_answer),
                "" if outcome.quality is None else f"{quality:.3f}{doubt}",
                "" if outcome.p95_ms is None else f"{outcome.p95_ms:,.0f}",
                f"{outcome.best_in:.0%}" if outcome.feasible else "out",
            )
        )
    method = Column("weights, method", prose=True, extra=True)
    money = (*numbers("total", "90% interval"), *numbers("a call", "right answer", extra=True))
    show(("option", method, *money, *numbers("quality (low)", "p95 ms", "best in")), rows)


def _bill(outcome: OptionOutcome) -> list[str]:
    from bedplate.economics.numbers.money import exact_usd, round_columns

    padding = f" ({outcome.padding_tokens:,.0f} of them padding, to be cached)" if outcome.padding_tokens else ""
    sorted_lines = sorted(outcome.lines, key=lambda line: -line[2])
    (amounts,), digits = round_columns([amount for *_, amount in sorted_lines])
    lines = zip(sorted_lines, amounts, strict=True)
    return [
        *(f"{exact_usd(amount, digits)} {label} ({period})" for (period, label, _), amount in lines),
        f"{exact_usd(sum(amounts), digits)} in all",
        f"{outcome.billed_prompt_tokens:,.0f} prompt tokens{padding} and {outcome.output_tokens:,.0f} output tokens a "
        "call",
    ]
