"""CPU sockets as devices. No vendor prints operations per second, so peaks are cores × clock × operations a cycle:

    Zen 4: AVX-512 in two halves: 32 fp32, 64 bf16 (VDPBF16PS), 128 int8 (VNNI) operations a cycle and core
    Zen 5 (server): the full width, twice those
    Sapphire Rapids: AVX-512 twice: 64 fp32; AMX tiles: 2,048 bf16 and 4,096 int8
    Neoverse V2: four 128-bit pipes: 32 fp32, 128 bf16 (BFMMLA), 256 int8 (SMMLA)

at the base clock, which is what all cores hold. What a machine really does is measured: `bedplate plan calibrate`.
"""

from __future__ import annotations

from bedplate.economics.hardware.device import Device, RentalExample

GB = 1e9


def _peaks(cores: int, hertz: float, fp32: int, bf16: int, int8: int) -> dict[str, float]:
    return {"fp32": cores * hertz * fp32, "bf16": cores * hertz * bf16, "int8": cores * hertz * int8}


CPUS = (
    Device(
        name="epyc-genoa",
        title="AMD EPYC 9654 (Genoa), a socket of 96 cores",
        kind="cpu",
        peak_flops_per_second=_peaks(96, 2.4e9, 32, 64, 128),
        memory_bytes=768 * GB,
        memory_bytes_per_second=460.8 * GB,
        devices_per_node=2,
        link_bytes_per_second=96 * GB,
        network_bytes_per_second=3.125 * GB,
        watts=360,
        mfu="cpu",
        source="AMD EPYC 9654 data sheet; 12 × DDR5-4800; 64 GB DIMMs, 50 Gb/s for two sockets assumed",
        as_of="2022-11",
        rental=RentalExample(4.93, 4.93, "2025-06", "half of AWS c7a.48xlarge (two such), on demand, us-east-1"),
        aliases=("genoa", "epyc-9654"),
    ),
    Device(
        name="epyc-turin",
        title="AMD EPYC 9755 (Turin), a socket of 128 cores",
        kind="cpu",
        peak_flops_per_second=_peaks(128, 2.7e9, 64, 128, 256),
        memory_bytes=768 * GB,
        memory_bytes_per_second=576 * GB,
        devices_per_node=2,
        link_bytes_per_second=96 * GB,
        network_bytes_per_second=3.125 * GB,
        watts=500,
        mfu="cpu",
        source="AMD EPYC 9755 data sheet; 12 × DDR5-6000; 64 GB DIMMs, 50 Gb/s for two sockets assumed",
        as_of="2024-10",
        aliases=("turin", "epyc-9755"),
    ),
    Device(
        name="xeon-spr",
        title="Intel Xeon 8480+ (Sapphire Rapids, AMX), a socket of 56 cores",
        kind="cpu",
        peak_flops_per_second=_peaks(56, 2.0e9, 64, 2048, 4096),
        memory_bytes=512 * GB,
        memory_bytes_per_second=307.2 * GB,
        devices_per_node=2,
        link_bytes_per_second=48 * GB,
        network_bytes_per_second=3.125 * GB,
        watts=350,
        mfu="cpu",
        source="Intel Xeon Platinum 8480+ data sheet and optimisation manual; 8 × DDR5-4800; 64 GB DIMMs assumed",
        as_of="2023-01",
        rental=RentalExample(4.84, 4.84, "2025-06", "half of AWS m7i.48xlarge (two of 48 cores), on demand, us-east-1"),
        aliases=("sapphire-rapids", "spr", "xeon-8480"),
    ),
    Device(
        name="graviton4",
        title="AWS Graviton4, a socket of 96 cores",
        kind="cpu",
        peak_flops_per_second=_peaks(96, 2.8e9, 32, 128, 256),
        memory_bytes=768 * GB,
        memory_bytes_per_second=537.6 * GB,
        devices_per_node=2,
        link_bytes_per_second=48 * GB,
        network_bytes_per_second=3.125 * GB,
        watts=300,
        mfu="cpu",
        source="AWS Graviton4 (Neoverse V2, 12 × DDR5-5600) and Arm's optimisation guide; watts assumed",
        as_of="2024-07",
        rental=RentalExample(3.83, 3.83, "2025-06", "half of AWS c8g.48xlarge (two such), on demand, us-east-1"),
    ),
    Device(
        name="apple-m2-ultra",
        title="Apple M2 Ultra, its 76-core GPU",
        kind="cpu",
        peak_flops_per_second={"fp32": 27.2e12, "fp16": 27.2e12, "bf16": 27.2e12},
        memory_bytes=192 * GB,
        memory_bytes_per_second=800 * GB,
        devices_per_node=1,
        link_bytes_per_second=0,
        network_bytes_per_second=1.25 * GB,
        watts=180,
        mfu="cpu",
        source="76 × 128 lanes × 2 × 1.4 GHz (github.com/philipturner/metal-benchmarks); memory: Apple; watts assumed",
        as_of="2023-06",
        aliases=("m2-ultra",),
    ),
    Device(
        name="apple-m4-max",
        title="Apple M4 Max, its 40-core GPU",
        kind="cpu",
        peak_flops_per_second={"fp32": 16.2e12, "fp16": 16.2e12, "bf16": 16.2e12},
        memory_bytes=128 * GB,
        memory_bytes_per_second=546 * GB,
        devices_per_node=1,
        link_bytes_per_second=0,
        network_bytes_per_second=1.25 * GB,
        watts=90,
        mfu="cpu",
        source="40 cores × 128 lanes × 2 × 1.58 GHz (as above); memory: Apple; watts assumed",
        as_of="2024-10",
        aliases=("m4-max",),
    ),
)
