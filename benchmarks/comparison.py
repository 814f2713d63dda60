"""What every benchmark shares: where it ran, interleaved medians, and what tools read of it.

A benchmark calls `start` with its parser, which says where it runs, and `report` with its rows. Beside the last line,
a JSON object or list of the rows, `--json FILE` (or BEDPLATE_BENCH_JSON) appends one line with the machine and the rows
to a file: `table.py` makes the README's table of such files.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import masks
from apart import PeerError
from machine import Machine, this_machine

JSON_VARIABLE = "BEDPLATE_BENCH_JSON"


@dataclass(frozen=True)
class Row:
    """One comparison in `unit`. Ratio above 1 means ours is better; a goal of None is reported only. peer_setting: what
    the peer was set to because it is its fastest here. A peer that failed is not a number: the row has no ratio."""

    name: str
    ours: float
    peer: float
    unit: str
    peer_name: str
    peer_version: str
    goal: float | None = None
    lower_is_better: bool = False
    peer_setting: str = ""

    @property
    def ratio(self) -> float:
        return self.peer / self.ours if self.lower_is_better else self.ours / self.peer


@dataclass(frozen=True)
class Started:
    """A benchmark that runs: its options, and where."""

    options: argparse.Namespace
    machine: Machine


_started: dict[str, Any] = {}
"""What `report` adds to a result: of the one benchmark of this process."""


def start(parser: argparse.ArgumentParser | None = None) -> Started:
    """Adds the options that all benchmarks have, puts the mask on, and says where the benchmark runs.

    Call it before anything that takes long: with a mask the script is started again.
    """
    parser = argparse.ArgumentParser() if parser is None else parser
    parser.add_argument("--json", type=Path, help=f"append the result to this file as one line (or {JSON_VARIABLE})")
    parser.add_argument("--mask", choices=tuple(masks.MASKS), help="play this lower kind of processor")
    parser.add_argument("--profile", action="store_true", help="name the largest parts of a step, where it has one")
    options = parser.parse_args()
    masks.wear(options.mask)
    machine = header()
    _started.update(machine=machine, json=options.json)
    return Started(options, machine)


def header() -> Machine:
    """Says where this process runs, and returns it."""
    machine = this_machine()
    print(machine.summary(), flush=True)
    return machine


def report(rows: Sequence[Row]) -> None:
    """A line for people per row; then, as the last line, one JSON object, or a list of them for several rows."""
    records: list[dict[str, Any]] = []
    for row in rows:
        fields = {key: value for key, value in asdict(row).items() if key != "lower_is_better"}
        ours, peer = f"{row.name}: ours {row.ours:.4g} {row.unit}", f"{row.peer_name} {row.peer_version}"
        if math.isnan(row.peer):
            print(f"{ours}, {peer} NOT MEASURED: it failed")
            records.append(fields | {"peer": None, "ratio": None})
            continue
        goal = "reported only"
        if row.goal is not None:
            goal = f"goal {row.goal:g}, {'met' if row.ratio >= row.goal else 'MISSED'}"
        setting = f" in {row.peer_setting}" if row.peer_setting else ""
        print(f"{ours}, {peer}{setting} {row.peer:.4g} {row.unit}: ratio {row.ratio:.2f} ({goal})")
        records.append(fields | {"ratio": round(row.ratio, 4)})
    place = _started.get("json") or os.environ.get(JSON_VARIABLE)
    if place:
        machine = _started.get("machine") or this_machine()
        at = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        line = {"benchmark": Path(sys.argv[0]).stem, "at": at, "machine": machine.to_json(), "rows": records}
        with Path(place).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    print(json.dumps(records[0] if len(records) == 1 else records), flush=True)


def need(module: str, distribution: str) -> str:
    """The peer's version; without it there is nothing to compare with, and the benchmark ends with exit code 3."""
    if importlib.util.find_spec(module) is None:
        print(f"NOT MEASURED: the peer {distribution} is not installed; install the extra: pip install -e '.[bench]'")
        sys.exit(3)
    mask = masks.chosen()
    if module == "llama_cpp" and mask is not None and not masks.llama_place(mask).is_dir():
        print(f"NOT MEASURED: there is no llama.cpp for a processor of the level {mask}; build it: make peers")
        sys.exit(3)
    return version(distribution)


def interleaved(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each run. The runs take turns, so that a slow moment of the machine hits all of them; one turn
    before the measurement warms everything up. A peer that fails runs no more, and its seconds are not a number."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    failed: set[str] = set()
    for turn in range(repeats + 1):
        for name in [name for name in runs if name not in failed]:
            elapsed = timed(name, runs[name])
            if math.isnan(elapsed):
                failed.add(name)
            elif turn:
                seconds[name].append(elapsed)
    return {name: math.nan if name in failed else statistics.median(values) for name, values in seconds.items()}


def attempted(name: str, measure: Callable[[], float]) -> float:
    """What `measure` returns; not a number where a peer failed, which is printed."""
    try:
        return measure()
    except PeerError as error:
        print(f"{name} FAILED: {error}", flush=True)
        return math.nan


def timed(name: str, run: Callable[[], object]) -> float:
    """Seconds of a run; not a number where a peer failed."""

    def measure() -> float:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    return attempted(name, measure)


def best_seconds(run: Callable[[], object], beaten_by: float = float("inf"), turns: int = 3) -> float:
    """Of the fastest turn: to choose between settings, not to report. A setting whose first turn, which also warms up,
    takes over three times `beaten_by` gets no other: where products are emulated a turn may take minutes. Infinite
    where a peer fails."""
    timings: list[float] = []
    for _ in range(turns):
        seconds = timed("trial", run)
        if math.isnan(seconds):
            return math.inf
        timings.append(seconds)
        if timings[0] > 3 * beaten_by:
            break
    return min(timings)
