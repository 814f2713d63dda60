"""Models of 1 to 8 billion parameters beside llama.cpp, transformers and peft: random weights in published shapes, as
Q4_0 and Q4_K_M files, with as many layers as fit into memory three times over.

For each file: load time and peak memory; prefill of 512 and 4,096 tokens and decode after both; 16 sequences at once;
16 sequences with a LoRA adapter of their own each; a LoRA training step. llama.cpp reads the same file, transformers
and peft the same weights dequantised to bfloat16. Each engine is a process of its own and runs alone: the others wait.

usage: large.py [--shapes llama-3.2-1b …] [--types Q4_0 Q4_K_M] [--parts open one batch skins step] [--repeats 3]
"""

from __future__ import annotations

import argparse
import importlib
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

import roof
from adapters import LORA, random_adapter, written
from apart import PeerProcess, call_in_process
from bedplate.inference.engine.engine import Engine
from bedplate.inference.predict.opening import open_base
from bedplate.models.build import build
from bedplate.models.checkpoints.base import load_base
from bedplate.models.checkpoints.conversion import write_parameters
from bedplate.models.checkpoints.export import export_base
from bedplate.models.checkpoints.gguf import add_field
from bedplate.models.families import FAMILIES
from bedplate.models.specs.presets import PRESETS
from bedplate.training.batch import TrainingExample, completion_example
from comparison import Row, attempted, interleaved, report, start, timed
from peers import generations, prompt_tokens, versions_of_peers

SHAPES = {"llama-3.2-1b": "llama", "qwen3-4b": "qwen3", "llama-3.1-8b": "llama"}
"""Published shapes and their family in GGUF files."""
TYPES = ("Q4_0", "Q4_K_M")
PARTS = ("open", "one", "batch", "skins", "step")
PROMPTS, DECODED = (512, 4096), 64
SEQUENCES, PROMPT, OUTPUT = 16, 128, 64
STEP_EXAMPLES, STEP_ROWS, STEP_TOKENS = 8, 4, 256
MEMORY_SHARE, BYTES_PER_PARAMETER = 0.6, 4.0
"""Share of the machine's memory that the engines may take together, and what they take of it for each parameter: two
bytes in bfloat16, and one and a half in two processes with the file and what they make of it."""
PREFILL, PREFILL_TRANSFORMERS, BATCH, DECODE, LOAD, PEAK = 3.0, 1.5, 2.5, 0.9, 1 / 1.1, 1 / 1.15
"""Goals on every machine. DECODE: of the tokens that reading the weights allows. LOAD: llama.cpp's seconds over ours.
PEAK: the file's size over our peak."""


# --- files of random weights


def fitting_spec(shape: str) -> Any:
    """The shape with as many of its layers as fit into this machine's memory."""
    spec: Any = PRESETS[shape]
    sizes = [sum(p.numel() for p in build(spec.with_(layers=n), device="meta").parameters()) for n in (1, 2)]
    layer, room = sizes[1] - sizes[0], os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * MEMORY_SHARE
    most = int((room / BYTES_PER_PARAMETER - (sizes[0] - layer)) / layer)
    return spec.with_(layers=max(1, min(spec.layers, most)), context_length=2 * max(PROMPTS))


def block_type(name: str, layer: int, layers: int, file_type: str, tied: bool) -> str:
    """The type of a matrix in a file of this type, after llama.cpp's own mixtures: the head, and in Q4_K_M the values
    and the last product of the feed-forward in the first and last eighth and every third layer between, in 6 bits."""
    if name in ("output.weight", "token_embd.weight") and (name == "output.weight") != tied:
        return "Q6_K"
    more = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    if file_type == "Q4_K_M":
        return "Q6_K" if more and ("attn_v" in name or "ffn_down" in name) else "Q4_K"
    return file_type


