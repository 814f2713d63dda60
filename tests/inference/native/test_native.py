"""The native decoder, at each level that this processor runs, against the torch model in float32, and against itself
however its work is batched."""

from __future__ import annotations

import multiprocessing
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.forked import CONTEXT
from tests.inference.native.native_builds import build_beside
from tests.inference.native.native_models import (
    FORMATS,
    SPECS,
    TOLERANCE,
    Cache,
    base_dtype,
    in_float32,
    logits,
    random_decoder,
    relative,
    some_tokens,
    supported_levels,
    wanted_logits,
)
from tests.inference.native.native_specs import spec_of
from torch import Tensor

from bedplate.adapters.bank import Bank
from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.modules import block_linears
from bedplate.core.errors import UsageError
from bedplate.inference.native import compiler
from bedplate.inference.native import library as kernel_library
from bedplate.inference.native.levels import FEATURES, LEVELS, TILES, machine
from bedplate.inference.native.library import Library, load
from bedplate.inference.native.packed_weights import NativeAdapter, NativeDecoder, WeightFormat, unsupported
from bedplate.models.build import build
from bedplate.models.decoder import Decoder
from bedplate.models.inputs import Inputs
from bedplate.models.layers.linear import Linear
from bedplate.models.specs.transformer import TransformerSpec

