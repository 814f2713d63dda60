"""Where ledgers lie: at home, whatever the data is called, and beside the data, whoever opens it from wherever.

Beside a data file it is `.bedplate/test-openings.jsonl` in the file's directory; data sets of the catalogue and of
Python's library have none of their own, and theirs lies beside the task file.
"""

from __future__ import annotations

import os
from pathlib import Path

from bedplate.data.sources import is_file
from bedplate.evaluation.ledger.ledger import OPENINGS, Ledger
from bedplate.evaluation.ledger.told import told_at_home
from bedplate.evaluation.task import Task

FOLDER = ".bedplate"
OFF = "BEDPLATE_DATA_LEDGER"
"""Set to `off`, this keeps ledgers from being written beside data; reports then say so."""


def ledger_for(task: Task | None, *files: Path | str, leave: Path | None = None) -> Ledger:
    """The ledger of a task's test rows, or of the rows in `files`. leave: a directory that a run itself put rows into;
    the task file's counts then."""
    beside = {Path(one).resolve().parent for one in files if is_file(str(one))}
    if task is not None:
        own = set[Path]() if task.path is None else {task.path.resolve().parent}
        for source in task.data.sources:
            place = (task.directory / source).resolve().parent if is_file(source) else None
            beside |= own if place is None or (leave is not None and place == leave.resolve()) else {place}
    paths = (one / FOLDER / OPENINGS for one in sorted(beside) if one.is_dir())
    return Ledger(beside=paths, keep_beside=os.environ.get(OFF, "").lower() != "off", told=told_at_home)
