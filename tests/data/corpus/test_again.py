"""A build that is asked for again: by another judge, in a place that others used, with copies, on a full disk."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bedplate.core.config import parse_config
from bedplate.core.errors import UsageError
from bedplate.core.executor import Job, LocalExecutor, Outcome
from bedplate.core.processor import processor
from bedplate.data.corpus import build as building
from bedplate.data.corpus.build import BuiltCorpus, build, processes_here
from bedplate.data.corpus.fates import fates_of, read_fates, read_funnel
from bedplate.data.corpus.recipe import CorpusRecipe
from bedplate.data.corpus.shards import save_array, save_arrays

RECIPE = "corpus: c\npreset: none\nsources: [{name: a, kind: files, path: t}]\ntokenizer: {train: {vocab_size: 300}}\n"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "t").mkdir()
    for name in "abcdef":
        (tmp_path / f"t/{name}.txt").write_text(f"the note of {name * 9} says that it is well\n" * 3)
    return tmp_path


def build_corpus(place: Path, text: str = RECIPE, out: str = "out", **settings: Any) -> BuiltCorpus:
    return build(parse_config(text, CorpusRecipe, "recipe.yaml"), place, place / out, quiet=True, **settings)


def long(texts: Sequence[str]) -> list[float]:
    return [float("aaa" not in text) for text in texts]


def test_another_judge_is_another_build(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "skin").mkdir()
    (place / "skin/skin.json").write_text('{"files": {"head.safetensors": "1"}}')
    text = RECIPE + "rules: {judged: {skin: skin, label: good}}\n"
    used: list[str] = []

    class Elsewhere(LocalExecutor):
        def __init__(self, processes: int) -> None:
            super().__init__()
            assert processes == 3

        def run(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
            for job in jobs:
                used.append(job.function)
                yield from super().run([job])

    monkeypatch.setattr(building, "ProcessExecutor", Elsewhere)
    assert build_corpus(place, text, judges={"skin": long}, processes=3).new
    assert set(used) == {"bedplate.data.corpus.encode:encode"}, "what needs no judge is done elsewhere"
    assert fates_of(place / "out", "a.txt")[0].rule == "judged"
    assert not build_corpus(place, text, judges={"skin": long}).new
    (place / "skin/skin.json").write_text('{"files": {"head.safetensors": "2"}}')
    with pytest.raises(UsageError, match="holds a corpus of another recipe, of other files"):
        build_corpus(place, text, judges={"skin": long})
    (place / "out/corpus.json").unlink()
    assert build_corpus(place, text, judges={"skin": lambda texts: [1.0] * len(texts)}, keep_work=True).new
    assert fates_of(place / "out", "a.txt")[0].rule is None


class _Killed(LocalExecutor):
    """Dies before the first job of encoding."""

    def run(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        for job in jobs:
            if job.function.endswith(":encode"):
                raise KeyboardInterrupt
            yield from super().run([job])


def test_what_another_recipe_left_is_no_part_of_a_corpus(place: Path) -> None:
    out = place / "out"
    first = RECIPE.replace("name: a", "name: other") + "part_mb: 0.0001\n"
    build_corpus(place, first)
    assert len(list((out / "fates").iterdir())) > 1
    (out / "corpus.json").unlink()
    theirs = [out / name / "mine.txt" for name in ("rows", "shards", "fates")]
    for path in (out / "rows/old/layout.json", out / "shards/old.ds.index.part", *theirs):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with pytest.raises(KeyboardInterrupt):
        build_corpus(place, first.replace("other", "third"), executor=_Killed())
    corpus = build_corpus(place).corpus
    for path in theirs:
        path.unlink()  # which is there: only our own are removed
    fates = [fate for path in (out / "fates").iterdir() for fate in read_fates(path)]
    assert [fate.source for fate in fates] == ["a"] * 6
    shards = {shard.file for _, _, shard in corpus.manifest.shards()}
    assert {f"shards/{p.name}" for p in (out / "shards").iterdir()} == shards | {f"{file}.index" for file in shards}
    assert not list((out / "rows").iterdir())
    assert not (out / ".work").exists()
    (out / ".work/parts").mkdir(parents=True)  # as of a build killed between its last two steps
    assert not build_corpus(place).new
    assert not (out / ".work").exists()


def test_of_copies_the_changed_text_counts_once(place: Path) -> None:
    lines = [json.dumps({"text": f"write to jane@example.net about the {word}"}) for word in ("mill", "mill", "river")]
    (place / "a.jsonl").write_text("\n".join([*lines, json.dumps({"text": "nothing to change, nothing to replace"})]))
    text = RECIPE.replace("kind: files, path: t", "kind: jsonl, path: a.jsonl") + "rules: {personal: {}}\n"
    build_corpus(place, text)
    funnel = read_funnel(place / "out")
    assert (funnel["kept"], funnel["changed"]) == (3, {"personal": 2})
    (place / "a.jsonl").write_text("\n".join([lines[0].replace("jane@example.net", "email@example.com"), *lines[:2]]))
    build_corpus(place, text, "second")
    assert read_funnel(place / "second")["changed"] == {}


def test_rules_of_prose_are_not_for_the_code_of_a_mixed_recipe(place: Path) -> None:
    pytest.importorskip("datatrove")
    (place / "t/code.py").write_text("# few words\n" + "".join(f"x_{n} = [{n}, {n}]\n" for n in range(20)))
    (place / "t/page.md").write_text("A page with few words. It is short, and short it stays.\n")
    text = RECIPE.replace("kind: files", "kind: code").replace("preset: none", "preset: mixed")
    text += "rules: {language: null, repetition: null, gopher: {min_words: 40}}\n"
    build_corpus(place, text + "split: {valid: 0}\n")
    fates = {name: fates_of(place / "out", name)[0] for name in ("code.py", "page.md")}
    assert (fates["code.py"].rule, fates["page.md"].rule) == (None, "gopher")


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 64 KiB, which the system refuses as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_arrays_that_find_no_room(tmp_path: Path) -> None:
    save_array(tmp_path / "a/small.npy", np.arange(9))
    assert np.load(tmp_path / "a/small.npy").tolist() == list(range(9))
    for write in (save_array, lambda path, array: save_arrays(path, large=array)):
        with pytest.raises(UsageError, match=r"cannot write .*large: File too large; choose a place"):
            write(tmp_path / "a/large", np.zeros(20_000))
    assert os.listdir(tmp_path / "a") == ["small.npy"]


def test_as_many_processes_as_a_quota_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "processor", lambda: replace(processor(), cores=8, allowed=16, quota=2.5))
    assert processes_here() == 2
