"""Small tasks whose answers are written: JSON of two fields, a text, several labels, all given away by the input."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml

FRUITS = ("apples", "pears", "plums", "figs")
SCHEMA = {
    "type": "object",
    "properties": {
        "what": {"enum": list(FRUITS), "description": "the fruit"},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["what", "count"],
    "additionalProperties": False,
}
OUTPUTS: dict[str, tuple[dict[str, Any], str]] = {
    "json": ({"kind": "json", "json_schema": SCHEMA}, "json_fields"),
    "text": ({"kind": "text"}, "chrf"),
    "labels": ({"kind": "labels", "labels": list(FRUITS)}, "example_f1"),
}


def write_rows(path: Path, output_type: str, groups: int = 18, rows_per_group: int = 2, seed: int = 0) -> Path:
    """Rows in groups; the order of words and of a JSON target's fields varies."""
    generator = random.Random(seed)
    lines: list[str] = []
    for group in range(groups):
        for number in range(rows_per_group):
            first, second = generator.sample(FRUITS, 2)
            count = generator.randrange(1, 9)
            text = f"{count} {first} {group} {number}"
            target: Any = {"count": count, "what": first}
            if output_type == "text":
                target = f"{first}: {count}"
            elif output_type == "labels":
                text, target = f"{first} and {second} {group} {number}", [first, second]
            lines.append(json.dumps({"id": f"{group}_{number}", "text": text, "answer": target, "group": f"g{group}"}))
    path.write_text("\n".join(lines) + "\n")
    return path


def write_task(directory: Path, base: Path, output_type: str, *, rows: Path | None = None, **adapt: object) -> Path:
    """A task file of one kind of output with its rows beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    output, metric = OUTPUTS[output_type]
    task = {
        "task": f"toy-{output_type}",
        "inputs": {"note": {"column": "text", "kind": "text"}},
        "output": output,
        "instructions": "Say which fruit it is and how many there are.",
        "data": {
            "source": str(write_rows(directory / "rows.jsonl", output_type) if rows is None else rows),
            "target": "answer",
            "group_by": "group",
            "split": {"train": 0.4, "valid": 0.3, "test": 0.3},
        },
        "metric": metric,
        "adapt": {
            "bases": [str(base)],
            "target": {"value": 0.5, "confidence": 0.9},
            "budget": {"p95_ms": 60000, "max_prompt_tokens": 400},
            "machine": {"usd_per_hour": 0.1, "as_of": "2026-11-24"},
            **adapt,
        },
    }
    path = directory / "task.yaml"
    path.write_text(yaml.safe_dump(task, sort_keys=False))
    return path
