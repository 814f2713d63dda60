"""CPU sockets as devices. No vendor prints operations per second, so peaks are cores × clock × operations a cycle:

    Zen 4: AVX-512 in two halves: 32 fp32, 64 bf16 (VDPBF16PS), 128 int8 (VNNI) operations a cycle and core
    Zen 5 (server): the full width, twice those
    Sapphire Rapids: AVX-512 twice: 64 fp32; AMX tiles: 2,048 bf16 and 4,096 int8
    Neoverse V2: four 128-bit pipes: 32 fp32, 128 bf16 (BFMMLA), 256 int8 (SMMLA)

at the base clock, which is what all cores hold. What a machine really does is measured: `bedplate plan calibrate`.
"""

from __future__ import annotations

import functools

from bedplate.economics.hardware.device import DeviceSizes, RentalExample, device_row

_cpu = functools.partial(device_row, "cpu")


def _peaks(cores: int, hertz: float, fp32: int, bf16: int, int8: int) -> dict[str, float]:
    return {"fp32": cores * hertz * fp32, "bf16": cores * hertz * bf16, "int8": cores * hertz * int8}


CPUS = (
    _cpu(
        "AMD EPYC 9654 (Genoa), a socket of 96 cores",
        ("epyc-genoa", "genoa", "epyc-9654"),
        _peaks(96, 2.4e9, 32, 64, 128),
        DeviceSizes(768, 460.8, node=2, link=96, network=3.125, watts=360, mfu="cpu"),
        ("AMD EPYC 9654 data sheet; 12 × DDR5-4800; 64 GB DIMMs, 50 Gb/s for two sockets assumed", "2022-11"),
        RentalExample(4.93, 4.93, "2025-06", "half of AWS c7a.48xlarge (two such), on demand, us-east-1"),
    ),
    _cpu(
        "AMD EPYC 9755 (Turin), a socket of 128 cores",
        ("epyc-turin", "turin", "epyc-9755"),
        _peaks(128, 2.7e9, 64, 128, 256),
        DeviceSizes(768, 576, node=2, link=96, network=3.125, watts=500, mfu="cpu"),
        ("AMD EPYC 9755 data sheet; 12 × DDR5-6000; 64 GB DIMMs, 50 Gb/s for two sockets assumed", "2024-10"),
    ),
    _cpu(
        "Intel Xeon 8480+ (Sapphire Rapids, AMX), a socket of 56 cores",
        ("xeon-spr", "sapphire-rapids", "spr", "xeon-8480"),
        _peaks(56, 2.0e9, 64, 2048, 4096),
        DeviceSizes(512, 307.2, node=2, link=48, network=3.125, watts=350, mfu="cpu"),
        ("Intel Xeon Platinum 8480+ data sheet and optimisation manual; 8 × DDR5-4800; 64 GB DIMMs assumed", "2023-01"),
        RentalExample(4.84, 4.84, "2025-06", "half of AWS m7i.48xlarge (two of 48 cores), on demand, us-east-1"),
    ),
    _cpu(
        "AWS Graviton4, a socket of 96 cores",
        ("graviton4",),
        _peaks(96, 2.8e9, 32, 128, 256),
        DeviceSizes(768, 537.6, node=2, link=48, network=3.125, watts=300, mfu="cpu"),
        ("AWS Graviton4 (Neoverse V2, 12 × DDR5-5600) and Arm's optimisation guide; watts assumed", "2024-07"),
        RentalExample(3.83, 3.83, "2025-06", "half of AWS c8g.48xlarge (two such), on demand, us-east-1"),
    ),
    _cpu(
        "Apple M2 Ultra, its 76-core GPU",
        ("apple-m2-ultra", "m2-ultra"),
        {"fp32": 27.2e12, "fp16": 27.2e12, "bf16": 27.2e12},
        DeviceSizes(192, 800, node=1, link=0, network=1.25, watts=180, mfu="cpu"),
        (
            "76 × 128 lanes × 2 × 1.4 GHz (github.com/philipturner/metal-benchmarks); memory: Apple; watts assumed",
            "2023-06",
        ),
    ),
    _cpu(
        "Apple M4 Max, its 40-core GPU",
        ("apple-m4-max", "m4-max"),
        {"fp32": 16.2e12, "fp16": 16.2e12, "bf16": 16.2e12},
        DeviceSizes(128, 546, node=1, link=0, network=1.25, watts=90, mfu="cpu"),
        ("40 cores × 128 lanes × 2 × 1.58 GHz (as above); memory: Apple; watts assumed", "2024-10"),
    ),
)
