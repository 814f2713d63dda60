"""The demo's ladder quiet and beside a competing load: what a busy machine may cost, and what it may not.

`bedplate adapt examples/reviews/task.yaml` runs in a process of its own, first with the machine to itself, then beside
processes that compute without end, one for each core in --load. Goals: quiet it ends within 7 minutes; busy it answers
in the same weights and kernel, looks at int4, and tunes LoRA on at least half of the rows that it does when quiet.

usage: demo_busy.py [--load 1] [--task examples/reviews/task.yaml]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from comparison import Row, report, start

TASK = Path(__file__).parents[1] / "examples" / "reviews" / "task.yaml"
MINUTES, ROWS_SHARE = 7.0, 0.5


class Ladder(NamedTuple):
    """What a run came to. execution: weights and kernel that its base answers in; formats: that were asked; rows: of
    train that LoRA was tuned on, 0 without."""

    minutes: float
    execution: str
    formats: frozenset[str]
    rows: int
    verdict: str


@contextmanager
def load(processes: int) -> Generator[None]:
    """So many processes that compute without end."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def climbed(task: Path, out: Path) -> Ladder:
    """The ladder of the task, from nothing."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "bedplate", "adapt", str(task), "--out", str(out)]
    ended = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if not (out / "report.json").is_file():
        sys.exit(f"NOT MEASURED: adapt ended with {ended.returncode} and left no report")
    values: dict[str, Any] = json.loads((out / "report.json").read_text("utf-8"))
    base, asked = values["lineage"]["bases"][0], set[str]()
    record = out / "formats" / "base.json"
    if record.is_file():
        chosen = json.loads(record.read_text("utf-8"))
        asked = {name for name in ("int4", "int8") if name in chosen["reason"]}
        print(f"  weights first: {chosen['reason']} ({chosen['seconds']:.1f} s)", flush=True)
    for formats in values["formats"].values():
        asked |= {tried["weights"] for tried in formats["tried"]}
    tuned = int(values["details"].get("lora", {}).get("rows", 0))
    minutes = (time.perf_counter() - began) / 60
    execution = f"{base['weights']} ({base['kernel']})"
    return Ladder(minutes, execution, frozenset(asked), tuned, values["verdict"]["status"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", type=int, default=1, help="competing processes")
    parser.add_argument("--task", type=Path, default=TASK)
    options = start(parser).options
    with tempfile.TemporaryDirectory() as place:
        quiet = climbed(options.task, Path(place) / "quiet")
        print(f"quiet: {quiet}", flush=True)
        with load(options.load):
            busy = climbed(options.task, Path(place) / "busy")
        print(f"beside {options.load} busy process(es): {busy}", flush=True)
    same, int4 = quiet.execution == busy.execution, "int4" in busy.formats
    print(f"the same execution: {'yes' if same else f'NO, {quiet.execution} and {busy.execution}'}")
    print(f"int4 was looked at: {'yes' if int4 else 'NO'}")
    report(
        [
            Row("demo, quiet", quiet.minutes, MINUTES, "minutes", "goal", "-", 1.0, lower_is_better=True),
            Row("demo, LoRA's rows beside a load", busy.rows, quiet.rows, "rows", "quiet", "-", ROWS_SHARE),
            Row("demo, beside a load", busy.minutes, quiet.minutes, "minutes", "quiet", "-", lower_is_better=True),
        ]
    )


if __name__ == "__main__":
    main()
