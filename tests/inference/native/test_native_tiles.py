"""Products by tiles: the emulated ones to the letter of Intel's manual, what compilers make of the real ones against
those (on a processor without AMX each of its instructions is a fault that native_traps.cpp carries out), and when a
process may use them at all."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from tests.inference.native.native_builds import CPP, EMULATED, STRICT
from tests.inference.native.native_models import FORMATS, SPECS, base_dtype, random_decoder, whole_sequence
from tests.inference.native.test_native_blocks import random_blocks
from torch import Tensor

from bedplate.core.errors import UsageError
from bedplate.inference.native import compiler
from bedplate.inference.native import library as kernel_library
from bedplate.inference.native.levels import FEATURES, LEVELS, TILES, Level, machine
from bedplate.inference.native.library import Library, load
from bedplate.inference.native.packed_weights import NativeDecoder, WeightFormat
from bedplate.inference.native.quantize import SOURCES
from bedplate.models.gguf_header import TYPES

NEVER, BF16 = 1000, 30
REAL = Level("amx over plain", flags=tuple(f"-m{name}" for name in TILES), defines=(*EMULATED.defines, "AMX"))
compiles = pytest.mark.slow
"""Of what takes a quarter of a minute to compile and imitates another processor: `make kernels` runs it."""
pytestmark = pytest.mark.skipif(compiler.find_compiler() is None, reason="no C++ compiler")
x86 = pytest.mark.skipif(
    machine() != "x86_64" or not sys.platform.startswith("linux"), reason="AMX is of x86-64, and the traps of Linux"
)


def built(source: str, *flags: str) -> ctypes.CDLL:
    """A library of one of the files in cpp, with the kernel's headers and warnings as errors; kept as kernels are."""
    digest = hashlib.sha256((CPP / source).read_bytes()).hexdigest()
    base_flags = [flag for flag in compiler.FLAGS if flag != "-O3"]
    all_flags = (*base_flags, "-O1", *STRICT, *flags, f"-I{compiler.KERNEL}", f"-DSOURCE_{digest}")
    kernel = compiler.compiled(compiler.Unit(source, str(CPP / source), all_flags))
    assert not isinstance(kernel, str), kernel
    return ctypes.CDLL(str(kernel.path))


def defined(level: Level) -> list[str]:
    return [*level.flags, *(f"-DBEDPLATE_{name}" for name in level.defines if not name.startswith("TILES_FROM"))]


@pytest.fixture(scope="module")
def tiles() -> ctypes.CDLL:
    return built("native_tiles.cpp", *defined(EMULATED))


@pytest.fixture(scope="module")
def traps() -> ctypes.CDLL:
    library = built("native_traps.cpp", "-DBEDPLATE_TILES")
    library.traps_remove.restype = ctypes.c_long
    return library


@pytest.fixture
def trapped(traps: ctypes.CDLL) -> Iterator[Callable[[], int]]:
    """While it lasts, AMX's instructions are carried out on any processor; gives what counts them, and ends that."""
    traps.traps_set()
    yield traps.traps_remove
    traps.traps_remove()


