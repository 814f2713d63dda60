"""lm-eval itself, unmodified, against the server; its numbers per sample against the engine's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import yaml
from tests.serving.conftest import LABELS, Server

from bedplate.inference.engine.requests import Generate, Sampling, Score

TEXTS = ("this product is great", "it broke after a day", "terrible quality", "ü 😀 works well", "the answer is")
ABSOLUTE = 1e-4
STOP = ("\n\n", "a!", "b!", "c!", "d!")


def prompt_of(text):
    return f"Review: {text}\nSentiment:"


def write_tasks(root, server):
    """Task files over local rows: choices, one continuation (the greedy one for some), whole texts, generation."""
    rows = [
        {"text": prompt_of(text), "whole": text, "label": LABELS[i % 2], "next": " yes"} for i, text in enumerate(TEXTS)
    ]
    for row in rows[:3]:
        row["next"] = greedy(server, row["text"], 3)
    (root / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(root / "rows.json")}},
        "test_split": "test",
        "num_fewshot": 0,
        "doc_to_text": "{{text}}",
        "metadata": {"version": 1},
    }
    tasks = {
        "choice": {"output_type": "multiple_choice", "doc_to_choice": list(LABELS), "doc_to_target": "{{label}}"},
        "single": {"output_type": "loglikelihood", "doc_to_target": "{{next}}", "target_delimiter": ""},
        "rolling": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{whole}}"},
        "written": {
            "output_type": "generate_until",
            "doc_to_target": "{{label}}",
            "generation_kwargs": {"max_gen_toks": 8, "until": list(STOP), "temperature": 0},
        },
    }
    metrics = {"choice": "acc", "single": "acc", "rolling": "byte_perplexity", "written": "exact_match"}
    for name, task in tasks.items():
        whole = common | task | {"task": f"bp_{name}", "metric_list": [{"metric": metrics[name]}]}
        (root / f"{name}.yaml").write_text(yaml.safe_dump(whole))


def engine_of(server):
    return server.skins["writer"].engine


def greedy(server, text, count):
    """Text of the likeliest next tokens, of which the tokenizer makes the same tokens again."""
    tokenizer = server.tokenizer
    ids = tokenizer.encode(text)
    for length in range(count, 0, -1):
        sampling = Sampling(max_tokens=length, ignore_eos=True)
        token_ids = engine_of(server).run([Generate(tuple(ids), sampling)])[0].token_ids
        written = tokenizer.decode(token_ids, skip_special_tokens=False)
        if tokenizer.encode(text + written) == [*ids, *token_ids]:
            return written
    return " no"


RUNS = """
import json, sys
from lm_eval.api.registry import get_model
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

root, runs = sys.argv[1], json.loads(sys.argv[2])
manager = TaskManager(include_path=root, include_defaults=False)
for run in runs:
    tasks = manager.load_task_or_group(run["tasks"])
    model = get_model(run["model"]).create_from_arg_obj(run["arguments"])
    results = evaluate(model, tasks, bootstrap_iters=0, apply_chat_template=run["template"])
    with open(run["out"], "w") as file:
        json.dump(results["samples"], file)
