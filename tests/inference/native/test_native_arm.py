"""The kernel's ARM levels: cross compiled, run under an emulator, compared with the plain level of this machine.

What is compared passes through the same NativeDecoder: it is recorded here and replayed there (see native_driver.cpp).
"""

from __future__ import annotations

import itertools
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from setup import prebuild
from tests.inference.native import native_models as models
from tests.inference.native.native_builds import STRICT, compile_driver, shared_folder
from tests.inference.native.native_record import Recorder, Replayed, read_output
from tests.inference.native.native_specs import ENCODERS, EXPERTS, FAMILIES, spec_of
from tests.inference.native.test_native_blocks import random_blocks
from torch import Tensor

from bedplate.adapters.modules import block_linears
from bedplate.inference.native.levels import LEVELS, features_of, levels_of, machine, runs
from bedplate.inference.native.library import load
from bedplate.inference.native.packed_weights import (
    Forwarded,
    NativeAdapter,
    NativeDecoder,
    NativeEncoder,
    WeightFormat,
)
from bedplate.inference.native.quantize import SOURCES
from bedplate.models.build import build
from bedplate.models.checkpoints.gguf_blocks import RawBlocks
from bedplate.models.decoder import Decoder

GCC, QEMU, ROOT = "aarch64-linux-gnu-g++", "qemu-aarch64", "/usr/aarch64-linux-gnu"
PROCESSORS = {"cortex-a72": "plain", "cortex-a76": "neon_dotprod", "max": "neon_i8mm"}
"""Emulated processors, and the best level of each."""
SPEC = spec_of(attention_bias=True, feedforward_bias=True)
CASES: dict[str, tuple[torch.dtype, WeightFormat]] = {
    "float32": (torch.float32, "float32"),
    "float32 in int8": (torch.float32, "int8"),
    "float32 in int4": (torch.float32, "int4"),
    "bfloat16": (torch.bfloat16, "bfloat16"),
    "bfloat16 in int8": (torch.bfloat16, "int8"),
    "bfloat16 in int4": (torch.bfloat16, "int4"),
}
BOUNDS = {"float32": 4e-6, "bfloat16": 1e-3, "int8": 0.03, "int4": 0.03}
"""Relative, by weights, for sums in another order: of float32; of a cache that such a difference rounds to another
bfloat16; of activations that it rounds to another int8. Until that happens for the first time, every format is as exact
as float32."""
EXACT, FIRST = 2e-6, 8

_missing = next((f"no {name} here" for name in (GCC, QEMU) if shutil.which(name) is None), None)
pytestmark = [
    pytest.mark.slow,  # `make kernels` runs it
    pytest.mark.timeout(900),
    pytest.mark.skipif(machine() == "aarch64", reason="this machine runs the ARM levels itself: test_native.py does"),
    pytest.mark.skipif(
        _missing is not None, reason=f"ARM NOT TESTED: {_missing}; apt-get install g++-aarch64-linux-gnu qemu-user"
    ),
]


