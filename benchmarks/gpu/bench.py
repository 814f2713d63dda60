"""The whole comparison on a bare GPU machine, in under ten minutes: our engine beside vLLM, adapters beside peft,
training beside a plain compiled loop, and the device's numbers beside the processor's.

Each part is a process of its own with a time limit; one that fails or takes too long is told of on the page and stops
no other. Results are written as they come, to OUT/results.json and OUT/results.md.

usage: bench.py [--device cuda] [--small] [--out runs/bench-gpu] [--only numerics engine] [--seconds 600]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from results import RESULT_TYPES, Result, Skipped, page, read
from vllm_place import Installation

SCRIPTS = Path(__file__).parent
PARTS = {"numerics": 120.0, "engine": 150.0, "adapters": 120.0, "training": 150.0, "vllm": 240.0}
"""In order, each with the seconds that it may take."""
LOG_CHARACTERS = 300
"""Characters of what a part that failed said last."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny models and few tokens: to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-gpu"))
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), default=list(PARTS), help="these parts alone")
    parser.add_argument("--seconds", type=float, default=600.0, help="of all parts together")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + options.seconds
    installing = None
    if "vllm" in options.only and options.device.startswith("cuda") and not options.small:
        installing = Installation(options.out / "vllm")  # it takes minutes, meanwhile others run
    about, parts = _about(options.device), list[tuple[str, list[Result]]]()
    for name in options.only:
        remaining = min(PARTS[name], until - time.monotonic())
        parts.append((name, _run(name, options, remaining)))
        _write(options.out, about, parts)
    if installing is not None:
        installing.stop()
    print(f"written: {options.out / 'results.md'}", flush=True)


def _run(name: str, options: argparse.Namespace, seconds: float) -> list[Result]:
    """A part's results, and at their end why there are no more where it did not come to its end."""
    if seconds <= 0:
        return [Skipped("all of it", "no time was left")]
    place, log = options.out / f"{name}.jsonl", options.out / f"{name}.log"
    place.unlink(missing_ok=True)
    models = options.out / ("models-small" if options.small else "models")
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), "--device", options.device, "--seconds", f"{seconds:.0f}"]
    command += ["--models", str(models), "--results", str(place), *(["--small"] if options.small else [])]
    print(f"== {name}, at most {seconds:.0f} s", flush=True)
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    results = read(place)
    if code is None:
        results.append(Skipped("the rest", f"it took longer than {seconds:.0f} s"))
    elif code:
        last = log.read_text("utf-8", "replace").strip()[-LOG_CHARACTERS:].replace("\n", " ").replace("|", "/")
        results.append(Skipped("the rest", f"it failed with {code}: … {last}"))
    return results


def _write(out: Path, about: dict[str, Any], parts: list[tuple[str, list[Result]]]) -> None:
    type_names = {cls: name for name, cls in RESULT_TYPES.items()}
    listed = [
        {"part": part, "kind": type_names[type(result)], **asdict(result)}
        for part, results in parts
        for result in results
    ]
    for name, text in (
        ("results.json", json.dumps({"about": about, "results": listed}, indent=1) + "\n"),
        ("results.md", page(about, parts)),
    ):
        scratch = out / f"{name}.new"
        scratch.write_text(text, "utf-8")
        scratch.replace(out / name)


def _about(device: str) -> dict[str, Any]:
    import torch

    name, memory = platform.processor() or platform.machine(), None
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            sys.exit(f"bench.py: {device} was asked for, but torch {torch.__version__} sees no CUDA device; use cpu")
        properties = torch.cuda.get_device_properties(torch.device(device))
        name, memory = properties.name, f"{properties.total_memory / 2**30:.0f} GiB"
    about: dict[str, Any] = {
        "device": name,
        "at": time.strftime("%Y-%m-%d %H:%M %z"),
        "python": platform.python_version(),
    }
    about |= {"memory": memory} if memory else {}
    for package in ("torch", "transformers", "peft", "bedplate"):
        try:
            about[package] = version(package)
        except PackageNotFoundError:
            about[package] = "not installed"
    return about


if __name__ == "__main__":
    main()