"""
"""What `python -m lm_eval run` does, for several runs: most of its time goes into imports, a list of all the tasks that
it comes with, a description of the machine and bootstraps of standard errors."""


def run_of(root, server: Server, model: str, tasks: Sequence[str], *, path: str = "/v1/completions", **arguments):
    """What lm-eval is called with; samples are written under root."""
    arguments = {"model": "tiny", "base_url": server.url + path, "max_length": 512, "max_retries": 1} | arguments
    chat = model == CHATS
    out = str(root / f"{model}.json")
    return {"model": model, "arguments": arguments, "tasks": list(tasks), "template": chat, "out": out}


def run_lm_eval(root, *runs: dict[str, Any]) -> None:
    inherited = {key: os.environ[key] for key in ("PATH", "PYTHONPATH", "HOME", "TMPDIR") if key in os.environ}
    environment = inherited | {
        "HF_HOME": str(root / "hf"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "*",
    }
    line = [sys.executable, "-c", RUNS, str(root), json.dumps(runs)]
    completed = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert completed.returncode == 0, completed.stderr[-3000:]


def samples(root, model: str, task: str):
    """Of a task, as lm-eval gives them."""
    return sorted(json.loads((root / f"{model}.json").read_text())[task], key=lambda line: line["doc_id"])


def log_likelihood(server, context, continuation):
    """Its total, and whether it is what greedy decoding gives, in float32 by the engine."""
    encode = server.tokenizer.encode
    spaces = len(context) - len(context.rstrip())
    if spaces:  # lm-eval moves them to the continuation
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    start = tuple(encode(context))
    suffix = tuple(encode(context + continuation))[len(start) :]
    sampling = Sampling(max_tokens=len(suffix), ignore_eos=True)
    scores, generated = engine_of(server).run([Score(start, (suffix,)), Generate(start, sampling)])
    return scores.totals[0], generated.token_ids == suffix


COMPLETIONS, CHATS = "local-completions", "local-chat-completions"
TASKS = ("bp_choice", "bp_single", "bp_rolling", "bp_written")


def completions(root, server, batch: int):
    return run_of(root, server, COMPLETIONS, TASKS, batch_size=batch, tokenizer_backend="remote")


@pytest.fixture(scope="module")
def logged(tmp_path_factory, server):
    """Where lm-eval logged what it was answered: completions, three at a time, and chats."""
    root = tmp_path_factory.mktemp("lm-eval")
    write_tasks(root, server)
    chats = run_of(root, server, CHATS, ["bp_written"], path="/v1/chat/completions")
    run_lm_eval(root, completions(root, server, 3), chats)
    return root


@pytest.mark.slow
def test_completions_score_and_write_as_the_engine_does(logged, server):
    check_completions(logged, server)


@pytest.mark.slow
def test_completions_one_at_a_time_too(tmp_path, server):
    write_tasks(tmp_path, server)
    run_lm_eval(tmp_path, completions(tmp_path, server, 1))
    check_completions(tmp_path, server)


def check_completions(root, server):
    samples_by_task = {task: samples(root, COMPLETIONS, task) for task in TASKS}
    flags = []
    for name in ("bp_choice", "bp_single"):
        assert len(samples_by_task[name]) == len(TEXTS)
        for sample in samples_by_task[name]:
            for (context, continuation), resp in zip(sample["arguments"], sample["resps"], strict=True):
                total, is_greedy = log_likelihood(server, context, continuation)
                assert float(resp[0][0]) == pytest.approx(total, abs=ABSOLUTE)
                assert str(resp[0][1]) == str(is_greedy)
                flags.append(is_greedy)
    assert len(set(flags)) == 2  # both kinds were there
    tokenizer = server.tokenizer
    prefix = tokenizer.bos_id or tokenizer.eos_id  # lm-eval takes a BOS of 0 for none
    for sample, text in zip(samples_by_task["bp_rolling"], TEXTS, strict=True):
        score = Score((prefix,), (tuple(tokenizer.encode(text)),))
        total = engine_of(server).run([score])[0].totals[0]
        resp = sample["resps"][0]
        assert float(resp[0] if isinstance(resp, list) else resp) == pytest.approx(total, abs=ABSOLUTE)
    for sample, text in zip(samples_by_task["bp_written"], TEXTS, strict=True):
        request = Generate(tuple(tokenizer.encode(prompt_of(text))), Sampling(max_tokens=8, stop=STOP))
        assert sample["resps"][0][0] == engine_of(server).run([request])[0].text


@pytest.mark.slow
def test_chats_write_as_the_engine_does(logged, server):
    for sample, text in zip(samples(logged, CHATS, "bp_written"), TEXTS, strict=True):
        tokens = server.tokenizer.encode_chat([{"role": "user", "content": prompt_of(text)}])
        # this client sends the first four stop strings only
        request = Generate(tuple(tokens), Sampling(max_tokens=8, stop=STOP[:4]))
        assert sample["resps"][0][0] == engine_of(server).run([request])[0].text