@dataclass(frozen=True)
class Arm:
    """The compiled kernels and the driver, for the emulator."""

    folder: Path

    def run(self, processor: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [QEMU, "-L", ROOT, "-cpu", processor, str(self.folder / "driver"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)

    def kernel(self, level: str) -> str:
        return str(self.folder / f"{level}.so")


@pytest.fixture(scope="session")
def arm(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Arm:
    """Compiled as a wheel's files are, with warnings as errors."""

    def compile_files(folder: Path) -> None:
        assert prebuild(folder, "aarch64", [GCC, *STRICT]) == {}
        compile_driver([GCC], folder / "driver")

    return Arm(shared_folder(tmp_path_factory, worker_id, "arm", compile_files))


# What is recorded: a whole sequence, and of some layers; the same in pieces, beside others that have adapters; and once
# more whole, of which no logits are asked for.


@dataclass(frozen=True)
class Case:
    path: Path
    weights: WeightFormat
    expected: list[Forwarded]


PIECES = (1, 2, 61, 3, 16, 1, 40, 26)


def random_decoder(dtype: torch.dtype) -> Decoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(SPEC)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name or name.endswith("bias"):
                    parameter.add_(torch.randn_like(parameter) * 0.3)
    assert isinstance(model, Decoder)
    return model.to(dtype).eval().requires_grad_(False)


def tokens_of(count: int, seed: int) -> list[int]:
    return torch.randint(0, SPEC.vocab_size, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def an_adapter(native: NativeDecoder, dtype: torch.dtype, rank: int, scaled: bool) -> NativeAdapter:
    generator = torch.Generator().manual_seed(rank)
    model = random_decoder(dtype)
    pairs, scales = {}, {}
    for path, linear in block_linears(model).items():
        out, size = linear.weight.shape
        a = (torch.randn(rank, size, generator=generator) * 0.1).to(dtype)
        b = (torch.randn(rank, out, generator=generator) * 0.1).to(dtype)
        pairs[path] = (a, b.t(), 1.5)
        if scaled:
            shift = torch.randn(out, generator=generator) * 0.01
            scales[path] = (torch.rand(out, generator=generator) + 0.5, shift)
    return native.adapter(pairs, scales)


def record(path: Path, dtype: torch.dtype, weights: WeightFormat) -> list[Forwarded]:
    library = load("plain")
    assert not isinstance(library, str), library
    recorder, out = Recorder(library, path), list[Forwarded]()
    tokens, neighbors = tokens_of(sum(PIECES), 1), tokens_of(40, 2)
    for threads in (2, 3):
        native = NativeDecoder(random_decoder(dtype), weights, threads=threads, library=recorder.as_library())
        shape = (4, SPEC.attention.kv_heads, 256, SPEC.attention.head_dim)
        keys, values = ([torch.full(shape, fill, dtype=dtype) for _ in range(SPEC.layers)] for fill in (7.0, torch.nan))
        recorder.new_cache([*keys, *values])
        if threads == 2:
            indices = range(len(tokens))
            out.append(native.forward(tokens, [1] * len(tokens), list(indices), keys, values, indices, states=True))
            out.append(native.forward(tokens[:9], [0] * 9, list(range(9)), keys, values, [], depth=1))
        else:
            first, second = an_adapter(native, dtype, 8, False), an_adapter(native, dtype, 5, True)
            position = 0
            for number, size in enumerate(PIECES):
                part, neighbor_part = tokens[position : position + size], neighbors[number * 5 : number * 5 + 5]
                batch = [*part, *neighbor_part, *neighbor_part]
                rows = [3] * size + [2] * 5 + [0] * 5
                place = list(range(number * 5, number * 5 + 5))
                positions = [*range(position, position + size), *place, *place]
                adapters = [None] * size + [first] * 5 + [second] * 5
                out.append(native.forward(batch, rows, positions, keys, values, range(len(batch)), adapters))
                position += size
            all_positions = range(len(tokens))
            out.append(
                native.forward(tokens, [1] * len(tokens), all_positions, keys, values, all_positions, keep_logits=False)
            )
        native.close()
    recorder.close()
    return out


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    dtype, weights = CASES[request.param]
    path = tmp_path_factory.mktemp("case") / "case"
    yield Case(path, weights, record(path, dtype, weights))
    path.unlink()


def relative(x: Tensor, reference: Tensor) -> float:
    return float((x - reference).norm() / reference.norm())


def replay(
    arm: Arm, processor: str, level: str, case: Path, to: Path, vocabulary: int = SPEC.vocab_size
) -> list[Replayed]:
    process = arm.run(processor, arm.kernel(level), str(case), str(to))
    assert (process.returncode, process.stderr, process.stdout.strip()) == (0, "", level)
    return read_output(to, vocabulary)


@pytest.mark.parametrize("processor", PROCESSORS)
def test_agrees_with_the_plain_level_here(arm: Arm, processor: str, case: Case, tmp_path: Path) -> None:
    replayed = replay(arm, processor, PROCESSORS[processor], case.path, tmp_path / "out")
    assert len(replayed) == len(case.expected) == 3 + len(PIECES)
    bound = BOUNDS[case.weights]
    for number, (ours, expected) in enumerate(zip(replayed, case.expected, strict=True)):
        if expected.hidden_ND is not None:
            assert relative(ours.hidden, expected.hidden_ND.flatten()) < bound
        if expected.logits_WV is None:
            continue
        assert relative(ours.logits_WV, expected.logits_WV) < bound, number
        assert torch.equal(ours.argmax_W, ours.logits_WV.argmax(-1))
        torch.testing.assert_close(ours.logsumexp_W, ours.logits_WV.logsumexp(-1), rtol=1e-6, atol=1e-5)
    whole = replayed[0].logits_WV
    assert case.expected[0].logits_WV is not None
    assert relative(whole[:FIRST], case.expected[0].logits_WV[:FIRST]) < EXACT
    pieces = torch.cat([result.logits_WV[:size] for result, size in zip(replayed[2:-1], PIECES, strict=True)])
    assert torch.equal(pieces, whole), "a token's result depends on its batch"
    assert not replayed[-1].logits_WV.numel()
    assert torch.equal(replayed[-1].argmax_W, whole.argmax(-1))
    assert torch.equal(replayed[-1].top_W, whole.amax(-1))
    assert torch.equal(replayed[-1].logsumexp_W, replayed[0].logsumexp_W)


def test_blocks_of_files_too(arm: Arm, tmp_path: Path) -> None:
    """Every kind of blocks is some product's."""
    library = load("plain")
    assert not isinstance(library, str), library
    spec = spec_of(hidden_size=256, heads=4, kv_heads=1, head_dim=64, feedforward_size=512)
    recorder, model = Recorder(library, tmp_path / "case"), models.random_decoder(spec, dtype=torch.float32)
    block_types, blocks = itertools.cycle(sorted(SOURCES)), dict[str, RawBlocks]()
    for (path, linear), block_type in zip(block_linears(model).items(), block_types, strict=False):
        blocks[f"{path}.weight"] = random_blocks(block_type, linear.out_features, linear.in_features, len(blocks))
    assert {block.ggml_type for block in blocks.values()} == SOURCES
    native = NativeDecoder(model, "int4", blocks=blocks, threads=2, library=recorder.as_library())
    cache = models.Cache(spec, dtype=torch.float32)
    recorder.new_cache([*cache.keys, *cache.values])
    whole = models.logits(cache.run(native, [(1, 0, tokens_of(21, 1))]))
    native.close()
    recorder.close()
    for processor, level in PROCESSORS.items():
        (replayed,) = replay(arm, processor, level, tmp_path / "case", tmp_path / "out")
        assert relative(replayed.logits_WV[0], whole[0]) < EXACT
        assert relative(replayed.logits_WV, whole) < BOUNDS["int4"]


DECODERS = {**FAMILIES, "beside": EXPERTS["beside"]}


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("name", ["heads by layer", "told by layer", "large heads", "beside"])
def test_what_differs_from_layer_to_layer_too(arm: Arm, tmp_path: Path, name: str, weights: WeightFormat) -> None:
    library = load("plain")
    assert not isinstance(library, str), library
    spec, dtype = DECODERS[name], models.base_dtype(weights)
    recorder = Recorder(library, tmp_path / "case")
    native = NativeDecoder(models.perturbed_decoder(spec, dtype), weights, threads=2, library=recorder.as_library())
    cache, tokens = models.Cache(spec, dtype=dtype), models.some_tokens(70, spec)
    recorder.new_cache([*cache.keys, *cache.values])
    expected = [
        models.logits(cache.run(native, [(1, 0, tokens[:64])])),
        models.logits(cache.run(native, [(1, 64, tokens[64:])])),
    ]
    native.close()
    recorder.close()
    for processor, level in PROCESSORS.items():
        replayed = replay(arm, processor, level, tmp_path / "case", tmp_path / "out", spec.vocab_size)
        for ours, whole in zip(replayed, expected, strict=True):
            assert relative(ours.logits_WV, whole) < 2 * BOUNDS[weights]


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_too(arm: Arm, tmp_path: Path, name: str, weights: WeightFormat) -> None:
    library = load("plain")
    assert not isinstance(library, str), library
    recorder, model = (
        Recorder(library, tmp_path / "case"),
        models.random_model(ENCODERS[name], dtype=models.base_dtype(weights)),
    )
    native = NativeEncoder(model, weights, threads=2, library=recorder.as_library())
    lengths = (3, 140, 17)
    types = [i % max(model.spec.main.token_types, 1) for i in range(sum(lengths))]
    expected = native.forward(tokens_of(sum(lengths), 1), lengths, types)
    native.close()
    recorder.close()
    for processor, level in PROCESSORS.items():
        (replayed,) = replay(arm, processor, level, tmp_path / "case", tmp_path / "out")
        assert relative(replayed.hidden, expected.flatten()) < 2 * BOUNDS[weights]


@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_detector_says_what_the_processor_runs(arm: Arm, processor: str) -> None:
    process = arm.run(processor, str(arm.folder / "detect.so"))
    assert process.returncode == 0, process.stderr
    runnable = runs(features_of(int(process.stdout), "aarch64"), "aarch64")
    names = [level.name for level in levels_of("aarch64")]
    assert list(runnable) == names[names.index(PROCESSORS[processor]) :]
    assert LEVELS[runnable[0]].chosen


@pytest.mark.parametrize(("processor", "level"), [("cortex-a72", "neon_dotprod"), ("cortex-a76", "neon_i8mm")])
def test_the_emulator_does_not_run_more_than_its_processor(
    arm: Arm, processor: str, level: str, tmp_path: Path
) -> None:
    record(tmp_path / "case", torch.float32, "int8")
    process = arm.run(processor, arm.kernel(level), str(tmp_path / "case"), str(tmp_path / "out"))
    assert process.returncode == -signal.SIGILL


def test_nan_stays_where_it_is_and_denormals_count(arm: Arm, tmp_path: Path) -> None:
    for weights in ("float32", "int8", "int4"):
        library = load("plain")
        assert not isinstance(library, str), library
        recorder = Recorder(library, tmp_path / "case")
        model = random_decoder(torch.float32)
        model.embedding.weight[7] = torch.nan
        model.embedding.weight[8] = 1e-40 * torch.arange(SPEC.hidden_size)
        native = NativeDecoder(model, weights, threads=2, library=recorder.as_library())  # type: ignore[arg-type]
        shape = (4, SPEC.attention.kv_heads, 32, SPEC.attention.head_dim)
        keys, values = ([torch.zeros(shape) for _ in range(SPEC.layers)] for _ in range(2))
        recorder.new_cache([*keys, *values])
        expected = native.forward([7, 8, 8, 9], [0, 1, 2, 3], [0, 0, 0, 0], keys, values, range(4))
        native.close()
        recorder.close()
        assert expected.logits_WV is not None
        for processor, level in PROCESSORS.items():
            (replayed,) = replay(arm, processor, level, tmp_path / "case", tmp_path / "out")
            # The embedding is also the head: its column 7 is NaN for all, row 0 altogether.
            assert torch.equal(replayed.logits_WV.isnan(), expected.logits_WV.isnan())
            fine = ~expected.logits_WV.isnan()
            assert relative(replayed.logits_WV[fine], expected.logits_WV[fine]) < BOUNDS[weights]
