"""A first look at a run file, before anything heavy is imported: typos and missing files are reported at once.

It reads the same classes as the run does; what only a model or a text can tell is found later.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bedplate.core.errors import BedplateError, ConfigError, DataError
from bedplate.data.corpus.recipe import load_recipe
from bedplate.data.documents import TEXT_FILES
from bedplate.data.sources import check_source
from bedplate.economics.hardware.devices import find_device
from bedplate.economics.model.named_model import resolve
from bedplate.hub.pull import check_source as check_base
from bedplate.models.families import find_family
from bedplate.pretraining.runfile.file import STDLIB, RunFile, TextsPart, read_run
from bedplate.training.objectives import check_objective


def look(path: Path | str, overrides: Sequence[str] = (), *, reads_data: bool = True) -> RunFile:
    """Reads the run file and checks what can be checked without a model. reads_data: its data must exist.

    Raises ConfigError for the file or overrides, DataError for missing texts, corpus or recipe, UnknownItemError for an
    unknown base, UsageError for an unknown preset or device, UnsupportedModelError for an unknown family.
    """
    run = read_run(path, overrides)
    try:
        check_objective(run.objective)
    except ConfigError as error:
        raise ConfigError(f"{path}: objective: {error}") from error
    if reads_data:
        _check_data(run)
    if run.base is not None:
        check_base(run.base_source)
    if run.model is not None:
        find_family("hf", run.model.family, f"{path}: model.family")
        if run.model.preset is not None:
            resolve(run.model.preset)
    if run.hardware.device is not None:
        find_device(run.hardware.device)
    return run


def _check_data(run: RunFile) -> None:
    data = run.data
    for source in data.sources:
        try:
            _check_text(source, run.directory)
        except BedplateError as error:
            raise DataError(f"data.sources, {source.name}: {error}") from error
    if data.corpus is not None and not run.place(data.corpus).is_dir():
        raise DataError(f"data.corpus: {run.place(data.corpus)} does not exist; `bedplate data build` makes a corpus")
    if data.recipe is not None:
        place = run.place(data.recipe)
        if not place.is_file():
            raise DataError(f"data.recipe: {place} does not exist")
        load_recipe(place)
    if data.tokenizer is not None and data.tokenizer.source is not None:
        place = run.place(data.tokenizer.source)
        if not place.is_dir():
            check_base(data.tokenizer.source)


def _check_text(source: TextsPart, directory: Path) -> None:
    """As `run.texts.read_source` tells texts apart."""
    if source.source == STDLIB:
        return
    place = directory / Path(source.source).expanduser()
    if place.is_dir() or (place.suffix.lower() in TEXT_FILES and place.is_file()):
        return
    if place.suffix.lower() in TEXT_FILES:
        raise DataError(f"{place} does not exist")
    check_source(source.source, directory)
