"""`generate` with defaults against every other way to run the base, at each level of the kernel that this machine has.

96 greedy tokens after a prompt of 256, SmolLM2-135M from its GGUF, no guessing ahead. What the defaults chose is set
beside the fastest of all ways that keep what the file stores; goal: within 10%. Each level runs in a process of its
own, in which torch and oneDNN are held to the like instructions.

usage: defaults.py [--repeats 5] [--level LEVEL]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from itertools import count

import masks
from bedplate.inference.engine.engine import Engine
from bedplate.inference.execution.calibration import plan_timings
from bedplate.inference.execution.choice import impossible
from bedplate.inference.execution.plan import ExecutionPlan, lossless_plans, read_stored
from bedplate.inference.execution.threads import use_cores
from bedplate.inference.native.levels import LEVELS
from bedplate.inference.native.library import OVERRIDE, supported
from bedplate.inference.predict.opening import chosen, execution_of
from bedplate.models.checkpoints.base import load_base
from bedplate.models.precision import resolve_device
from comparison import JSON_VARIABLE, Row, header, interleaved, report
from peers import BASE, generations, prompt_tokens

PROMPT, ANSWER, GOAL = 256, 96, 0.9
MASKS: Mapping[str, Mapping[str, str]] = {
    **masks.MASKS,
    "plain": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}
"""What holds torch to a level's instructions; of the others it uses all that there are."""


def compare(level: str, repeats: int) -> Row:
    """The defaults' tokens a second against the fastest way's, at the level of this process."""
    use_cores()
    stored = read_stored(BASE)
    device = resolve_device("cpu")
    settings = [setting for setting in lossless_plans(stored.types) if impossible(stored.spec, setting, device) is None]
    plan_timings(stored.spec, settings, remeasure=True)
    default = chosen(BASE, device=device)
    print(f"{level}: the defaults are {default.plan}: {default.why}")
    fresh = count()
    with ExitStack() as stack:
        engines: dict[ExecutionPlan, Engine] = {}
        for setting in settings:
            resolved = execution_of(setting)
            base = load_base(BASE, dtype=resolved.dtype, device=device)
            engine = Engine(base, weights=resolved.weights, kernel=resolved.kernel, speculate=False)
            engines[setting] = stack.enter_context(engine)

        def run(engine: Engine) -> None:
            tokens = prompt_tokens(PROMPT, stored.spec.vocab_size, next(fresh))  # new ones, so that nothing is cached
            engine.run(generations([tokens], ANSWER))

        runs = {str(setting): (lambda engine=engine: run(engine)) for setting, engine in engines.items()}
        seconds = interleaved(runs, repeats)
    for name, duration in sorted(seconds.items(), key=lambda timing: timing[1]):
        print(f"  {name}: {ANSWER / duration:.1f} tokens/s")
    best = min(seconds, key=lambda name: seconds[name])
    ours = ANSWER / seconds[str(default.plan)]
    return Row("defaults", ours, ANSWER / seconds[best], "tokens/s", f"fastest: {best}", "-", GOAL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--level", default=None)
    parser.add_argument("--json", default=None, help="append each level's result to this file as one line")
    arguments = parser.parse_args()
    if arguments.json is not None:
        os.environ[JSON_VARIABLE] = arguments.json
    if arguments.level is not None:
        header()
        report([compare(arguments.level, arguments.repeats)])
        return
    available = supported()
    levels = (
        ["none"] if isinstance(available, str) else [candidate for candidate in available if LEVELS[candidate].chosen]
    )
    for level in levels:
        environment = os.environ | ({} if level == "none" else {OVERRIDE: level})
        if level != levels[0]:
            environment |= {**MASKS.get(level, {}), masks.CHOSEN: level}
        command = [sys.executable, __file__, "--level", level, "--repeats", str(arguments.repeats)]
        subprocess.run(command, env=environment, check=True)


if __name__ == "__main__":
    main()
