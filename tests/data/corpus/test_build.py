"""A corpus from files to shards: what is kept and why, nothing lost on the way, gone on with where it was killed."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bedplate.cli.main import main
from bedplate.core.config import parse_config
from bedplate.core.errors import BedplateError, ConfigError, DataError, UsageError
from bedplate.core.executor import Job, LocalExecutor, Outcome
from bedplate.core.files import file_lock, sha256_file
from bedplate.data.corpus import filter_part as sifting
from bedplate.data.corpus.build import BuiltCorpus, build
from bedplate.data.corpus.fates import fates_of, read_fates, read_funnel
from bedplate.data.corpus.recipe import CorpusRecipe
from bedplate.data.corpus.shards import Corpus
from bedplate.text.tokenizer import Tokenizer

RECIPE = """
corpus: small
preset: code
part_mb: 0.004
sources:
  - {name: tree, kind: code, path: tree}
  - {name: notes, kind: jsonl, path: notes.jsonl, preset: none, licence: CC0-1.0}
tokenizer: {train: {vocab_size: 400}}
decontaminate: {against: [held.txt], words: 8}
split: {valid: 0.2}
"""
LEAKED_TEXT = "the answer to the ultimate question of life is forty two"


def function(number: int) -> str:
    """Each of words of its own: numbers do not tell near-duplicates apart."""
    draw = random.Random(number)
    names = ["".join(draw.choices("abcdefghijklmnop", k=7)) for _ in range(9)]
    return f"def made({', '.join(names)}):\n" + "".join(f"    {a} = {b}({a})\n" for a in names for b in names[:3])


@pytest.fixture
def place(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "node_modules").mkdir(parents=True)
    for number in range(24):
        (tree / f"module_{number:02}.py").write_text(function(number))
    (tree / "copy.py").write_text(function(3).replace("\n", "\n\n"))
    (tree / "near.py").write_text(function(5) * 6 + "# more\n")
    (tree / "near_too.py").write_text(function(5) * 6 + "# less\n")
    (tree / "leak.py").write_text(function(77) + f"# {LEAKED_TEXT.upper()}!\n")
    (tree / "short.py").write_text("x = 1\n")
    (tree / "latin.py").write_bytes(b"# caf\xe9\n" * 40)
    (tree / "data.bin").write_bytes(b"\0\1")
    (tree / "node_modules" / "theirs.js").write_text("var a = 1;\n" * 40)
    lines = [json.dumps({"text": f"{function(100 + n)} mail me at a{n}@b.org"}) for n in range(30)]
    lines += ["{not json", json.dumps({"title": "no text"}), json.dumps({"text": "\ud800"}), json.dumps({"text": " "})]
    (tmp_path / "notes.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "held.txt").write_text(f"Somewhere it is said: {LEAKED_TEXT}.")
    return tmp_path


def build_corpus(place: Path, out: str = "out", text: str = RECIPE, **settings: Any) -> BuiltCorpus:
    return build(parse_config(text, CorpusRecipe, "recipe.yaml"), place, place / out, quiet=True, **settings)


def test_every_document_has_a_fate_and_the_counts_agree(place: Path) -> None:
    corpus = build_corpus(place).corpus
    out = place / "out"
    expected_rules = {
        "module_00.py": None, "copy.py": "exact_duplicate", "near_too.py": "near_duplicate", "leak.py": "contaminated",
        "short.py": "code", "latin.py": "unreadable",
    }  # fmt: skip
    for id, rule in expected_rules.items():
        [fate] = fates_of(out, id)
        if id != "copy.py":  # which of two is first is the order of their names
            assert fate.rule == rule, id
    assert {fates_of(out, id)[0].rule for id in ("copy.py", "module_03.py")} == {None, "exact_duplicate"}
    assert fates_of(out, "leak.py")[0].detail.startswith("held.txt: ")
    assert fates_of(out, "latin.py")[0].detail == "not_utf8: byte 5 (0xe9)"
    with pytest.raises(DataError, match=r"read no document 'data.bin'"):
        fates_of(out, "data.bin")
    with pytest.raises(DataError, match=r"did you mean 'module_01\.py'"):
        fates_of(out, "modul_01.py")
    fates = [fate for path in (out / "fates").iterdir() for fate in read_fates(path)]
    funnel = read_funnel(out)
    assert funnel["documents"] == len(fates) == 31 + 34
    assert funnel["kept"] == sum(fate.rule is None for fate in fates)
    assert funnel["documents"] - sum(step["dropped"] for step in funnel["steps"]) == funnel["kept"]
    assert [step["rule"] for step in funnel["steps"]] == [
        "skipped", "unreadable", "length", "code", "contaminated", "exact_duplicate", "near_duplicate",
    ]  # fmt: skip
    notes = funnel["sources"]["notes"]
    assert {step["rule"]: step["reasons"] for step in notes["steps"]}["unreadable"] == {
        "lone_surrogate": 1, "no_text": 1, "not_json": 1,
    }  # fmt: skip
    for name, source in corpus.sources.items():
        assert source.documents == sum(fate.rule is None and fate.source == name for fate in fates)
    assert "| notes | jsonl | CC0-1.0 | 34 | 30 |" in (out / "card.md").read_text()
    assert sum(funnel["after"]) == funnel["kept"]


def test_what_lies_in_a_folder_that_is_left_out_is_accounted_for(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nested = place / "tree/lib/site-packages/theirs"
    nested.mkdir(parents=True)
    for number in range(3):
        (nested / f"{number}.py").write_text(function(200 + number))
    (nested / "data.bin").write_bytes(b"\0")
    build_corpus(place)
    out = place / "out"
    funnel = read_funnel(out)
    assert funnel["steps"][0]["reasons"] == {"site-packages": 3, "node_modules": 1}
    assert funnel["sources"]["tree"]["steps"][0]["dropped"] == 4
    assert funnel["before"][0] == 6, "what was not opened has no length"
    [fate] = fates_of(out, "theirs/1.py")
    assert fate.line.endswith("1.py: dropped by skipped (site-packages: folders of this name are not read)")
    assert {fate.id for fate in fates_of(out, "site-packages")} == {
        f"lib/site-packages/theirs/{number}.py" for number in range(3)
    }
    with pytest.raises(SystemExit, match="0"):
        main(["data", "explain", str(out), "site-packages/"])
    assert capsys.readouterr().out == ("tree: site-packages/: dropped by skipped (site-packages): 3 documents\n")
    with pytest.raises(DataError, match="read no document"):
        fates_of(out, "packages")


MIXED = """
corpus: both
preset: mixed
sources:
  - {name: tree, kind: code, path: tree}
  - {name: notes, kind: jsonl, path: notes.jsonl}
