"""The ladder on an encoder: a head alone, and low-rank weights with a head, against peft; answered and served."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tests.adaptation.conftest import BAD, GOOD, write_rows, write_task
from tests.adaptation.written import write_task as write_written
from tests.homes import new_home
from tests.near import assert_near
from tests.references import reference_bert
from tests.serving.conformance.conftest import write_wordpiece
from tests.serving.conftest import Server, running

from bedplate.adaptation.context.backbone import Encoder
from bedplate.adaptation.ladder import adapt
from bedplate.core.values import Values
from bedplate.inference.predict.loaded import load
from bedplate.inference.predict.skin_bases import LoadedSkin
from bedplate.serving.server.app import loaded_server, server_config
from bedplate.skins.files import read_skin
from bedplate.skins.merge import merge_skin
from bedplate.skins.prompt import Prompt

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
RUNGS = ["zero_shot", "soft_prompt", "lora", "full"]
TEXTS = ("this product works number 3 0 a", "terrible", "number great")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("encoder") / "reader"
    words = ("this", "product", "number", *GOOD, *BAD, *"abcdefgh0123456789", *(f"##{n}" for n in range(10)))
    fruits = ("apples", "pears", "plums", "figs", "and")
    size = write_wordpiece(directory, (*words, *fruits))
    reference_bert(0, vocab_size=size).save_pretrained(directory)
    return directory


def test_low_rank_weights_with_a_head(reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEDPLATE_HOME", str(new_home(tmp_path / "home")))
    monkeypatch.setattr("bedplate.adaptation.context.context.LATENCY_CALLS", 5)
    rows = write_rows(tmp_path / "rows.jsonl", groups=40, noise=0.0)
    report = adapt(write_task(tmp_path / "task", reader, rows=rows, rungs=RUNGS), tmp_path / "out")
    status = {row["rung"]: row["status"] for row in report.rungs}
    skipped = dict.fromkeys(("zero_shot", "soft_prompt", "full"), "skipped")
    assert status == dict.fromkeys(RUNGS, "done") | skipped
    assert report.row("lora")["estimate"] >= 0.7
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(reader / "tokenizer.json"))
    place = tmp_path / "out" / report.row("lora")["skin"]
    assert read_skin(place).kind == "lora+probe"
    model = peft.PeftModel.from_pretrained(transformers.AutoModel.from_pretrained(reader), place).eval()
    head = load_file(place / "head.safetensors")
    with load(place) as skin:
        assert isinstance(skin, LoadedSkin)
        answers = skin.predict(TEXTS)
    for text, answer in zip(TEXTS, answers, strict=True):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        expected = torch.log_softmax(head["weight"] @ states.mean(0) + head["bias"], dim=-1)
        assert_near([answer.scores["negative"], answer.scores["positive"]], expected, 1e-4)
    assert merge_skin(read_skin(place), tmp_path / "merged").drift.logit < 1e-5
    merged = transformers.AutoModel.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        encoding = tokenizer(TEXTS[0], return_tensors="pt")
        assert_near(merged(**encoding).last_hidden_state, model(**encoding).last_hidden_state, 1e-5)
    with loaded_server(server_config(reader), [place]) as state, running(state) as url:
        server = Server(url, state, {})
        for text, answer in zip(TEXTS, answers, strict=True):
            body = server.chat(model=read_skin(place).name, messages=[{"role": "user", "content": text}]).json()
            assert body["choices"][0]["message"]["content"] == answer.output


@pytest.mark.slow
def test_any_number_of_labels(reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEDPLATE_HOME", str(new_home(tmp_path / "home")))
    monkeypatch.setattr("bedplate.adaptation.context.context.LATENCY_CALLS", 5)
    report = adapt(write_written(tmp_path / "task", reader, "labels", rungs=["probe", "lora"]), tmp_path / "out")
    assert {row["rung"]: row["status"] for row in report.rungs} == {"probe": "done", "lora": "done"}
    place = tmp_path / "out" / report.row("lora")["skin"]
    with load(place) as skin:
        assert isinstance(skin, LoadedSkin)
        [prediction] = skin.predict(["figs and plums"])
    assert set(json.loads(prediction.output)) <= {"apples", "pears", "plums", "figs"}
    assert set(prediction.scores) == {"apples", "pears", "plums", "figs"}


class Pages(Encoder):
    """A toy of a base with another input: it reads the words from the last to the first, and its last state counts."""

    poolings = ("last",)

    def missing(self, *, writing: bool, continuing: bool) -> str | None:
        return "a base that reads words in order" if writing else None

    def tokens(self, prompt: Prompt, inputs: Values) -> tuple[int, ...]:
        first, *words, last = super().tokens(prompt, inputs)
        return (first, *reversed(words), last)


def test_a_base_with_another_input_is_one_class(reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rungs, candidates and reports take from it what they need to know: nothing else is told that it is there."""
    monkeypatch.setenv("BEDPLATE_HOME", str(new_home(tmp_path / "home")))
    monkeypatch.setattr("bedplate.adaptation.context.context.LATENCY_CALLS", 5)
    monkeypatch.setattr("bedplate.adaptation.context.context.backbone_of", Pages)
    rows = write_rows(tmp_path / "rows.jsonl", groups=40, noise=0.0)
    report = adapt(write_task(tmp_path / "task", reader, rows=rows, rungs=["zero_shot", "probe"]), tmp_path / "out")
    assert report.row("probe")["status"] == "done"
    assert "last token" in report.row("probe")["reason"]
    assert report.row("zero_shot")["reason"] == "zero_shot needs a base that reads words in order"
