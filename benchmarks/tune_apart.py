"""LoRA tuning (r 16, all linears) against peft + transformers and trl's SFTTrainer, each in a process of its
own: examples per second, loss on held-out examples, and the most memory that was resident.

Two kinds of examples: `short`, the demo's reviews with the label to learn; `long`, 512 tokens of reviews in a row, the
last 128 to learn. All see the same examples, steps, schedule and clipping, from A's usual random start. peft pads a
batch to its longest; SFTTrainer packs examples into rows of a batch's tokens, best fit, as its `packing` does. Ours
computes in what is measured to be fastest, peft and trl in the faster of float32 and bfloat16 under autocast. The
processes take turns; medians over the turns are reported. Memory is the process's peak at the end of training
(imports, base and all).

usage: tune_apart.py [--examples 320] [--valid 160] [--turns 3] [--workloads short long]
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from apart import PeerError, call_in_process
from bedplate.evaluation.examples import Example as Labelled
from bedplate.evaluation.examples import load_examples
from bedplate.evaluation.task import load_task
from bedplate.models.checkpoints.base import load_base
from bedplate.models.checkpoints.export import export_base
from bedplate.text.tokenizer import Tokenizer
from bedplate.training.batch import TrainingExample, completion_example
from bedplate.training.config import TrainConfig
from comparison import Row, need, report, start
from peers import BASE, THREADS
from tune import (
    LORA,
    TASK,
    Setting,
    chunks,
    computing_in,
    fastest_setting,
    padded,
    peft_model,
    review_examples,
)

RATE, SEED = 5e-4, 0
BATCH = {"short": 16, "long": 4}
LONG, LEARNED = 512, 128


@dataclass(frozen=True)
class Measured:
    """Of one process. seconds: of all steps together; loss: mean over held-out tokens; peak: bytes."""

    examples: int
    seconds: float
    loss: float
    peak: float


# --- the examples, made once and read by every process


def long_examples(tokenizer: Tokenizer, rows: Sequence[Labelled], count: int) -> list[TrainingExample]:
    """Reviews in a row, cut every 512 tokens."""
    ids = tokenizer.encode("\n".join(row.inputs["review"] for row in rows))
    pieces = [ids[i : i + LONG] for i in range(0, len(ids) - LONG + 1, LONG)]
    prompt_length = LONG - LEARNED
    # a corpus too short for the number is gone through again, one token further on
    while len(pieces) < count:
        ids = ids[1:]
        pieces += [ids[i : i + LONG] for i in range(0, len(ids) - LONG + 1, LONG)]
    return [completion_example(p[:prompt_length], p[prompt_length:], str(n)) for n, p in enumerate(pieces[:count])]


def write_examples(path: Path, examples: Sequence[TrainingExample]) -> None:
    path.write_text("".join(json.dumps(asdict(e)) + "\n" for e in examples))


def read_examples(path: Path) -> list[TrainingExample]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [TrainingExample(tuple(row["ids"]), tuple(row["loss"]), row["id"]) for row in rows]


# --- the contenders: each returns seconds of its steps and how to score held-out examples


Scored = Callable[[Sequence[TrainingExample]], float]


def ours(base: Path, examples: Sequence[TrainingExample], batch: int, setting: Setting) -> tuple[float, Scored]:
    from bedplate.adapters.bank import Bank
    from bedplate.training.loop import evaluate_loss, train
    from bedplate.training.objectives.language import Sft
    from bedplate.training.sources import ExampleSource

    loaded = load_base(base, dtype="bfloat16")
    bank = Bank(loaded.model)
    slot = bank.add(LORA, None, SEED)
    bank.select(slot)
    config = TrainConfig(learning_rate=RATE, seed=SEED, save_seconds=None)
    with tempfile.TemporaryDirectory() as out:
        started = time.perf_counter()
        train(loaded.model, ExampleSource(examples, batch), Sft(), config, Path(out), bank.parameters(slot))
        seconds = time.perf_counter() - started

    def score(validation: Sequence[TrainingExample]) -> float:
        batches = [packed_batch for step in ExampleSource(validation, batch) for packed_batch in step]
        return evaluate_loss(loaded.model, batches, Sft())["sft"]

    return seconds, score


@torch.no_grad()
def padded_loss(model: Any, validation: Sequence[TrainingExample], batch: int, setting: Setting) -> float:
    model.eval()
    total, count = 0.0, 0
    for i in range(0, len(validation), batch):
        ids, mask, labels = padded(validation[i : i + batch])
        targets = int((labels != -100).sum())
        with computing_in(setting):
            total += float(model(input_ids=ids, attention_mask=mask, labels=labels).loss) * targets
        count += targets
    return total / count


def with_peft(base: Path, examples: Sequence[TrainingExample], batch: int, setting: Setting) -> tuple[float, Scored]:
    """The usual loop."""
    torch.manual_seed(SEED)
    model = peft_model(base, setting).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    config = TrainConfig(learning_rate=RATE)
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=True)
    steps = range(0, len(examples), batch)
    started = time.perf_counter()
    for number, i in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate_at(number, len(steps))
        with computing_in(setting):
            ids, mask, labels = padded(examples[i : i + batch])
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.clip or 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
    return time.perf_counter() - started, lambda validation: padded_loss(model, validation, batch, setting)


def with_trl(base: Path, examples: Sequence[TrainingExample], batch: int, setting: Setting) -> tuple[float, Scored]:
    """SFTTrainer with packing: rows as long as a batch of ours has tokens, one row a step."""
    import datasets
    import transformers
    import trl

    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    rows = {
        "input_ids": [list(e.ids) for e in examples],
        "completion_mask": [[int(on) for on in e.loss] for e in examples],
    }
    tokens = -(-sum(map(len, rows["input_ids"])) * batch // len(examples))
    config = TrainConfig(learning_rate=RATE)
    with tempfile.TemporaryDirectory() as out:
        settings = trl.SFTConfig(
            output_dir=out,
            per_device_train_batch_size=1,
            packing=True,
            max_length=tokens,
            completion_only_loss=True,
            learning_rate=RATE,
            lr_scheduler_type="cosine",
            warmup_steps=round(config.warmup * len(examples) / batch),
            weight_decay=0.0,
            max_grad_norm=config.clip or 1.0,
            num_train_epochs=1,
            bf16=setting != "float32",
            use_cpu=True,
            gradient_checkpointing=False,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=SEED,
        )
        torch.manual_seed(SEED)
        model = peft_model(base, setting)
        tokenizer = transformers.AutoTokenizer.from_pretrained(base)
        trainer = trl.SFTTrainer(
            model, args=settings, train_dataset=datasets.Dataset.from_dict(rows), processing_class=tokenizer
        )
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
    return seconds, lambda validation: padded_loss(model, validation, batch, setting)


CONTENDERS: dict[str, Callable[[Path, Sequence[TrainingExample], int, Setting], tuple[float, Scored]]] = {
    "ours": ours,
    "peft": with_peft,
    "trl": with_trl,
}


def measure(name: str, workload: str, scratch: Path, setting: Setting) -> Measured:
    """In this process."""
    torch.set_num_threads(THREADS)
    warnings.filterwarnings("ignore")
    examples, validation = (read_examples(scratch / f"{workload}-{split}.jsonl") for split in ("train", "valid"))
    seconds, score = CONTENDERS[name](scratch / "base", examples, BATCH[workload], setting)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Measured(len(examples), seconds, score(validation), peak)


def measure_isolated(name: str, workload: str, scratch: Path, setting: Setting) -> Measured:
    """The same in a new process; no numbers where a peer fails, which is printed."""
    try:
        return call_in_process("tune_apart:measure", name, workload, scratch, setting)
    except PeerError as error:
        print(f"{name} FAILED: {error}", flush=True)
        return Measured(0, math.nan, math.nan, math.nan)


def rows_of(workload: str, measured: dict[str, list[Measured]], versions: dict[str, str]) -> list[Row]:
    def median(name: str, value: Callable[[Measured], float]) -> float:
        return statistics.median(value(measurement) for measurement in measured[name])

    rows: list[Row] = []
    for name, peer in (("peft", "peft + transformers"), ("trl", "trl SFTTrainer, packing")):
        about = (peer, versions[name])
        speed, loss, peak = (
            [median(contender, value) for contender in ("ours", name)]
            for value in (lambda m: m.examples / m.seconds, lambda m: m.loss, lambda m: m.peak / 1e6)
        )
        row_name = f"tune_{workload}_{name}"
        rows += [
            Row(row_name, *speed, "examples/s", *about, goal=2.0),
            Row(f"{row_name}_held_out_loss", *loss, "nats/token", *about, goal=0.97, lower_is_better=True),
            Row(f"{row_name}_peak_memory", *peak, "MB", *about, goal=1.0, lower_is_better=True),
        ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--examples", type=int, default=320)
    parser.add_argument("--valid", type=int, default=160)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--workloads", nargs="+", choices=tuple(BATCH), default=list(BATCH))
    arguments = start(parser).options
    transformers = need("transformers", "transformers")
    versions = {
        "peft": f"{need('peft', 'peft')} + {transformers}",
        "trl": f"{need('trl', 'trl')} + {need('peft', 'peft')} + {transformers}",
    }
    result_rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        base = load_base(BASE, dtype="bfloat16")
        export_base(base, scratch / "base")
        data, tokenizer = load_examples(load_task(TASK)), base.need_tokenizer()
        for split, count in (("train", arguments.examples), ("valid", arguments.valid)):
            rows = data.examples(split, "benchmark")
            write_examples(scratch / f"short-{split}.jsonl", review_examples(tokenizer, rows[:count]))
            long_count = max(2, count // 8)
            write_examples(scratch / f"long-{split}.jsonl", long_examples(tokenizer, rows, long_count))
        del base
        setting = fastest_setting(scratch / "base", chunks(read_examples(scratch / "short-train.jsonl"))[:2])
        for workload in arguments.workloads:
            measured: dict[str, list[Measured]] = {name: [] for name in CONTENDERS}
            for turn in range(arguments.turns):
                for name in CONTENDERS:
                    result = measure_isolated(name, workload, scratch, setting)
                    measured[name].append(result)
                    print(
                        f"{workload}, turn {turn}, {name}: {result.examples / result.seconds:.2f} examples/s, "
                        f"held-out loss {result.loss:.4f}, peak {result.peak / 1e6:.0f} MB",
                        flush=True,
                    )
            result_rows += rows_of(workload, measured, {name: f"{v}, {setting}" for name, v in versions.items()})
    report(result_rows)


if __name__ == "__main__":
    main()
