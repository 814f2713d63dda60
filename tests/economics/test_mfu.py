"""The curves against measured throughputs of runs that `published` does not hold against us."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.core.errors import UsageError
from bedplate.economics.hardware.devices import CURVES, EXECUTION, find_device, mfu, peak_of

# (curve, devices, measured share of the dense peak, attention counted causally)
MEASURED = [
    ("a100", 8, 0.58),  # LLM Foundry, MPT-13B at 2,048 tokens: 0.5957 with the full square
    ("a100", 64, 0.505),  # torchtitan docs/performance.md, Llama-3-8B: 0.568 with the full square
    ("a100", 128, 0.51),  # LLM Foundry, MPT-30B on 40 GB cards
    ("a100", 384, 150 / 312),  # BLOOM, https://arxiv.org/abs/2211.05100
    ("a100", 992, 147 / 312),  # OPT-175B, https://arxiv.org/abs/2205.01068
    ("a100", 2048, 0.485),  # LLaMA-65B, 380 tokens/s/GPU, https://arxiv.org/abs/2302.13971
    ("h100", 8, 0.45),  # OLMo-core's README, OLMo-2 7B: 10,000 tokens/s/GPU
    ("h100", 8, 0.447),  # LLM Foundry, MPT-7B at 2,048 tokens
    ("h100", 64, 0.42),  # LLM Foundry, MPT-70B
    ("h100", 96, 0.458),  # Megatron-LM's README, GPT-3 175B
    ("h100", 4608, 0.41),  # the same
    ("h100", 8192, 0.41),  # Llama-3.1-405B, table 4: 0.43 with the full square
    ("h100", 16384, 0.39),  # the same: 0.41
    ("tpu", 512, 0.64),  # MaxText's tiering page, Llama-2-70B on v5p
    ("tpu", 6144, 0.46),  # PaLM on v4
    ("v100", 512, 0.24),  # Megatron-LM, https://arxiv.org/abs/1909.08053
]


@pytest.mark.parametrize(("curve", "devices", "measured"), MEASURED)
def test_measured_shares_lie_in_the_range(curve: str, devices: int, measured: float) -> None:
    predicted = mfu(curve, devices)
    assert predicted.low <= measured <= predicted.high


@pytest.mark.parametrize("curve", CURVES)
@given(a=st.integers(1, 100_000), b=st.integers(1, 100_000))
def test_more_devices_never_reach_a_larger_share(curve: str, a: int, b: int) -> None:
    small, large = mfu(curve, min(a, b)), mfu(curve, max(a, b))
    assert large.central <= small.central
    for share in (small, large):
        assert 0 < share.low < share.central < share.high < 1


def test_the_curve_by_hand() -> None:
    assert mfu("h100", 1) == mfu("h100", 8)
    assert mfu("h100", 8).central == pytest.approx(0.46)
    assert mfu("h100", 256).central == pytest.approx(0.30 + 0.16 / 2)  # 32^-0.2 is a half
    assert mfu("h100", 256, "fp8").central == pytest.approx(0.38 * 1.28)
    assert [mfu("h100", 8, execution=mode).central / 0.46 for mode in EXECUTION] == pytest.approx([1, 0.86, 0.74])


def test_the_factors_are_those_of_the_128_gpu_rows() -> None:
    """torchtitan's Llama-3.1-8B on 128 H100: 5,605, 6,514 and 8,380 tokens/s/GPU."""
    flops = 6 * (32 * (4096 * 128 * (2 * 32 + 2 * 8) + 3 * 4096 * 14336) + 4096 * 128256)
    flops += 6 * 32 * 32 * 128 * 8193  # attention, causal
    shares = {rate: rate * flops / 989.4e12 for rate in (5605, 6514, 8380)}
    assert mfu("h100", 128, "bf16", "eager").central == pytest.approx(shares[5605], rel=0.02)
    assert mfu("h100", 128, "bf16", "compile").central == pytest.approx(shares[6514], rel=0.02)
    assert mfu("h100", 128, "fp8", "compile").central == pytest.approx(shares[8380], rel=0.02)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="no MFU curve 'x'"):
        mfu("x", 1)
    with pytest.raises(UsageError, match="at least 1"):
        mfu("h100", 0)
    with pytest.raises(UsageError, match="no execution 'fast'"):
        mfu("h100", 1, execution="fast")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a100-80gb has no fp8 products"):
        peak_of(find_device("a100"), "fp8")
    assert peak_of(find_device("h100"), "fp8") == find_device("h100").peak("bf16")
