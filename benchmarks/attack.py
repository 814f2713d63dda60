"""64 clients of 8 tenants, one of them hostile: what the other seven see, against the same time without it.

The hostile tenant sends what the attack suite draws (`tests/attacks`): spoilt requests of every kind to every route of
a server of a tiny base. Prints each tenant's 5xx, 429 and the ratio of its slowest hundredths.

usage: attack.py [--seconds 300] [--seed 0]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from comparison import Row, report, start

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.attacks.crowd import HEAD, crowd

GOAL = 1 / 3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = start(parser).options
    with tempfile.TemporaryDirectory() as directory:
        tenants, siege = crowd(Path(directory), options.seconds, options.seed)
    print(HEAD, *tenants, sep="\n")
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
