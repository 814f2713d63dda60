"""bedplate data: a corpus from a recipe on the command line, and what is asked of it afterwards."""

from __future__ import annotations

import json
import math
import re
from itertools import pairwise
from pathlib import Path

import pytest
from tests.pretraining.runs import tiny_run
from tests.tiny import write_tiny_base

from bedplate.cli.main import main
from bedplate.data.corpus.fates import fates_of
from bedplate.inference.predict.loaded import load
from bedplate.inference.predict.skin_bases import LoadedSkin
from bedplate.models.checkpoints.base import load_base
from bedplate.pretraining.run.data import built_corpus
from bedplate.skins.files import write_skin
from bedplate.skins.output import LabelOutput
from bedplate.skins.phrasings import default_continuations, default_prompt
from bedplate.skins.skin import BaseReference, EvaluatedWith, InputField, Skin

RECIPE = """
corpus: tiny
preset: none
sources: [{name: notes, kind: files, path: notes}]
tokenizer: {train: {vocab_size: 300}}
"""


def run(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "notes").mkdir()
    for name in ("one", "two", "three"):
        (tmp_path / f"notes/{name}.txt").write_text(f"{name} <b>says</b> something of its own, {name * 3}")
    (tmp_path / "notes/two again.txt").write_text((tmp_path / "notes/two.txt").read_text())
    (tmp_path / "notes/empty.txt").write_text(" ")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def test_build_funnel_explain_verify(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, page = recipe.parent / "corpus", recipe.parent / "funnel.html"
    assert run("data", "build", recipe, "split.valid=0.4", "--out", out, "--processes", "1") == 0
    assert "exact_duplicate" in capsys.readouterr().out
    assert "split:\n  valid: 0.4" in (out / "recipe.yaml").read_text()
    assert run("data", "build", recipe, "split.valid=0.4", "--out", out, "--processes", "1", "--json") == 0
    repeated = json.loads(capsys.readouterr().out)
    assert (repeated["new"], repeated["kept"], repeated["documents"]) == (False, 3, 5)
    bracket = recipe.parent / "c[red]x"
    for _ in range(2):
        assert run("data", "build", recipe, "--out", bracket, "--processes", "1") == 0
        output = capsys.readouterr().out.replace("\n", "")
    assert f"{bracket} is already built" in output
    assert run("data", "funnel", out, "--page", page, "--json") == 0
    assert json.loads(capsys.readouterr().out)["steps"][1]["reasons"] == {"copy": 1}
    text = page.read_text()
    assert "Content-Security-Policy" in text
    assert "two again.txt" in text
    assert "<b>says</b>" not in text
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org/", "")
    assert run("data", "explain", out, "two.txt") == 0
    output = capsys.readouterr().out
    assert output == "notes: two.txt (47 characters): dropped by exact_duplicate (copy: of two again.txt)\n"
    assert run("data", "explain", out, "empty.txt", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["rule"] == "length"
    assert run("data", "verify", out) == 0
    assert "are whole" in capsys.readouterr().out


def test_a_folder_is_explained_by_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Copies of different documents are one line, and documents that a text was cut into are counted."""
    folder = tmp_path / "notes" / "sub"
    folder.mkdir(parents=True)
    for number in range(6):
        (folder / f"{number}.txt").write_text(f"It is number {number} that {'abcdef'[number]} says. " * 12)
        (folder / f"{number} again.txt").write_text((folder / f"{number}.txt").read_text())
    (tmp_path / "notes" / "other.txt").write_text("Something else altogether.")
    (tmp_path / "recipe.yaml").write_text(f"{RECIPE}cut: {{characters: 100}}\nsplit: {{valid: 0}}\n")
    out = tmp_path / "corpus"
    assert run("data", "build", tmp_path / "recipe.yaml", "--out", out, "--processes", "1") == 0
    capsys.readouterr()
    lines: list[list[str]] = []
    for name in ("sub", "notes"):
        assert run("data", "explain", out, name) == 0
        lines.append(sorted(capsys.readouterr().out.splitlines()))
    assert lines[0][0] == "notes: sub: dropped by exact_duplicate (copy): 6 documents"
    assert re.fullmatch(r"notes: sub: kept, in train: 6 documents, cut into \d\d", lines[0][1])
    assert len(lines[0]) == 2
    assert lines[1][1].startswith("notes: notes: kept, in train: 7 documents, cut into ")


def test_mistakes(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data", "build", recipe, "sources.0.path=gone", "--out", recipe.parent / "c", "--processes", "1") == 1
    assert "source 'notes': " in capsys.readouterr().err
    assert run("data", "build", recipe, "preset=proze") == 2
    assert "preset" in capsys.readouterr().err
    for verb in ("funnel", "verify"):
        assert run("data", verb, recipe.parent) == 1
        assert "bedplate data build" in capsys.readouterr().err
    judged = "rules.judged={skin: gone, label: good}"
    assert run("data", "build", recipe, judged, "--out", recipe.parent / "c", "--processes", "1") != 0
    assert "gone" in capsys.readouterr().err


def test_a_skin_judges(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = recipe.parent
    base, labels = write_tiny_base(place / "base"), ("poor", "good")
    skin = Skin(
        name="quality",
        bases={"main": BaseReference.of(str(base), "llama", load_base(base).identity)},
        inputs={"text": InputField()},
        output=LabelOutput(labels=labels, continuations=default_continuations(labels)),
        prompt=default_prompt("quality", "Decide.", ["text"], labels),
        evaluated_with=EvaluatedWith(weights="float32"),
    )
    write_skin(skin, place / "skin")
    with load(place / "skin") as loaded:
        assert isinstance(loaded, LoadedSkin)
        texts = {name: (place / f"notes/{name}.txt").read_text() for name in ("one", "three", "two again")}
        scores = {name: math.exp(loaded.predict([{"text": text}])[0].scores["good"]) for name, text in texts.items()}
    ordered = sorted(scores.values())
    bar = max(((b - a, (a + b) / 2) for a, b in pairwise(ordered)))[1]
    assert ordered[-1] - ordered[0] > 1e-5
    rule = f"rules.judged={{skin: skin, label: good, at_least: {bar!r}}}"
    alone = ("--processes", "1")
    assert run("data", "build", recipe, rule, "dedup.exact=false", "--out", place / "c", "--json", *alone) == 0
    passing = {name for name in texts if fates_of(place / "c", f"{name}.txt")[0].rule is None}
    assert passing == {name for name, score in scores.items() if score >= bar}
    assert fates_of(place / "c", f"{min(scores, key=scores.__getitem__)}.txt")[0].detail.startswith("good: 0.")
    settings = rule.removeprefix("rules.").replace("=", ": ")
    (place / "judged.yaml").write_text(f"{RECIPE}rules: {{{settings}}}\ndedup: {{exact: false}}\n")
    built = built_corpus(tiny_run(place, data={"recipe": "judged.yaml"}), place / "run").directory
    assert passing == {name for name in texts if fates_of(built, f"{name}.txt")[0].rule is None}, (
        "in a run file as well"
    )
    capsys.readouterr()
    assert run("data", "build", recipe, rule.replace("good", "fine"), "--out", place / "d") == 2
    assert "a skin with one input and the label 'fine' is wanted" in capsys.readouterr().err
