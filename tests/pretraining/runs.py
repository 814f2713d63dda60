"""Tiny runs on text in which one word tells the next."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml

from bedplate.pretraining.runfile.file import RunFile, load_run

WORDS = ("the cat sat on the mat", "a dog ran to the park", "the sun is warm today", "she reads a good book")


def write_text(path: Path, lines: int = 400, seed: int = 0) -> Path:
    draw = random.Random(seed)
    path.write_text("".join(f"{draw.choice(WORDS)} {draw.choice(WORDS)}.\n" for _ in range(lines)))
    return path


def run_values(**changes: Any) -> dict[str, Any]:
    """A run of nine steps and three checkpoints."""
    return {
        "run": "tiny",
        "data": {
            "sources": [{"name": "lines", "source": "text.txt", "lines": 8, "licence": "CC0-1.0"}],
            "tokenizer": {"vocab_size": 300},
            "held_out": 0.1,
        },
        "model": {"params": "120k", "context": 32},
        "tokens": 2304,
        "batch": {"tokens": 256, "micro_tokens": 128},
        "checkpoints": {"every": 0.34, "seconds": None, "bases": 1},
        "evaluation": {"prompts": ["the cat"], "suites": ["code"], "items": 2, "sample_tokens": 4},
        "log_steps": 2,
        **changes,
    }


def tiny_run(directory: Path, **changes: Any) -> RunFile:
    """The run file, written beside its text and read."""
    if not (directory / "text.txt").exists():
        write_text(directory / "text.txt")
    path = directory / "run.yaml"
    path.write_text(yaml.safe_dump(run_values(**changes)))
    return load_run(path)
