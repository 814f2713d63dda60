"""Fill the README's table of benchmarks from result files: a column for each kind of machine that was measured.

A result file is what benchmarks append with --json. Of a row measured several times on one kind of machine the last
counts. A kind is a processor, its cores, the kernel's level and the mask, if there was one.

usage: table.py RESULTS.jsonl [...]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"
ROWS: Mapping[str, str] = {
    "prefill": "prefill of 512 tokens (`make bench NAME=prefill`), llama.cpp, same GGUF",
    "prefill_transformers": "the same, transformers",
    "decode": "decode after 512 tokens, batch 1 (`make bench NAME=decode`), llama.cpp",
    "decode_transformers": "the same, transformers",
    "batch16": "16 sequences, 128 in, 128 out (`make bench NAME=batch`), llama.cpp batched",
    "batch16_static": "the same, transformers, static batch",
    "batch16_continuous": "the same, transformers, continuous batching",
    "lora16": "16 sequences, each with a LoRA skin of its own (`make bench NAME=adapters`), peft's mixed batch",
    "lora16_base": "the same, our base without adapters",
    "lora_zipf": "32 skins, 8 of them hot, Zipf traffic, peft's mixed batch",
    "warm_prefix": "first token behind a skin's prompt of 2,000 tokens (`make bench NAME=warm_prefix`), not cached",
    "constrained1": "decode under a JSON schema (`make bench NAME=constrained`), free decode",
    "constrained1_stepwise": "the same with a step for each token, free decode",
    "constrained8": "under a JSON schema, 8 rows, free decode",
    "constrained8_stepwise": "the same with a step for each token, free decode",
    "defaults": "`generate` with defaults (`make bench NAME=defaults`), the fastest of all choices",
    "adapters_memory": "memory of 100 LoRA skins (`make bench NAME=adapters_memory`), 1.2 × their own bytes",
    "ppl_int8": "perplexity of held-out prose, int8 (`make bench NAME=quality`), bfloat16",
    "ppl_int4": "the same, int4",
}
"""What a row is called, with its peer at the end. Other rows are given under their own names, after these."""


def results(files: Iterable[Path]) -> dict[str, dict[str, dict[str, Any]]]:
    """Kind of machine → row → the last result, kinds in the order in which they first come. ValueError for a line that
    is no result."""
    machines: dict[str, dict[str, dict[str, Any]]] = {}
    for file in files:
        for number, line in enumerate(file.read_text("utf-8").splitlines(), start=1):
            try:
                value = json.loads(line)
                rows = {row["name"]: row for row in value["rows"]}
                machines.setdefault(value["machine"]["kind"], {}).update(rows)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{file}, line {number}: not what a benchmark writes with --json ({error})") from error
    return machines


def table(machines: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Ours against the peer, and the ratio: above 1 is better for us. A goal that was missed is named."""
    named = dict.fromkeys(ROWS) | dict.fromkeys(name for rows in machines.values() for name in rows)
    lines = [f"| ours / peer: ratio | {' | '.join(machines)} |", f"|---|{'---|' * len(machines)}"]
    for name in named:
        cells = [cell(rows[name]) if name in rows else "not measured" for rows in machines.values()]
        if any(name in rows for rows in machines.values()):
            lines.append(f"| {ROWS.get(name, name)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cell(row: Mapping[str, Any]) -> str:
    """Such as `160 / 91 tok/s: **1.75**`."""
    unit = row["unit"].replace("tokens/s", "tok/s")
    if row["ratio"] is None:
        return f"{number(row['ours'])} {unit} / the peer failed"
    setting = f" ({row['peer_setting']})" if row.get("peer_setting") else ""
    missed = "" if row["goal"] is None or row["ratio"] >= row["goal"] else f" (goal {row['goal']:g})"
    return f"{number(row['ours'])} / {number(row['peer'])} {unit}{setting}: **{row['ratio']:.2f}**{missed}"


def number(value: float) -> str:
    """Three digits, without an exponent: 1,951, 44.2, 1.08."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def filled(readme: str, text: str) -> str:
    """The page with this between the markers."""
    before, tail = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{text}{END}{tail.split(END)[1]}"


def main() -> None:
    files = [Path(name) for name in sys.argv[1:]]
    if not files:
        sys.exit("give the files that benchmarks wrote with --json")
    README.write_text(filled(README.read_text("utf-8"), table(results(files))), "utf-8")
    print(f"{README} holds the results of {', '.join(str(file) for file in files)}")


if __name__ == "__main__":
    main()
