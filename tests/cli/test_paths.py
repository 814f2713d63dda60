"""Typos, missing files and places that cannot be written are answered before anything heavy is imported, in well under
half a second of computing."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

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
ADAPT = ("adapt", "task.yaml", "--out", "out")
CASES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("adpat",), "did you mean 'adapt'"),
    (("adapt", "none.yaml", "--out", "out"), "none.yaml does not exist"),
    (("adapt", "task.yaml", "--out", "file/out"), "cannot write file/out"),
    (("adapt", "task.yaml", "--out", "file"), "cannot write file: it is a file"),
    ((*ADAPT, "--rungs", "lroa"), "there is no rung 'lroa'; did you mean 'lora'?"),
    ((*ADAPT, "--budget", "ten"), "--budget 'ten' is not a length of time"),
    ((*ADAPT, "--curve", "50,x"), "--curve 'x' is not a number"),
    ((*ADAPT, "--curve", "50.5"), "whole numbers of labels"),
    ((*ADAPT, "adapt.targt.value=1"), "did you mean 'target'?"),
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
    (("predict", "none", "rows.csv", "--out", "o"), "none is not a skin: it does not exist"),
    (("predict", "skin", "rows.csv", "--out", "o"), "skin is not a skin: it has no skin.json"),
    (("generate", "smolm2", "hi"), "did you mean smollm2-135m"),
    (("chat", "smolm2"), "did you mean smollm2-135m"),
    (("doctor", "smolm2"), "did you mean smollm2-135m"),
    (("export", "smolm2", "o"), "did you mean smollm2-135m"),
    (("convert", "smollm2-135m", "file/o.gguf"), "cannot write file/o.gguf"),
    (("plan", "calibrate", "smolm2"), "did you mean smollm2-135m"),
    (("plan", "train", "llama-3.1-8b", "--tokens", "1TT"), "--tokens '1TT' is not a number"),
    (("serve", "smolm2"), "did you mean smollm2-135m"),
    (("serve", "smollm2-135m", "--skin", "none"), "none is not a skin"),
    (("serve", "--config", "none.yaml"), "none.yaml does not exist"),
    (("serve", "--config", "server.yaml", "prot=1"), "did you mean 'port'?"),
    (("pretrain", "none.yaml"), "none.yaml does not exist"),
    (("pretrain", "task.yaml", "--out", "file/x"), "cannot write file/x"),
    (("data", "build", "none.yaml"), "none.yaml does not exist"),
    (("data", "search-mixture", "none.yaml"), "none.yaml does not exist"),
    (("skins", "compare", "none", "skin", "rows.csv"), "none is not a skin"),
    (("skins", "verify", "none"), "none is not a skin"),
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
import io, json, sys, time
from contextlib import redirect_stderr, redirect_stdout
from bedplate.cli.main import main
found = []
for words in json.loads(sys.argv[1]):
    said, out = io.StringIO(), io.StringIO()
    began = time.process_time()
    with redirect_stderr(said), redirect_stdout(out):
        try:
            main(words)
        except SystemExit as ended:
            code = ended.code
    heavy = sorted({"torch", "scipy", "sklearn", "matplotlib", "fastapi", "transformers"} & set(sys.modules))
    found.append([code, said.getvalue(), heavy, time.process_time() - began])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], tuple[int, str, list[str], float]]:
    """What each command answers: code, stderr, heavy modules that are loaded by then, seconds of computing."""
    place = tmp_path_factory.mktemp("typos")
    (place / "task.yaml").write_text(TASK)
    (place / "rows.csv").write_text("text,label\nx,a\ny,b\n")
    (place / "file").write_text("mine")
    (place / "server.yaml").write_text("bases: [{source: smollm2-135m}]\n")
    (place / "skin").mkdir()
    words = json.dumps([words for words, _ in CASES])
    done = subprocess.run(
        [sys.executable, "-c", CODE, words], cwd=place, capture_output=True, text=True, check=True, timeout=120
    )
    return {words: tuple(one) for (words, _), one in zip(CASES, json.loads(done.stdout), strict=True)}


@pytest.mark.parametrize(("words", "said"), CASES, ids=lambda one: " ".join(one)[:60] if isinstance(one, tuple) else "")
def test_what_is_wrong_is_said_at_once(
    answers: dict[tuple[str, ...], tuple[int, str, list[str], float]], words: tuple[str, ...], said: str
) -> None:
    code, error, heavy, seconds = answers[words]
    assert code in (1, 2), error
    assert said in error
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert heavy == []
    assert seconds < 0.5
