"""Our engine on the device: prompts, and answers of one, several and many sequences; beside transformers."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch
from results import Part, Skipped, Speed
from shapes import SMALL, WORK, Work, generations, prompts, random_llama, smollm2

from bedplate.inference.engine.engine import Engine
from bedplate.models.checkpoints.base import load_base

REPEATS = 3


def main() -> None:
    part = Part()
    work = SMALL if part.small else WORK
    places = [random_llama(part.models, part.small, part.device)]
    if not part.small:
        places.append(smollm2(part.models))
    speeds = [ours(part, place, work) for place in places]
    peer(part, places[0], work, speeds[0])


def ours(part: Part, place: Path, work: Work) -> dict[int, float]:
    """Tokens per second of so many sequences."""
    dtype = "float32" if part.small else "bfloat16"
    base = load_base(place, dtype=dtype, device=part.device)
    seeds, vocabulary, speeds = count(), base.spec.vocab_size, dict[int, float]()
    with Engine(base, max_rows=max(work.rows), paged=True, kernel="torch") as engine:

        def run(rows: int, length: int, output: int) -> Callable[[], object]:
            return lambda: engine.run(generations(prompts(rows, length, vocabulary, next(seeds)), output))

        seconds = best(run(1, work.long, 1))
        part.add(Speed(f"{place.name}: a prompt of {work.long}", work.long / seconds, "tokens/s"))
        for rows in work.rows:
            alone, whole = best(run(rows, work.prompt, 1)), best(run(rows, work.prompt, work.output + 1))
            speeds[rows] = rows * work.output / max(whole - alone, 1e-9)
            part.add(Speed(f"{place.name}: {rows} sequences, decode", speeds[rows], "tokens/s"))
    return speeds


def best(run: Callable[[], object], turns: int = REPEATS) -> float:
    """Seconds of the best of some turns, after one that warms up."""
    run()
    timings: list[float] = []
    for _ in range(turns):
        began = time.perf_counter()
        run()
        timings.append(time.perf_counter() - began)
    return min(timings)


def peer(part: Part, place: Path, work: Work, speeds: dict[int, float]) -> None:
    """transformers' own batch of prompts of one length, whose cache knows its size."""
    rows = work.rows[min(1, len(work.rows) - 1)]
    if part.seconds < 45 and not part.small:
        part.add(Skipped("transformers", f"{part.seconds:.0f} s were left"))
        return
    import transformers

    transformers.utils.logging.set_verbosity_error()
    dtype = torch.float32 if part.small else torch.bfloat16
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(place, dtype=dtype).to(part.device).eval()
    inputs = prompts(rows, work.prompt, model.config.vocab_size, 99)
    fixed = {"do_sample": False, "pad_token_id": 0}

    ids = torch.tensor(inputs, device=part.device)

    def run(output: int) -> object:
        lengths = {"max_new_tokens": output, "min_new_tokens": output}
        return model.generate(ids, attention_mask=torch.ones_like(ids), **fixed, **lengths)[:, -1].tolist()

    seconds = best(lambda: run(work.output + 1)) - best(lambda: run(1))
    theirs = rows * work.output / max(seconds, 1e-9)
    name = f"{place.name}: {rows} sequences, decode"
    part.add(Speed(name, speeds[rows], "tokens/s", theirs, f"transformers {transformers.__version__}"))


if __name__ == "__main__":
    main()
