"""One process of the group that checks training on several ranks: `worker.py NUMBER PORT DIRECTORY`.

It goes through PHASES together with the others, in each as one of as many ranks as the phase has, and writes for each
check what went wrong, or null.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from tests.training.parallel import checks

from bedplate.training.parallel import launched

Check = Callable[[Path], None]
PHASES: list[tuple[int, list[Check]]] = [
    (4, [checks.shard_and_tensor, checks.shard_and_expert, checks.data_and_shard, checks.begin_with_four]),
    (
        2,
        [
            checks.shard,
            checks.shard_with_muon,
            checks.replicas,
            checks.tensor,
            checks.expert,
            checks.half_precision,
            checks.a_step_that_one_rank_breaks,
            checks.resumed_twice,
            checks.go_on_with_two,
        ],
    ),
    (1, [checks.go_on_alone, checks.refused]),
    (2, [checks.end_with_two, checks.killed_while_saving]),
]


def main() -> None:
    number, port, out = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch's own, of its internals
    found: dict[str, str | None] = {}
    for phase, (world, wanted) in enumerate(PHASES):
        if number >= world:
            continue
        port_of_phase = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port + phase)}
        os.environ |= {"RANK": str(number), "WORLD_SIZE": str(world), "LOCAL_RANK": str(number), **port_of_phase}
        with launched(timeout=60.0):
            for check in wanted:
                try:
                    check(out)
                    found[check.__name__] = None
                except BaseException:
                    found[check.__name__] = traceback.format_exc()
                (out / f"found-{number}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
