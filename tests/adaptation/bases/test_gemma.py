"""A Gemma from its GGUF file, adapted by the ladder and served: what it answers over HTTP is what transformers writes
on the exported base, and peft with the ladder's own LoRA skin on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from tests.adaptation.conftest import write_rows, write_task
from tests.homes import new_home
from tests.near import assert_near
from tests.serving.conftest import Server, running
from tests.tiny import CHATML, SPECIAL, tokenizer_json
from tokenizers import Tokenizer as Reference

from bedplate.adaptation.ladder import adapt
from bedplate.inference.measure.parity import reference_of
from bedplate.models.checkpoints.base import load_base
from bedplate.models.checkpoints.export import export_base, export_gguf
from bedplate.models.families import FAMILIES
from bedplate.serving.server.app import loaded_server, server_config
from bedplate.skins.files import read_skin
from bedplate.skins.output import LabelOutput
from bedplate.skins.skin import Skin
from bedplate.text.tokenizer import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks
RUNGS = ["zero_shot", "lora"]
TEXTS = ("this product works number 3 0 a", "terrible quality", "it broke and it is not great")
LENGTH = 8
REVIEWS = Path(__file__).parents[3] / "examples" / "reviews" / "task.yaml"
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16}


def write_gemma(directory: Path) -> Path:
    """A random gemma3_text of two windowed layers before one that sees all, as a GGUF file of float32."""
    family = FAMILIES["hf", "gemma3_text"]
    words = Reference.from_str(tokenizer_json()).get_vocab_size()
    example = dict(family.examples[0]) | SIZES | {"vocab_size": words, "query_pre_attn_scalar": 16}
    example |= {
        "sliding_window": 12,
        "sliding_window_pattern": 3,
        "num_hidden_layers": 3,
        "max_position_embeddings": 512,
    }
    reference_of(family, example, 0).save_pretrained(directory / "hf")
    (directory / "hf" / "tokenizer.json").write_text(tokenizer_json())
    roles = dict(zip(("bos_token", "eos_token", "pad_token"), (SPECIAL[0], SPECIAL[2], SPECIAL[0]), strict=True))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHATML, **roles}
    (directory / "hf" / "tokenizer_config.json").write_text(json.dumps(config))
    return export_gguf(load_base(directory / "hf", dtype="float32"), directory / "gemma.gguf", "f32")


def answers_over_http(
    base: Path, skin: Path, texts: Sequence[str], **settings: Any
) -> tuple[str, list[tuple[str, dict]]]:
    """Over HTTP: what the base writes after the first text, and of each the skin's label with its labels' scores."""
    with loaded_server(server_config(base, name="gemma", **settings), [skin]) as state, running(state) as url:
        server = Server(url, state, {})
        completion = {"model": "gemma", "prompt": texts[0], "max_tokens": LENGTH, "temperature": 0}
        written = server.post("/v1/completions", json=completion).json()["choices"][0]["text"]
        answers: list[tuple[str, dict]] = []
        for text in texts:
            body = server.chat(model=read_skin(skin).name, messages=[{"role": "user", "content": text}]).json()
            choice = body["choices"][0]
            answers.append((choice["message"]["content"], choice["bedplate"]["scores"]))
    return written, answers


def label_scores(model: Any, skin: Skin, tokenizer: Tokenizer, field: str, text: str) -> Mapping[str, float]:
    """Of each label by a model of transformers or peft: its log-probability among the labels."""
    output = skin.output
    assert isinstance(output, LabelOutput)
    assert skin.prompt is not None
    prompt, labels = skin.prompt.label_tokens(tokenizer, {field: text}, skin.demonstrations, output)
    totals: list[torch.Tensor] = []
    for label in labels:
        ids = torch.tensor([[*prompt, *label]])
        with torch.no_grad():
            log_probs = model(ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        totals.append(log_probs.gather(1, ids[0, len(prompt) :, None]).sum())
    scores = torch.stack(totals).log_softmax(0)
    return dict(zip(output.labels, scores.tolist(), strict=True))


def read_elsewhere(base: Path, skin: Path, directory: Path) -> tuple[Any, Callable[[], Any], Tokenizer]:
    """The exported base in transformers, the same with the skin in peft, and the tokenizer."""
    loaded = load_base(base, dtype="float32")
    export_base(loaded, directory)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
    assert theirs.config.model_type == "gemma3_text"
    return theirs, lambda: peft.PeftModel.from_pretrained(theirs, skin).eval(), loaded.need_tokenizer()


@pytest.mark.slow
def test_a_ladder_on_a_gemma_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEDPLATE_HOME", str(new_home(tmp_path / "home")))
    base = write_gemma(tmp_path)
    rows = write_rows(tmp_path / "rows.jsonl", groups=40, noise=0.0)
    report = adapt(write_task(tmp_path / "task", base, rows=rows, rungs=RUNGS), tmp_path / "out")
    assert {row["rung"]: row["status"] for row in report.rungs} == dict.fromkeys(RUNGS, "done")
    place = tmp_path / "out" / report.row("lora")["skin"]
    written, answers = answers_over_http(base, place, TEXTS)

    theirs, tuned, tokenizer = read_elsewhere(base, place, tmp_path / "exported")
    ids = torch.tensor([tokenizer.encode_prompt(TEXTS[0])])
    expected = theirs.generate(ids, max_new_tokens=LENGTH, do_sample=False)[0, ids.shape[1] :]
    assert written == tokenizer.decode(expected.tolist())
    skin = read_skin(place)
    before = [label_scores(theirs, skin, tokenizer, "review", text) for text in TEXTS]
    model = tuned()
    for text, plain, (label, scores) in zip(TEXTS, before, answers, strict=True):
        expected_scores = label_scores(model, skin, tokenizer, "review", text)
        assert label == max(expected_scores, key=lambda name: expected_scores[name])
        assert_near([scores[name] for name in expected_scores], list(expected_scores.values()), 1e-4)
        assert abs(expected_scores["positive"] - plain["positive"]) > 0.01  # what it learnt takes part


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.timeout(1800)
def test_gemma3_270m_is_adapted_and_served(gemma3_gguf: Path, vader_amazon: Path, tmp_path: Path) -> None:
    """On the reviews of the demo. peft computes in float32 what is served in bfloat16 or from integers: labels are the
    same where they are not close, and scores are near."""
    report = adapt(REVIEWS, tmp_path / "out", rungs=RUNGS, budget=600, overrides=[f"adapt.bases=[{gemma3_gguf}]"])
    estimates = {row["rung"]: row["estimate"] for row in report.rungs if row["split"] == "valid"}
    assert estimates["lora"] > estimates["zero_shot"]
    assert estimates["lora"] > 0.85  # by hand: 0.932, zero-shot 0.831
    place = tmp_path / "out" / report.row("lora")["skin"]
    texts = (
        "It broke after a day.",
        "The best camera that I ever had!",
        "The sound is terrible, sadly.",
        "Works well.",
    )
    _, answers = answers_over_http(gemma3_gguf, place, texts)
    _, tuned, tokenizer = read_elsewhere(gemma3_gguf, place, tmp_path / "exported")
    skin, model = read_skin(place), tuned()
    assert [label for label, _ in answers] == ["negative", "positive", "negative", "positive"]
    for text, (label, scores) in zip(texts, answers, strict=True):
        expected_scores = label_scores(model, skin, tokenizer, "review", text)
        assert label == max(expected_scores, key=lambda name: expected_scores[name])
        for name, value in expected_scores.items():
            assert scores[name] == pytest.approx(value, abs=0.05 + 0.1 * abs(value))
