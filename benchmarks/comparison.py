"""What every benchmark shares: interleaved medians, and the last line that tools read."""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version


@dataclass(frozen=True)
class Row:
    """One comparison in `unit`. Ratio above 1 means ours is better; a goal of None is reported only."""

    name: str
    ours: float
    peer: float
    unit: str
    peer_name: str
    peer_version: str
    goal: float | None = None
    lower_is_better: bool = False

    @property
    def ratio(self) -> float:
        return self.peer / self.ours if self.lower_is_better else self.ours / self.peer


def report(rows: Sequence[Row]) -> None:
    """A line for people per row; then, as the last line, one JSON object, or a list of them for several rows."""
    found = []
    for row in rows:
        goal = "reported only"
        if row.goal is not None:
            goal = f"goal {row.goal:g}, {'met' if row.ratio >= row.goal else 'MISSED'}"
        peer = f"{row.peer_name} {row.peer_version} {row.peer:.4g} {row.unit}"
        print(f"{row.name}: ours {row.ours:.4g} {row.unit}, {peer}: ratio {row.ratio:.2f} ({goal})")
        fields = {key: value for key, value in asdict(row).items() if key != "lower_is_better"}
        found.append(fields | {"ratio": round(row.ratio, 4)})
    print(json.dumps(found[0] if len(found) == 1 else found), flush=True)


def need(module: str, distribution: str) -> str:
    """The peer's version; without it there is nothing to compare with, and the benchmark ends with exit code 3."""
    if importlib.util.find_spec(module) is None:
        print(f"NOT MEASURED: the peer {distribution} is not installed; install the extra: pip install -e '.[bench]'")
        sys.exit(3)
    return version(distribution)


def interleaved(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each run. The runs take turns, so that a slow moment of the machine hits all of them; one turn
    before the measurement warms everything up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
