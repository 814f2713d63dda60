"""What skins answer in a process that has seen nothing of the test: they are read from their files alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.forked import Command


def answers(directory: Path, skins: Sequence[Path | str], rows: Sequence[Any]) -> list[list[list[Any]]]:
    """For each skin, the output and the scores of each row, asked one by one; `directory` takes what is said."""
    directory.mkdir(parents=True, exist_ok=True)
    (rows_file := directory / "asked.json").write_text(json.dumps(rows))
    process = Command(directory, rows_file, *skins, main="tests.elsewhere")
    assert process.wait() == 0, process.errors
    return json.loads(process.output.splitlines()[-1])


def main() -> None:
    from bedplate.inference.predict.loaded import load

    rows, predictions = json.loads(Path(sys.argv[1]).read_text()), []
    for place in sys.argv[2:]:
        with load(place) as skin:
            predictions.append(
                [[prediction.output, dict(prediction.scores)] for prediction in skin.predict(rows, one_by_one=True)]
            )
    print(json.dumps(predictions), flush=True)
