"""A kind of source, a rule of curation or a format of table files is one row: recipes, funnels, tasks and messages take
it from there."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import yaml

from bedplate.core.config import Strict, dump_config, parse_config
from bedplate.core.errors import ConfigError, DataError
from bedplate.data.corpus.build import build
from bedplate.data.corpus.curate.draft import DraftDocument, Rule, Tools
from bedplate.data.corpus.curate.presets import RULES, RuleKind, checked
from bedplate.data.corpus.fates import fates_of, read_funnel
from bedplate.data.corpus.readers import READERS
from bedplate.data.corpus.readers.parts import RawDocument, Read, SourcePart, SourceSettings, grouped, whole
from bedplate.data.corpus.recipe import CorpusRecipe
from bedplate.data.sources import read_rows
from bedplate.data.tables import FORMATS, FileFormat, FileRow
from bedplate.evaluation.examples import load_examples
from bedplate.evaluation.task import load_task


class ShoutingSettings(Strict):
    """The share of capitals from which a text is dropped."""

    share: float = 0.5


def shouting(settings: ShoutingSettings, tools: Tools) -> Rule:
    def rule(draft: DraftDocument) -> str | None:
        capitals = sum(map(str.isupper, draft.text)) / max(1, len(draft.text))
        return "capitals" if capitals >= settings.share else None

    return rule


class VerseSettings(SourceSettings):
    """A file whose stanzas are documents. path: the file."""

    path: str
    mark: str = "*"


class VerseReader:
    settings = VerseSettings

    def plan(self, source: VerseSettings, directory: Path, part_bytes: int) -> list[SourcePart]:
        file = directory / source.path
        return grouped(source, file.parent, [whole(file)], part_bytes)

    def read(self, source: VerseSettings, part: SourcePart) -> Iterator[Read]:
        for number, stanza in enumerate(Path(part.pieces[0].path).read_text().split(source.mark)):
            yield RawDocument(f"stanza {number}", stanza)


def test_a_kind_of_source_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READERS, "verse", VerseReader())
    text = RECIPE.replace("kind: jsonl, path: notes.jsonl", "kind: verse, path: poem, mark: '/'").partition("rules")[0]
    draw = random.Random(1)
    stanzas = [" ".join("".join(draw.choices("abcdefgh", k=6)) for _ in range(12)) for _ in range(20)]
    (tmp_path / "poem").write_text("/".join(stanzas))
    recipe = parse_config(text, CorpusRecipe, "recipe.yaml")
    assert parse_config(dump_config(recipe), CorpusRecipe, "again.yaml") == recipe
    build(recipe, tmp_path, tmp_path / "out", quiet=True)
    assert read_funnel(tmp_path / "out")["documents"] == 20
    assert [fate.rule for fate in fates_of(tmp_path / "out", "stanza 3")] == [None]
    for mistake, message in {
        "merk: '/'": r"line 4: sources\.0\.merk: unknown key 'merk'; did you mean 'mark'",
        "kind: verses": r"line 4: sources\.0\.kind: there is no 'verses'; did you mean 'verse'",
    }.items():
        with pytest.raises(ConfigError, match=message):
            parse_config(
                text.replace({"m": "mark: '/'", "k": "kind: verse"}[mistake[0]], mistake), CorpusRecipe, "r.yaml"
            )


RECIPE = """
corpus: small
preset: none
sources: [{name: notes, kind: jsonl, path: notes.jsonl}]
tokenizer: {train: {vocab_size: 300}}
rules: {shouting: {share: 0.8}}
"""


def test_a_rule_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "shouting", RuleKind(ShoutingSettings, shouting))
    draw = random.Random(0)
    texts = [" ".join("".join(draw.choices("abcdefgh", k=6)) for _ in range(12)) for _ in range(20)]
    texts[4] = "LOUDLOUDLOUDLOUD"
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    (tmp_path / "notes.jsonl").write_text("".join(lines))
    build(parse_config(RECIPE, CorpusRecipe, "recipe.yaml"), tmp_path, tmp_path / "out", quiet=True)
    steps = {step["rule"]: step["dropped"] for step in read_funnel(tmp_path / "out")["steps"]}
    assert steps == {"shouting": 1}
    assert [fate.rule for fate in fates_of(tmp_path / "out", f"notes.jsonl@{sum(map(len, lines[:4]))}")] == ["shouting"]
    with pytest.raises(ConfigError, match=r"rules\.shouting: unknown key 'shore'; did you mean 'share'"):
        checked({"shouting": {"shore": 0.8}})


def _pairs(stream: IO[bytes], name: str) -> Iterator[FileRow]:
    """Lines of key=value pairs."""
    for number, line in enumerate(stream.read().decode().splitlines(), start=1):
        value: dict[str, Any] = dict(cell.split("=", 1) for cell in line.split(";"))
        yield FileRow(number, value)


def test_a_format_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, ".pairs", FileFormat(_pairs))
    lines = [f"text=row {number};label={'ab'[number % 2]};group=g{number}" for number in range(60)]
    (tmp_path / "rows.pairs").write_text("\n".join(lines) + "\n")
    assert read_rows("rows.pairs", tmp_path).rows[1] == {"text": "row 1", "label": "b", "group": "g1"}
    task = {
        "task": "toy",
        "inputs": {"text": {"column": "text"}},
        "output": {"kind": "label", "labels": ["a", "b"]},
        "data": {
            "source": "rows.pairs",
            "target": "label",
            "group_by": "group",
            "split": {"train": 0.6, "valid": 0.2, "test": 0.2},
        },
        "metric": "accuracy",
    }
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(task))
    assert len(load_examples(load_task(tmp_path / "task.yaml")).train) == 36
    with pytest.raises(DataError, match=r"files end in .*\.pairs"):
        read_rows("rows.odd", tmp_path)
