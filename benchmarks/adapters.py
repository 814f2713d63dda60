"""16 sequences, each with a LoRA adapter of its own (r 16, all linears), 128 tokens in and 128 out, greedy.

Against peft's mixed batch (`adapter_names`) in its fastest dtype here, and against our own base without adapters. Then
32 adapters registered, of which 8 are hot: 32 sequences whose adapters follow Zipf's law (exponent 1.2), in groups of
16 as they come. Output tokens per second, prompts included in the time.

usage: adapters.py [--weights int4] [--repeats 3]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

import goals
import sampling
from apart import PeerProcess
from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.modules import block_linears, initial_tensors
from bedplate.adapters.peft import peft_files
from bedplate.inference.engine.engine import Engine
from bedplate.models.checkpoints.base import Base
from bedplate.models.checkpoints.export import family_in
from comparison import Row, interleaved, need, report, start, timed
from peers import BASE, THREADS, Transformers, exported, fastest, generations, our_base, prompt_tokens

SEQUENCES, PROMPT, OUTPUT, TRIAL = 16, 128, 128, 4
REGISTERED, HOT = 32, 8
LORA = LoraConfig(r=16, alpha=32.0)


def random_adapter(base: Base, seed: int) -> dict[str, torch.Tensor]:
    """An adapter whose B is not zero, so that it changes what it should."""
    tensors = initial_tensors(LORA, block_linears(base.model), seed)
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=generator) * 0.02 if name.endswith("lora_B") else value
        for name, value in tensors.items()
    }


class Peft:
    """peft's model with all adapters loaded, generating in mixed batches."""

    def __init__(self, directory: Path, adapters: Sequence[Path], dtype: str) -> None:
        import peft

        model: Any = Transformers(directory, dtype).model
        model = peft.PeftModel.from_pretrained(model, str(adapters[0]), adapter_name="0")
        for i, place in enumerate(adapters[1:], start=1):
            model.load_adapter(str(place), adapter_name=str(i))
        self._model = model.to(getattr(torch, dtype)).eval()

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]], adapters: Sequence[int], length: int) -> None:
        ids = torch.tensor([list(prompt) for prompt in prompts])
        names = [str(i) for i in adapters]
        fixed = {"max_new_tokens": length, "min_new_tokens": length, "do_sample": False, "pad_token_id": 0}
        self._model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), adapter_names=names, **fixed)


def written(base: Base, adapters: Sequence[dict[str, torch.Tensor]], scratch: Path) -> list[Path]:
    """Directories of the adapters in peft's format."""
    weights, places = family_in(base, "hf").weights, list[Path]()
    for i, tensors in enumerate(adapters):
        places.append(scratch / f"adapter{i}")
        places[-1].mkdir()
        for name, content in peft_files(LORA, tensors, weights, base_name=BASE).items():
            (places[-1] / name).write_bytes(content)
    return places


def zipf(sequences: int) -> list[int]:
    """Adapter numbers: Zipf over the hot ones, every eighth request one of the cold."""
    generator = np.random.default_rng(0)
    odds = np.arange(1, HOT + 1) ** -1.2
    hot = generator.choice(HOT, size=sequences, p=odds / odds.sum())
    cold = generator.integers(HOT, REGISTERED, size=sequences)
    return [int(c if i % 8 == 7 else h) for i, (h, c) in enumerate(zip(hot, cold, strict=True))]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", default="int4", choices=("bfloat16", "int8", "int4"))
    parser.add_argument("--repeats", type=int, default=3)
    started = start(parser)
    arguments = started.options
    version = need("peft", "peft")
    base = our_base()
    tensors = [random_adapter(base, seed) for seed in range(REGISTERED)]
    seeds = count()

    def fresh(number: int) -> list[list[int]]:
        return [prompt_tokens(PROMPT, base.spec.vocab_size, next(seeds)) for _ in range(number)]

    with (
        exported() as directory,
        Engine(base, weights=arguments.weights, max_rows=SEQUENCES, adapters=REGISTERED, speculate=False) as engine,
    ):
        for i, adapter in enumerate(tensors):
            engine.load_adapter(f"skin{i}", LORA, adapter)
        distinct, traffic = list(range(SEQUENCES)), zipf(2 * SEQUENCES)
        places = written(base, tensors, directory)
        peft, dtype = fastest(
            lambda dtype: PeerProcess("adapters:Peft", directory, places, dtype),
            lambda peer: peer.generate(fresh(SEQUENCES), distinct, TRIAL),
        )

        def ours(adapters: Sequence[int] | None, number: int = SEQUENCES) -> None:
            names = [] if adapters is None else [f"skin{i}" for i in adapters]
            engine.run(generations(fresh(number), OUTPUT, names))

        def theirs(adapters: Sequence[int]) -> None:
            for begin in range(0, len(adapters), SEQUENCES):
                peft.generate(fresh(SEQUENCES), adapters[begin : begin + SEQUENCES], OUTPUT)

        seconds = interleaved(
            {
                "base": lambda: ours(None),
                "distinct": lambda: ours(distinct),
                "zipf": lambda: ours(traffic, len(traffic)),
            },
            arguments.repeats,
        )
        # The peer takes minutes: once each, after the trial that chose its dtype.
        for name, adapters in (("peft", distinct), ("peft, zipf", traffic)):
            seconds[name] = timed(name, lambda adapters=adapters: theirs(adapters))
        kernel = engine.kernel
        if arguments.profile:
            print(sampling.largest_parts(lambda: ours(distinct)))
    tokens = {name: SEQUENCES * OUTPUT * (2 if "zipf" in name else 1) for name in seconds}
    speed = {name: tokens[name] / value for name, value in seconds.items()}
    print(
        f"{PROMPT} in, {OUTPUT} out, {THREADS} threads, ours {arguments.weights} ({kernel}), peft {dtype}, "
        f"medians of {arguments.repeats}, peft once; distinct adapters in the Zipf traffic: {len(set(traffic))}"
    )
    goal, unit = goals.of(started.machine.level), "tokens/s"
    report(
        [
            Row("lora16", speed["distinct"], speed["peft"], unit, "peft", version, goal["lora16"], peer_setting=dtype),
            Row("lora16_base", speed["distinct"], speed["base"], unit, "own base", "-", goal["lora16_base"]),
            Row("lora_zipf", speed["zipf"], speed["peft, zipf"], unit, "peft", version, goal["lora16"], False, dtype),
        ]
    )


if __name__ == "__main__":
    main()
