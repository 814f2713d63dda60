"""A dry run: what a run file needs in memory, time and money, on devices of the table or on this machine.

1. `planned_spec` resolves the architecture and `sizes_of` (sizes.py) the steps, rows and rates, without reading texts.
2. `device_bytes` counts what one device holds at the fullest moment of a step.
3. `_on_devices` prices it with the cost model (`economics.training`); `plan_here` with a product timed on this machine.
4. `show_plan` prints the result.

Weights, gradients and optimizer states follow the optimizer's own tensors (`training.optimizers`), shared as the layout
says (FSDP2, https://arxiv.org/abs/2304.11277; tensor parallel, https://arxiv.org/abs/1909.08053); activations come from
`economics`, operation by operation; and transient tensors: logits, gathered blocks, updates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from bedplate.core.errors import ConfigError, UsageError
from bedplate.core.processor import processor_name
from bedplate.core.progress import console
from bedplate.core.quantities import adding_up, shown_count
from bedplate.core.tables import Column, numbers, show
from bedplate.data.corpus.encode import resolve_tokenizer
from bedplate.data.corpus.recipe import load_recipe
from bedplate.data.corpus.shards import MANIFEST, read_manifest
from bedplate.data.mixture import Mixture, MixtureConfig
from bedplate.economics.hardware.devices import CURVES, HIGH, LOW, find_device
from bedplate.economics.model.footprint import KeptBytes, kept_bytes, training_flops_per_token
from bedplate.economics.model.named_model import resolve
from bedplate.economics.model.parameters import Weight, is_block_matrix, total, weights
from bedplate.economics.training.layout_search import MARGIN
from bedplate.economics.training.training_cost import plan_training
from bedplate.models.checkpoints.checkpoint import locate
from bedplate.models.device_memory import free_on
from bedplate.models.precision import DTYPES, resolve_device
from bedplate.models.specs import EncoderDecoderSpec, TextSpec, TransformerSpec
from bedplate.models.specs.split import cuts_of
from bedplate.pretraining.plan.sizes import RunSizes, check_shares, config_of, sizes_of, spec_of
from bedplate.pretraining.runfile.file import RunFile
from bedplate.text.tokenizer import Tokenizer
from bedplate.training.config import Axis
from bedplate.training.objectives.objective import TokenCounts
from bedplate.training.objectives.token_term import HEAD_ROWS, PIECE
from bedplate.training.step_metrics import peak_of


def plan_run(run: RunFile) -> dict[str, Any]:
    """What the run takes, as plain values. Texts are not read. Raises ConfigError and UsageError for what cannot be,
    DoesNotFit (a UsageError) where no layout fits, with what would."""
    spec, family = planned_spec(run)
    sizes = sizes_of(run, spec, _single_pass_tokens(run))
    common = {"run": run.run, "family": family, **_sizes(sizes, spec), "passes": _passes(run, sizes)}
    hardware = run.hardware
    if hardware.device is None:
        if hardware.devices > 1:
            raise ConfigError("hardware.devices is for a device of the table: say which one (hardware.device=h100)")
        return {**common, **plan_here(run, spec, sizes)}
    return {**common, **_on_devices(run, spec, sizes, hardware.device)}


def _on_devices(run: RunFile, spec: TextSpec, sizes: RunSizes, name: str) -> dict[str, Any]:
    """On devices of the table: time and cost as published runs have them, memory by the layout that the run takes."""
    hardware = run.hardware
    axes = run.parallel.sizes(hardware.devices)
    check_shares(sizes, axes)
    plan = plan_training(
        spec,
        sizes.tokens,
        find_device(name),
        hardware.devices,
        sequence_tokens=sizes.length,
        global_batch_tokens=float(sizes.batch * sizes.length),
        precision=hardware.precision,
        optimizer=run.optimizer.name,
        usd_per_hour=hardware.usd_per_hour,
    )
    plan_values, days = plan.as_json(), plan.days
    dtype = run.dtype
    if dtype == "auto":
        dtype = "float32" if hardware.precision in ("fp32", "tf32") else "bfloat16"
    memory = device_bytes(run, spec, sizes, dtype, axes, on_cpu=False)
    usable = plan.device.memory_bytes * (1 - MARGIN)
    if sum(memory.values()) > usable:
        reserve = f"{MARGIN:.0%} of {plan.device.memory_bytes / 1e9:,.0f} GB are left as a reserve"
        raise UsageError(
            f"{run.run} does not fit {hardware.devices:,} × {plan.device.title}: {does_not_fit(memory, usable)} "
            f"({reserve})"
        )
    # Training does not compute in 8 bits.
    suggestions = [suggestion for suggestion in plan.suggestions if not suggestion.startswith("fp8")]
    notes = [f"price: {plan_values['price_source']}", f"MFU: {plan.mfu_source}", *suggestions]
    if run.dtype == "auto" and dtype != "float32":
        notes.append("counted in bfloat16: set dtype: bfloat16; with auto a GPU computes in what weights are held in")
    return {
        "on": f"{hardware.devices:,} × {plan.device.title}",
        "layout": _layout(run, sizes, axes),
        "bytes": memory,
        "bytes_per_device": sum(memory.values()),
        "memory_bytes": plan.device.memory_bytes,
        "flops": plan.flops,
        "mfu": plan.mfu.central,
        "tokens_per_second": plan.tokens_per_second_per_device * plan.devices,
        "seconds": days.central * 86400,
        "seconds_range": [days.low * 86400, days.high * 86400],
        "device_hours": plan.gpu_hours.central,
        "usd": plan_values["usd"],
        "usd_range": plan_values["usd_range"],
        "notes": [
            # options as the run file has them
            note.replace("--usd-per-hour", "hardware.usd_per_hour").replace("--precision ", "hardware.precision=")
            for note in notes
        ],
    }


def _layout(run: RunFile, sizes: RunSizes, axes: Mapping[Axis, int]) -> str:
    shared = " × ".join(f"{axis} {size:,}" for axis, size in axes.items() if size > 1) or "one device"
    rows = math.ceil(sizes.batch / (axes["data"] * axes["shard"] * axes["expert"]))
    micro = f"micro-batch {min(rows, sizes.micro):,} of a rank's {rows:,} rows"
    return f"{shared}, {micro}, recompute {run.recompute}"


def _single_pass_tokens(run: RunFile) -> int | None:
    """Tokens of one pass, where that is what is trained on: from a base, if the file says nothing else. ConfigError
    where they are not known before the texts are read."""
    if run.base is None or run.tokens is not None:
        return None
    data = run.data
    if data.corpus is not None and (run.place(data.corpus) / MANIFEST).is_file():
        sources = read_manifest(run.place(data.corpus)).sources
        return sum(shard.tokens for source in sources for shard in source.splits.get("train", ()))
    if data.sources and all(text_source.tokens is not None for text_source in data.sources):
        return round(sum((source.tokens or 0) * data.weights.get(source.name, 1.0) for source in data.sources))
    raise ConfigError(
        "a base is trained on its texts once, and a dry run does not read them: say how many tokens they are, for "
        "example tokens=2M"
    )


def _passes(run: RunFile, sizes: RunSizes) -> dict[str, float]:
    """How often the run reads each source of a corpus that is built, by its weights before caps on epochs; {} where the
    texts are yet to be counted. ConfigError, DataError for a mixture that the run itself would refuse."""
    data = run.data
    if data.corpus is None or not (run.place(data.corpus) / MANIFEST).is_file():
        return {}
    sources = read_manifest(run.place(data.corpus)).sources
    tokens = {entry.name: sum(shard.tokens for shard in entry.splits.get("train", ())) for entry in sources}
    tokens = {name: count for name, count in tokens.items() if count}
    rows = {name: math.ceil(count / sizes.length) for name, count in tokens.items()}
    weights = {entry.name: entry.weight for entry in sources if entry.name in rows and entry.weight is not None}
    mixture = Mixture(data.mixture or MixtureConfig(), rows, sizes.steps * sizes.batch, run.seed, weights)
    points = [mixture.weights_at(number / 100) for number in range(101)]
    return {name: sizes.tokens * sum(p[name] for p in points) / len(points) / count for name, count in tokens.items()}


def planned_spec(run: RunFile) -> tuple[TextSpec, str]:
    """The architecture and the name of its family, without reading any text."""
    if run.model is None:
        assert run.base is not None
        spec = resolve(str(locate(run.base_source)))[1]
        if not isinstance(spec, TextSpec):
            raise UsageError(f"base {run.base}: it is of a kind that cannot be trained on text")
        return spec, f"{run.base} is"
    spec, family = spec_of(run.model, vocabulary_of(run), run.objective)
    return spec, family.name


def vocabulary_of(run: RunFile) -> int | None:
    """How many ids the tokenizer has, or is to have; None where nothing says so before the data is there."""
    data = run.data
    if data.tokenizer is not None and data.tokenizer.vocab_size is not None:
        return data.tokenizer.vocab_size
    if data.tokenizer is not None and data.tokenizer.source is not None:
        place = run.place(data.tokenizer.source)
        return Tokenizer.from_directory(place if place.is_dir() else locate(data.tokenizer.source)).vocab_size
    if data.recipe is not None:
        recipe = run.place(data.recipe)
        choice = load_recipe(recipe).tokenizer
        if choice.train is not None:
            return choice.train.vocab_size
        return resolve_tokenizer(str(choice.use), recipe.parent).vocab_size
    lacks_ids = run.model is None or run.model.preset is None  # a preset's own ids do where there is no corpus yet
    if data.corpus is not None and (lacks_ids or (run.place(data.corpus) / MANIFEST).is_file()):
        return read_manifest(run.place(data.corpus)).tokenizer.vocab_size
    return None


def _sizes(sizes: RunSizes, spec: TextSpec) -> dict[str, Any]:
    return {
        "parameters": sizes.parameters,
        "layers": spec.main.layers,
        "width": spec.main.hidden_size,
        "heads": spec.main.attention.heads,
        "kv_heads": spec.main.attention.kv_heads,
        "feedforward": spec.main.feedforward.size,
        "vocabulary": spec.vocab_size,
        "context": spec.context_length,
        "tokens": sizes.tokens,
        "steps": sizes.steps,
        "batch_tokens": sizes.batch * sizes.length,
        "learning_rate": sizes.rate,
    }


def plan_here(run: RunFile, spec: TextSpec, sizes: RunSizes) -> dict[str, Any]:
    """The part of a plan that depends on this machine. UsageError where the memory that is free does not suffice,
    ConfigError for a run of several processes."""
    device, dtype = resolve_device("auto"), "float32" if run.dtype == "auto" else run.dtype
    if run.parallel.min_processes > 1:
        raise ConfigError(
            "parallel is for several processes, and without hardware.device a dry run counts one on this machine: say "
            f"on which devices they are to run (hardware.device=h100 hardware.devices={run.parallel.min_processes})"
        )
    axes = run.parallel.sizes(1)
    memory = device_bytes(run, spec, sizes, dtype, axes, on_cpu=device.type == "cpu")
    total, free = sum(memory.values()), free_on(device)
    if free is not None and total > free:
        raise UsageError(f"{run.run} does not fit this machine: {does_not_fit(memory, free)}")
    per_token = training_flops_per_token(spec, sizes.length)
    flops, judged = per_token * sizes.tokens, evaluation_tokens(run, sizes)
    (peak, source), share = peak_of(device, dtype), CURVES["cpu" if device.type == "cpu" else "h100"].first
    training_hours, evaluation_hours = (count / (peak * share) / 3600 for count in (flops, per_token * judged / PASSES))
    hours = training_hours + evaluation_hours
    price = run.hardware.usd_per_hour
    return {
        "on": f"this machine ({processor_name() if device.type == 'cpu' else torch.cuda.get_device_name()})",
        "layout": f"one device, micro-batch {sizes.micro} of {sizes.batch} rows, recompute {run.recompute}",
        "bytes": memory,
        "bytes_per_device": total,
        "memory_bytes": free,
        "flops": flops,
        "mfu": share,
        "tokens_per_second": sizes.tokens / (training_hours * 3600),
        "evaluation_tokens": judged,
        "evaluation_seconds": evaluation_hours * 3600,
        "seconds": hours * 3600,
        "seconds_range": [hours * 3600 / factor for factor in (HIGH, LOW)],
        "device_hours": hours,
        "usd": None if price is None else hours * price,
        "usd_range": None if price is None else [hours * price / HIGH, hours * price / LOW],
        "notes": [
            f"time: {peak / 1e9:,.0f} GFLOP/s ({source}), at an assumed share of {share:.0%}; of it evaluation on "
            f"{shown_count(judged)} held-out tokens {_time(evaluation_hours * 3600)}",
            "not counted: samples and suites; at the end, more of a held-out text than evaluation.tokens, unless a "
            "corpus or evaluation.end_tokens says how much",
            *["dtype is auto: counted in float32; the run takes what it measures to be faster"] * (run.dtype == "auto"),
            *["give hardware.usd_per_hour for a price"] * (price is None),
        ],
    }


PASSES = 3
"""A training step computes so much as so many passes forward, one of which an evaluation is (Kaplan et al.)."""


def evaluation_tokens(run: RunFile, sizes: RunSizes) -> int:
    """Held-out tokens that the run is judged on, at all checkpoints and at the end: as many of each text as the file
    allows, or as a corpus has."""
    data, limit, last = run.data, run.evaluation.tokens, run.evaluation.end_tokens
    every = config_of(run, sizes).save_steps or sizes.steps
    checkpoints = (sizes.steps - 1) // every + (run.base is not None)  # a base also before the first step
    if data.corpus is not None and (run.place(data.corpus) / MANIFEST).is_file():
        splits = (source.splits.get("valid", ()) for source in read_manifest(run.place(data.corpus)).sources)
        texts = [count for shards in splits if (count := sum(shard.tokens for shard in shards))]
        return sum(checkpoints * min(limit, count) + min(last or count, count) for count in texts)
    count = len(data.sources) if data.recipe is None else len(load_recipe(run.place(data.recipe)).sources)
    return max(1, count) * (checkpoints * limit + (last or limit))


def does_not_fit(memory: dict[str, float], free: float) -> str:
    """What is missing, and what would do."""
    total = sum(memory.values())
    state = sum(memory.get(name, 0.0) for name in ("weights", "gradients", "optimizer", "average"))
    would = "no batch is small enough: take a smaller model, or more or larger devices (hardware, parallel)"
    if state < free:
        would = "lower batch.micro_tokens, or set recompute: full"
    return (
        f"it needs {total / 1e9:,.1f} GB on a device ({state / 1e9:,.1f} GB of weights, gradients and optimizer, "
        f"{memory['activations'] / 1e9:,.1f} GB of activations), and {free / 1e9:,.1f} GB are free; {would}"
    )


def show_plan(plan: Mapping[str, Any]) -> None:
    """Prints what `plan_run` found."""
    from rich.markup import escape

    out = console()
    out.print(f"[bold]{escape(plan['run'])}[/] on {escape(plan['on'])}")
    show(("", Column("", prose=True)), _lines(plan))
    parts = dict(zip(plan["bytes"], adding_up([count / 1e9 for count in plan["bytes"].values()], 3), strict=True))
    rows = [(name, f"{size:,.3f}") for name, size in parts.items()] + [("total", f"{sum(parts.values()):,.3f}")]
    if plan["memory_bytes"] is not None:
        rows.append(("of", f"{plan['memory_bytes'] / 1e9:,.3f}"))
    show(("a device holds", *numbers("GB")), rows)
    for note in plan["notes"]:
        out.print(f"- {note}", markup=False)


def _lines(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    shape = (
        f"{plan['layers']} layers, width {plan['width']:,}, {plan['heads']} heads ({plan['kv_heads']} of keys and "
        f"values), feed-forward {plan['feedforward']:,}, vocabulary {plan['vocabulary']:,}, context {plan['context']:,}"
    )
    rows = [
        ("parameters", f"{shown_count(plan['parameters'])} ({plan['parameters']:,}), as {plan['family']}"),
        ("shape", shape),
        ("tokens", f"{shown_count(plan['tokens'])} in {plan['steps']:,} steps of {plan['batch_tokens']:,}"),
        ("learning rate", f"{plan['learning_rate']:g}"),
        ("layout", plan["layout"]),
        ("operations", f"{plan['flops']:.3e}, MFU {plan['mfu']:.1%}"),
        ("speed", f"{plan['tokens_per_second']:,.0f} tokens a second"),
        ("time", f"{_time(plan['seconds'])} ({' to '.join(map(_time, plan['seconds_range']))}), with evaluation"),
    ]
    if plan["passes"]:
        rows.insert(3, ("passes", ", ".join(f"{name} {count:.2g}" for name, count in plan["passes"].items())))
    if plan["usd"] is not None:
        low, high = plan["usd_range"]
        rows.append(("cost", f"${plan['usd']:,.2f} (${low:,.2f} to ${high:,.2f})"))
    return rows


def _time(seconds: float) -> str:
    for name, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {name}"
    return f"{seconds:,.0f} seconds"


MASTER = 4
"""Bytes of what is added up and updated: float32."""
_TURNED = 4
"""Copies of the largest group of matrices while Muon makes them orthogonal."""


@dataclass(frozen=True)
class _WeightCounts:
    """Parameters of one device: all, the matrices of blocks (Muon's), and of those that are gathered before they
    compute the largest block and what is outside of blocks. largest: the most values of matrices of one size."""

    all: float
    matrices: float
    block: float
    outside: float
    largest: float


def device_bytes(
    run: RunFile, spec: TextSpec, sizes: RunSizes, dtype: str, axes: Mapping[Axis, int], *, on_cpu: bool
) -> dict[str, float]:
    """dtype: what is computed in. axes: how many ranks share what. UnsupportedModelError for what they cannot share."""
    value, several = DTYPES[dtype].itemsize, math.prod(axes.values()) > 1
    cut = axes["shard"] * axes["expert"]
    all_weights = list(weights(spec))
    counts = _weight_counts(spec, all_weights, axes)
    # One process holds the weights in what it computes in, beside float32 masters and what it began with; several hold
    # float32, and gather in what is computed in.
    half = value < MASTER and not several
    own_rows = math.ceil(sizes.batch / (axes["data"] * cut))
    rows = min(sizes.micro, own_rows)
    objective = run.made_objective(spec.main.prediction_modules)
    tokens = TokenCounts(*(rows * count for count in objective.token_counts(sizes.length)))
    activations = _activation_bytes(run, spec, tokens, value, axes["tensor"])
    logits, waiting = _logits(spec, tokens.learned, value, 2 if on_cpu else 3)
    transient = max(tokens.read, tokens.written) * value * _backward_values(spec.main) / axes["tensor"]
    passing = {
        # Logits are gone when the last block goes back; what they gave is not. It may be made again, and has gradients.
        "activations": activations.stored + max(0.0, activations.recomputed + transient + waiting - logits),
        "logits": logits,
        "gathered blocks": _gathered(counts, value) if cut > 1 else 0.0,
    }
    gradients = counts.all * MASTER
    if own_rows <= rows:  # one pass makes them: they take the room that activations leave, piece by piece
        gradients = max(0.0, gradients - sum(passing.values()))
    elif half:  # each pass makes its own before they are added up
        passing["activations"] = max(passing["activations"], counts.all * value - passing["logits"])
    muon, ema = run.optimizer.name == "muon", run.optimizer.settings.get("ema") is not None
    states = 8.0 * counts.all - (4.0 * counts.matrices if muon else 0.0) + (2 * MASTER * counts.all if half else 0.0)
    bytes_by_use = {
        "weights": counts.all * (value if half else MASTER),
        "gradients": gradients,
        "optimizer": states,
        "average": counts.all * MASTER if ema else 0.0,
        **passing,
    }
    # Activations are gone by then.
    copies = 2 if cut == 1 and axes["data"] > 1 else 1  # whole gradients are added up in a copy
    update = counts.all * MASTER * copies
    update = max(update, counts.all * MASTER + _update(run, counts, value, cut))
    bytes_by_use["update"] = max(0.0, update - gradients - sum(passing.values()))
    if several and on_cpu:  # a copy is written while training goes on
        bytes_by_use["state being written"] = bytes_by_use["weights"] + states + bytes_by_use["average"]
    return {name: size for name, size in bytes_by_use.items() if size}


def _weight_counts(spec: TextSpec, all_weights: list[Weight], axes: Mapping[Axis, int]) -> _WeightCounts:
    tensor, experts, cut = axes["tensor"], axes["expert"], axes["shard"] * axes["expert"]
    cuts_of(spec, tensor, experts)  # refuses what cannot be

    def per_rank(group: Iterable[Weight]) -> float:
        """Values on one rank of those that share products, before they are sharded."""
        return sum(part.stored / (tensor if is_block_matrix(part) and part.copies == 1 else 1) for part in group)

    matrices = [candidate for candidate in all_weights if is_block_matrix(candidate)]
    blocks: dict[int, float] = {}
    for weight in all_weights:
        if weight.layer is not None:
            share = experts if weight.copies > 1 else 1  # of the experts, those that are this rank's
            blocks[weight.layer] = blocks.get(weight.layer, 0.0) + per_rank([weight]) / share
    by_size: dict[int, float] = {}
    for matrix in matrices:
        by_size[matrix.size] = by_size.get(matrix.size, 0.0) + matrix.stored
    return _WeightCounts(
        per_rank(all_weights) / cut,
        per_rank(matrices) / cut,
        max(blocks.values(), default=0.0),
        float(total(outer_weight for outer_weight in all_weights if outer_weight.layer is None)),
        max(by_size.values(), default=0.0),
    )


def _activation_bytes(run: RunFile, spec: TextSpec, tokens: TokenCounts, value: int, tensor: int) -> KeptBytes:
    if isinstance(spec, EncoderDecoderSpec):
        read, recompute = tokens.read, run.recompute
        return kept_bytes(spec, tokens.written, bytes_per_value=value, recompute=recompute, source_tokens=read)
    if tensor > 1:  # each rank has some heads and features; experts are whole
        part = spec.experts
        spec = spec.with_(
            heads=spec.attention.heads // tensor,
            kv_heads=spec.attention.kv_heads // tensor,
            feedforward_size=spec.feedforward.size // tensor,
            experts=None if part is None else replace(part, shared_size=part.shared_size // tensor),
        )
    return kept_bytes(spec, tokens.written, bytes_per_value=value, recompute=run.recompute)


def _logits(spec: TextSpec, tokens: int, value: int, copies: int) -> tuple[float, float]:
    """Bytes of logits of as many tokens as the head computes at a time: a softmax in float32 and two gradients of it,
    or on a CPU the logits, one gradient, and the softmax of a piece (`copies`). With more tokens the gradients of the
    head and of its input are made at once and wait: how many bytes."""
    rows, size = min(HEAD_ROWS, tokens), spec.vocab_size
    softmax = rows * size * float(MASTER)
    logit_bytes = copies * softmax + (min(softmax, float(PIECE * MASTER)) if copies < 3 else 0.0)
    if tokens == rows:
        return logit_bytes, softmax
    hidden = spec.main.hidden_size
    head, states = float(size * hidden * value), float(tokens * hidden * value)
    return max(logit_bytes + head, softmax + 2 * head) + states, head + states


def _backward_values(spec: TransformerSpec) -> int:
    """Values a token that a feed-forward's backward pass makes at once: gradients of a product and of its factors."""
    width, part = spec.feedforward.size, spec.experts
    if part is not None:
        width = max(width if part.first_dense else 0, part.per_token * part.feedforward_size + part.shared_size)
    return (3 if spec.feedforward.gated else 2) * width


def _gathered(counts: _WeightCounts, value: int) -> float:
    """Whole: two blocks, one being computed and the next; the gradients of one, with what is sent of them in float32;
    and what is outside of blocks, which stays, with its gradients."""
    return counts.block * (3 * value + MASTER) + counts.outside * 2 * value


def _update(run: RunFile, counts: _WeightCounts, value: int, cut: int) -> float:
    """What an update needs beside gradients, once activations are gone."""
    if run.optimizer.name == "muon":
        whole = counts.matrices * cut
        return whole * value + _TURNED * counts.largest * value
    return counts.matrices * MASTER if run.optimizer.settings.get("cautious_decay") else 0.0