def product(library: ctypes.CDLL, source: int, data: Tensor, x_TK: Tensor, out: int, tiles_from: int) -> Tensor:
    tokens, size = x_TK.shape
    result = torch.full((tokens, (out + 15) // 16 * 16), torch.nan)
    addresses = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (data, x_TK))
    library.tiles_product(source, size, out, *addresses, tokens, tiles_from, ctypes.c_void_p(result.data_ptr()))
    return result


def inputs(tokens: int, size: int, seed: int = 0) -> Tensor:
    return torch.randn(tokens, size, generator=torch.Generator().manual_seed(seed))


def in_the_tiles_order(x_TK: Tensor, w_OK: Tensor) -> Tensor:
    """What TDPBF16PS gives over 32 inputs at a time (Intel's manual, volume 2): the even and the odd products of
    bfloat16 summed apart, each addition rounded to float32; then the two sums; then that and what was there before."""

    def flushed(x: Tensor) -> Tensor:
        return torch.where(x.abs() < torch.finfo(torch.float32).tiny, torch.zeros_like(x), x)

    total = torch.zeros(len(x_TK), len(w_OK))
    x, w = (flushed(t.bfloat16().float()).double() for t in (x_TK, w_OK))
    for k in range(0, x.shape[1], 32):
        sums = [torch.zeros_like(total) for _ in range(2)]
        for i in range(32):
            products = x[:, None, k + i] * w[None, :, k + i]  # exact: 8 bits by 8
            sums[i % 2] = flushed((sums[i % 2].double() + products).float())
        total = flushed(total + flushed(sums[0] + sums[1]))
    return total


@compiles
@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 32, 40])
@pytest.mark.parametrize("out", [16, 40])
def test_pairs_are_added_in_the_manuals_order(tiles: ctypes.CDLL, tokens: int, out: int) -> None:
    x, weight = inputs(tokens, 160), inputs(out, 160, 1).bfloat16()
    weight[0, ::3], weight[-1, 5] = 1e-39, torch.inf  # too small to count; what stays visible
    actual = product(tiles, BF16, weight, x, out, NEVER)
    torch.testing.assert_close(actual[:, :out], in_the_tiles_order(x, weight.float()), rtol=0, atol=0)
    assert not actual[:, out:].any()


@compiles
@pytest.mark.parametrize("tokens", [1, 5, 16, 23, 32, 50])
@pytest.mark.parametrize("source", sorted(SOURCES))
def test_bytes_are_the_same_bits_without_tiles(tiles: ctypes.CDLL, source: str, tokens: int) -> None:
    size = 512 if source.endswith("K") else 544  # more than one group of blocks, and part of one
    blocks, x = random_blocks(source, 40, size, tokens), inputs(tokens, size)
    x[0, :32] *= 1e30
    number = TYPES[source].number
    by_tiles, without = (product(tiles, number, blocks.data, x, 40, first) for first in (1, NEVER))
    assert torch.equal(by_tiles, without)
    assert by_tiles[:, :40].isfinite().all()
    assert relative(without[1:, :40], x[1:] @ blocks.dequantised().T) < 0.02 or tokens == 1


def relative(x: Tensor, reference: Tensor) -> float:
    return float((x - reference).norm() / reference.norm()) if reference.numel() else 0.0


@compiles
def test_each_call_loads_its_own_shapes(tiles: ctypes.CDLL) -> None:
    """Another library loaded others since, or released the registers: the emulator ends a process that then goes on."""
    out = torch.zeros(3, 16)
    tiles.tiles_beside_others(ctypes.c_void_p(out.data_ptr()))
    assert torch.equal(out, torch.full((3, 16), 32.0))


@compiles
def test_from_how_many_tokens_on_is_measured(tiles: ctypes.CDLL) -> None:
    """The emulation is slow, and so is not chosen."""
    assert tiles.tiles_measured(1) == 33


@x86
@compiles
def test_what_compilers_make_of_the_real_tiles(tiles: ctypes.CDLL, trapped: Callable[[], int]) -> None:
    real = built("native_tiles.cpp", *defined(REAL))
    for tokens in (1, 16, 32, 37):
        x, weight = inputs(tokens, 96), inputs(40, 96, 1).bfloat16()
        assert torch.equal(product(real, BF16, weight, x, 40, 1), product(tiles, BF16, weight, x, 40, 1))
        for source in SOURCES:
            x, blocks = inputs(tokens, 256), random_blocks(source, 40, 256, tokens)
            number = TYPES[source].number
            assert torch.equal(*(product(library, number, blocks.data, x, 40, 1) for library in (real, tiles)))
    out = torch.zeros(3, 16)
    real.tiles_beside_others(ctypes.c_void_p(out.data_ptr()))
    assert torch.equal(out, torch.full((3, 16), 32.0))
    if "amx" not in kernel_library.supported():
        assert trapped() > 1000


@x86
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("weights", FORMATS)
def test_a_whole_model_by_the_real_tiles(trapped: Callable[[], int], emulated: Library, weights: WeightFormat) -> None:
    real = compiler.opened(REAL, lambda built: Library(built.path, built.digest))
    assert isinstance(real, Library), real
    spec, dtype = SPECS["bias"], base_dtype(weights)
    model = random_decoder(spec, dtype=dtype)
    outputs = [
        whole_sequence(NativeDecoder(model, weights, threads=2, library=library), spec, dtype)
        for library in (real, emulated)
    ]
    assert torch.equal(*outputs)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("weights", ["float32", "int8", "int4"])
