"""Our engine beside vLLM, which runs in an environment of its own, on the same directory and work."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

from engine import ours
from results import Part, Skipped, Speed
from shapes import WORK, random_llama
from vllm_place import python_of

SIDE = Path(__file__).parent / "vllm_side.py"


def main() -> None:
    part = Part()
    if part.small or not part.device.startswith("cuda"):
        part.add(Skipped("vLLM", "its package on PyPI is for CUDA devices"))
        return
    place = part.models.parent / "vllm"
    while not (place / "installed").is_file() and part.seconds > 90:
        time.sleep(1)
    if not (place / "installed").is_file():
        log = place / "log"
        log_tail = log.read_text("utf-8", "replace").strip()[-300:].replace("\n", " ") if log.is_file() else ""
        part.add(Skipped("vLLM", f"it was not installed in time; pip said last: {log_tail or 'nothing'}"))
        return
    model = random_llama(part.models, part.small, part.device)
    command = [str(python_of(place)), str(SIDE), str(model), str(WORK.prompt), str(WORK.output)]
    command += [str(WORK.long), *map(str, WORK.rows)]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=max(part.seconds - 30, 1), check=False)
    lines = [line.removeprefix("FOUND ") for line in completed.stdout.splitlines() if line.startswith("FOUND ")]
    if not lines:
        last = (completed.stderr or completed.stdout).strip()[-300:].replace("\n", " ")
        part.add(Skipped("vLLM", f"it failed with {completed.returncode}: … {last}"))
        return
    theirs = json.loads(lines[-1])
    for rows, speed in ours(part, model, WORK).items():
        name = f"{model.name}: {rows} sequences, decode"
        part.add(Speed(name, speed, "tokens/s", theirs["decode"][str(rows)], f"vLLM {theirs['version']}"))


if __name__ == "__main__":
    main()
