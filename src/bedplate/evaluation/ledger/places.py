"""Where ledgers lie: at home, whatever the data is called, and beside the data, whoever opens it from wherever.

Beside a data file it is `.bedplate/test-openings.jsonl` in the file's directory; data sets of the catalogue and of
Python's library have none of their own, and theirs lies beside the task file.
"""

from __future__ import annotations

import os
from pathlib import Path

from bedplate.data.sources import is_file
from bedplate.evaluation.ledger.ledger import OPENINGS, TestLedger
from bedplate.evaluation.ledger.reported_openings import told_at_home
from bedplate.evaluation.task import Task

FOLDER = ".bedplate"
OFF = "BEDPLATE_DATA_LEDGER"
"""Set to `off`, this keeps ledgers from being written beside data; reports then say so."""


def ledger_for(task: Task | None, *files: Path | str, leave: Path | None = None) -> TestLedger:
    """The ledger of a task's test rows, or of the rows in `files`. leave: a directory that a run itself put rows into;
    the task file's counts then."""
    folders = {Path(file).resolve().parent for file in files if is_file(str(file))}
    if task is not None:
        task_folders = set[Path]() if task.path is None else {task.path.resolve().parent}
        for source in task.data.sources:
            place = (task.directory / source).resolve().parent if is_file(source) else None
            folders |= task_folders if place is None or (leave is not None and place == leave.resolve()) else {place}
    paths = (folder / FOLDER / OPENINGS for folder in sorted(folders) if folder.is_dir())
    return TestLedger(
        data_ledgers=paths, keep_beside=os.environ.get(OFF, "").lower() != "off", reported_openings=told_at_home
    )
