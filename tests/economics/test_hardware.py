"""The table of devices: dense peaks, units, names, and a user's own values."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import yaml

from bedplate.core.errors import ConfigError, UsageError
from bedplate.economics.hardware.devices import (
    CURVES,
    DEVICES,
    Device,
    DeviceOverride,
    find_device,
    find_device_in,
    overridden,
)

# (dense TFLOP/s in bf16 or fp16, memory GB, memory GB/s): data sheets, by hand, sparse numbers halved
SHEETS = {
    "a100-40gb": ("bf16", 312, 40, 1555),
    "a100-80gb": ("bf16", 312, 80, 2039),
    "h100-sxm": ("bf16", 1979 / 2, 80, 3350),
    "h100-pcie": ("bf16", 1513 / 2, 80, 2000),
    "h800": ("bf16", 1979 / 2, 80, 3350),
    "h200": ("bf16", 1979 / 2, 141, 4800),
    "b200": ("bf16", 4500 / 2, 180, 7700),
    "gb200": ("fp4", 20_000 / 2, 186, 8000),
    "l40s": ("fp8", 1466 / 2, 48, 864),
    "l4": ("bf16", 242 / 2, 24, 300),
    "t4": ("fp16", 65, 16, 300),
    "v100": ("fp16", 125, 32, 900),
    "a10g": ("bf16", 140 / 2, 24, 600),
    "rtx-3090": ("bf16", 142 / 2, 24, 936),
    "rtx-4090": ("bf16", 330.3 / 2, 24, 1008),
    "rtx-5090": ("fp4", 3352 / 2, 32, 1792),
    "mi250x": ("bf16", 383, 128, 3277),
    "mi300x": ("fp8", 5229.8 / 2, 192, 5300),
    "tpu-v4": ("bf16", 275, 32, 1228),
    "tpu-v5e": ("int8", 394, 16, 819),
    "tpu-v5p": ("bf16", 459, 95, 2765),
}


@pytest.mark.parametrize("name", SHEETS)
def test_peaks_are_the_sheets_dense_ones(name: str) -> None:
    number, tera, gigabytes, per_second = SHEETS[name]
    row = find_device(name)
    assert row.peak(number) / 1e12 == pytest.approx(tera, rel=0.005)
    assert (row.memory_bytes / 1e9, row.memory_bytes_per_second / 1e9) == (gigabytes, per_second)


@pytest.mark.parametrize("row", DEVICES.values(), ids=lambda row: row.name)
def test_rows_are_whole(row: Device) -> None:
    assert row.mfu in CURVES
    assert row.source
    assert len(row.as_of) == 7
    for value in (*row.peak_flops_per_second.values(), row.memory_bytes, row.memory_bytes_per_second, row.watts):
        assert value > 0
    assert row.network_bytes_per_second > 0
    assert row.devices_per_node >= 1
    # fewer bits are never slower, which a sparse number in the wrong column would break by more than four
    order = [row.peak_flops_per_second[n] for n in ("tf32", "bf16", "fp8", "fp4") if n in row.peak_flops_per_second]
    assert all(a <= b <= 4 * a for a, b in itertools.pairwise(order))
    if row.rental is not None:
        low, high = row.rental.usd_per_hour_low, row.rental.usd_per_hour_high
        assert 0 < low <= row.rental.usd_per_hour <= high
        assert row.rental.source
        assert len(row.rental.as_of) == 7


def test_names_forgive_case_spaces_and_vendor() -> None:
    names = ("h100", "H100", "NVIDIA H100 80GB HBM3", "h100_sxm", " h100-sxm5 ")
    assert {find_device(name).name for name in names} == {"h100-sxm"}
    assert find_device("A100").name == "a100-80gb"
    aliases = [alias for row in DEVICES.values() for alias in (row.name, *row.aliases)]
    assert len(aliases) == len(set(aliases))


@pytest.mark.parametrize(
    ("name", "suggestion"), [("h10", "h100-sxm"), ("b20", "b200"), ("mi30x", "mi300x"), ("4080", "rtx")]
)
def test_unknown_names_give_the_nearest(name: str, suggestion: str) -> None:
    with pytest.raises(UsageError, match=suggestion) as caught:
        find_device(name)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="the devices are a100-40gb"):
        find_device("abacus")


def test_a_missing_number_format_is_named() -> None:
    with pytest.raises(UsageError, match="t4 has no bf16 products; it has fp32, fp16, int8"):
        find_device("t4").peak("bf16")


def test_overrides_replace_what_they_name_and_nothing_else() -> None:
    row = find_device("h100")
    override = DeviceOverride(usd_per_hour=2.1, memory_bytes=96e9, peak_flops_per_second={"bf16": 8e14})
    changed = overridden(row, override)
    assert changed.rental is not None
    assert (changed.rental.usd_per_hour, changed.memory_bytes, changed.peak("bf16")) == (2.1, 96e9, 8e14)
    assert changed.peak("fp8") == row.peak("fp8")
    overridden_fields = {"rental", "memory_bytes", "peak_flops_per_second", "source", "as_of"}
    for field in dataclasses.fields(row):
        if field.name not in overridden_fields:
            assert getattr(changed, field.name) == getattr(row, field.name)
    assert "changed by the hardware file" in changed.source


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"memory": 1}, "unknown key 'memory'"),
        ({"memory_bytes": 0}, "greater than 0"),
        ({"watts": float("nan")}, "finite"),
        ({"usd_per_hour": -1}, "greater than 0"),
        ({"mfu": "h1000"}, "no MFU curve 'h1000'"),
        ({"peak_flops_per_second": {"bf17": 1}}, "bf17"),
    ],
)
def test_wrong_overrides_are_refused(tmp_path: Path, values: dict[str, object], part: str) -> None:
    (tmp_path / "ours.yaml").write_text(yaml.safe_dump({"devices": {"h100-sxm": values}}))
    with pytest.raises(ConfigError, match=part):
        find_device_in(tmp_path / "ours.yaml", "h100")


def test_a_hardware_file_changes_rows_and_adds_some(tmp_path: Path) -> None:
    file = tmp_path / "ours.yaml"
    file.write_text(
        "devices:\n"
        "  h100-sxm: {usd_per_hour: 2.10, as_of: 2026-11-01, source: our contract}\n"
        "  our-box: {like: rtx-4090, devices_per_node: 8, usd_per_hour: 0.25}\n"
    )
    ours = find_device_in(file, "h100")
    assert ours.rental is not None
    assert (ours.rental.usd_per_hour, ours.rental.as_of, ours.rental.source) == (2.10, "2026-11-01", "our contract")
    box = find_device_in(file, "our-box")
    assert (box.name, box.devices_per_node, box.peak("bf16")) == ("our-box", 8, find_device("4090").peak("bf16"))
    assert find_device_in(file, "t4") == find_device("t4")
    with pytest.raises(UsageError, match="has h100-sxm, our-box"):
        find_device_in(file, "our-bax-9")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("devices: {}", "devices"),
        ("devices:\n  our-box: {watts: 3}", "says which one it is `like`"),
        ("devices:\n  our-box: {like: h100, wats: 3}", "did you mean 'watts'"),
        ("device: {}", "unknown key 'device'"),
    ],
)
def test_hardware_files_are_strict(tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=part):
        find_device_in(tmp_path / "x.yaml", "our-box")
