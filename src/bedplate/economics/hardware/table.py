"""The table of accelerators, and finding a device in it.

One row per device: what its vendor's data sheet says, dense (half of what NVIDIA's and AMD's sheets print "with
sparsity"), links in one direction (half of "total bandwidth"). Rental prices are examples with their date: give your
own (`--usd-per-hour`, or a hardware file). CPU sockets are in `cpus`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from bedplate.core.errors import UsageError
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.economics.hardware.cpus import CPUS
from bedplate.economics.hardware.device import Device, DeviceSizes, RentalExample, device_row

_gpu = functools.partial(device_row, "gpu")
_tpu = functools.partial(device_row, "tpu")
TERA = 1e12


def _peaks(**tera: float) -> Mapping[str, float]:
    return {name: value * TERA for name, value in tera.items()}


_MERCATUS = "mercatus-ai.com/blog/cloud-gpu-pricing, cheapest listing to hyperscaler on demand"
_RUNPOD = "RunPod's list (deploybase.ai/articles/runpod-gpu-pricing), interruptible to on demand"
_AWS = "AWS on demand, us-east-1"
_TPU_LIST = "Google Cloud's list, three-year commitment to on demand, us regions"

_ROWS = (
    # --- NVIDIA, data centre
    _gpu(
        "NVIDIA A100 40 GB SXM",
        ("a100-40gb", "a100-40gb-sxm", "a100-40", "a100-sxm4-40gb"),
        _peaks(fp32=19.5, tf32=156, bf16=312, fp16=312, int8=624),
        DeviceSizes(40, 1555, node=8, link=300, network=25, watts=400, mfu="a100"),
        ("NVIDIA A100 data sheet; NVLink 600 GB/s total; 200 Gb/s per GPU as in DGX A100", "2020-11"),
        RentalExample(0.80, 3.67, "2025-06", "Lambda's and Google Cloud's lists"),
    ),
    _gpu(
        "NVIDIA A100 80 GB SXM",
        ("a100-80gb", "a100", "a100-80gb-sxm", "a100-80", "a100-sxm4-80gb", "a100-sxm"),
        _peaks(fp32=19.5, tf32=156, bf16=312, fp16=312, int8=624),
        DeviceSizes(80, 2039, node=8, link=300, network=25, watts=400, mfu="a100"),
        ("NVIDIA A100 data sheet; NVLink 600 GB/s total; 200 Gb/s per GPU as in DGX A100", "2020-11"),
        RentalExample(0.80, 3.00, "2026-05", _MERCATUS),
    ),
    _gpu(
        "NVIDIA A10G",
        ("a10g",),
        _peaks(fp32=31.5, tf32=35, bf16=70, fp16=70, int8=140),
        DeviceSizes(24, 600, node=8, link=32, network=1.5625, watts=300, mfu="pcie"),
        ("NVIDIA A10G data sheet (AWS G5); PCIe 4.0 x16; g5.48xlarge has 100 Gb/s for 8", "2021-11"),
        RentalExample(1.006, 1.212, "2025-06", f"{_AWS}: g5.xlarge and g5.2xlarge"),
    ),
    _gpu(
        "NVIDIA L4",
        ("l4",),
        _peaks(fp32=30.3, tf32=60, bf16=121, fp16=121, fp8=242.5, int8=242.5),
        DeviceSizes(24, 300, node=8, link=32, network=1.5625, watts=72, mfu="pcie"),
        ("NVIDIA L4 data sheet, its sparse numbers halved; PCIe 4.0 x16; g6.48xlarge has 100 Gb/s for 8", "2023-03"),
        RentalExample(0.44, 0.805, "2026-03", f"{_RUNPOD}; {_AWS}: g6.xlarge"),
    ),
    _gpu(
        "NVIDIA L40S",
        ("l40s",),
        _peaks(fp32=91.6, tf32=183, bf16=362, fp16=362, fp8=733, int8=733),
        DeviceSizes(48, 864, node=8, link=32, network=6.25, watts=350, mfu="pcie"),
        ("NVIDIA L40S data sheet, dense; PCIe 4.0 x16; g6e.48xlarge has 400 Gb/s for 8", "2023-08"),
        RentalExample(0.79, 1.861, "2026-03", f"{_RUNPOD}; {_AWS}: g6e.xlarge"),
    ),
    _gpu(
        "NVIDIA T4",
        ("t4",),
        _peaks(fp32=8.1, fp16=65, int8=130),
        DeviceSizes(16, 300, node=8, link=16, network=1.5625, watts=70, mfu="pcie"),
        ("NVIDIA T4 data sheet; PCIe 3.0 x16", "2018-09"),
        RentalExample(0.35, 0.526, "2025-06", f"Google Cloud's list; {_AWS}: g4dn.xlarge"),
    ),
    _gpu(
        "NVIDIA V100 32 GB SXM2",
        ("v100", "v100-32gb", "v100-sxm2"),
        _peaks(fp32=15.7, fp16=125),
        DeviceSizes(32, 900, node=8, link=150, network=12.5, watts=300, mfu="v100"),
        ("NVIDIA V100 data sheet; NVLink 300 GB/s total; 100 Gb/s per GPU as in DGX-2", "2018-03"),
        RentalExample(0.55, 3.06, "2025-06", f"Lambda's list; {_AWS}: p3.2xlarge"),
    ),
    _gpu(
        "NVIDIA H100 80 GB SXM",
        ("h100-sxm", "h100", "h100-80gb", "h100-sxm5", "h100-80gb-hbm3"),
        _peaks(fp32=67, tf32=494.7, bf16=989.4, fp16=989.4, fp8=1978.9, int8=1978.9),
        DeviceSizes(80, 3350, node=8, link=450, network=50, watts=700, mfu="h100"),
        ("NVIDIA H100 data sheet, its sparse numbers halved; NVLink 900 GB/s total; 400 Gb/s per GPU", "2023-03"),
        RentalExample(1.99, 5.00, "2026-05", _MERCATUS),
    ),
    _gpu(
        "NVIDIA H100 80 GB PCIe",
        ("h100-pcie",),
        _peaks(fp32=51, tf32=378, bf16=756, fp16=756, fp8=1513, int8=1513),
        DeviceSizes(80, 2000, node=8, link=64, network=25, watts=350, mfu="pcie"),
        ("NVIDIA H100 PCIe product brief, dense; PCIe 5.0 x16, without NVLink bridges", "2022-11"),
        RentalExample(1.80, 3.51, "2026-05", f"{_RUNPOD}; spheron.network"),
    ),
    _gpu(
        "NVIDIA H800 80 GB SXM",
        ("h800",),
        _peaks(fp32=67, tf32=494.7, bf16=989.4, fp16=989.4, fp8=1978.9, int8=1978.9),
        DeviceSizes(80, 3350, node=8, link=200, network=50, watts=700, mfu="h100"),
        ("H100 with NVLink at 400 GB/s total; DeepSeek-V3 (arXiv 2412.19437)", "2024-12"),
        RentalExample(2.00, 2.00, "2024-12", "assumed in DeepSeek-V3's report (arXiv 2412.19437)"),
    ),
    _gpu(
        "NVIDIA H200 141 GB SXM",
        ("h200", "h200-sxm", "h200-141gb"),
        _peaks(fp32=67, tf32=494.7, bf16=989.4, fp16=989.4, fp8=1978.9, int8=1978.9),
        DeviceSizes(141, 4800, node=8, link=450, network=50, watts=700, mfu="h100"),
        ("NVIDIA H200 data sheet, its sparse numbers halved", "2023-11"),
        RentalExample(2.50, 7.00, "2026-05", _MERCATUS),
    ),
    _gpu(
        "NVIDIA B200 180 GB SXM",
        ("b200", "b200-sxm", "hgx-b200"),
        _peaks(fp32=75, tf32=1100, bf16=2250, fp16=2250, fp8=4500, int8=4500, fp4=9000),
        DeviceSizes(180, 7700, node=8, link=900, network=50, watts=1000, mfu="blackwell"),
        ("NVIDIA HGX B200 specifications, its sparse numbers halved; NVLink 1.8 TB/s total", "2025-02"),
        RentalExample(5.98, 10.57, "2026-03", _RUNPOD),
    ),
    _gpu(
        "NVIDIA GB200 NVL72, per GPU",
        ("gb200", "gb200-nvl72"),
        _peaks(fp32=80, tf32=1250, bf16=2500, fp16=2500, fp8=5000, int8=5000, fp4=10000),
        DeviceSizes(186, 8000, node=72, link=900, network=50, watts=1200, mfu="blackwell"),
        ("NVIDIA GB200 NVL72 specifications by 72, its sparse numbers halved; one NVLink domain of 72", "2025-02"),
    ),
    # --- NVIDIA, consumer
    _gpu(
        "NVIDIA GeForce RTX 3090",
        ("rtx-3090", "3090", "rtx3090"),
        _peaks(fp32=35.6, tf32=35.6, bf16=71, fp16=71, int8=284),
        DeviceSizes(24, 936, node=4, link=32, network=1.25, watts=350, mfu="pcie"),
        ("NVIDIA GA102 white paper, dense, 32-bit accumulation; PCIe 4.0 x16; 10 Gb/s assumed", "2020-09"),
        RentalExample(0.22, 0.39, "2026-03", _RUNPOD),
    ),
    _gpu(
        "NVIDIA GeForce RTX 4090",
        ("rtx-4090", "4090", "rtx4090"),
        _peaks(fp32=82.6, tf32=82.6, bf16=165.2, fp16=165.2, fp8=330.3, int8=660.6),
        DeviceSizes(24, 1008, node=4, link=32, network=1.25, watts=450, mfu="pcie"),
        ("NVIDIA Ada white paper, dense, 32-bit accumulation; PCIe 4.0 x16; 10 Gb/s assumed", "2022-10"),
        RentalExample(0.34, 0.60, "2026-03", _RUNPOD),
    ),
    _gpu(
        "NVIDIA GeForce RTX 5090",
        ("rtx-5090", "5090", "rtx5090"),
        _peaks(fp32=104.8, tf32=104.8, bf16=209.5, fp16=209.5, fp8=419, int8=838, fp4=1676),
        DeviceSizes(32, 1792, node=4, link=64, network=1.25, watts=575, mfu="pcie"),
        ("NVIDIA RTX Blackwell white paper, dense, 32-bit accumulation; PCIe 5.0 x16; 10 Gb/s assumed", "2025-01"),
        RentalExample(0.69, 1.22, "2026-03", _RUNPOD),
    ),
    # --- AMD
    _gpu(
        "AMD Instinct MI250X (both dies)",
        ("mi250x",),
        _peaks(fp32=95.7, bf16=383, fp16=383, int8=383),
        DeviceSizes(128, 3277, node=4, link=150, network=25, watts=560, mfu="mi250x"),
        ("AMD MI250X data sheet, dense; three 50 GB/s links a direction and 200 Gb/s each as in Frontier", "2021-11"),
    ),
    _gpu(
        "AMD Instinct MI300X",
        ("mi300x", "mi300"),
        _peaks(fp32=163.4, tf32=653.7, bf16=1307.4, fp16=1307.4, fp8=2614.9, int8=2614.9),
        DeviceSizes(192, 5300, node=8, link=448, network=50, watts=750, mfu="mi300x"),
        ("AMD MI300X data sheet, dense; seven Infinity Fabric links of 64 GB/s a direction", "2023-12"),
        RentalExample(3.00, 5.00, "2026-04", "codesota.com/hardware/mi300x"),
    ),
    # --- Google: a node is one host; beyond it ICI goes on, so the network is a share of the same links
    _tpu(
        "Google TPU v4 chip",
        ("tpu-v4", "tpuv4"),
        _peaks(bf16=275, int8=275),
        DeviceSizes(32, 1228, node=4, link=300, network=100, watts=192, mfu="tpu"),
        ("Google Cloud TPU v4 documentation, https://arxiv.org/abs/2304.01433: six 50 GB/s ICI links", "2023-04"),
        RentalExample(1.449, 3.22, "2025-06", _TPU_LIST),
    ),
    _tpu(
        "Google TPU v5e chip",
        ("tpu-v5e", "tpuv5e", "v5e"),
        _peaks(bf16=197, int8=394),
        DeviceSizes(16, 819, node=8, link=200, network=50, watts=200, mfu="tpu"),
        ("Google Cloud TPU v5e documentation; 1,600 Gb/s ICI a chip; watts are not published and assumed", "2023-11"),
        RentalExample(0.54, 1.20, "2026-01", _TPU_LIST),
    ),
    _tpu(
        "Google TPU v5p chip",
        ("tpu-v5p", "tpuv5p", "v5p"),
        _peaks(bf16=459, int8=918),
        DeviceSizes(95, 2765, node=4, link=600, network=200, watts=450, mfu="tpu"),
        ("Google Cloud TPU v5p documentation; 4,800 Gb/s ICI a chip; watts are not published and assumed", "2023-12"),
        RentalExample(1.89, 4.20, "2026-01", _TPU_LIST),
    ),
)

DEVICES: dict[str, Device] = {row.name: row for row in (*_ROWS, *CPUS)}
"""Every device by its name."""

_NAMES = {alias: row.name for row in DEVICES.values() for alias in (row.name, *row.aliases)}


def find_device(name: str) -> Device:
    """The row of a name or an alias, without regard to case, spaces, underscores and "nvidia". UsageError names the
    nearest."""
    key = "-".join(name.lower().replace("_", " ").replace("-", " ").split()).removeprefix("nvidia-")
    if key in _NAMES:
        return DEVICES[_NAMES[key]]
    close = list(dict.fromkeys(_NAMES[alias] for alias in nearest(key, _NAMES, 5)))
    hint = did_you_mean(close[:3], show=str) or f"the devices are {', '.join(DEVICES)}"
    raise UsageError(f"there is no device {name!r} in the table; {hint} (or describe it in a hardware file)")
