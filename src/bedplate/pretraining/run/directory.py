"""A run's directory: one writer at a time, the file it was begun with, and what is known of the run.

run.yaml           the run file as it was resolved       pretraining.json      code, machine, data, sizes; how it stands
metrics.jsonl      one line a step                       evaluations.jsonl   what checkpoints were judged to be
state.safetensors  what the next step depends on         tensorboard/  the same numbers for TensorBoard
tokenizer/  checkpoints/  base/                          page.html     the run's page
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedplate.core.config import dump_config, load_config
from bedplate.core.errors import ConfigError, TrainingError, UsageError
from bedplate.core.files import atomic_write, file_lock, read_jsonl
from bedplate.core.processor import processor_name
from bedplate.core.version import __version__
from bedplate.pretraining.runfile.file import RunFile, changes
from bedplate.training.state import METRICS_FILE, SHARDS, STATE_FILE

RUN_FILE, RECORD, EVALUATIONS, PAGE = "run.yaml", "pretraining.json", "evaluations.jsonl", "page.html"
BASE, CHECKPOINTS, TENSORBOARD, CORPUS = "base", "checkpoints", "tensorboard", "corpus"
TOKENIZER = "tokenizer"


@dataclass(frozen=True)
class RunDirectory:
    """An open run directory. changed: in what the file differs from the one that the run was begun with. finished:
    whether a run of this very file has ended here."""

    path: Path
    changed: tuple[str, ...]
    finished: bool

    def record(self) -> dict[str, Any]:
        """What is known of the run so far."""
        return read_record(self.path)

    def note(self, **values: Any) -> None:
        """Adds to what is known."""
        atomic_write(self.path / RECORD, json.dumps({**self.record(), **values}, indent=1, allow_nan=False) + "\n")


def read_record(path: Path) -> dict[str, Any]:
    """pretraining.json of a run's directory, empty where there is none. TrainingError for what cannot be read."""
    file = path / RECORD
    if not file.is_file():
        return {}
    try:
        record = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise TrainingError(f"{file} is damaged ({error}); delete it and run the same command to resume") from error
    return record if isinstance(record, dict) else {}


@contextmanager
def opened(run: RunFile, path: Path) -> Generator[RunDirectory]:
    """Opens the run's directory for this process alone.

    A start that failed before anything was saved begins anew. UsageError where another process trains in it or it holds
    no run; TrainingError where the run was begun with a file that differs in what decides its weights.
    """
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file; name a directory for the run")
    run_file = path / RUN_FILE
    if path.is_dir() and not run_file.exists() and any(not name.startswith(".") for name in os.listdir(path)):
        raise UsageError(f"{path} is not empty and holds no run; name another directory")
    with file_lock(path / ".run.lock", wait=False):
        refused, allowed = _changed(run_file, run, path)
        if not (path / STATE_FILE).exists() and not (path / SHARDS).exists():  # no weights were decided
            shutil.rmtree(path / TOKENIZER, ignore_errors=True)  # of texts that may be others by now
            if refused:
                _begin_anew(path)  # of a mistake in the file, say
                refused = allowed = []
        if refused:
            may = f" (these may: {'; '.join(allowed)})" if allowed else ""
            raise TrainingError(
                f"{path} holds a run that was begun otherwise; what decides its weights may not change: "
                f"{'; '.join(refused)}{may}. Give another directory (--out), or change it back"
            )
        atomic_write(run_file, dump_config(run))
        yield RunDirectory(path, tuple(allowed), not allowed and read_record(path).get("status") == "finished")


def _begin_anew(path: Path) -> None:
    """Takes away what a run has made that ended before anything of it was saved."""
    for name in (RECORD, EVALUATIONS, PAGE, METRICS_FILE):
        (path / name).unlink(missing_ok=True)
    for name in (TOKENIZER, CORPUS, TENSORBOARD, CHECKPOINTS):
        shutil.rmtree(path / name, ignore_errors=True)


def _changed(run_file: Path, run: RunFile, path: Path) -> tuple[list[str], list[str]]:
    if not run_file.exists():
        return [], []
    try:
        return changes(load_config(run_file, RunFile), run)
    except ConfigError as error:
        if all(name.startswith(".") or name in (RUN_FILE, TOKENIZER) for name in os.listdir(path)):
            return [], []  # it ended before it made anything
        raise TrainingError(f"{path} holds a run of another version ({error}); give another directory") from error


def machine() -> Mapping[str, Any]:
    """Where the run is: what its speed is to be read with."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor_name()
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "code_version": __version__,
    }


def evaluations(path: Path) -> list[dict[str, Any]]:
    """What checkpoints were judged to be, one row a step, in order; of a step that was judged twice the later row."""
    file = path / EVALUATIONS
    rows = read_jsonl(file, allow_torn_tail=True) if file.is_file() else []
    by_step = {row["step"]: row for row in rows}
    return [by_step[step] for step in sorted(by_step)]
