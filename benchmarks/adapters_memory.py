"""What 100 registered LoRA adapters (r 16, all linears, bfloat16) take in memory, against their own bytes.

Resident memory of a process with the base and an engine that has answered 100 times, then again with every adapter
loaded and used once. Adapters are made one at a time, and before each reading garbage is collected and the allocator
gives its free pages back (malloc_trim), so that temporaries of making them do not count. The cache of prefixes is off.

usage: adapters_memory.py [--weights int4] [--adapters 100]
"""

from __future__ import annotations

import argparse
import ctypes
import gc
from pathlib import Path

from adapters import LORA, random_adapter
from bedplate.inference.engine.engine import Engine
from comparison import Row, report, start
from peers import THREADS, generations, our_base, prompt_tokens

PROMPT, OUTPUT = 16, 4
BFLOAT16 = 2


def resident() -> int:
    """Resident bytes of this process, without garbage and without what the allocator keeps for later."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", default="int4", choices=("bfloat16", "int8", "int4"))
    parser.add_argument("--adapters", type=int, default=100)
    arguments = start(parser).options
    base = our_base()
    number, adapter_bytes = arguments.adapters, 0
    settings = {"weights": arguments.weights, "kernel": "native", "adapters": number}
    # No room for cached prefixes: those of 100 adapters would count as the adapters'.
    with Engine(base, **settings, cache_bytes=0, speculate=False) as engine:

        def use(seed: int, adapter: str | None) -> None:
            engine.run(generations([prompt_tokens(PROMPT, base.spec.vocab_size, seed)], OUTPUT, [adapter]))

        random_adapter(base, 0)  # what torch allocates once
        use(0, None)
        at_first = resident()
        for i in range(number):
            use(i, None)
        before = resident()
        for i in range(number):
            tensors = random_adapter(base, i)
            adapter_bytes += sum(value.numel() for value in tensors.values()) * BFLOAT16
            engine.load_adapter(f"skin{i}", LORA, tensors)
            del tensors
            use(i, f"skin{i}")
        grown = resident() - before
    print(
        f"{number} adapters of {adapter_bytes / number / 1e6:.2f} MB, base {arguments.weights} (native), "
        f"{THREADS} threads: "
        f"{at_first / 1e6:.0f} MB with base and engine, {(before - at_first) / 1e6:+.1f} MB after {number} answers, "
        f"then {grown / 1e6:+.1f} MB with the adapters, {adapter_bytes / 1e6:.1f} MB of which are theirs: "
        f"{grown / adapter_bytes:.3f} times"
    )
    report(
        [
            Row(
                "adapters_memory",
                grown / adapter_bytes,
                1.2,
                "x own bytes",
                "bound",
                "-",
                goal=1.0,
                lower_is_better=True,
            )
        ]
    )


if __name__ == "__main__":
    main()
