"""What the parts of the comparison on a GPU write down, line by line as it comes, and the page that is made of it."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Speed:
    """Ours beside a peer's, more being better; a peer of None is ours alone."""

    name: str
    ours: float
    unit: str
    peer: float | None = None
    peer_name: str = ""
    note: str = ""


@dataclass(frozen=True)
class Check:
    """A number that must not be more than its limit."""

    name: str
    value: float
    limit: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.value <= self.limit  # not where it is NaN


@dataclass(frozen=True)
class Skipped:
    """What was not compared, and why."""

    name: str
    why: str


Result = Speed | Check | Skipped
RESULT_TYPES: dict[str, type[Result]] = {"speed": Speed, "check": Check, "left": Skipped}


class Part:
    """The options of a part that runs in a process of its own, and the file that its results go to."""

    def __init__(self) -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("--device", default="cuda")
        parser.add_argument("--small", action="store_true", help="tiny models and few tokens: to see that it runs")
        parser.add_argument("--models", type=Path, required=True, help="directories of models, made where missing")
        parser.add_argument("--results", type=Path, required=True, help="the file that lines are added to")
        parser.add_argument("--seconds", type=float, default=600.0, help="what is left for this part")
        options = parser.parse_args()
        self.device: str = options.device
        self.small: bool = options.small
        self.models: Path = options.models
        self.until = time.monotonic() + options.seconds
        self._file: Path = options.results

    @property
    def seconds(self) -> float:
        """What is left of its time."""
        return self.until - time.monotonic()

    def add(self, result: Result) -> None:
        """Writes a result down, so that it stays whatever comes next."""
        type_name = next(name for name, cls in RESULT_TYPES.items() if isinstance(result, cls))
        print(result_line(result), flush=True)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": type_name, **asdict(result)}) + "\n")


def result_line(result: Result) -> str:
    """A line for people."""
    if isinstance(result, Skipped):
        return f"{result.name}: not compared: {result.why}"
    if isinstance(result, Check):
        verdict = "ok" if result.passed else "TOO MUCH"
        return f"{result.name}: {result.value:.3g} (at most {result.limit:.3g}): {verdict}"
    comparison = (
        "" if result.peer is None else f", {result.peer_name} {result.peer:,.4g}: {result.ours / result.peer:.2f}"
    )
    return f"{result.name}: ours {result.ours:,.4g} {result.unit}{comparison}"


def read(file: Path) -> list[Result]:
    """What a part has written, whole lines only: it may have been stopped in the middle of one."""
    results: list[Result] = []
    text = file.read_text("utf-8") if file.is_file() else ""
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):
            fields: dict[str, Any] = json.loads(line)
            results.append(RESULT_TYPES[fields.pop("kind")](**fields))
    return results


def page(about: dict[str, Any], parts: Sequence[tuple[str, list[Result]]]) -> str:
    """The comparison for people, Markdown."""
    lines = [f"# The comparison on {about['device']}, {about['at']}", ""]
    lines += [f"- {name}: {value}" for name, value in about.items() if name not in ("device", "at")]
    speeds = [(part, result) for part, results in parts for result in results if isinstance(result, Speed)]
    checks = [(part, result) for part, results in parts for result in results if isinstance(result, Check)]
    skipped = [(part, result) for part, results in parts for result in results if isinstance(result, Skipped)]
    if speeds:
        lines += ["", "| part | what | ours | peer | ratio | note |", "|---|---|---|---|---|---|"]
    for part, speed in speeds:
        peer = "" if speed.peer is None else f"{speed.peer_name} {speed.peer:,.4g}"
        ratio = "" if speed.peer is None else f"{speed.ours / speed.peer:.2f}"
        lines.append(f"| {part} | {speed.name} | {speed.ours:,.4g} {speed.unit} | {peer} | {ratio} | {speed.note} |")
    if checks:
        lines += ["", "| part | check | found | at most | |", "|---|---|---|---|---|"]
    for part, check in checks:
        verdict = "ok" if check.passed else "**too much**"
        lines.append(f"| {part} | {check.name} | {check.value:.3g} | {check.limit:.3g} | {verdict} {check.note} |")
    if skipped:
        lines += ["", "Not compared:", ""]
    lines += [f"- {part}: {result.name}: {result.why}" for part, result in skipped]
    return "\n".join(lines) + "\n"
