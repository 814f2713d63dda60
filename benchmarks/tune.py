"""LoRA tuning (r 16, all linears) on the demo's reviews against peft + transformers: examples per second.

Ours computes in what a training step is measured to be fastest in here, the peers in the faster of their settings
(float32, or bfloat16 under autocast), measured on a few of these batches before.

Each peer runs in a process of its own. All runs see the same examples from the same initial adapter under the same
optimizer, schedule and clipping. Three peers: padded batches in our order; length-grouped batches; padded, with the
head on label positions only. The runs take turns step by step; the speed of a run is its examples over the sum of its
step times, and the median over seeds is reported, with the mean loss on held-out examples.

usage: tune.py [--examples 600] [--valid 320] [--seeds 3]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

import goals
from apart import PeerProcess
from bedplate.adapters.bank import Bank
from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.modules import hf_module_name
from bedplate.evaluation.examples import Example as Labelled
from bedplate.evaluation.examples import load_examples
from bedplate.evaluation.task import load_task
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.models.checkpoints.export import export_base, family_in
from bedplate.text.tokenizer import Tokenizer
from bedplate.training.batch import PackedBatch, TrainingExample, completion_example
from bedplate.training.config import TrainConfig
from bedplate.training.loop import evaluate_loss, train
from bedplate.training.objectives.language import Sft
from bedplate.training.sources import ExampleSource
from comparison import Row, attempted, best_seconds, need, report, start
from peers import THREADS

BATCH = 16
LORA = LoraConfig(r=16, alpha=32.0)
TASK = Path(__file__).parent.parent / "examples/reviews/task.yaml"


Setting = Literal["float32", "bfloat16, autocast"]
SETTINGS: tuple[Setting, ...] = ("float32", "bfloat16, autocast")
"""Of the peers. Under autocast the products with peft's float32 adapters run in bfloat16, which is faster than the
model's own mixture wherever bfloat16 is."""