tokenizer: {train: {vocab_size: 400}}
"""


@pytest.mark.parametrize(
    ("text", "module", "needs"),
    [
        (MIXED, "datatrove", r"its rule `repetition` needs datatrove"),
        (MIXED, "fasttext", r"its rule `language` needs fasttext"),
        (MIXED.replace("mixed", "code").replace("jsonl", "html"), "trafilatura", r"source 'notes' needs trafilatura"),
        (
            MIXED.replace("mixed", "none").replace("notes.jsonl", "packed"),
            "zstandard",
            r"source 'notes' needs zstandard",
        ),
    ],
)
def test_the_extra_is_missed_before_any_work(
    place: Path, monkeypatch: pytest.MonkeyPatch, text: str, module: str, needs: str
) -> None:
    (place / "packed").mkdir()
    (place / "packed/a.jsonl.zst").write_bytes(b"")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=rf"both needs the extra `data` \({needs}.*pip install 'bedplate\[data\]'"):
        build_corpus(place, text=text)
    assert not (place / "out/.work").exists()


def test_code_alone_needs_no_extra(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("datatrove", "spacy", "fasttext", "trafilatura", "pyarrow"):
        monkeypatch.setitem(sys.modules, module, None)
    assert build_corpus(place, text=MIXED.replace("  - {name: notes, kind: jsonl, path: notes.jsonl}\n", "")).new
    (place / "tree/README.md").write_text("A tree. " * 40)
    with pytest.raises(UsageError, match="needs the extra"):
        build_corpus(place, "again", MIXED.replace("  - {name: notes, kind: jsonl, path: notes.jsonl}\n", ""))


def test_the_shards_hold_the_texts_and_splits_share_nothing(place: Path) -> None:
    build_corpus(place)
    corpus = Corpus.open(place / "out", verify="hashes")
    tokenizer = Tokenizer.from_directory(place / "out")
    texts: dict[str, list[str]] = {
        split: [tokenizer.decode(ids[:-1].tolist()) for ids in corpus.documents("tree", split)]  # type: ignore[arg-type]
        for split in ("train", "valid")
    }
    assert texts["valid"]
    assert not set(texts["train"]) & set(texts["valid"])
    retained = [f for path in (place / "out/fates").glob("tree*") for f in read_fates(path) if f.rule is None]
    files = sorted((place / "tree" / fate.id).read_text() for fate in retained)
    assert sorted(texts["train"] + texts["valid"]) == files
    assert corpus.sources["tree"].bytes == sum(len(text.encode()) for text in files)
    train = corpus.documents("tree", "train")
    assert all((ids[:-1] != corpus.eos_id).all() for ids in train)


def test_the_same_again_is_nothing_to_do_and_another_recipe_is_refused(place: Path) -> None:
    first = build_corpus(place)
    rebuilt = build_corpus(place)
    assert (first.new, rebuilt.new) == (True, False)
    assert first.corpus.sha256 == rebuilt.corpus.sha256
    with pytest.raises(UsageError, match="holds a corpus of another recipe"):
        build_corpus(place, text=RECIPE + "shard_tokens: 9999999\n")
    (place / "tree" / "new.py").write_text(function(99))
    with pytest.raises(UsageError, match="of other files"):
        build_corpus(place)
    with pytest.raises(UsageError, match=r"tree holds other files \(copy\.py"):
        build_corpus(place, "tree")
    with pytest.raises(UsageError, match=r"held\.txt is a file"):
        build_corpus(place, "held.txt")
    with file_lock(place / "new/.lock"), pytest.raises(UsageError, match="in use by another process"):
        build_corpus(place, "new")


class _Killed(LocalExecutor):
    """Dies before its n-th job."""

    def __init__(self, after: int) -> None:
        super().__init__({})
        self.remaining, self.ran = after, list[tuple[str, str]]()

    def run(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        for job in jobs:
            if self.remaining == 0:
                raise KeyboardInterrupt
            self.remaining -= 1
            self.ran.append((job.function, job.name))
            yield from super().run([job])


def test_a_killed_build_goes_on_and_ends_the_same(place: Path) -> None:
    counted = _Killed(1000)
    whole = build_corpus(place, "whole", executor=counted).corpus
    jobs: list[tuple[str, str]] = []
    for after in (2, 1, 3, 100):
        executor = _Killed(after)
        try:
            build_corpus(place, executor=executor)
        except KeyboardInterrupt:
            assert not (place / "out/corpus.json").exists()
        jobs += executor.ran
    assert jobs == counted.ran, "each job once, whatever was killed between them"
    assert Corpus.open(place / "out").sha256 == whole.sha256
    for name in ("funnel.json", "card.md", "recipe.yaml"):
        assert sha256_file(place / "out" / name) == sha256_file(place / "whole" / name)
    for path in (place / "whole/fates").iterdir():
        assert sha256_file(path) == sha256_file(place / "out/fates" / path.name)
    assert not (place / "out/.work").exists()


def test_parts_do_not_change_what_is_in_it(place: Path) -> None:
    small_parts, single_part = (
        build_corpus(place, "many").corpus,
        build_corpus(place, "one", RECIPE.replace("0.004", "32")).corpus,
    )
    assert [s.sha256 for _, _, s in small_parts.manifest.shards()] == [
        s.sha256 for _, _, s in single_part.manifest.shards()
    ]


class _Silent(LocalExecutor):
    def run(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        for job in jobs:
            yield Outcome(job.name, job.name if self.resources else None, None, 0.0)


def test_a_job_that_fails_or_writes_nothing_is_an_error(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="tree-00000 ended without a result"):
        build_corpus(place, executor=_Silent())
    with pytest.raises(DataError, match=r"tree-00000, .*: the job ended, but wrote nothing"):
        build_corpus(place, executor=_Silent({"x": 1}))

    def fails(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("broken")

    monkeypatch.setattr(sifting._Sifter, "run", fails)
    with pytest.raises(DataError, match="sifting tree-00000 failed: ZeroDivisionError: broken"):
        build_corpus(place)
    monkeypatch.undo()
    original_keep = sifting.Tally.accept
    monkeypatch.setattr(
        sifting.Tally, "accept", lambda self, text: None if "def made" in text else original_keep(self, text)
    )
    with pytest.raises(DataError, match=r"were read, but .* kept and .* dropped; the counts must agree"):
        build_corpus(place)


def test_a_source_of_which_little_is_left_is_warned_of(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = [*({"text": f"{n}"} for n in range(40)), {"text": function(90)}, {"text": function(91)}]
    (place / "notes.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    build_corpus(place, text=RECIPE.replace(", preset: none,", ","))
    assert "source 'notes': 1 " in caplog.text
    assert "of its 42 documents are left to train on (dropped: code 40" in caplog.text
    assert "source 'tree'" not in caplog.text


def test_nothing_to_train_on_says_why(place: Path) -> None:
    dropped = RECIPE.replace("preset: code", "preset: code\nrules: {length: {min_characters: 90000}}")
    why = r"source 'tree' has nothing left .* all 31 documents were dropped: length 29 \(short 29\); unreadable 1 \("
    with pytest.raises(DataError, match=why):
        build_corpus(place, text=dropped)
    copied = RECIPE.replace("path: notes.jsonl", "path: copied.jsonl")
    (place / "copied.jsonl").write_text(json.dumps({"text": function(3)}) + "\n")
    with pytest.raises(DataError, match=r"source 'notes' .* all 1 documents were dropped: copies 1; change"):
        build_corpus(place, "copied", copied)
    mistyped = RECIPE.replace("path: notes.jsonl", "path: notes.jsonl, text: txet")
    with pytest.raises(
        DataError, match=r"the first, notes.jsonl\S*: no_text: 'txet' is not there; .*; change how it is read"
    ):
        build_corpus(place, "mistyped", mistyped)
    (place / "empty.jsonl").write_text("")
    empty = "corpus: e\npreset: none\nsources: [{name: a, kind: jsonl, path: empty.jsonl}]\n"
    with pytest.raises(DataError, match="the corpus is empty"):
        build_corpus(place, "e", empty)
    for text, message in (
        (empty.replace("empty.jsonl", "gone.jsonl"), r"source 'a': .*gone.jsonl does not exist"),
        (empty.replace("kind: jsonl", "kind: code"), "empty.jsonl is not a folder"),
        (RECIPE.replace("held.txt", "hold.txt"), "'hold.txt' is not a file, folder, suite or data set"),
        (RECIPE + "rules: {kode: {}}\n", "no rule 'kode'; did you mean 'code'"),
    ):
        with pytest.raises(BedplateError, match=message):
            build_corpus(place, "f", text)


def trained(settings: str) -> str:
    return f"sources: [{{name: a, kind: files, path: b}}]\ntokenizer: {{train: {{{settings}}}}}"


def test_recipes_are_strict() -> None:
    for change, message in (
        ("sources: [{name: a, kind: tape, path: b}]", "sources.0.kind: there is no 'tape'; possible are files, code"),
        ("sources: [{name: a, kind: files, path: b}, {name: a, kind: files, path: c}]", "two sources are named 'a'"),
        ("sources: [{name: a, kind: files, path: b, weight: 1}, {name: c, kind: files, path: c}]", "give all or none"),
        ("sources: []", "at least 1 item"),
        ("sources: [{name: a, kind: files, path: b}]\ntokenizer: {}", "give either train or use"),
        ("sources: [{name: a, kind: pypi, packages: [attrs]}]", "should match pattern"),
        ("sources: [{name: a, kind: pypi, packages: [attrs==1.0], limit: 3}]", "limit does not go with kind pypi"),
        ("sources: [{name: a, kind: files, path: b}]\nprest: code", "did you mean 'preset'"),
        (trained("special: [<a>, <a>]"), "'<a>' is there twice"),
        (trained("special: [<|endoftext|>]"), "'<|endoftext|>' is there twice; <|endoftext|> ends"),
        (trained("special: [' ']"), "white space alone"),
        (trained("vocab_size: 260, special: [a, b, c, d]"), "vocab_size is 260, but .* are 261 ids already"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_config(f"corpus: x\n{change}\n", CorpusRecipe, "r.yaml")


def test_what_is_wrong_with_a_source_is_all_that_is_said() -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config("corpus: x\nsources: [{name: a, kind: files, pth: b, path: c}]\n", CorpusRecipe, "r.yaml")
    assert refused.value.message == "r.yaml, line 2: sources.0.pth: unknown key 'pth'; did you mean 'path'?"


def test_a_limit_and_a_tokenizer_that_exists(place: Path) -> None:
    build_corpus(place)
    text = (
        "corpus: two\npreset: none\nsources: [{name: tree, kind: code, path: tree, limit: 6, weight: 2}]\n"
        f"tokenizer: {{use: {place / 'out'}}}\n"
    )
    corpus = build_corpus(place, "two", text).corpus
    assert read_funnel(place / "two")["documents"] == 6
    assert corpus.sources["tree"].weight == 2
    assert corpus.manifest.tokenizer == Corpus.open(place / "out").manifest.tokenizer
    assert (corpus.documents("tree", "train").lengths() > 1).all()
