"""Many adapters in one batch, each sequence with its own: beside the base alone, and beside peft's mixed batch."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import torch
from engine import best
from numerics import random_adapter
from results import Part, Skipped, Speed
from shapes import SMALL, WORK, generations, prompts, random_llama
from torch import Tensor

from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.peft import peft_files
from bedplate.inference.engine.engine import Engine
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.models.checkpoints.export import family_in

LORA = LoraConfig(r=16, alpha=32.0)


def main() -> None:
    part = Part()
    work, rows = (SMALL, 3) if part.small else (WORK, 16)
    place = random_llama(part.models, part.small, part.device)
    base = load_base(place, dtype="float32" if part.small else "bfloat16", device=part.device)
    tensors = [random_adapter(base, seed, LORA) for seed in range(rows)]
    names: list[str | None] = [f"skin{i}" for i in range(rows)]
    seeds, speeds = count(), dict[str, float]()
    with Engine(base, max_rows=rows, adapters=rows, step_adapters=rows, paged=True, kernel="torch") as engine:
        for name, adapter in zip(names, tensors, strict=True):
            engine.load_adapter(str(name), LORA, adapter)
        for title, row_adapters in (
            ("base", [None] * rows),
            ("one adapter", names[:1] * rows),
            ("own adapters", names),
        ):

            def run(output: int, row_adapters: list[str | None] = row_adapters) -> Callable[[], object]:
                return lambda: engine.run(
                    generations(prompts(rows, work.prompt, base.spec.vocab_size, next(seeds)), output, row_adapters)
                )

            seconds = best(run(work.output + 1)) - best(run(1))
            speeds[title] = rows * work.output / max(seconds, 1e-9)
    for title in ("one adapter", "own adapters"):
        part.add(
            Speed(f"{rows} sequences, {title}", speeds[title], "tokens/s", speeds["base"], "our base without adapters")
        )
    if part.seconds < 30 and not part.small:
        part.add(Skipped("peft", f"{part.seconds:.0f} s were left"))
        return
    theirs = peft_speed(part, place, base, tensors, work.prompt, work.output)
    part.add(
        Speed(f"{rows} sequences, own adapters", speeds["own adapters"], "tokens/s", theirs, f"peft {version('peft')}")
    )


def peft_speed(
    part: Part, place: Path, base: Base, adapters: list[dict[str, Tensor]], length: int, output: int
) -> float:
    """Tokens per second of peft's mixed batch, all adapters loaded."""
    import peft
    import transformers

    transformers.utils.logging.set_verbosity_error()
    weights = family_in(base, "hf").weights
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(place, dtype=base.dtype)
    for i, tensors in enumerate(adapters):
        adapter_dir = part.models / "adapters" / f"{place.name}-{i}"
        adapter_dir.mkdir(parents=True, exist_ok=True)
        for name, content in peft_files(LORA, tensors, weights, base_name=place.name).items():
            (adapter_dir / name).write_bytes(content)
        if i == 0:
            model = peft.PeftModel.from_pretrained(model, str(adapter_dir), adapter_name="0")
        else:
            model.load_adapter(str(adapter_dir), adapter_name=str(i))
    model = model.to(part.device, base.dtype).eval()
    ids = torch.tensor(prompts(len(adapters), length, base.spec.vocab_size, 99), device=part.device)
    fixed = {"do_sample": False, "pad_token_id": 0, "adapter_names": [str(i) for i in range(len(adapters))]}

    @torch.inference_mode()
    def run(count: int) -> object:
        lengths = {"max_new_tokens": count, "min_new_tokens": count}
        return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **fixed, **lengths)[:, -1].tolist()

    seconds = best(lambda: run(output + 1)) - best(lambda: run(1))
    return len(adapters) * output / max(seconds, 1e-9)


if __name__ == "__main__":
    main()
