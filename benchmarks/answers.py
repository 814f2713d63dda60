"""How soon the planners answer: a whole process of `plan train`, `plan serve` and `plan decide`, from its start.

Nothing is measured against a peer: the goal is half a second from the key press to the answer.

usage: answers.py [--repeats 15]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from comparison import start

GOAL_SECONDS = 0.5
DECIDE = Path(__file__).parent.parent / "examples" / "decide"
COMMANDS: dict[str, list[str]] = {
    "train": ["train", "llama-3.1-8b", "--tokens", "1T", "--devices", "512"],
    "serve": ["serve", "smollm2-135m", "--device", "H100", "--p95-ms", "3000"],
    **{
        f"decide {path.stem}": ["decide", str(path), "--prices", str(DECIDE / "prices.yaml")]
        for path in sorted(DECIDE.glob("*.yaml"))
        if path.stem != "prices"
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = start(parser).options.repeats
    timings = {name: [seconds(command) for _ in range(repeats)] for name, command in COMMANDS.items()}
    medians = {name: statistics.median(times) for name, times in timings.items()}
    for name, median in medians.items():
        print(f"{name}: {median:.2f} s (goal {GOAL_SECONDS} s, {'met' if median < GOAL_SECONDS else 'MISSED'})")
    print(json.dumps({"benchmark": "answers", "unit": "s", "goal": GOAL_SECONDS, "median": medians}))


def seconds(command: list[str]) -> float:
    """Of one process that answers."""
    began = time.perf_counter()
    subprocess.run(
        [str(Path(sys.executable).with_name("bedplate")), "plan", *command, "--json"], check=True, capture_output=True
    )
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