def peft_model(directory: Path, setting: Setting) -> Any:
    """The base with an adapter on all linears."""
    import peft
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    dtype = torch.float32 if setting == "float32" else torch.bfloat16
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    config = peft.LoraConfig(
        r=LORA.r, lora_alpha=LORA.alpha, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(model, config)


def computing_in(setting: Setting) -> AbstractContextManager[Any]:
    return nullcontext() if setting == "float32" else torch.autocast("cpu", torch.bfloat16)


def fastest_setting(directory: Path, batches: Sequence[Sequence[TrainingExample]]) -> Setting:
    """The peers' faster one here: the best time of a forward and backward pass of each batch. A setting that is much
    slower on two examples is not tried on more: emulated bfloat16 takes minutes for a batch."""
    trial_seconds, whole = {SETTINGS[0]: float("inf")}, dict.fromkeys(SETTINGS, float("inf"))
    for setting in SETTINGS:
        peer = PeerProcess("tune:Passes", directory, setting)
        trial_seconds[setting] = best_seconds(lambda p=peer: p.run([batches[0][:2]]), turns=2)
        if trial_seconds[setting] < 3 * min(trial_seconds.values()):
            whole[setting] = best_seconds(lambda p=peer: p.run(batches), min(whole.values()))
        peer.close()
    setting = min(SETTINGS, key=lambda candidate: whole[candidate])
    timings = ", ".join(
        f"{candidate} {trial_seconds[candidate]:.2f} s and {seconds:.2f} s" for candidate, seconds in whole.items()
    )
    print(f"peft computes in {setting} (2 examples, and {len(batches)} batches: {timings})", flush=True)
    return setting


class Passes:
    """peft's model, to be timed in one setting."""

    def __init__(self, directory: Path, setting: Setting) -> None:
        self._model, self._setting = peft_model(directory, setting).train(), setting

    def run(self, batches: Sequence[Sequence[TrainingExample]]) -> None:
        """Forward and backward over padded batches."""
        for batch in batches:
            ids, mask, labels = padded(batch)
            with computing_in(self._setting):
                loss = self._model(input_ids=ids, attention_mask=mask, labels=labels).loss
            loss.backward()
            self._model.zero_grad()


@dataclass(frozen=True)
class Run:
    """One run's times by step, and its loss on the held-out examples; not a number where a peer failed."""

    seconds: Sequence[float]
    valid_loss: float


class Peft:
    """peft's model with our initial adapter, and the usual padded training step."""

    def __init__(
        self,
        directory: Path,
        adapter: Mapping[str, np.ndarray],
        batches: list[list[TrainingExample]],
        setting: Setting,
        config: TrainConfig,
    ) -> None:
        self.setting, self.batches, self.config = setting, batches, config
        self.model: Any = peft_model(directory, setting).train()
        named = dict(self.model.named_parameters())
        for name, values in adapter.items():
            named[name].data.copy_(torch.from_numpy(values))
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, betas=(config.beta1, config.beta2), eps=config.eps, weight_decay=0.0, fused=True
        )

    def loss(self, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The mean over labels, by transformers itself."""
        return self.model(input_ids=ids, attention_mask=mask, labels=labels).loss

    def step(self, number: int) -> float:
        """Seconds of a training step."""
        started = time.perf_counter()
        with computing_in(self.setting):
            loss = self.loss(*padded(self.batches[number]))
        loss.backward()
        assert self.config.clip is not None
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate_at(number, len(self.batches))
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss.item()
        return time.perf_counter() - started

    @torch.no_grad()
    def evaluate(self, examples: Sequence[TrainingExample]) -> float:
        """The mean loss over held-out labels."""
        self.model.eval()
        total, count = 0.0, 0
        for batch in chunks(examples):
            ids, mask, labels = padded(batch)
            targets = int((labels != -100).sum())
            with computing_in(self.setting):
                total += float(self.loss(ids, mask, labels)) * targets
            count += targets
        return total / count


class PeftOnLabels(Peft):
    """The same, with the head on label positions only."""

    def loss(self, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        inner = self.model.get_base_model()
        hidden = inner.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1]
        learned = labels[:, 1:] != -100
        return F.cross_entropy(inner.lm_head(hidden[learned]).float(), labels[:, 1:][learned])


class InTurns:
    """Our source; the peers take their step before each of ours. Times the packing."""

    def __init__(self, source: ExampleSource, peer_step: Callable[[int], None]) -> None:
        self._source, self._peer_step = source, peer_step
        self.packing: list[float] = []

    @property
    def identity(self) -> Mapping[str, Any]:
        return self._source.identity

    @property
    def steps(self) -> int | None:
        return self._source.steps

    def state(self) -> dict[str, Any]:
        return self._source.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self._source.load_state(state)

    def __iter__(self) -> Iterator[tuple[PackedBatch, ...]]:
        inner = iter(self._source)
        for number in range(self._source.steps or 0):
            self._peer_step(number)
            started = time.perf_counter()
            batches = next(inner)
            self.packing.append(time.perf_counter() - started)
            yield batches


def padded(batch: Sequence[TrainingExample]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids, attention mask and labels, each [B, T], padded on the right to the batch's longest."""
    width = max(len(e.ids) for e in batch)

    def rows(values: Callable[[TrainingExample], list[int]], fill: int) -> torch.Tensor:
        return torch.tensor([values(e) + [fill] * (width - len(e.ids)) for e in batch])

    ids = rows(lambda e: list(e.ids), 0)
    mask = rows(lambda e: [1] * len(e.ids), 0)
    return ids, mask, rows(lambda e: [t if on else -100 for t, on in zip(e.ids, e.loss, strict=True)], -100)


def review_examples(tokenizer: Tokenizer, rows: Sequence[Labelled]) -> list[TrainingExample]:
    """The demo's reviews with the label to learn."""
    examples: list[TrainingExample] = []
    for row in rows:
        prompt = (
            f"Decide whether the product review is positive or negative.\n\nReview: {row.inputs['review']}\nSentiment:"
        )
        examples.append(completion_example(tokenizer.encode(prompt), tokenizer.encode(f" {row.target}"), row.id))
    return examples


def chunks(examples: Sequence[TrainingExample]) -> list[list[TrainingExample]]:
    return [list(examples[i : i + BATCH]) for i in range(0, len(examples), BATCH)]


def length_grouped(examples: Sequence[TrainingExample], seed: int) -> list[list[TrainingExample]]:
    """As transformers' LengthGroupedSampler orders them: pools of 50 batches, sorted by length."""
    from transformers.trainer_pt_utils import LengthGroupedSampler

    generator = torch.Generator().manual_seed(seed)
    sampler = LengthGroupedSampler(BATCH, lengths=[len(e.ids) for e in examples], generator=generator)
    return chunks([examples[i] for i in sampler])


def peft_tensors(base: Base, bank: Bank, slot: int) -> dict[str, np.ndarray]:
    """The adapter's tensors under their names in peft's model."""
    weights, tensors = family_in(base, "hf").weights, dict[str, np.ndarray]()
    for name, tensor in bank.state(slot).items():
        path, factor = name.rsplit(".", 1)
        module = hf_module_name(weights, path)
        tensors[f"base_model.model.{module}.{factor}.default.weight"] = tensor.detach().float().numpy()
    return tensors


def one_seed(
    base: Base,
    directory: Path,
    examples: Sequence[TrainingExample],
    valid: Sequence[TrainingExample],
    seed: int,
    setting: Setting,
) -> list[Run]:
    """Ours, then the three peers, trained in turns."""
    bank = Bank(base.model)
    slot = bank.add(LORA, None, seed, trainable=True)
    bank.select(slot)
    config = TrainConfig(learning_rate=5e-4, seed=seed, save_seconds=None)
    adapter, given, grouped = peft_tensors(base, bank, slot), chunks(examples), length_grouped(examples, seed)
    peers = [
        PeerProcess(f"tune:{peer}", directory, adapter, batches, setting, config)
        for peer, batches in (("Peft", given), ("Peft", grouped), ("PeftOnLabels", given))
    ]
    peer_seconds: list[list[float]] = [[] for _ in peers]

    def step_peers(number: int) -> None:
        for peer, seconds in zip(peers, peer_seconds, strict=True):
            if not math.isnan(sum(seconds)):
                seconds.append(attempted(peer.name, lambda peer=peer: peer.step(number)))

    source = InTurns(ExampleSource(examples, BATCH), step_peers)
    with tempfile.TemporaryDirectory() as out:
        result = train(base.model, source, Sft(), config, Path(out), bank.parameters(slot))
        rows = [json.loads(line) for line in result.metrics_path.read_text().splitlines()]
    print(f"seed {seed}, ours computed in {result.arithmetic.name}")
    steps = [row["examples"] / row["examples_per_second"] for row in rows]
    batches = [batch for step in ExampleSource(valid, BATCH) for batch in step]
    valid_loss = evaluate_loss(base.model, batches, Sft())["sft"]
    runs = [Run([a + b for a, b in zip(steps, source.packing, strict=True)], valid_loss)]
    bank.close()
    for peer, seconds in zip(peers, peer_seconds, strict=True):
        runs.append(Run(seconds, attempted(peer.name, lambda peer=peer: peer.evaluate(valid))))
        peer.close()
    return runs


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--examples", type=int, default=600)
    parser.add_argument("--valid", type=int, default=320)
    parser.add_argument("--seeds", type=int, default=3)
    started = start(parser)
    arguments, goal = started.options, goals.of(started.machine.level)["tune"]
    versions = f"{need('peft', 'peft')} + {need('transformers', 'transformers')}"
    torch.set_num_threads(THREADS)
    base = load_base("smollm2-135m", dtype="bfloat16")
    tokenizer, data = base.need_tokenizer(), load_examples(load_task(TASK))

    examples, valid = (
        review_examples(tokenizer, data.examples(split, "benchmark")[:count])
        for split, count in (("train", arguments.examples), ("valid", arguments.valid))
    )
    names = ["ours", "peft, given order", "peft, length-grouped", "peft, head on labels"]
    runs: list[list[Run]] = []
    with tempfile.TemporaryDirectory() as scratch:
        directory = export_base(load_base("smollm2-135m", dtype="float32"), Path(scratch) / "base")
        setting = fastest_setting(directory, chunks(examples)[:2])
        for seed in range(arguments.seeds):
            runs.append(one_seed(base, directory, examples, valid, seed, setting))
            for name, run in zip(names, runs[-1], strict=True):
                speed = len(examples) / sum(run.seconds)
                print(f"seed {seed}, {name}: {speed:.2f} examples/s, held-out loss {run.valid_loss:.4f}", flush=True)
    speeds = [statistics.median(len(examples) / sum(seed[i].seconds) for seed in runs) for i in range(4)]
    losses = [statistics.mean(seed[i].valid_loss for seed in runs) for i in range(4)]
    peer = (f"peft + transformers ({setting})", versions)
    unit = "examples/s"
    report(
        [
            Row("tune", speeds[0], speeds[1], unit, *peer, goal=goal),
            Row("tune_length_grouped", speeds[0], speeds[2], unit, *peer, goal=1.2),
            Row("tune_head_on_labels", speeds[0], speeds[3], unit, *peer, goal=1.2),
            Row("tune_held_out_loss", losses[0], losses[1], "nats/token", *peer, goal=0.99, lower_is_better=True),
        ]
    )


if __name__ == "__main__":
    main()
