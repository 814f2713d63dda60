"""Homes that a test makes for itself share what depends on no test: the kernels built, and what was measured, here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from bedplate.core.files import bedplate_home

OF_THIS_MACHINE = ("native", "machine")


def link_machine(home: Path, folders: Mapping[str, Path]) -> None:
    """What a home keeps of this machine lies in these folders, which are there: one for each name of
    OF_THIS_MACHINE."""
    for name in OF_THIS_MACHINE:
        os.symlink(folders[name], home / name)


def new_home(directory: Path) -> Path:
    """An empty BEDPLATE_HOME for which no kernel is built, and nothing measured, anew."""
    directory.mkdir(parents=True)
    folders = {name: (bedplate_home() / name).resolve() for name in OF_THIS_MACHINE}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    link_machine(directory, folders)
    return directory
