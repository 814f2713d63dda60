"""Typos, missing files and places that cannot be written are answered before anything heavy is imported, in well under
half a second of computing."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bedplate.cli.main import VERBS

TASK = """
task: t
inputs: {text: {column: text}}
output: {kind: label, labels: [a, b]}
data:
  {source: rows.csv, target: label, group_by: null, ungrouped_because: made up,
   split: {train: 0.6, valid: 0.2, test: 0.2}}
metric: accuracy
adapt:
  bases: [smollm2-135m]
  target: {value: 0.8}
  machine: {usd_per_hour: 0.1, as_of: 2026-01-01}
"""
RUN = """
run: r
data: {sources: [{name: lines, source: text.txt}], tokenizer: {vocab_size: 300}}
model: {params: 1M}
tokens: 5k
"""
RECIPE = """
corpus: notes
sources: [{name: notes, kind: files, path: notes}]
tokenizer: {train: {vocab_size: 300}}
"""
ADAPT = ("adapt", "task.yaml", "--out", "out")
PRETRAIN = ("pretrain", "run.yaml")
CASES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("adpat",), "did you mean 'adapt'"),
    (("adapt", "none.yaml", "--out", "out"), "none.yaml does not exist"),
    ((*ADAPT, "--junit", "file/x.xml"), "cannot write file/x.xml"),
    ((*ADAPT, "--markdown", "skin"), "cannot write skin: it is a directory"),
    (("adapt", "task.yaml", "--out", "file/out"), "cannot write file/out"),
    (("adapt", "task.yaml", "--out", "file"), "cannot write file: it is a file"),
    ((*ADAPT, "--rungs", "lroa"), "there is no rung 'lroa'; did you mean 'lora'?"),
    ((*ADAPT, "--budget", "ten"), "--budget 'ten' is not a length of time"),
    ((*ADAPT, "--curve", "50,x"), "--curve 'x' is not a number"),
    ((*ADAPT, "--curve", "50.5"), "whole numbers of labels"),
    ((*ADAPT, "adapt.targt.value=1"), "did you mean 'adapt.target'?"),
    ((*ADAPT, "adapt.rungs=[prob]"), "there is no rung 'prob'; did you mean 'probe'?"),
    ((*ADAPT, "adapt.bases=[smolm2-135m]"), "adapt.bases: 'smolm2-135m' is in no catalogue"),
    ((*ADAPT, "data.source=row.csv"), "row.csv: the data file does not exist"),
    ((*ADAPT, "data.source=vader-amazn"), "did you mean 'vader-amazon'?"),
    ((*ADAPT, "adapt.prompt={file: prompt.txt}"), "prompt.txt"),
    ((*ADAPT, "adapt=null"), "there is no `adapt` section"),
    ((*ADAPT, "--parent", "./none"), "./none does not exist"),
    (("evaluate", "none/skin", "task.yaml"), "none/skin: no such file or directory"),
    (("evaluate", "skin", "none.jsonl"), "none.jsonl does not exist"),
    (("evaluate", "skin", "task.yaml", "--out", "file/x.json"), "cannot write file/x.json"),
    (("evaluate", "skin", "task.yaml", "--out", "skin"), "cannot write skin: it is a directory"),
    (("evaluate", "skin", "task.yaml", "metrc=f1"), "did you mean 'metric'?"),
    (("evaluate", "skin", "task.yaml", "--split", "dev"), "there is no split 'dev'"),
    (
        ("evaluate", "skin", "task.yaml", "--out", "rows.csv"),
        "rows.csv exists already; choose another name, or replace",
    ),
    (("evaluate", "smollm2-135m", "--suite", "grammer"), "there is no suite 'grammer'; did you mean 'grammar'?"),
    (("evaluate", "smollm2-135m", "--suite", "core", "--limit", "0"), "'0' is not a whole number above 0"),
    (("predict", "made", "rows.csv", "--out", "rows.csv"), "rows.csv exists already"),
    (("predict", "made", "rows.csv", "--out", "answers.txt"), "files that end in .jsonl, .csv, .tsv, .parquet"),
    (("predict", "made", "rows.csv", "--out", "file/x.csv"), "cannot write file/x.csv"),
    (("predict", "made", "rows.csv", "--out", "rows.csv", "--overwrite"), "rows.csv is the file of the rows itself"),
    (("predict", "made", "rows.csv", "--out", "o", "--base", "smolm2"), "did you mean smollm2-135m"),
    (("predict", "none", "rows.csv", "--out", "o"), "none is not a skin: it does not exist"),
    (("predict", "skin", "rows.csv", "--out", "o"), "skin is not a skin: it has no skin.json"),
    (("predict", "run", "rows.csv", "--out", "o"), "it has no skin.json; the skins in it are run/skins/made"),
    (("predict", "run/skins/maed", "rows.csv", "--out", "o"), "did you mean"),
    (("completion", "bsh"), "bsh"),
    (("families", "lama"), "there is no family 'lama'; did you mean 'llama'?"),
    (("pull", "smolm2"), "did you mean smollm2-135m"),
    (("generate", "smollm2-135m", "hi", "--max-tokens", "1e400"), "'1e400' is not a whole number above 0"),
    (("generate", "smolm2", "hi"), "did you mean smollm2-135m"),
    (("chat", "smolm2"), "did you mean smollm2-135m"),
    (("doctor", "smolm2"), "did you mean smollm2-135m"),
    (("export", "smolm2", "o"), "did you mean smollm2-135m"),
    (("convert", "smollm2-135m", "file/o.gguf"), "cannot write file/o.gguf"),
    (("convert", "smollm2-135m", "old.gguf"), "old.gguf exists already"),
    (("export", "smollm2-135m", "skin"), "skin exists already"),
    (
        ("export", "smollm2-135m", "skin", "--overwrite"),
        "skin is a directory without base.json, and --overwrite does not",
    ),
    (("plan", "amortise", "none.yaml"), "none.yaml does not exist"),
    (("plan", "decide", "none.yaml"), "none.yaml"),
    (("plan", "decide", "report.json"), "report.json is a ladder's report; an option of a decision file names it"),
    (("plan", "decide", "none.yaml", "--prices", "no.yaml"), "no.yaml does not exist"),
    (("plan", "scaling", "none"), "none does not exist"),
    (("plan", "train", "lama-3.1-8b", "--tokens", "1T"), "llama-3.1-8b"),
    (("plan", "train", "llama-3.1-8b", "--tokens", "1T", "--hardware", "none.yaml"), "none.yaml does not exist"),
    (("plan", "train", "llama-3.1-8b", "--tokens", "1T", "--page", "file/x.html"), "cannot write file/x.html"),
    (("plan", "serve", "llama-3.1-8b", "--machine", "none.json"), "was not measured yet; run: bedplate plan calibrate"),
    (("plan", "serve", "llama-3.1-8b", "--prompt-tokens", "1x"), "--prompt-tokens is '1x'; write 300 or 1.5k"),
    (("plan", "serve", "llama-3.1-8b", "--p95-ms", "soon"), "'soon' is not a length of time"),
    (("plan", "calibrate", "smolm2"), "did you mean smollm2-135m"),
    (("plan", "train", "llama-3.1-8b", "--tokens", "1TT"), "--tokens '1TT' is not a number"),
    (("serve", "smolm2"), "did you mean smollm2-135m"),
    (("serve", "smollm2-135m", "--skin", "none"), "none is not a skin"),
    (("serve", "--config", "none.yaml"), "none.yaml does not exist"),
    (("serve", "--config", "server.yaml", "prot=1"), "did you mean 'port'?"),
    (("pretrain", "none.yaml"), "none.yaml does not exist"),
    (("serve", "--config", "skins.yaml"), "none is not a skin"),
    (("serve", "smollm2-135m", "--skins-directory", "none"), "none does not exist"),
    (("serve", "smollm2-135m", "--keys", "none.yaml"), "none.yaml does not exist"),
    (("keys", "list", "--file", "none.yaml"), "none.yaml does not exist"),
    (("keys", "create", "k", "--file", "file/x.yaml"), "cannot write file/x.yaml"),
    (("keys", "revoke", "1", "2"), "`bedplate keys revoke` takes one id"),
    (("feedback", "list", "--state", "none"), "none does not exist"),
    (("feedback", "export", "m", "--out", "old.jsonl"), "old.jsonl exists already"),
    (("pretrain", "task.yaml", "--out", "file/x"), "cannot write file/x"),
    ((*PRETRAIN, "tokns=1k"), "did you mean 'tokens'?"),
    ((*PRETRAIN, "objective=next_tokn"), "there is no objective 'next_tokn'; did you mean 'next_token'?"),
    ((*PRETRAIN, "evaluation.suites=[grammer]"), "there is no suite 'grammer'; did you mean 'grammar'?"),
    ((*PRETRAIN, "data.sources=[{name: a, source: none.txt}]"), "data.sources, a: none.txt does not exist"),
    ((*PRETRAIN, "data.sources=[{name: a, source: none.csv}]"), "none.csv: the data file does not exist"),
    ((*PRETRAIN, "data={corpus: none}"), "none does not exist; `bedplate data build RECIPE.yaml` makes one"),
    ((*PRETRAIN, "data={recipe: none.yaml}"), "data.recipe: none.yaml does not exist"),
    (
        (*PRETRAIN, "data={recipe: typo.yaml}"),
        "typo.yaml, line 5: corpsu: unknown key 'corpsu'; did you mean 'corpus'?",
    ),
    ((*PRETRAIN, "data.tokenizer={source: smolm2}"), "did you mean smollm2-135m"),
    ((*PRETRAIN, "model=null", "data.tokenizer=null", "base=smolm2"), "did you mean smollm2-135m"),
    ((*PRETRAIN, "model.family=lama"), "model type 'lama' is not supported"),
    ((*PRETRAIN, "hardware.device=h10"), "there is no device 'h10'"),
    (("data", "build", "none.yaml"), "none.yaml does not exist"),
    (("data", "build", "recipe.yaml", "corpsu=x"), "did you mean 'corpus'?"),
    (("data", "explain", "none", "id"), "none does not exist"),
    (("data", "funnel", "none"), "none does not exist"),
    (("data", "verify", "file"), "file is a file, not a directory"),
    (("data", "search-mixture", "none.yaml"), "none.yaml does not exist"),
    (("data", "search-mixture", "run.yaml", "tokns=1k"), "did you mean 'tokens'?"),
    (("skins", "compare", "none", "skin", "rows.csv"), "none is not a skin"),
    (("skins", "compare", "made", "made", "rows.csv", "--out", "old.jsonl"), "old.jsonl exists already"),
    (("skins", "list", "none"), "none does not exist"),
    (("skins", "verify", "none"), "none is not a skin"),
    (("skins", "verify", "made", "smolm2"), "did you mean smollm2-135m"),
    (("skins", "merge", "none", "--out", "o"), "none is not a skin"),
    (("skins", "merge", "made", "--out", "skin"), "skin exists already"),
    (("skins", "export", "made", "--out", "skin", "--overwrite"), "skin is a directory without prompt.json"),
    (("skins", "export", "none", "--out", "o"), "none is not a skin"),
    (("skins", "show", "./none"), "./none does not exist"),
    (("skins", "trace", "none/skin"), "none/skin does not exist"),
    (("skins", "reproduce", "./none"), "./none does not exist"),
    (("feedback", "export", "m", "--out", "file/x.jsonl"), "cannot write file/x.jsonl"),
    (("init", "none.csv"), "none.csv does not exist"),
    (("init", "rows.csv", "smolm2", "--out", "new.yaml"), "did you mean smollm2-135m"),
    (("init", "rows.csv", "--out", "task.yaml"), "task.yaml exists already"),
)
CODE = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from bedplate.cli.main import main
answers = []
for words in json.loads(sys.argv[1]):
    said, out = io.StringIO(), io.StringIO()
    with redirect_stderr(said), redirect_stdout(out):
        try:
            main(words)
        except SystemExit as ended:
            code = ended.code
    heavy = sorted({"torch", "scipy", "sklearn", "matplotlib", "fastapi", "transformers"} & set(sys.modules))
    answers.append([code, said.getvalue(), heavy])
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], tuple[int, str, list[str]]]:
    """What each command answers: code, stderr, and heavy modules that are loaded by then."""
    place = tmp_path_factory.mktemp("typos")
    (place / "task.yaml").write_text(TASK)
    (place / "rows.csv").write_text("text,label\nx,a\ny,b\n")
    (place / "file").write_text("mine")
    (place / "server.yaml").write_text("bases: [{source: smollm2-135m}]\n")
    (place / "run.yaml").write_text(RUN)
    (place / "recipe.yaml").write_text(RECIPE)
    (place / "typo.yaml").write_text(f"{RECIPE}corpsu: x\n")
    (place / "text.txt").write_text("a text\n")
    (place / "skins.yaml").write_text("bases: [{source: smollm2-135m}]\nskins: [{source: none}]\n")
    (place / "report.json").write_text('{"schema_version": 1}')
    for old in ("old.gguf", "old.jsonl"):
        (place / old).write_text("mine")
    (place / "skin").mkdir()
    (place / "made").mkdir()
    (place / "made" / "skin.json").write_text("{}")
    shutil.copytree(place / "made", place / "run" / "skins" / "made")
    words = json.dumps([words for words, _ in CASES])
    completed = subprocess.run(
        [sys.executable, "-c", CODE, words], cwd=place, capture_output=True, text=True, check=True, timeout=120
    )
    return {words: tuple(answer) for (words, _), answer in zip(CASES, json.loads(completed.stdout), strict=True)}


@pytest.mark.parametrize(
    ("words", "message"), CASES, ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else ""
)
def test_what_is_wrong_is_said_at_once(
    answers: dict[tuple[str, ...], tuple[int, str, list[str]]], words: tuple[str, ...], message: str
) -> None:
    code, error, heavy = answers[words]
    assert code in (1, 2), error
    assert message in error
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert heavy == []


UNCHECKED = {("evaluate", "rows"), ("keys", "file"), ("plan", "machine")}
"""Checked in the command itself: what is asked for besides decides what they have to be, or what makes one is said."""


def commands(
    table: Mapping[str, tuple[str, str]], before: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The words of every command, and its function."""
    for verb, (module, _) in table.items():
        loaded = importlib.import_module(module)
        actions = getattr(loaded, "ACTIONS", None)
        if actions is not None:
            yield from commands(actions, (*before, verb))
        else:
            yield (*before, verb), getattr(loaded, verb.replace("-", "_"))


@pytest.mark.parametrize(
    ("words", "function"), list(commands(VERBS)), ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_every_command_says_what_is_wrong_with_its_files_before_it_works(words: tuple[str, ...], function: Any) -> None:
    """A command that is added to the table has to check what it is given, and a case of it belongs into CASES."""
    unchecked: list[str] = []
    for name, hint in typing.get_type_hints(function, include_extras=True).items():
        parts = (hint, *typing.get_args(hint))
        if any(part is Path or Path in typing.get_args(part) for part in parts):
            checker = next((part.callback for part in parts if hasattr(part, "callback")), None)
            unchecked += [name] if checker is None and (words[0], name) not in UNCHECKED else []
    assert unchecked == []
    assert any(case[: len(words)] == words for case, _ in CASES), f"no case of bedplate {' '.join(words)}"
