"""Characters at equal time: what ours, transformers' Trainer and litgpt's pretraining make of one text in so many
seconds, with the same model (llama-shaped, 0.8 million parameters), rows and batch: nanoGPT's setting for a CPU.

The last tenth of the text is never learned from; the loss is of all of it, in rows of 64 characters. Each trains for
the same time: how many steps that is, is measured before. The peers come with their own defaults, and once more with
our learning rate and warm-up. What ours gains is split: our AdamW against theirs at the same rate, then Muon.

The text is any file (`--text`), such as the 1.1 MB of Shakespeare that nanoGPT takes; without, the first 1.1 million
characters of Python's own standard library. Where the machine does other work, `--clock processor` counts processor
time. litgpt is given as for pretrain.py.

usage: characters.py [--text FILE] [--litgpt DIR] [--seconds 134] [--clock wall|processor] [--only NAMES]
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import shaped
from bedplate.data.packing import DocumentPiece
from bedplate.data.stdlib import read_modules
from bedplate.models.inputs import Inputs
from bedplate.training.batch import PackedBatch, rows_batch
from bedplate.training.config import TrainConfig
from bedplate.training.loop import train
from bedplate.training.objectives.language import NextToken
from comparison import Row, need, report, start

LENGTH, ROWS = 64, 12
CHARACTERS = 1_100_000
RATE, WARMUP, DECAY = 3e-3, 0.02, 0.5
BELOW_DEFAULTS, BELOW_OUR_RATE = 0.15, 0.08
"""Nats a character that ours is to be below the peers."""
CLOCKS: Mapping[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}
Logits = Callable[[Tensor], Tensor]
Trained = Callable[[int], Logits]
"""Trains a new model for so many steps; logits [B, T, V] of tokens [B, T]."""


class Windows:
    """Rows that begin anywhere in the text, drawn by the step's number."""

    identity: Mapping[str, Any] = {"text": "windows"}

    def __init__(self, text: np.ndarray, steps: int) -> None:
        self._text, self.steps, self._drawn = text, steps, 0

    def __iter__(self) -> Iterator[tuple[PackedBatch, ...]]:
        while self._drawn < self.steps:
            rows = [[DocumentPiece(0, at, at + LENGTH)] for at in starts(self._text, self._drawn)]
            self._drawn += 1
            yield (rows_batch(rows, [self._text], ["text"], LENGTH),)

    def state(self) -> dict[str, Any]:
        return {"drawn": self._drawn}

    def load_state(self, state: dict[str, Any]) -> None:
        self._drawn = state["drawn"]


def starts(text: np.ndarray, step: int) -> list[int]:
    return np.random.default_rng((0, step)).integers(0, len(text) - LENGTH - 1, ROWS).tolist()


def ours(text: np.ndarray, sizes: shaped.Sizes, optimizer: str, dtype: str) -> Trained:
    def run(steps: int) -> Logits:
        model = shaped.our_model(sizes)
        config = TrainConfig(
            learning_rate=RATE,
            schedule="wsd",
            warmup=WARMUP,
            decay=DECAY,
            beta2=0.95,
            weight_decay=0.1,
            save_seconds=None,
            log_steps=10,
            dtype=dtype,  # type: ignore[arg-type]
            optimizer=optimizer,  # type: ignore[arg-type]
        )
        with tempfile.TemporaryDirectory() as out:
            train(model, Windows(text, steps), NextToken(), config, Path(out), model.named_parameters())
        return lambda tokens: model.head(model(Inputs(tokens)).hidden.flatten(0, 1)).unflatten(0, tokens.shape)

    return run


def trainer(text: np.ndarray, sizes: shaped.Sizes, our_rate: bool, dtype: str) -> Trained:
    from transformers import Trainer

    def run(steps: int) -> Logits:
        model = shaped.transformers_model(sizes)
        rows = torch.from_numpy(np.stack([text[at : at + LENGTH] for n in range(steps) for at in starts(text, n)]))
        data: Any = [{"input_ids": row, "labels": row} for row in rows]
        overrides = {"learning_rate": RATE, "warmup_steps": round(WARMUP * steps)} if our_rate else {}
        with tempfile.TemporaryDirectory() as out:
            arguments = shaped.trainer_arguments(out, ROWS, dtype, **overrides)
            Trainer(model, arguments, train_dataset=data).train()
        return lambda tokens: model(tokens).logits

    return run


