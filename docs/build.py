"""Builds the site: writes cli.md from `--help`, report.schema.json from the report's models, architecture.svg from the
imports and the marked parts of pages from the tables, then every Markdown page of this folder to site/ as HTML."""

from __future__ import annotations

import contextlib
import html
import importlib
import inspect
import io
import json
import os
import re
import shutil
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

DOCS = Path(__file__).parent
PAGES = (
    "index",
    "python-api",
    "cli",
    "families",
    "adding-a-family",
    "data",
    "task-file",
    "examples",
    "verdict",
    "label-budget",
    "production",
    "report-json",
    "skin-format",
    "new-rows",
    "pretraining",
    "pretraining-examples",
    "training",
    "lineage",
    "serving",
    "deployment",
    "operations",
    "batches-and-feedback",
    "economics",
    "predictions",
    "architecture",
)
STYLE = (
    "body{max-width:46rem;margin:2rem auto;padding:0 1rem;font:16px/1.55 system-ui,sans-serif;color:#1b1f24}"
    "pre{background:#f4f5f7;padding:.8rem;overflow-x:auto}code{font-size:.92em}"
    "table{border-collapse:collapse;display:block;overflow-x:auto}"
    "td,th{border-bottom:1px solid #d5d9de;padding:.25rem .7rem;text-align:left}"
    "nav a{margin-right:1rem}"
)


def command_line() -> str:
    """cli.md: the help of `bedplate` and of each verb, 100 columns wide."""
    from bedplate.cli.main import VERBS

    parts = ["# Command line", "", "Written by `make docs` from `--help`.", ""]
    for arguments in ([], *_commands(VERBS)):
        title = " ".join(["bedplate", *arguments])
        parts += [f"## {title}", "", "```text", _help(arguments).strip(), "```", ""]
    return "\n".join(parts)


def _commands(table: Mapping[str, tuple[str, str]]) -> Iterator[list[str]]:
    """Each verb of a table, followed by its own verbs where it has some."""
    for verb, (module, _) in table.items():
        yield [verb]
        for inner in _commands(getattr(importlib.import_module(module), "ACTIONS", {})):
            yield [verb, *inner]


def _help(arguments: list[str]) -> str:
    from bedplate.cli.main import main

    output = io.StringIO()
    before = {name: os.environ.get(name) for name in ("COLUMNS", "TERMINAL_WIDTH")}
    os.environ.update(COLUMNS="100", TERMINAL_WIDTH="100")
    try:
        with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
            main([*arguments, "--help"])
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
    return "\n".join(line.rstrip() for line in output.getvalue().splitlines())


# --- parts of pages that are written from the cost model: <!-- name --> … <!-- /name -->


