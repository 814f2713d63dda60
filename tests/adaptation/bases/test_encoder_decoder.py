"""The ladder on an encoder–decoder in Flan-T5's shape: prompts without a template, answers that are texts of their own,
LoRA on both sides; and its skin served and asked again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
import torch
from tests.adaptation.written import write_rows, write_task
from tests.homes import new_home
from tests.seq2seq import write_tiny_t5
from tests.serving.conftest import Server, running
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from bedplate.adaptation.ladder import adapt
from bedplate.evaluation.suites.general_text import GeneralText
from bedplate.inference.engine.requests import Generation
from bedplate.inference.predict.loaded import load
from bedplate.inference.predict.local import LocalModel
from bedplate.inference.predict.skin_bases import LoadedSkin
from bedplate.models.checkpoints.base import load_base
from bedplate.serving.server.app import loaded_server, server_config
from bedplate.skins.files import read_skin
from bedplate.skins.merge import merge_skin
from bedplate.skins.output import LabelOutput
from bedplate.skins.prompt import Prompt, completion_tokens

RUNGS = ["majority", "from_scratch", "zero_shot", "few_shot", "soft_prompt", "lora"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", "text", groups=24)


@pytest.fixture(scope="module")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory, rows: Path) -> Path:
    examples = [json.loads(line) for line in rows.read_text().splitlines()]
    texts = [example[name] for example in examples for name in ("text", "answer")]
    instructions = "Say which fruit it is and how many there are. note: Answer: Note answer positive negative"
    return write_tiny_t5(tmp_path_factory.mktemp("base") / "t5", [*texts, *[instructions] * 8])


def test_what_is_read_and_written_is_tokenised_as_transformers_does(tiny_t5: Path) -> None:
    theirs, base = AutoTokenizer.from_pretrained(tiny_t5), load_base(tiny_t5)
    tokenizer = base.need_tokenizer()
    assert tokenizer.encode_prompt("3 apples, twice\nAnswer:") == theirs("3 apples, twice\nAnswer:").input_ids
    prompt = Prompt("{{ note }}\nAnswer:")
    ids, answer = completion_tokens(prompt, tokenizer, {"note": "4 figs"}, " figs: 4")
    assert ids == theirs("4 figs\nAnswer:").input_ids
    assert answer == theirs(text_target="figs: 4").input_ids
    output = LabelOutput(labels=("a", "b"), continuations=(" positive", " negative"))
    ids, answers = prompt.label_tokens(tokenizer, {"note": "4 figs"}, (), output)
    assert [list(tokens) for tokens in answers] == theirs(text_target=["positive", "negative"]).input_ids
    assert tokenizer.decode(answers[0]) == "positive"
    with LocalModel(base) as model:
        whole = model.score("4 figs", ["positive"])
        assert whole == model.score("4 figs", [" positive"])
        assert model.generate("4 figs", max_tokens=4).usage.prompt_tokens == len(theirs("4 figs").input_ids)


def test_a_prompt_and_its_answer_have_a_room_each(tiny_t5: Path) -> None:
    base = load_base(tiny_t5)
    assert base.spec.context_length == base.spec.main.context_length == 512
    rooms = [base.prompt_room(answer) for answer in (0, 511, 512)]  # the decoder's start takes one of its 512 places
    assert rooms == [512, 512, 0]


@pytest.mark.parametrize(
    "rungs", [("majority", "zero_shot", "soft_prompt", "lora"), pytest.param(RUNGS, marks=pytest.mark.slow)]
)
def test_a_ladder_on_an_encoder_decoder(
    tiny_t5: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rungs: Sequence[str]
) -> None:
    monkeypatch.setenv("BEDPLATE_HOME", str(new_home(tmp_path / "home")))
    monkeypatch.setattr("bedplate.adaptation.context.context.LATENCY_CALLS", 5)
    report = adapt(write_task(tmp_path / "task", tiny_t5, "text", rows=rows), tmp_path / "out", rungs=rungs)
    saved_report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    status = {row["rung"]: row["status"] for row in saved_report["rungs"]}
    assert status == dict.fromkeys(rungs, "done") | {"soft_prompt": "skipped"}
    assert report
    directory = tmp_path / "out" / "skins" / "lora"
    assert json.loads((directory / "adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"
    with load(directory) as skin:
        assert isinstance(skin, LoadedSkin)
        [prediction] = skin.predict(["3 plums 1 1"])
        request = skin.request("3 plums 1 1")
        plain = cast("Generation", skin.engine.run([request])[0])
    assert prediction.text == plain.text
    with loaded_server(server_config(tiny_t5), [directory]) as state, running(state) as url:
        message = {"role": "user", "content": "3 plums 1 1"}
        body = Server(url, state, {}).chat(model=read_skin(directory).name, messages=[message]).json()
    assert body["choices"][0]["message"]["content"] == prediction.output
    merged = merge_skin(read_skin(directory), tmp_path / "merged")
    assert merged.drift.same_top == 1.0
    assert merged.drift.logit < 1e-4
    tokenizer, ids = load_base(tiny_t5).need_tokenizer(), list(request.tokens)
    theirs = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged").generate(
        torch.tensor([ids]), max_new_tokens=plain.usage.completion_tokens, do_sample=False
    )
    assert tokenizer.decode([i for i in theirs[0].tolist() if i > 1]).startswith(plain.text)


def test_the_loss_of_a_text_is_of_its_second_half(tiny_t5: Path) -> None:
    theirs, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5).eval(), AutoTokenizer.from_pretrained(tiny_t5)
    text = "3 apples and 4 figs, 5 plums twice"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    half = len(ids) // 2
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor([[*ids[:half], 1]]), labels=torch.tensor([ids[half:]])).loss
    with LocalModel(load_base(tiny_t5)) as model:
        general_text = GeneralText("a", text)
        grade = general_text.grade(model.engine.run(general_text.requests(model)))
    assert grade.tokens == len(ids) - half
    assert grade.total / grade.tokens == pytest.approx(float(expected), rel=1e-5)
