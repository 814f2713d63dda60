"""`bedplate data search-mixture`: small runs over mixtures of a corpus's sources, and the best that they show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bedplate.cli import paths
from bedplate.cli.options import AllColumns, Overrides, output_directory
from bedplate.core.errors import UsageError
from bedplate.core.progress import console
from bedplate.core.quantities import parse_count
from bedplate.core.tables import numbers, show

if TYPE_CHECKING:
    from bedplate.pretraining.mixing.response import ValueInterval
    from bedplate.pretraining.mixing.search import Proxy, Search


GOES_ON = "give the same command again to go on: finished runs are kept"


def search_mixture(
    run: Annotated[
        Path, typer.Argument(metavar="RUN.yaml", help="The run file of one small run.", callback=paths.existing)
    ],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, output_directory(help="The search's directory. By default mixtures/NAME of the run file.")
    ] = None,
    runs: Annotated[
        int | None, typer.Option(min=1, help="Small runs. By default 4 for each source and 4 more.")
    ] = None,
    goal: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=WEIGHT",
            help="How much a source's held-out texts count; once for each source. By default all count the same.",
        ),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            metavar="COUNT",
            help="Tokens of the run that the mixture is for, such as 2B: no source is then seen more often than "
            "data.mixture.epochs says (4 times, where it says nothing).",
        ),
    ] = None,
    all_columns: AllColumns = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Search for the mixture of a corpus's sources that is best for held-out texts.

    Trains small runs that differ in their mixture alone, fits each held-out source's loss as a function of the shares,
    and names the mixture of least expected loss, with an interval for each share. One more run checks it. The same
    command resumes a search that was stopped; with more --runs it keeps those that are finished and adds others.

    \b
      bedplate data search-mixture run.yaml model.params=1M tokens=2M --tokens 2B
    """
    from bedplate.pretraining.runfile.file import look  # loads no torch, so that a typo is answered at once

    goal_weights = None if not goal else _goal(goal)
    count = None if tokens is None else parse_count("--tokens", tokens)
    look(run, overrides or ())
    from bedplate.pretraining.runfile.file import load_run

    run_spec = load_run(run, overrides or ())
    from bedplate.inference.execution.threads import use_cores
    from bedplate.pretraining.mixing.search import search

    use_cores()
    place = out or Path("mixtures") / run_spec.run
    on_progress = (lambda *_: None) if as_json else _print_run
    result = search(run_spec, place, runs=runs, goal=goal_weights, tokens=count, on_progress=on_progress)
    if as_json:
        print(json.dumps({"directory": str(place), **result.to_json()}, allow_nan=False))
    else:
        _show(result)


def _goal(words: list[str]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for word in words:
        name, _, text = word.rpartition("=")
        try:
            weight = float(text)
        except ValueError:
            weight = -1.0
        if not name or not 0 <= weight < float("inf"):
            raise UsageError(f"--goal {word!r}: write NAME=WEIGHT, such as code=2")
        if name in weights:
            raise UsageError(f"--goal gives {name!r} two weights; give it one")
        weights[name] = weight
    return weights


def _print_run(number: int, count: int, proxy: Proxy) -> None:
    shares = ", ".join(f"{name} {share:.0%}" for name, share in proxy.shares.items())
    losses = ", ".join(f"{name} {loss:.3f}" for name, loss in proxy.losses.items())
    console(stderr=True).print(f"run {number} of {count}: {shares}: {losses}", highlight=False, markup=False)


def _show(result: Search) -> None:
    values = result.to_json()
    percent = f"{values['confidence']:.0%} interval"
    rows: list[tuple[str, ...]] = []
    for name, share in zip(result.sources, result.best.shares, strict=True):
        before = result.proxies[0].shares[name]
        rows.append((name, f"{before:.1%}", f"{share.value:.1%}", f"{share.low:.1%} to {share.high:.1%}"))
    show(("source", *numbers("share before", "best share", percent)), rows)
    rows = []
    for place, (name, response) in enumerate(result.responses.items()):
        predicted, before = result.best.losses[place], f"{result.proxies[0].losses[name]:.4f}"
        measured = f"{result.checked.losses[name]:.4f}", f"{max(0.0, response.explained):.0%}"
        rows.append((name, before, f"{predicted.value:.4f}", _interval(predicted), *measured))
    show(("held out", *numbers("bits a byte before", "predicted", percent, "one run of it", "explained")), rows)
    gain = result.best.gain
    print(
        f"gain: {gain.value:.4f} bits a byte predicted ({_interval(gain)}), {values['gain']['measured']:.4f} measured "
        f"in one run; better than the mixture before with a probability of {result.best.better:.0%}"
    )
    if gain.low <= 0:
        print("these runs do not show that it is better than the mixture before; more --runs, or longer ones, may")
    print("in the run file, as data.mixture:")
    print(f"  weights: {json.dumps(result.weights)}")
    print(f"the search: {result.directory}")


def _interval(spread: ValueInterval) -> str:
    return f"{spread.low:.4f} to {spread.high:.4f}"
