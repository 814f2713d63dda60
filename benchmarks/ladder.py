"""The ladder's idle time: the wall-clock time of the whole command against the sum of its rungs' compute.

A rung's compute is its climb, its guards and its test, from `timing` of report.json; the rest is loading, reading data,
nominating, the verdict and the report. Without RUN the demo's task is adapted in a new process, from the interpreter's
start to its end; with RUN, a finished run's own times are taken (from loading until the report is put together).

usage: ladder.py [RUN] [--task TASK.yaml] [--budget 10m] [--rungs a,b,c]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from comparison import start

TASK = Path(__file__).parent.parent / "examples/reviews/task.yaml"
GOAL = 1.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="the directory of a finished run")
    parser.add_argument("--task", type=Path, default=TASK)
    parser.add_argument("--budget", default=None, help="by default the task file's")
    parser.add_argument("--rungs", default=None, help="by default the task file's")
    arguments = start(parser).options
    if arguments.run is not None:
        report(arguments.run, None)
        return
    with tempfile.TemporaryDirectory() as scratch:
        # a ledger of its own: a measurement is no verdict on anybody's test rows; pulled items are shared
        home = Path(scratch) / "home"
        link_pulled(home)
        out = Path(scratch) / "run"
        command = [sys.executable, "-m", "bedplate.cli.main", "adapt", str(arguments.task), "--out", str(out)]
        for name in ("budget", "rungs"):
            if getattr(arguments, name) is not None:
                command += [f"--{name}", getattr(arguments, name)]
        began = time.perf_counter()
        overrides = {"BEDPLATE_HOME": str(home), "BEDPLATE_DATA_LEDGER": "off"}
        subprocess.run(command, check=True, env={**os.environ, **overrides})
        report(out, time.perf_counter() - began)


def link_pulled(home: Path) -> None:
    """A home whose pulled items are those of the user's own."""
    from bedplate.core.files import bedplate_home

    user_hub = bedplate_home() / "hub"
    home.mkdir(parents=True)
    if user_hub.is_dir():
        (home / "hub").symlink_to(user_hub)


def report(run: Path, wall: float | None) -> None:
    """A line for each rung, the ratio, and as the last line one JSON object."""
    data: dict[str, Any] = json.loads((run / "report.json").read_text("utf-8"))
    timing = data["timing"]
    if timing["resumed"]:
        sys.exit(f"{run} was resumed: its times are not those of one run; adapt into a new directory")
    if data["curve"] is not None:
        sys.exit(f"{run} has learning curves, whose time is not a rung's; adapt without --curve")
    expected = {prediction["rung"]: prediction["expected_seconds"] for prediction in data["forecasts"]}
    compute = 0.0
    for rung, climb in timing["rungs"].items():
        guards, test = timing["guards"].get(rung, 0.0), timing["tests"].get(rung, 0.0)
        compute += climb + guards + test
        expected_seconds = expected.get(rung)
        forecast = "" if not expected_seconds else f" (forecast {expected_seconds:.1f} s)"
        print(f"{rung}: climb {climb:.1f} s{forecast}, guards {guards:.1f} s, test {test:.1f} s")
    whole = timing["seconds"] if wall is None else wall
    ratio = whole / compute
    met = "met" if ratio <= GOAL else "MISSED"
    print(
        f"{whole:.1f} s in all, {compute:.1f} s of it the rungs': ratio {ratio:.2f} (goal ≤ {GOAL:g}, {met}); "
        f"{timing['processor_seconds'] / timing['seconds']:.2f} of {data['machine']['cores']} cores busy on average"
    )
    print(
        json.dumps(
            {
                "name": "ladder: total time over its rungs' compute",
                "seconds": round(whole, 1),
                "compute_seconds": round(compute, 1),
                "ratio": round(ratio, 4),
                "goal": GOAL,
                "met": ratio <= GOAL,
            }
        ),
        flush=True,
    )
    if ratio > GOAL:
        sys.exit(1)


if __name__ == "__main__":
    main()