def filled(text: str) -> str:
    """A page with its generated parts written anew; parts of other names stay as they are."""

    def part(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- {name} -->\n{GENERATED[name]()}\n<!-- /{name} -->" if name in GENERATED else match[0]

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- /\1 -->", part, text, flags=re.S)


def _table(head: tuple[str, ...], rows: Iterable[Iterable[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return _papers("\n".join(f"| {' | '.join(cells)} |" for cells in lines).replace("|  |", "| |"))


def _papers(text: str) -> str:
    """Numbers of arXiv as links."""
    return re.sub(r"(?:https://arxiv\.org/abs/|arXiv )?\b(\d{4}\.\d{5})\b", r"[\1](https://arxiv.org/abs/\1)", text)


def _architecture() -> ModuleType:
    return _script("architecture")


def _published() -> ModuleType:
    return _script("published")


def _script(name: str) -> ModuleType:
    """A script of this folder, which is no package."""
    if str(DOCS) not in sys.path:
        sys.path.insert(0, str(DOCS))
    return importlib.import_module(name)


def _families() -> str:
    from bedplate.inference.measure.parity import supported

    head = ("family", "kind", "can", "adapters", "kernel", "gguf", "text of")
    rows = (
        (
            f"`{support.family}`",
            support.kind,
            ", ".join(support.can),
            ", ".join(support.adapters),
            "yes" if support.kernel is None else f"`{support.kernel}`",
            "" if support.gguf is None else f"`{support.gguf}`",
            ", ".join(f"`{name}`" for name in support.text_of),
        )
        for support in supported()
    )
    return _table(head, rows)


def _formulas() -> str:
    from bedplate.economics.serving import serving_cost as serving
    from bedplate.economics.training import training_cost as training
    from bedplate.economics.training import tuning_cost as tuning

    verbs = {
        "train": training.TRAINING_FORMULAS,
        "train --budget-usd": training.BUDGET_FORMULAS,
        "tuning": tuning.TUNING_FORMULAS,
        "serve": serving.SERVING_FORMULAS,
    }
    rows = ((f"{verb}: {name}", *row) for verb, formulas in verbs.items() for name, row in formulas.items())
    return _table(("figure", "formula", "source"), rows)


def _decision_formulas() -> str:
    from bedplate.economics.costs.decisions.explanation import DECISION_FORMULAS

    return _table(("figure", "formula", "source"), ((name, *row) for name, row in DECISION_FORMULAS.items()))


def _constraints() -> str:
    from bedplate.economics.costs.decisions.question import RULES

    return _table(("constraint", "rule"), ((f"`{name}`", rule.explanation) for name, rule in RULES.items()))


def _curves() -> str:
    from bedplate.economics.hardware.devices import CURVES

    rows = ((name, f"{curve.first:.2f}", f"{curve.floor:.2f}", curve.source) for name, curve in CURVES.items())
    return _table(("kind", "first", "floor", "source"), rows)


def _assumptions() -> str:
    from bedplate.economics.costs.decisions.question import DRAWS
    from bedplate.economics.hardware import devices
    from bedplate.economics.serving import replica
    from bedplate.economics.serving import serving_cost as serving
    from bedplate.economics.serving.replica import REACHED
    from bedplate.economics.training import training_cost as training
    from bedplate.economics.training.layout_search import MARGIN

    low, central, high = (REACHED[case] for case in ("low", "central", "high"))
    reached = (
        f"{central.compute:.0%} of the peak ({low.compute:.0%} to {high.compute:.0%}), {central.bandwidth:.0%} of the "
        f"bandwidth ({low.bandwidth:.0%} to {high.bandwidth:.0%}), {central.overhead_seconds * 1e3:g} ms a step "
        f"({low.overhead_seconds * 1e3:g} to {high.overhead_seconds * 1e3:g})"
    )
    reports = "2211.05102, table 2; Databricks, LLM inference performance engineering, 2023"
    code = ", ".join(f"{name} {factor:g}" for name, factor in devices.EXECUTION.items())
    inside, runs = _inside()
    mfu_range = f"× {devices.LOW:g} to {devices.HIGH:g}"
    peak = inspect.signature(serving.plan_serving).parameters["peak_factor"].default
    rows = (
        ("overhead of a training run", f"{training.DEFAULT_OVERHEAD:g}", "2407.21783, section 3.3.4", "--overhead"),
        ("MFU's range", mfu_range, f"the hours of {inside} of {runs} runs lie in it", "--mfu"),
        ("code", code, devices.EXECUTION_SOURCE, "--execution"),
        ("fp8 products", f"× {devices.FP8_FACTOR:g}", devices.FP8_SOURCE, "--precision"),
        ("data centre's energy over its devices'", f"{training.DEFAULT_PUE:g}", "assumed", "--pue"),
        ("energy", f"${training.DEFAULT_USD_PER_KWH:.2f} a kWh", "assumed", "--usd-per-kwh"),
        ("memory kept free, training; serving", f"{MARGIN:.0%}; {replica.MARGIN:.0%}", "assumed", ""),
        ("what engines reach of a data sheet", reached, reports, ""),
        ("the busiest hour over the mean, in serve", f"{peak:g}", "assumed", "--peak-factor"),
        ("calls of each simulated rate", f"{serving.CALLS}, the first tenth left out", "chosen", ""),
        ("draws of a decision", f"{DRAWS}", "chosen", ""),
    )
    return _table(("what", "value", "from", "yours"), ((*row[:3], f"`{row[3]}`" if row[3] else "") for row in rows))


def _inside() -> tuple[int, int]:
    """Runs whose published hours lie in the predicted range, of those that are held."""
    hour_pairs = [
        (prediction.gpu_hours, prediction.run.gpu_hours)
        for prediction in _published().predicted_against_published()
        if "hours" in prediction.run.clean
    ]
    return sum(a is not None and b is not None and a.low <= b <= a.high for a, b in hour_pairs), len(hour_pairs)


def _runs() -> str:
    return _papers(_published().markdown_runs())


def _throughputs() -> str:
    return _papers(_published().markdown_throughputs())


def _summary() -> str:
    published = _published()
    runs, throughputs = published.predicted_against_published(), published.predicted_throughputs()
    figures = {
        "operations": (
            [(prediction.run.name, prediction.flops_error, "flops" in prediction.run.clean) for prediction in runs],
            published.FLOPS_TOLERANCE,
        ),
        "device-hours": (
            [(prediction.run.name, prediction.hours_error, "hours" in prediction.run.clean) for prediction in runs],
            published.HOURS_TOLERANCE,
        ),
        "tokens a second and device": (
            [
                (
                    f"{throughput.run.name}, {throughput.run.devices} devices",
                    throughput.error,
                    throughput.run.is_checked,
                )
                for throughput in throughputs
            ],
            published.THROUGHPUT_TOLERANCE,
        ),
    }
    rows: list[tuple[str, ...]] = []
    for figure, (comparisons, bound) in figures.items():
        errors = [error for _, error, is_held in comparisons if is_held and error is not None]
        out = [f"{name} {_signed(error)}" for name, error, is_held in comparisons if not is_held and error is not None]
        ends = f"{_signed(min(errors))} to {_signed(max(errors))}"
        middle = f"{statistics.median(map(abs, errors)):.0%}"
        rows.append((figure, str(len(errors)), ends, middle, f"{bound:.0%}", "; ".join(out)))
    table = _table(("predicted", "rows held", "errors", "median size", "bound, tested", "not held"), rows)
    return f"{table}\n\nThe published hours lie in the predicted range in {' of '.join(map(str, _inside()))} held runs."


def _signed(share: float) -> str:
    return f"{share:+.0%}".replace("-", "−")


GENERATED: dict[str, Callable[[], str]] = {
    "formulas": _formulas,
    "decision_formulas": _decision_formulas,
    "constraints": _constraints,
    "curves": _curves,
    "assumptions": _assumptions,
    "runs": _runs,
    "throughputs": _throughputs,
    "summary": _summary,
    "packages": lambda: _architecture().table(),
    "families": _families,
}


def build(site: Path) -> None:
    """Every page of PAGES, links between them rewritten."""
    from markdown_it import MarkdownIt

    site.mkdir(parents=True, exist_ok=True)
    links = "".join(f'<a href="{page}.html">{page}</a>' for page in PAGES)
    for page in PAGES:
        text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
        body = re.sub(r'href="([\w-]+)\.md"', r'href="\1.html"', MarkdownIt("commonmark").enable("table").render(text))
        title = html.escape(text.splitlines()[0].lstrip("# "))
        (site / f"{page}.html").write_text(
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
            f"<nav>{links}</nav>{body}</html>\n",
            encoding="utf-8",
        )
    for file in (*DOCS.glob("*.svg"), *DOCS.glob("*.png"), *DOCS.glob("*.schema.json")):
        shutil.copy(file, site / file.name)


def _schema() -> str:
    """report.schema.json, from the models that describe the report."""
    from bedplate.report.schema import report_schema

    return json.dumps(report_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    (DOCS / "report.schema.json").write_text(_schema(), encoding="utf-8")
    (DOCS / "cli.md").write_text(command_line(), encoding="utf-8")
    (DOCS / "architecture.svg").write_text(_architecture().picture(), encoding="utf-8")
    for page in (DOCS / f"{name}.md" for name in PAGES):
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS.parent / "site"
    build(target)
    print(f"{len(PAGES)} pages written to {target}")
