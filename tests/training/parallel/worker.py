"""The processes that check training on several ranks: `worker.py DIRECTORY [all | long]`.

They go through PHASES together, in each as many of them as the phase has ranks, and write for each check what went
wrong, or null. A check that fails ends its process: the other ranks may be in the middle of it, and what they send next
would not be what is expected. They are forked from one that has imported everything, before any of them computes. With
`long`, two of them do one run.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from tests.pretraining import rank_checks
from tests.training.parallel import checks

from bedplate.training.parallel.launch import launched

Check = Callable[[Path], None]
PHASES: list[tuple[int, list[Check], list[Check]]] = [
    (4, [], [checks.shard_and_tensor, checks.shard_and_expert, checks.data_and_shard, checks.begin_with_four]),
    (
        2,
        [
            checks.shard,
            checks.expert,
            checks.a_rank_without_rows,
            checks.a_step_that_one_rank_breaks,
            checks.another_model_on_each_rank,
            checks.go_on_with_two,
            rank_checks.begin_a_run,
        ],
        [
            checks.tensor,
            checks.shard_and_recompute,
            checks.shard_with_muon,
            checks.replicas,
            checks.tensor_beside_experts,
            checks.half_precision,
            checks.negatives_of_other_ranks,
            rank_checks.memory_of_a_shard,
            checks.resumed_twice,
        ],
    ),
    (1, [checks.go_on_alone, checks.refused, rank_checks.go_on_alone_with_a_run], []),
    (2, [checks.end_with_two, rank_checks.end_a_run, checks.killed_while_saving], []),
]
"""Ranks, checks, and those that only `all` makes."""


def phases(include_slow: bool) -> list[tuple[int, list[Check]]]:
    return [
        (world, [*(slow_checks if include_slow else []), *fast_checks]) for world, fast_checks, slow_checks in PHASES
    ]


def master_port(file: Path, main_process: bool) -> str:
    """A free port, chosen by the first process when it is about to listen there: one that was free a minute before may
    have become a connection's."""
    if main_process:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            file.with_suffix(".partial").write_text(str(probe.getsockname()[1]))
        file.with_suffix(".partial").replace(file)
    while not file.exists():
        time.sleep(0.001)
    return file.read_text()


def main() -> None:
    os.setsid()  # so that a test ends all of them at once
    out, selected = Path(sys.argv[1]), phases("all" in sys.argv)
    if "long" in sys.argv:
        selected = [(2, [checks.long_run])]
    torch.set_num_threads(1)
    for port_of_an_earlier_run in out.glob("port-*"):
        port_of_an_earlier_run.unlink()
    number = 0
    for rank in range(1, max(world for world, selection in selected if selection)):
        if os.fork() == 0:
            number = rank
            break
    warnings.simplefilter("ignore")  # torch's own, of its internals
    outcomes: dict[str, str | None] = {}
    for phase, (world, phase_checks) in enumerate(selected):
        if number >= world or not phase_checks:
            continue
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": master_port(out / f"port-{phase}", number == 0)}
        os.environ |= {"RANK": str(number), "WORLD_SIZE": str(world), "LOCAL_RANK": str(number), **address}
        with launched(timeout=60.0):
            for check in phase_checks:
                outcomes[check.__name__] = None
                try:
                    check(out)
                except BaseException:
                    outcomes[check.__name__] = traceback.format_exc()
                    raise
                finally:
                    (out / f"found-{number}.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main()