def test_integers_are_those_of_the_level_without_tiles(emulated: Library, weights: WeightFormat) -> None:
    """Of a float32 base, whose activations and cache are the same at both levels."""
    plain = load("plain")
    assert isinstance(plain, Library), plain
    spec = SPECS["grouped"]
    model = random_decoder(spec, dtype=torch.float32)
    outputs = [
        whole_sequence(NativeDecoder(model, weights, threads=2, library=library), spec, torch.float32)
        for library in (plain, emulated)
    ]
    assert torch.equal(*outputs)


# Whether a process may use them


@x86
def test_flags_are_not_permission_and_permission_not_execution(traps: ctypes.CDLL) -> None:
    """The probe ends no process, and leaves the handlers of its signals as they were."""
    probe = built("native_detect.cpp").answer
    for refusal in (errno.EINVAL, errno.ENOSPC, errno.EPERM):
        assert probe(refusal, False) == refusal
    cpu_features = kernel_library.features()
    assert not isinstance(cpu_features, str), cpu_features
    if not cpu_features.issuperset(TILES):
        assert [probe(0, False) for _ in range(3)] == [-1, -1, -1]
    traps.traps_set()
    try:
        assert probe(0, True) == 0
    finally:
        traps.traps_remove()


def test_a_level_without_tiles_asks_the_system_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The permission changes the whole process: its signal stacks must be larger from then on, its children's too."""

    def probe() -> int:
        raise AssertionError("asked")

    monkeypatch.setattr(kernel_library, "machine", lambda: "x86_64")
    monkeypatch.setattr(kernel_library, "features", lambda: frozenset(FEATURES["x86_64"]))
    monkeypatch.setattr(kernel_library, "_detector", lambda: SimpleNamespace(bedplate_tiles=probe))
    monkeypatch.setattr(kernel_library, "_open", lambda level: level.name)
    monkeypatch.delenv(kernel_library.OVERRIDE, raising=False)
    assert load("avx2") == "avx2"
    monkeypatch.setenv(kernel_library.OVERRIDE, "avx2")
    assert kernel_library.levels_to_try() == ("avx2",)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "signal stack is too small"),
        (errno.EPERM, "a filter of system calls, such as a container's, refuses arch_prctl"),
        (errno.EINVAL, "the system does not permit them (Invalid argument)"),
        (-1, "does not execute them"),
        (-2, "computes a wrong product"),
    ],
)
def test_a_process_that_may_not_use_tiles_takes_the_next_lower_level(
    monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    answers = [0]
    detector = SimpleNamespace(bedplate_tiles=lambda: answers[-1])
    monkeypatch.setattr(kernel_library, "machine", lambda: "x86_64")
    monkeypatch.setattr(kernel_library, "features", lambda: frozenset(FEATURES["x86_64"]))
    monkeypatch.setattr(kernel_library, "_detector", lambda: detector)
    monkeypatch.setattr(kernel_library, "_open", lambda level: level.name)
    monkeypatch.delenv(kernel_library.OVERRIDE, raising=False)
    assert kernel_library.tiles_refused() is None
    assert kernel_library.levels_to_try()[:2] == ("amx", "avx512_bf16")
    answers.append(code)  # since: another machine, or another container
    assert words in (kernel_library.tiles_refused() or "")
    assert kernel_library.levels_to_try()[0] == "avx512_bf16"
    assert load("amx") == "this processor does not run the level amx"
    monkeypatch.setenv(kernel_library.OVERRIDE, "amx")
    with pytest.raises(
        UsageError, match=r"does not run BEDPLATE_KERNEL_LEVEL 'amx' \(.*\); it runs avx512_bf16"
    ) as error:
        kernel_library.levels_to_try()
    assert words in str(error.value)


def test_no_process_is_given_the_emulated_tiles() -> None:
    assert EMULATED.name not in LEVELS