pytestmark = pytest.mark.skipif(isinstance(load(), str), reason=f"no native kernel here: {load()}")


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("name", SPECS)
def test_equals_the_torch_model(library: Library, name: str, weights: WeightFormat) -> None:
    spec, dtype = SPECS[name], base_dtype(weights)
    model = random_decoder(spec, dtype=dtype)
    native = NativeDecoder(model, weights, threads=2, library=library)
    tokens = some_tokens(150, spec)
    reference = wanted_logits(in_float32(model, weights), tokens)
    out = Cache(spec, dtype=dtype).run(native, [(1, 0, tokens)])
    assert relative(logits(out), reference) < TOLERANCE[weights]
    assert torch.equal(torch.from_numpy(out.argmax_W), logits(out).argmax(-1))
    assert torch.equal(torch.from_numpy(out.top_W), logits(out).amax(-1))
    torch.testing.assert_close(torch.from_numpy(out.logsumexp_W), logits(out).logsumexp(-1), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("name", ["grouped", "bias", "wide heads"])
def test_a_token_does_not_depend_on_its_batch(library: Library, name: str, weights: WeightFormat) -> None:
    spec, dtype = SPECS[name], base_dtype(weights)
    model = random_decoder(spec, dtype=dtype)
    tokens, neighbors = some_tokens(290, spec), some_tokens(40, spec, 2)
    two = NativeDecoder(model, weights, threads=2, library=library)
    whole = logits(Cache(spec, dtype=dtype).run(two, [(0, 0, tokens)]))
    native = NativeDecoder(model, weights, threads=3, library=library)
    cache = Cache(spec, dtype=dtype)
    parts: list[Tensor] = []
    position = 0
    for size in (1, 2, 130, 3, 16, 1, 1, 64, 5, 31, 36):  # each chunk beside other rows
        batch = [
            (3, position // 9, neighbors[:size]),
            (1, position, tokens[position : position + size]),
            (0, position, neighbors[:1]),
        ]
        out = logits(cache.run(native, batch if size > 1 else batch[1:2]))
        parts.append(out[size if size <= 40 else 40 :][:size] if size > 1 else out)
        position += size
    assert position == len(tokens)
    assert torch.equal(torch.cat(parts), whole)


def test_a_prefix_that_another_call_computed(model_and_native: tuple[Decoder, NativeDecoder]) -> None:
    model, native = model_and_native
    tokens = some_tokens(200, model.spec)
    cache = Cache(model.spec)
    whole = logits(cache.run(native, [(0, 0, tokens)]))
    for tensor in (*cache.keys, *cache.values):
        tensor[2, :, :150] = tensor[0, :, :150]
    assert torch.equal(logits(cache.run(native, [(2, 150, tokens[150:])])), whole[150:])


@pytest.fixture(scope="module")
def model_and_native() -> tuple[Decoder, NativeDecoder]:
    model = random_decoder(SPECS["grouped"])
    return model, NativeDecoder(model, "bfloat16", threads=2)


def test_states_and_depth(model_and_native: tuple[Decoder, NativeDecoder]) -> None:
    model, native = model_and_native
    tokens, reference = some_tokens(20, model.spec), in_float32(model, "bfloat16")
    inputs, cache = Inputs(torch.tensor([tokens])), Cache(model.spec)
    out = native.forward(tokens, [0] * 20, range(20), cache.keys, cache.values, [19], states=True)
    assert out.hidden_ND is not None
    assert relative(out.hidden_ND, reference(inputs).hidden[0]) < 0.012
    assert logits(out).shape == (1, model.spec.vocab_size)
    for depth in (0, 1, 2):
        shallow = cache.run(native, [(1, 0, tokens)], depth=depth)
        assert shallow.logits_WV is None
        assert shallow.hidden_ND is not None
        assert relative(shallow.hidden_ND, reference(inputs, depth=depth).hidden[0]) < 0.012


def test_logits_outlive_the_next_call(model_and_native: tuple[Decoder, NativeDecoder]) -> None:
    model, native = model_and_native
    cache = Cache(model.spec)
    first = logits(cache.run(native, [(0, 0, [1, 2, 3])]))
    snapshot = first.clone()
    row = first[1]
    address = first.data_ptr()
    assert logits(cache.run(native, [(1, 0, [4, 5, 6])])).data_ptr() != address
    assert torch.equal(first, snapshot)
    del first
    assert logits(cache.run(native, [(1, 0, [7, 8, 9])])).data_ptr() != address
    assert torch.equal(row, snapshot[1])
    del row
    assert logits(cache.run(native, [(1, 0, [7, 8, 9])])).data_ptr() == address


# Adapters


def random_adapter(model: Decoder, bank: Bank, seed: int, **config: Any) -> int:
    settings = LoraConfig(**config)
    generator = torch.Generator().manual_seed(seed)
    slot = bank.add(settings, seed=seed, trainable=True)
    tensors = bank.state(slot)
    bank.remove(slot)
    drawn = {n: torch.randn(t.shape, generator=generator) for n, t in tensors.items()}
    # lengths near those of the weights, everything else near 0
    return bank.add(
        settings,
        {n: tensors[n] * (1 + 0.2 * t) if n.endswith("magnitude_vector") else t * 0.1 for n, t in drawn.items()},
    )


@pytest.fixture(scope="module")
def adapted() -> tuple[Decoder, Bank, list[int]]:
    return adapters_of(random_decoder(SPECS["grouped"]))


@pytest.fixture(scope="module")
def adapted_wide() -> tuple[Decoder, Bank, list[int]]:
    return adapters_of(random_decoder(SPECS["grouped"], dtype=torch.float32))


def adapters_of(model: Decoder) -> tuple[Decoder, Bank, list[int]]:
    bank = Bank(model, slots=4)
    slots = [
        random_adapter(model, bank, 1, r=16),
        random_adapter(model, bank, 2, r=5, alpha=3.0, rslora=True, targets=("q", "down", "gate")),
        random_adapter(model, bank, 3, r=8, targets=("layers.1.attention.v", "layers.0.attention.o")),
        random_adapter(model, bank, 4, r=6, dora=True, targets=("k", "v", "o", "up", "down")),
    ]
    return model, bank, slots


def merged(model: Decoder, bank: Bank, slot: int) -> Decoder:
    reference = in_float32(model, "bfloat16")
    linears, named, low_rank = block_linears(reference), dict(bank.parameters(slot)), bank.low_rank(slot)
    for path, linear in linears.items():
        if f"{path}.lora_A" in named:
            a, b = named[f"{path}.lora_A"].float(), named[f"{path}.lora_B"].float()
            linear.weight.data += low_rank[path].scaling * b @ a
        if f"{path}.lora_magnitude_vector" in named:
            norms = torch.linalg.norm(linear.weight.data, dim=1)
            linear.weight.data *= (named[f"{path}.lora_magnitude_vector"] / norms)[:, None]
    return reference


@pytest.mark.parametrize("weights", FORMATS)
def test_adapters_by_row(
    library: Library,
    adapted: tuple[Decoder, Bank, list[int]],
    adapted_wide: tuple[Decoder, Bank, list[int]],
    weights: WeightFormat,
) -> None:
    model, bank, slots = adapted_wide if weights == "float32" else adapted
    dtype = base_dtype(weights)
    native = NativeDecoder(model, weights, threads=2, library=library)
    tokens = [some_tokens(n, model.spec, n) for n in (70, 9, 3, 12, 20)]
    chosen = [native.adapter_of(bank, slot) for slot in slots] + [None]
    by_token = [adapter for adapter, part in zip(chosen, tokens, strict=True) for _ in part]
    cache = Cache(model.spec, rows=len(tokens), dtype=dtype)
    out = logits(cache.run(native, [(i, 0, part) for i, part in enumerate(tokens)], adapters=by_token))
    begin = 0
    plain = logits(Cache(model.spec, dtype=dtype).run(native, [(0, 0, tokens[-1])]))
    for i, part in enumerate(tokens):
        mine = out[begin : begin + len(part)]
        begin += len(part)
        alone = Cache(model.spec, dtype=dtype).run(native, [(2, 0, part)], adapters=[chosen[i]] * len(part))
        assert torch.equal(mine, logits(alone))
        if i < len(slots) and weights in ("float32", "bfloat16"):
            assert relative(mine, wanted_logits(merged(model, bank, slots[i]), part)) < TOLERANCE[weights]
    assert torch.equal(out[-20:], plain)  # a row without an adapter is the base, bit for bit
    # One row at a time, token by token: the path of a decode.
    cache = Cache(model.spec, dtype=dtype)
    steps = [cache.run(native, [(0, i, [t])], adapters=[chosen[0]]) for i, t in enumerate(tokens[0])]
    assert torch.equal(torch.cat([logits(step) for step in steps]), out[:70])


@pytest.mark.parametrize("threads", [1, 2])
def test_magnitudes_leave_biases_alone(threads: int) -> None:
    model = random_decoder(SPECS["bias"])
    bank = Bank(model)
    slot = random_adapter(model, bank, 5, r=4, dora=True)
    native = NativeDecoder(model, "bfloat16", threads=threads)
    adapter = native.adapter_of(bank, slot)
    for count in (40, 1):
        tokens = some_tokens(count, model.spec, count)
        actual = logits(Cache(model.spec).run(native, [(0, 0, tokens)], adapters=[adapter] * count))
        expected = wanted_logits(merged(model, bank, slot), tokens)
        assert relative(actual, expected) < 0.012
        assert relative(actual, wanted_logits(in_float32(model, "bfloat16"), tokens)) > 0.05


def test_an_adapter_shares_the_banks_memory(adapted: tuple[Decoder, Bank, list[int]]) -> None:
    model, bank, slots = adapted
    native = NativeDecoder(model, "bfloat16", threads=1)
    adapter: NativeAdapter = native.adapter_of(bank, slots[0])
    for name, parameter in bank.parameters(slots[0]):
        path, _, side = name.rpartition(".")
        a, b, _ = adapter.pairs[path]
        assert (b if side == "lora_B" else a).data_ptr() == parameter.data_ptr()
    with pytest.raises(UsageError, match=r"adapter is torch\.float32, and the base is torch\.bfloat16"):
        native.adapter({"layers.0.attention.q": (torch.zeros(2, 96), torch.zeros(192, 2), 1.0)})
    b = torch.zeros(192, 2, dtype=torch.bfloat16)
    with pytest.raises(UsageError, match="contiguous"):
        native.adapter({"layers.0.attention.q": (torch.zeros(2, 96, dtype=torch.bfloat16), b, 1.0)})


# Refusals


def test_what_is_refused(model_and_native: tuple[Decoder, NativeDecoder]) -> None:
    model, native = model_and_native
    cache = Cache(model.spec)
    with pytest.raises(UsageError, match="token number"):
        cache.run(native, [(0, 0, [331])])
    with pytest.raises(UsageError, match="row number"):
        cache.run(native, [(4, 0, [1])])
    with pytest.raises(UsageError, match="position number"):
        cache.run(native, [(0, 384, [1])])
    with pytest.raises(UsageError, match="wanted"):
        native.forward([1], [0], [0], cache.keys, cache.values, [1])
    with pytest.raises(UsageError, match="depth"):
        cache.run(native, [(0, 0, [1])], depth=3)
    cpu = torch.device("cpu")
    assert unsupported(model.spec, torch.bfloat16, cpu) is None
    assert unsupported(model.spec, torch.float32, cpu) is None
    assert "this one is float16" in (unsupported(model.spec, torch.float16, cpu) or "")
    with pytest.raises(UsageError, match="as bfloat16, int8 or int4, not float32"):
        NativeDecoder(model, "float32")
    with pytest.raises(UsageError, match=r"cache holds torch\.float32"):
        Cache(model.spec, dtype=torch.float32).run(native, [(0, 0, [1])])
    assert "CPUs" in (unsupported(model.spec, torch.bfloat16, torch.device("cuda")) or "")
    for changes, words in (
        ({"hidden_size": 48}, "hidden_size is 48"),
        ({"head_dim": 8}, "heads · head_dim is 48"),
        ({"attention_gate": True}, "attention_gate = True"),
    ):
        variant = build(spec_of(**changes), torch.bfloat16)
        assert words in (unsupported(variant.spec, torch.bfloat16, cpu) or "")
        with pytest.raises(UsageError, match="cannot run natively"):
            NativeDecoder(variant, "int8")  # type: ignore[arg-type]


# Building


@pytest.mark.slow
def test_levels_differ_by_rounding_only() -> None:
    """In int8 and int4, a level that multiplies bfloat16 differs from one that does not by as much as either differs
    from exact activations, and no more: rounding to 8 bits turns any difference into steps. Neither is better."""
    model = random_decoder(SPECS["grouped"])
    tokens = some_tokens(150, model.spec)
    for weights in FORMATS[1:]:
        reference = wanted_logits(in_float32(model, weights), tokens)
        outputs = {}
        for name in supported_levels():
            library = load(name)
            assert isinstance(library, Library), library
            native = NativeDecoder(model, weights, threads=2, library=library)
            outputs[name] = logits(Cache(model.spec).run(native, [(0, 0, tokens)]))
        errors = {name: relative(output, reference) for name, output in outputs.items()}
        plain = errors["plain"]
        for name, error in errors.items():
            widest = 3.0 if LEVELS[name].defines.count("BF16") and weights == "bfloat16" else 1.25
            assert plain / widest <= error <= plain * widest, (weights, name)
            assert relative(outputs[name], outputs["plain"]) <= 1.5 * max(error, plain)


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_a_number_stays_visible_and_in_its_row(library: Library, weights: WeightFormat, bad: float) -> None:
    spec, dtype = SPECS["grouped"], base_dtype(weights)
    model = random_decoder(spec, dtype=dtype)
    native = NativeDecoder(model, weights, threads=2, library=library)
    alone = logits(Cache(spec, dtype=dtype).run(native, [(0, 0, [1, 2, 3])]))
    model.embedding.weight.data[7] = bad  # the kernel reads the model's own embedding
    out = logits(Cache(spec, dtype=dtype).run(native, [(1, 0, [1, 2, 3]), (2, 0, [7, 4])]))
    assert torch.equal(out[:3], alone)
    assert not out[3:].isfinite().any()


@pytest.mark.parametrize("weights", FORMATS)
def test_denormal_weights_and_unaligned_memory(library: Library, weights: WeightFormat) -> None:
    spec, dtype = SPECS["grouped"], base_dtype(weights)
    model = random_decoder(spec, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.view(-1)[::3] = 1e-39
    for module in model.modules():
        if isinstance(module, Linear):  # as in a mapped file: at an odd address
            raw = torch.empty(module.weight.numel() + 1, dtype=dtype)
            raw[1:] = module.weight.flatten()
            module.weight.data = raw[1:].view_as(module.weight)
    tokens = some_tokens(40, spec)
    out = logits(Cache(spec, dtype=dtype).run(NativeDecoder(model, weights, library=library), [(0, 0, tokens)]))
    assert relative(out, wanted_logits(in_float32(model, weights), tokens)) < TOLERANCE[weights]


@pytest.mark.parametrize("threads", [1, 7, 64])
def test_any_number_of_threads_gives_the_same_bits(threads: int) -> None:
    model = random_decoder(SPECS["grouped"])
    tokens = some_tokens(100, model.spec)
    expected = logits(Cache(model.spec).run(NativeDecoder(model, "int4", threads=2), [(0, 0, tokens)]))
    native, cache = NativeDecoder(model, "int4", threads=threads), Cache(model.spec)
    assert torch.equal(logits(cache.run(native, [(0, 0, tokens)])), expected)
    assert torch.equal(logits(cache.run(native, [(1, 0, tokens[:2])])), expected[:2])


# Choosing a level


def test_a_level_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    best = load()
    assert isinstance(best, Library)
    assert best.level == next(name for name in supported_levels() if LEVELS[name].chosen)
    monkeypatch.setenv(kernel_library.OVERRIDE, "plain")
    with monkeypatch.context() as patch:  # to compile it takes half a minute
        patch.setattr(kernel_library, "_open", lambda level: SimpleNamespace(level=level.name))
        assert load() == SimpleNamespace(level="plain")
    monkeypatch.setenv(kernel_library.OVERRIDE, "avx1024")
    with pytest.raises(UsageError, match="is not a level; use amx, avx512_bf16"):
        load()
    foreign = "neon_dotprod" if machine() != "aarch64" else "avx2"
    monkeypatch.setenv(kernel_library.OVERRIDE, foreign)
    with pytest.raises(UsageError, match="this processor does not run"):
        load()
    assert "does not run" in str(load(foreign))


def test_each_lower_processor_gets_a_level_it_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(kernel_library.OVERRIDE, raising=False)
    monkeypatch.setattr(kernel_library, "machine", lambda: "x86_64")
    monkeypatch.setattr(kernel_library, "tiles_refused", lambda: None)
    for names, best in (
        ((), "plain"),
        (("fma", "avx2"), "plain"),
        (("fma", "f16c", "avx2"), "avx2"),
        (("fma", "f16c", "avx2", "avxvnni"), "avx2"),
        (("fma", "f16c", "avx2", "avx512f", "avx512dq", "avx512bw", "avx512vl"), "avx2"),
        (("fma", "f16c", "avx2", "avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512vnni"), "avx512_vnni"),
        (set(FEATURES["x86_64"]).difference(TILES), "avx512_bf16"),
        (FEATURES["x86_64"], "amx"),
    ):
        monkeypatch.setattr(kernel_library, "features", lambda names=names: frozenset(names))
        assert kernel_library.levels_to_try()[0] == best
    monkeypatch.setattr(kernel_library, "machine", lambda: "aarch64")
    for names, best in (((), "plain"), (("asimddp",), "neon_dotprod"), (("asimddp", "i8mm"), "neon_i8mm")):
        monkeypatch.setattr(kernel_library, "features", lambda names=names: frozenset(names))
        assert kernel_library.levels_to_try()[0] == best


# Building


def test_two_processes_build_one_kernel(tmp_path: Path) -> None:
    compiler_command, calls = compiler.find_compiler(), tmp_path / "calls"
    assert compiler_command is not None
    counting = tmp_path / "counting"
    wrapper = f'[ "$1" = --version ] || {{ echo compiled >> {calls}; sleep 1; }}'
    counting.write_text(f'#!/bin/sh\n{wrapper}\nexec {shlex.join(compiler_command)} "$@"\n')
    counting.chmod(0o755)
    queue, barrier = CONTEXT.Queue(), CONTEXT.Barrier(2)
    arguments = (str(tmp_path / "home"), str(counting), barrier, queue)
    processes = [CONTEXT.Process(target=build_beside, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    first, second = (queue.get(timeout=240) for _ in processes)
    for process in processes:
        process.join()
    assert first == second
    assert calls.read_text() == "compiled\n"
    files = (tmp_path / "home" / "native").iterdir()
    assert sorted(path.suffix for path in files if path.suffix != ".lock") == [".sha256", ".so"]


def test_a_file_that_was_cut_off_is_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEDPLATE_HOME", str(tmp_path))
    built = compiler.build(None)
    assert not isinstance(built, str)
    whole = built.path.read_bytes()
    built.path.write_bytes(whole[: len(whole) // 2])
    rebuilt = compiler.build(None)
    assert not isinstance(rebuilt, str)
    assert rebuilt.path.read_bytes() == whole


def test_no_compiler_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEDPLATE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert compiler.build(None) == "$CXX names 'no-such-compiler', which is not there"
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no C++ compiler" in str(compiler.build(None))
    broken = tmp_path / "broken"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "error: no space" >&2\nexit 1\n')
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("PATH", "/bin:/usr/bin")
    assert str(compiler.build(None)).endswith("failed on the kernel: error: no space")
    assert not list((tmp_path / "native").glob("*.so"))


def _decode_in_child(queue: Any, native: NativeDecoder, spec: TransformerSpec) -> None:
    queue.put(Cache(spec).run(native, [(0, 0, [1, 2, 3, 4, 5])]).argmax_W.tolist())


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_runs_in_a_forked_process(model_and_native: tuple[Decoder, NativeDecoder]) -> None:
    model, native = model_and_native
    expected = Cache(model.spec).run(native, [(0, 0, [1, 2, 3, 4, 5])]).argmax_W.tolist()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_decode_in_child, args=(queue, native, model.spec))
    process.start()
    try:
        assert queue.get(timeout=240) == expected
    finally:
        process.join(60)
        if process.is_alive():
            process.kill()
