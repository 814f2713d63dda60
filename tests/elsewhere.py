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
    (asked := directory / "asked.json").write_text(json.dumps(rows))
    process = Command(directory, asked, *skins, main="tests.elsewhere")
    assert process.wait() == 0, process.errors
    return json.loads(process.said.splitlines()[-1])


def main() -> None:
    from bedplate.inference.predict.loaded import load

    rows, found = json.loads(Path(sys.argv[1]).read_text()), []
    for place in sys.argv[2:]:
        with load(place) as skin:
            found.append([[one.output, dict(one.scores)] for one in skin.predict(rows, one_by_one=True)])
    print(json.dumps(found), flush=True)
