"""8 tenants of 8 clients each, one of them hostile: what the others see, in turns with spells without it.

The hostile tenant sends what the attack suite draws (`tests/attacks`): spoilt requests of every kind to every route of
a server of a tiny base; with --sequences, besides, sequences that are harmless request by request: a long prompt and
then many short ones, uploads left open, batches, feedback given and withdrawn. Prints each tenant's 5xx, 429 and the
ratio of its slowest hundredths, how late /health was, resident memory against its bound, and how late the clients' own
event loop was. --seconds is the time of the attack; a quarter of it comes beside, in quiet spells between.

usage: attack.py [--seconds 300] [--seed 0] [--tenants 8] [--sequences]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from comparison import Row, report, start

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.attacks.crowd import HEAD, Scenario, crowd
from tests.attacks.neighbours import quantile
from tests.attacks.sequences import most_memory, sequences

GOAL, HEALTH_SECONDS = 1 / 3, 0.25


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tenants", type=int, default=8)
    parser.add_argument("--sequences", action="store_true")
    options = start(parser).options
    scenario = sequences(options.tenants - 1) if options.sequences else Scenario(tenants=options.tenants - 1)
    with tempfile.TemporaryDirectory() as directory:
        tenants, siege, vitals = crowd(Path(directory), options.seconds, options.seed, scenario)
    print(HEAD, *tenants, sep="\n")
    for name, spells in zip(("quiet", "besieged"), vitals.spells, strict=True):
        print(f"p99 of all, {name}, by spells:", *(f"{1000 * seconds:.0f}" for seconds in spells), "ms")
    slow = vitals.slow(HEALTH_SECONDS)
    print(f"/health: {len(vitals.probes)} probes, {len(slow)} over 0.25 s", end="")
    print(f", slowest {max(probe.seconds for probe in vitals.probes):.2f} s")
    for probe in slow:
        print(f"  {probe.seconds:.2f} s; the prober itself had woken {1000 * probe.late:.0f} ms late")
    late = [f"{name} {1000 * quantile(vitals.late[i], 0.99):.0f} ms" for i, name in enumerate(("quiet", "besieged"))]
    print(f"the clients' own loop late by (slowest hundredth): {', '.join(late)}; load {os.getloadavg()[0]:.1f}")
    print(f"resident: {vitals.resident >> 20} MiB, {vitals.growth >> 20} more at most", end="")
    print(f" of {most_memory() >> 20} that the settings allow" if options.sequences else "")
    print(f"{siege.shots:,} hostile requests in {siege.seconds:.0f} s: {dict(siege.statuses)}")
    print(*siege.wrong, sep="\n")
    worst = max(tenants, key=lambda tenant: tenant.ratio)
    rows = [
        Row(
            "p99 of the tenant that is hurt most",
            1000 * worst.besieged.quantile(0.99),
            1000 * worst.quiet.quantile(0.99),
            "ms",
            "without the attack",
            "",
            GOAL,
            lower_is_better=True,
        )
    ]
    report(rows)


if __name__ == "__main__":
    main()