def litgpt(text: np.ndarray, sizes: shaped.Sizes, our_rate: bool, dtype: str) -> Trained:
    """The step of its `pretrain`, with that command's defaults."""
    args, pretrain, utils = (importlib.import_module(f"litgpt.{name}") for name in ("args", "pretrain", "utils"))
    defaults = args.TrainArgs(max_norm=1.0, min_lr=4e-5, lr_warmup_steps=2000)

    def run(steps: int) -> Logits:
        fabric = shaped.litgpt_fabric(dtype)
        model = fabric.setup(shaped.litgpt_model(sizes, fabric))
        fields = {"lr": RATE} if our_rate else {}
        optimizer = fabric.setup_optimizers(
            utils.instantiate_torch_optimizer("AdamW", model.parameters(), fused=True, **fields)
        )
        peak = optimizer.defaults["lr"]
        warmup = round(WARMUP * steps) if our_rate else min(steps, defaults.lr_warmup_steps)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = pretrain.get_lr(peak, step, warmup, steps, defaults.min_lr)
            rows = torch.from_numpy(np.stack([text[at : at + LENGTH + 1] for at in starts(text, step)]))
            shaped.litgpt_step(fabric, model, optimizer, rows, defaults.max_norm)
        return model

    return run


@torch.no_grad()
def nats(logits: Logits, text: np.ndarray) -> float:
    """Of a character, over all of a text in rows."""
    count = (len(text) - 1) // LENGTH
    tokens = torch.from_numpy(text[: count * LENGTH]).view(count, LENGTH)
    targets = torch.from_numpy(text[1 : count * LENGTH + 1]).view(count, LENGTH)
    total = 0.0
    for inputs, labels in zip(tokens.split(256), targets.split(256), strict=True):
        scores = logits(inputs).float().flatten(0, 1)
        total += F.cross_entropy(scores, labels.flatten(), reduction="sum").item()
    return total / targets.numel()


def steps_in(seconds: float, run: Trained, clock: Callable[[], float]) -> int:
    """How many steps take so long, what comes before the first one apart."""

    def took(steps: int) -> float:
        began = clock()
        run(steps)
        return clock() - began

    short_steps, long_steps = 20, 120
    took(short_steps)
    return max(1, round(seconds * (long_steps - short_steps) / (took(long_steps) - took(short_steps))))


def read(path: Path | None) -> tuple[str, str]:
    """The text, and what it is."""
    if path is not None:
        return path.read_text(encoding="utf-8"), path.name
    text = "".join(text for _, text in read_modules())[:CHARACTERS]
    return text, "the beginning of Python's standard library"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", type=Path)
    parser.add_argument("--litgpt", type=Path)
    parser.add_argument("--seconds", type=float, default=134.0)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--only", help="some of the runs, by name, with semicolons between them")
    options = start(parser).options
    warnings.simplefilter("ignore")
    peers = {"transformers": need("transformers", "transformers")}
    text, named = read(options.text)
    letters = sorted(set(text))
    place = {letter: number for number, letter in enumerate(letters)}
    whole = np.array([place[letter] for letter in text], dtype=np.int64)
    learned, validation = whole[: len(whole) * 9 // 10], whole[len(whole) * 9 // 10 :]
    sizes = shaped.Sizes(len(letters), LENGTH, 128, 4, 4, 4, 352, tied=True)
    dtype = options.dtype
    runs: dict[str, Trained] = {
        "ours, Muon": ours(learned, sizes, "muon", dtype),
        "ours, AdamW": ours(learned, sizes, "adamw", dtype),
        "transformers": trainer(learned, sizes, False, dtype),
        "transformers, our rate": trainer(learned, sizes, True, dtype),
    }
    if options.litgpt is None:
        print("litgpt is left out: --litgpt names no place of it")
    else:
        sys.path.append(str(options.litgpt))
        peers["litgpt"] = version("litgpt")
        runs["litgpt"] = litgpt(learned, sizes, False, dtype)
        runs["litgpt, our rate"] = litgpt(learned, sizes, True, dtype)
    if options.only:
        runs = {name: runs[name.strip()] for name in options.only.split(";")}
    clock = CLOCKS[options.clock]
    print(f"{named}: {len(text):,} characters, {len(letters)} different; {options.seconds:g} s each ({options.clock})")
    losses: dict[str, float] = {}
    for name, run in runs.items():
        steps = steps_in(options.seconds, run, clock)
        losses[name] = nats(run(steps), validation)
        print(f"{name}: {steps:,} steps, {losses[name]:.4f} nats a character, held out", flush=True)
    if not {"ours, Muon", "ours, AdamW"} <= set(losses):
        return
    best = losses["ours, Muon"]
    for name, loss in losses.items():
        if name.startswith("ours"):
            continue
        goal = BELOW_OUR_RATE if name.endswith("rate") else BELOW_DEFAULTS
        reached, adamw = "met" if loss - best >= goal else "MISSED", losses["ours, AdamW"]
        print(
            f"{name}: ours is {loss - best:.3f} nats below (goal {goal}, {reached}): {loss - adamw:+.3f} with AdamW, "
            f"{adamw - best:+.3f} by Muon"
        )
    report(
        [
            Row(f"characters_{name.replace(', ', '_').replace(' ', '_')}", best, loss, "nats", *_peer(name, peers))
            for name, loss in losses.items()
            if not name.startswith("ours")
        ]
    )


def _peer(name: str, peers: Mapping[str, str]) -> tuple[str, str, None, bool]:
    peer = name.partition(",")[0]
    return peer, peers[peer], None, True


if __name__ == "__main__":
    main()