def random_blocks(ggml_type: str, rows: int, width: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """Bytes of a matrix whose values vary by about 0.02 around nothing, [rows, bytes of a row]."""
    values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[ggml_type]]
    blocks = random.integers(0, 256, (rows * (width // values), size), np.uint8)

    def put(at: int, value: float) -> None:
        blocks[:, at : at + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)

    if ggml_type == "Q4_0":
        put(0, 0.005)
    elif ggml_type == "Q4_K":
        put(0, 0.00015)
        put(2, 0.00015 * 7.5)
    elif ggml_type == "Q6_K":
        blocks[:, 192:208] = 32
        put(208, 0.00003)
    else:
        raise ValueError(f"no blocks of {ggml_type} are drawn here")
    return blocks.reshape(rows, -1)


def write_file(path: Path, spec: Any, architecture: str, file_type: str) -> None:
    """A GGUF file of this shape, without a vocabulary."""
    family = FAMILIES["gguf", architecture]
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (family.to_config(spec) | {"tokenizer.ggml.model": "none"}).items():
        add_field(writer, key, value)
    for name, values in family.tables(spec).items():
        writer.add_tensor(name, np.asarray(values, np.float32))
    model = build(spec, device="meta")
    for name, tensor in write_parameters(family, spec, model.state_dict(keep_vars=True)):
        if tensor.ndim == 1:
            writer.add_tensor(name, np.ones(tensor.shape, np.float32))
            continue
        layer = int(name.split(".")[1]) if name.startswith("blk.") else 0
        ggml_type = block_type(name, layer, spec.layers, file_type, spec.tied_head)
        data = random_blocks(ggml_type, *tensor.shape, random)
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[ggml_type])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# --- engines, each in a process of its own


class Contender:
    """An object that `target` ("module:callable") makes, how long that took, and the process's peak memory."""

    def __init__(self, target: str, *arguments: object) -> None:
        module, _, name = target.partition(":")
        make = getattr(importlib.import_module(module), name)
        began = time.perf_counter()
        self._engine = make(*arguments)
        self._seconds = time.perf_counter() - began

    def load_seconds(self) -> float:
        return self._seconds

    def peak_bytes(self) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def __getattr__(self, method: str) -> Any:
        return getattr(self._engine, method)


class Ours:
    """The file as `bedplate serve` opens it."""

    def __init__(self, path: Path) -> None:
        opened = open_base(path)
        execution = opened.load_format
        settings = {"weights": execution.weights, "kernel": execution.kernel}
        self._engine = Engine(opened.base, **settings, max_rows=SEQUENCES, adapters=SEQUENCES, speculate=False)
        self._names: list[str] = []

    def describe(self) -> str:
        return f"{self._engine.weights} ({self._engine.kernel})"

    def generate(self, prompts: Sequence[Sequence[int]], length: int, with_adapters: bool = False) -> None:
        self._engine.run(generations(prompts, length, self._names if with_adapters else ()))

    def prefill(self, tokens: Sequence[int]) -> None:
        self.generate([tokens], 1)

    def load_adapters(self, number: int) -> None:
        for i in range(number):
            self._names.append(f"skin{i}")
            self._engine.load_adapter(self._names[-1], LORA, random_adapter(self._engine.base, i))


def open_once(path: Path) -> str:
    """What is measured of a base that was never seen is measured here. Says how it is opened."""
    return Ours(path).describe()


def step_seconds(peer: str, directory: Path, examples: Sequence[TrainingExample]) -> float:
    """Of the steps of one of `tune_apart`'s contenders, in bfloat16."""
    import tune_apart

    return getattr(tune_apart, peer)(directory, examples, STEP_ROWS, "bfloat16, autocast")[0]


@dataclass(frozen=True)
class Case:
    """One file, the same weights as a directory for transformers, and what its rows are called."""

    name: str
    spec: Any
    path: Path
    directory: Path
    versions: Mapping[str, str]
    machine: Any
    repeats: int
    seeds: Iterator[int]

    @property
    def bytes_of_step(self) -> int:
        """What a token reads of the file: all of it but a token table that is not the head, too."""
        if self.spec.tied_head:
            return self.path.stat().st_size
        table = next(t for t in gguf.GGUFReader(self.path).tensors if t.name == "token_embd.weight")
        return self.path.stat().st_size - int(table.n_bytes)

    def tokens(self, length: int) -> list[int]:
        return prompt_tokens(length, self.spec.vocab_size, next(self.seeds))

    def row(self, part: str, ours: float, peer: float, peer_name: str, goal: float | None, **fields: Any) -> Row:
        unit = fields.pop("unit", "tokens/s")
        version = self.versions.get({"llama.cpp": "llama-cpp-python"}.get(peer_name, peer_name), "-")
        return Row(f"{self.name} {part}", ours, peer, unit, peer_name, version, goal, **fields)


def opening(case: Case) -> list[Row]:
    """Load time and peak memory after a prompt of 512 tokens; each in a new process, the file in the page cache."""
    print(f"{case.name}: opened as {call_in_process('large:open_once', case.path)}", flush=True)
    seconds: dict[str, list[float]] = {"ours": [], "llama.cpp": []}
    peaks = dict.fromkeys(seconds, 0.0)
    for _ in range(case.repeats):
        for name, target in (("ours", "large:Ours"), ("llama.cpp", "peers:LlamaCpp")):
            peer = PeerProcess("large:Contender", target, case.path)
            seconds[name].append(attempted(name, peer.load_seconds))
            timed(name, partial(peer.prefill, case.tokens(PROMPTS[0])))
            peaks[name] = attempted(name, peer.peak_bytes)
            peer.close()
    ours, theirs = (float(np.median(values)) for values in seconds.values())
    file = case.path.stat().st_size
    return [
        case.row("load", ours, theirs, "llama.cpp", LOAD, unit="s", lower_is_better=True),
        case.row("peak", peaks["ours"] / 1e9, file / 1e9, "file", PEAK, unit="GB", lower_is_better=True),
        case.row(
            "peak", peaks["ours"] / 1e9, peaks["llama.cpp"] / 1e9, "llama.cpp", None, unit="GB", lower_is_better=True
        ),
    ]


def one_sequence(case: Case) -> list[Row]:
    """Prefill, and decode after it."""
    ours = PeerProcess("large:Contender", "large:Ours", case.path)
    llama = PeerProcess("peers:LlamaCpp", case.path, max(PROMPTS) + DECODED + 8)
    theirs = PeerProcess("peers:Transformers", case.directory, "bfloat16")
    rows: list[Row] = []

    def whole(peer: PeerProcess, prompt: Sequence[int]) -> Callable[[], None]:
        def run() -> None:
            peer.prefill(prompt)
            peer.decode(DECODED)

        return run

    for length in PROMPTS:
        prompt = case.tokens(length)
        runs: dict[str, Callable[[], object]] = {
            "ours": lambda n=length: ours.prefill(case.tokens(n)),
            "llama.cpp": lambda t=prompt: llama.prefill(t),
            "transformers": lambda t=prompt: theirs.prefill(t),
            "ours, whole": lambda n=length: ours.generate([case.tokens(n)], DECODED + 1),
            "llama.cpp, whole": whole(llama, prompt),
            "transformers, whole": whole(theirs, prompt),
        }
        seconds = interleaved(runs, case.repeats)
        names = ("ours", "llama.cpp", "transformers")
        speed = {name: length / seconds[name] for name in names}
        decode = {name: DECODED / (seconds[f"{name}, whole"] - seconds[name]) for name in names}
        print(roof.prefill(case.spec, "int4", length, speed["ours"], case.machine))
        bound = case.machine.bandwidth / (case.bytes_of_step + roof.cached_bytes(case.spec, length + DECODED / 2))
        rows += [
            case.row(f"prefill {length}", speed["ours"], speed["llama.cpp"], "llama.cpp", PREFILL),
            case.row(f"prefill {length}", speed["ours"], speed["transformers"], "transformers", PREFILL_TRANSFORMERS),
            case.row(f"decode after {length}", decode["ours"], decode["llama.cpp"], "llama.cpp", None),
            case.row(f"decode after {length}", decode["ours"], decode["transformers"], "transformers", None),
            case.row(f"decode after {length}", decode["ours"], bound, "memory's roof", DECODE),
        ]
    for peer in (ours, llama, theirs):
        peer.close()
    return rows


def batch(case: Case) -> list[Row]:
    """16 sequences, prompts included in the time."""
    ours = PeerProcess("large:Contender", "large:Ours", case.path)
    llama = PeerProcess("peers:LlamaCppBatch", case.path, SEQUENCES, PROMPT + OUTPUT)
    theirs = PeerProcess("peers:Transformers", case.directory, "bfloat16")

    def prompts() -> list[list[int]]:
        return [case.tokens(PROMPT) for _ in range(SEQUENCES)]

    runs: dict[str, Callable[[], object]] = {
        "ours": lambda: ours.generate(prompts(), OUTPUT),
        "llama.cpp": lambda: llama.generate(prompts(), OUTPUT),
        "transformers": lambda: theirs.generate(prompts(), OUTPUT),
    }
    seconds = interleaved(runs, case.repeats)
    for peer in (ours, llama, theirs):
        peer.close()
    speed = {name: SEQUENCES * OUTPUT / value for name, value in seconds.items()}
    goals = {"llama.cpp": BATCH, "transformers": None}
    return [case.row("16 sequences", speed["ours"], speed[name], name, goal) for name, goal in goals.items()]


def skins(case: Case) -> list[Row]:
    """16 sequences with an adapter of their own each, against peft's mixed batch, once, and without adapters."""
    ours = PeerProcess("large:Contender", "large:Ours", case.path)
    ours.load_adapters(SEQUENCES)
    base = load_base(case.directory, dtype="bfloat16")
    with tempfile.TemporaryDirectory() as scratch:
        places = written(base, [random_adapter(base, i) for i in range(SEQUENCES)], Path(scratch))
        del base
        theirs = PeerProcess("adapters:Peft", case.directory, places, "bfloat16")

        def prompts() -> list[list[int]]:
            return [case.tokens(PROMPT) for _ in range(SEQUENCES)]

        runs: dict[str, Callable[[], object]] = {
            "ours": lambda: ours.generate(prompts(), OUTPUT, True),
            "base": lambda: ours.generate(prompts(), OUTPUT),
        }
        seconds = interleaved(runs, case.repeats)
        runs = {"peft": lambda: theirs.generate(prompts(), list(range(SEQUENCES)), OUTPUT)}
        seconds |= interleaved(runs, 1)
        theirs.close()
    ours.close()
    speed = {name: SEQUENCES * OUTPUT / value for name, value in seconds.items()}
    return [
        case.row("16 skins", speed["ours"], speed["peft"], "peft", None),
        case.row("16 skins", speed["ours"], speed["base"], "own base", None),
    ]


def step(case: Case) -> list[Row]:
    """LoRA training (r 16, all linears) on rows of 256 tokens, half of them to learn."""
    half = STEP_TOKENS // 2
    rows = [case.tokens(STEP_TOKENS) for _ in range(STEP_EXAMPLES)]
    examples = [completion_example(row[:half], row[half:], str(i)) for i, row in enumerate(rows)]
    seconds = {
        name: attempted(name, lambda n=name: call_in_process("large:step_seconds", n, case.directory, examples))
        for name in ("ours", "with_peft")
    }
    speed = {name: STEP_EXAMPLES * STEP_TOKENS / value for name, value in seconds.items()}
    return [case.row("LoRA step", speed["ours"], speed["with_peft"], "peft", None)]


MEASURES: Mapping[str, Callable[[Case], list[Row]]] = dict(
    zip(PARTS, (opening, one_sequence, batch, skins, step), strict=True)
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shapes", nargs="+", default=tuple(SHAPES), choices=tuple(SHAPES))
    parser.add_argument("--types", nargs="+", default=TYPES, choices=TYPES)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--layers", type=int, help="at most so many")
    parser.add_argument("--repeats", type=int, default=3)
    started = start(parser)
    options, versions, rows = started.options, versions_of_peers(), list[Row]()
    for shape in options.shapes:
        spec = fitting_spec(shape)
        spec = spec.with_(layers=min(spec.layers, options.layers or spec.layers))
        for file_type in options.types:
            with tempfile.TemporaryDirectory() as scratch:
                path, directory = Path(scratch) / "model.gguf", Path(scratch) / "model"
                write_file(path, spec, SHAPES[shape], file_type)
                print(f"{shape}, {spec.layers} layers, {file_type}: {path.stat().st_size / 1e9:.2f} GB", flush=True)
                if options.parts != ["open"]:
                    export_base(load_base(path, dtype="bfloat16"), directory)
                name = f"{shape} {file_type}"
                case = Case(name, spec, path, directory, versions, started.machine, options.repeats, count())
                for part in options.parts:
                    for row in MEASURES[part](case):  # a run takes an hour: what was measured is said at once
                        print(f"{row.name}: {row.ours:.4g} / {row.peer_name} {row.peer:.4g} {row.unit}", flush=True)
                        rows.append(row)
    report(rows)


if __name__ == "__main__":
    main()
