"""A ladder says which rows belong together, or does not start; what was declined stands in its report."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import yaml
from tests.adaptation.conftest import BAD, GOOD, write_task

from bedplate.adaptation.ladder import adapt
from bedplate.adaptation.task.task_file import check_task_file
from bedplate.cli.adapt import groups_said
from bedplate.core.errors import ConfigError


@pytest.fixture
def task(tmp_path: Path, tiny_base: Path) -> Path:
    """Forty shops whose reviews are nearly all good or nearly all bad, in no order; nothing is said of groups."""
    generator = random.Random(0)
    lines: list[str] = []
    for number in range(160):
        shop = number % 40
        good = (shop % 2 == 0) != (generator.random() < 0.1)
        text = f"{generator.choice(GOOD if good else BAD)} {number} {generator.choice('abcdefgh')}"
        label = "positive" if good else "negative"
        lines.append(json.dumps({"id": f"r{number}", "text": text, "label": label, "shop": f"s{shop}"}))
    generator.shuffle(lines)
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    path = write_task(tmp_path / "task", tiny_base, rows=tmp_path / "rows.jsonl", rungs=["majority"])
    values = yaml.safe_load(path.read_text())
    del values["data"]["group_by"]
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def test_a_ladder_does_not_start_until_its_groups_are_said(task: Path, tmp_path: Path) -> None:
    out, alone = tmp_path / "out", ["data.group_by=null", "data.ungrouped_because=each is another buyer"]
    with pytest.raises(ConfigError, match=r"group_by is not said: .*shop has 40 values on 160 rows"):
        check_task_file(task)
    with pytest.raises(ConfigError, match="group_by is not said"):
        adapt(task, out)
    check_task_file(task, alone)
    with pytest.raises(ConfigError, match=r"declare it: data.group_by: shop.*data.not_groups: \{\"shop\""):
        adapt(task, out, overrides=alone)
    assert not out.exists()

    declined = adapt(task, out, overrides=[*alone, "data.not_groups={shop: shops do not write}"])
    grouping = declined.data["data"]["grouping"]
    (shop,) = (column for column in grouping["found"] if column["name"] == "shop")
    assert (shop["strong"], shop["answer"]) == (True, "shops do not write")
    assert shop["effective_rows"] < 80
    assert shop["wider"] == pytest.approx(shop["design_effect"] ** 0.5)
    sentences = groups_said(declined.data["data"])
    assert sentences[0] == "groups: rows are independent, as the task file says: each is another buyer"
    assert any("not a group, as the task file says: shops do not write" in line for line in sentences)
    page = (out / "report.html").read_text("utf-8")
    assert "Rows that belong together" in page
    assert "shops do not write" in page

    declared = adapt(task, tmp_path / "declared", overrides=["data.group_by=shop"])
    assert declared.data["data"]["grouping"]["columns"] == ["shop"]
    assert not any(column["strong"] for column in declared.data["data"]["grouping"]["found"])
    counted = [report.row("majority") for report in (declared, declined)]
    assert None not in counted
    assert [row["groups"] for row in counted if row is not None] == [10, 40]
