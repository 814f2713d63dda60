"""The device's numbers beside the processor's, in float32: logits, adapters, draws, and the engine's texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from results import Check, Part, Skipped
from shapes import SMALL, WORK, generations, prompts, random_llama, smollm2
from torch import Tensor

from bedplate.adapters.bank import Bank
from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.modules import block_linears, initial_tensors
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Sampling
from bedplate.inference.engine.sampler import drawn
from bedplate.inference.forward.quantised import packs, quantised
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.models.inputs import Inputs

LORA = LoraConfig(r=8, alpha=16.0)
RELATIVE = 2e-4
"""Of float32 logits, by the other order of their sums."""


def main() -> None:
    part = Part()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    place = random_llama(part.models, True, "cpu") if part.small else smollm2(part.models)
    cpu_base, device_base = (load_base(place, dtype="float32", device=device) for device in ("cpu", part.device))
    tokens = torch.tensor(prompts(2, 48, cpu_base.spec.vocab_size, 0))
    part.add(Check("logits, relative", difference(logits(cpu_base, tokens), logits(device_base, tokens)), RELATIVE))
    adapters(part, cpu_base, device_base, tokens)
    quantised_weights(part, cpu_base, device_base, tokens)
    sampling(part, cpu_base.spec.vocab_size)
    engines(part, cpu_base, device_base)
    half_precision(part, place, tokens, logits(cpu_base, tokens))


@torch.inference_mode()
def logits(base: Base, tokens_BT: Tensor) -> Tensor:
    positions_BT = torch.arange(tokens_BT.shape[1]).expand_as(tokens_BT)
    inputs = Inputs(tokens_BT.to(base.device), positions_BT.to(base.device))
    return base.model.head(base.model(inputs).hidden).float().cpu()


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference by the largest number."""
    return float((ours - theirs).abs().max() / ours.abs().max())


def adapters(part: Part, cpu_base: Base, device_base: Base, tokens_BT: Tensor) -> None:
    """Rows of several adapters in one batch, and one row of the base."""
    outputs: list[Tensor] = []
    for base in (cpu_base, device_base):
        bank = Bank(base.model, 3)
        for seed in range(3):
            bank.add(LORA, random_adapter(base, seed))
        rows = torch.tensor([2, -1, 0, 1])
        bank.select(rows)
        outputs.append(logits(base, tokens_BT[:1].expand(len(rows), -1)))
        bank.close()
    part.add(Check("logits of four rows with three adapters, relative", difference(*outputs), RELATIVE))


def random_adapter(base: Base, seed: int, config: LoraConfig = LORA) -> dict[str, Tensor]:
    """An adapter whose B is not zero, so that it changes what it should."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=generator) * 0.02 if name.endswith("lora_B") else value
        for name, value in initial_tensors(config, block_linears(base.model), seed).items()
    }


def quantised_weights(part: Part, cpu_base: Base, device_base: Base, tokens_BT: Tensor) -> None:
    """The same integers on both sides, and whether the device has products of packed ones."""
    for bits in ("int8", "int4"):
        outputs = [
            logits(replace(base, raw_model=quantised(base.model, bits)), tokens_BT) for base in (cpu_base, device_base)
        ]
        part.add(Check(f"logits with {bits} weights, relative", difference(*outputs), RELATIVE))
    if not packs(device_base.device, torch.bfloat16):
        part.add(Skipped("int4 products", "torch has none for packed weights that are right on this device"))


def sampling(part: Part, vocabulary: int) -> None:
    """The same numbers drawn from the same probabilities."""
    count = 64 if part.small else 512
    shares = (torch.randn(count, vocabulary, generator=torch.Generator().manual_seed(0)) * 2).softmax(-1)
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    filters = ({}, {"top_p": 0.9}, {"top_k": 40}, {"min_p": 0.05}, {"top_k": 500, "top_p": 0.8, "min_p": 0.01})
    settings = [Sampling(temperature=1.0, **filters[i % len(filters)]) for i in range(count)]
    device_draws = drawn(shares.to(part.device), settings, uniform.to(part.device)).cpu()
    differing = float((drawn(shares, settings, uniform) != device_draws).float().mean())
    part.add(
        Check("share of draws that differ", differing, 0.01, "a number at the end of a share may fall on the next")
    )


def engines(part: Part, cpu_base: Base, device_base: Base) -> None:
    """Greedy texts of several lengths at once, in blocks there and in slots here, a prompt in pieces."""
    work = SMALL if part.small else WORK
    inputs = [
        prompt[: 3 + i * work.prompt // 8]
        for i, prompt in enumerate(prompts(8, work.prompt, cpu_base.spec.vocab_size, 1))
    ]
    requests = generations(inputs, 16 if part.small else 64)
    with (
        Engine(cpu_base, kernel="torch") as ours,
        Engine(device_base, paged=True, kernel="torch", max_step_tokens=96) as theirs,
    ):
        texts = [[generation.token_ids for generation in engine.run(requests)] for engine in (ours, theirs)]
    differing = sum(a != b for a, b in zip(*texts, strict=True)) / len(requests)
    part.add(Check("share of greedy texts that differ", differing, 1 / 8, "two tokens may be level within rounding"))


def half_precision(part: Part, place: Path, tokens_BT: Tensor, exact: Tensor) -> None:
    """How far bfloat16 takes the logits from float32 there, beside here."""
    if part.small:
        part.add(Skipped("bfloat16", "small runs are in float32 alone"))
        return
    distances = [
        difference(exact, logits(load_base(place, dtype="bfloat16", device=device), tokens_BT))
        for device in ("cpu", part.device)
    ]
    part.add(Check("bfloat16 logits from float32, by the processor's own distance", distances[1] / distances[0], 1.5))


if __name__ == "__main__":
    main()
