"""Skins of several parts on an engine: what each says is what its parts say, put together by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import peft
import pytest
import torch
import transformers
from tests.near import assert_near
from tests.tiny import write_tiny_base

import bedplate
from bedplate.adapters.bank import Bank
from bedplate.adapters.head import Head
from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.modules import block_linears
from bedplate.adapters.soft_prompt import SoftPrompt
from bedplate.core.errors import SkinError
from bedplate.inference.engine.requests import Classification, Classify, Embed, Embedding, Request, Score, Scores
from bedplate.inference.predict.local import LocalModel
from bedplate.inference.predict.lookup import embed_texts
from bedplate.models.checkpoints.base import load_base
from bedplate.models.inputs import Inputs
from bedplate.skins.files import read_skin, write_skin
from bedplate.skins.lookup_index import Chunk, Neighbours, Passages
from bedplate.skins.output import EmbeddingOutput, LabelOutput
from bedplate.skins.prompt import Demonstration, Prompt
from bedplate.skins.skin import BaseReference, EvaluatedWith, InputField, LoraPart, ProbePart, Skin

LABELS = LabelOutput(labels=("negative", "positive"), continuations=(" negative", " positive"))
PLAIN = Prompt("the product was asked about by the user\nReview: {{ review }}\nSentiment:")
ON_PASSAGES = Prompt("{% for p in passages %}[{{ p.number }}] {{ p.text }}\n{% endfor %}{{ review }}\nSentiment:")
ON_ROWS = Prompt("{% for d in demonstrations %}{{ d.inputs.review }}:{{ d.answer }}\n{% endfor %}{{ review }}:")
ROWS = ["great and works well", "it broke", "terrible quality", "x", "the answer is no 你好"]
TEXTS = ["works well", "it broke after a day", "the question was asked", "terrible quality", "yes or no"]
BY_HAND = "by hand"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def local(place: Path) -> Iterator[LocalModel]:
    """The base with the skins' LoRA weights, and their soft prompt on these, loaded by hand."""
    with LocalModel(load_base(place, dtype="float32")) as local_model:
        lora = weights(local_model)
        local_model.engine.load_adapter(BY_HAND, lora.config, lora.tensors)
        local_model.engine.load_soft_prompt("soft alone", vectors())
        local_model.engine.load_soft_prompt("soft on weights", vectors(), BY_HAND)
        yield local_model


def weights(model: LocalModel) -> LoraPart:
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    for path, linear in block_linears(model.base.model).items():
        tensors[f"{path}.lora_A"] = torch.randn(2, linear.in_features, generator=generator) * 0.3
        tensors[f"{path}.lora_B"] = torch.randn(linear.out_features, 2, generator=generator) * 0.3
    return LoraPart(LoraConfig(r=2), tensors)


def vectors() -> torch.Tensor:
    return torch.randn(5, 48, generator=torch.Generator().manual_seed(1))


def head() -> Head:
    return Head(torch.randn(2, 48, generator=torch.Generator().manual_seed(2)), torch.zeros(2), LABELS.labels)


def passages(model: LocalModel) -> Passages:
    chunks = tuple(Chunk(f"document {i}", i, text) for i, text in enumerate(TEXTS))
    return Passages(embed_texts(model.engine, TEXTS, "mean"), chunks, 2)


def neighbours(model: LocalModel) -> Neighbours:
    rows = tuple(Demonstration({"review": text}, LABELS.continuations[i % 2]) for i, text in enumerate(TEXTS))
    return Neighbours(embed_texts(model.engine, TEXTS, "mean"), rows, 2)


def composed_skin(model: LocalModel, place: Path, **parts: Any) -> Skin:
    values: dict[str, Any] = {
        "bases": {"main": BaseReference.of(str(place), "llama", model.base.identity)},
        "inputs": {"review": InputField()},
        "output": LabelOutput(labels=LABELS.labels) if "probe" in parts else LABELS,
        "prompt": PLAIN,
        "evaluated_with": EvaluatedWith(weights="float32"),
    }
    return Skin(name="composed", **(values | parts))


def found_for(model: LocalModel, index: Passages | Neighbours, row: str) -> dict[str, Any]:
    vector = model.embed([row], pooling="mean")[0]
    return (
        {"passages": index.retrieve(vector)}
        if isinstance(index, Passages)
        else {"demonstrations": index.demonstrations(vector)}
    )


def scored(model: LocalModel, prompt: Prompt, row: str, adapter: str | None, **lookups: Any) -> dict[str, float]:
    """What the engine says of the labels after the prompt's own text, with the adapter that was loaded by hand."""
    text = prompt.text({"review": row}, **lookups)
    assert isinstance(text, str)
    ids = model.tokenizer.encode(text)
    answers = tuple(tuple(model.tokenizer.encode(text + c)[len(ids) :]) for c in LABELS.continuations)
    result = model.engine.run([Score(tuple(ids), answers, adapter=adapter)])[0]
    return LABELS.read_scores(cast(Scores, result).totals)[1]


@pytest.mark.parametrize("looked_up", ["passages", "neighbours"])
@pytest.mark.parametrize("adapter", [BY_HAND, "soft alone", "soft on weights"])
def test_weights_with_what_is_looked_up_are_the_adapter_asked_with_that_prompt(
    local: LocalModel, place: Path, tmp_path: Path, looked_up: str, adapter: str
) -> None:
    index = passages(local) if looked_up == "passages" else neighbours(local)
    prompt = ON_PASSAGES if looked_up == "passages" else ON_ROWS
    parts: dict[str, Any] = {looked_up: index, "prompt": prompt}
    parts |= {"lora": weights(local)} if adapter != "soft alone" else {}
    parts |= {"soft_prompt": SoftPrompt(vectors())} if adapter != BY_HAND else {}
    directory = write_skin(composed_skin(local, place, **parts), tmp_path / "skin")
    expected = [scored(local, prompt, row, adapter, **found_for(local, index, row)) for row in ROWS]
    without = [scored(local, prompt, row, None, **found_for(local, index, row)) for row in ROWS]
    with bedplate.load(directory) as loaded:
        for predictions in (loaded.predict(ROWS), loaded.predict(ROWS, one_by_one=True)):  # type: ignore[union-attr]
            for prediction, expected_scores, base in zip(predictions, expected, without, strict=True):
                np.testing.assert_allclose(list(prediction.scores.values()), list(expected_scores.values()), atol=2e-4)
                assert abs(expected_scores["positive"] - base["positive"]) > 1e-2
                assert prediction.output == max(expected_scores, key=lambda label: expected_scores[label])
                assert len(prediction.passages) == (2 if looked_up == "passages" else 0)


@pytest.mark.parametrize("pooling", ["last", "mean", "first"])
def test_a_head_on_adapted_features_is_the_head_by_plain_torch(
    local: LocalModel, place: Path, tmp_path: Path, pooling: Any
) -> None:
    part, lora = ProbePart(head(), "layers.2", pooling), weights(local)
    directory = write_skin(composed_skin(local, place, lora=lora, probe=part), tmp_path / "skin")
    base = load_base(place, dtype="float32")
    bank = Bank(base.model)
    bank.select(bank.add(lora.config, lora.tensors))
    with bedplate.load(directory) as loaded:
        for row in ROWS:
            tokens = PLAIN.tokens(local.tokenizer, {"review": row})
            with torch.no_grad():
                states = base.model(Inputs(torch.tensor([tokens])), depth=2).hidden[0]
            pooled = {"last": states[-1], "mean": states.mean(0), "first": states[0]}[pooling]
            expected = torch.log_softmax(part.head.weight @ pooled + part.head.bias, -1)
            scores = loaded.predict([row])[0].scores  # type: ignore[union-attr]
            assert_near(list(scores.values()), expected, rel=1e-4)
    bank.close()


@pytest.mark.parametrize("adapter", ["soft alone", "soft on weights"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_head_behind_a_soft_prompt_is_the_engines_own(
    local: LocalModel, place: Path, adapter: str, pooling: Any
) -> None:
    lora = weights(local) if adapter == "soft on weights" else None
    part = ProbePart(head(), "layers.2", pooling)
    skin = composed_skin(local, place, lora=lora, soft_prompt=SoftPrompt(vectors()), probe=part)
    with local.predictor(skin) as predictor:
        predictions = predictor.predict(ROWS)
    prompts = [tuple(PLAIN.tokens(local.tokenizer, {"review": row})) for row in ROWS]
    requests: list[Request] = [Classify(tokens, part.head, 2, pooling, adapter=adapter) for tokens in prompts]
    for prediction, result in zip(predictions, local.engine.run(requests), strict=True):
        expected = torch.log_softmax(torch.tensor(cast(Classification, result).scores), -1)
        assert_near(list(prediction.scores.values()), expected, rel=1e-4)


def test_vectors_of_an_adapted_base(local: LocalModel, place: Path) -> None:
    output = EmbeddingOutput(pooling="mean", normalise=False)
    skin = composed_skin(local, place, lora=weights(local), output=output, prompt=Prompt("query: {{ review }}"))
    with local.predictor(skin) as predictor:
        embedded = predictor.embed(ROWS)
    prompts = [local.text_tokens(f"query: {row}") for row in ROWS]
    requests: list[Request] = [Embed(tokens, "mean", normalise=False, adapter=BY_HAND) for tokens in prompts]
    for vector, result in zip(embedded, local.engine.run(requests), strict=True):
        assert_near(vector, cast(Embedding, result).vector)


def test_closing_takes_all_of_its_weights_out(local: LocalModel, place: Path) -> None:
    bank = local.engine.bank
    assert bank is not None
    before, slots = local.engine.stats().adapters, bank.slots
    skin = composed_skin(local, place, lora=weights(local), soft_prompt=SoftPrompt(vectors()))
    for _ in range(3):  # the same keys again, which would be refused if they were still there
        with local.predictor(skin) as predictor:
            assert predictor(ROWS[0]) in LABELS.labels
            assert local.engine.stats().adapters == before + 2
    assert (local.engine.stats().adapters, bank.slots) == (before, slots)


def test_weights_that_do_not_go_in_whole_leave_nothing_behind(
    local: LocalModel, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise SkinError("no room")

    before = local.engine.stats().adapters
    monkeypatch.setattr(local.engine, "load_soft_prompt", refuse)
    with pytest.raises(SkinError, match="no room"):
        local.predictor(composed_skin(local, place, lora=weights(local), soft_prompt=SoftPrompt(vectors())))
    assert local.engine.stats().adapters == before


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_peft_loads_the_weights_of_a_composed_skin_unchanged(local: LocalModel, place: Path, tmp_path: Path) -> None:
    lora = weights(local)
    parts: dict[str, Any] = {"lora": lora, "passages": passages(local), "prompt": ON_PASSAGES}
    directory = write_skin(composed_skin(local, place, **parts, probe=ProbePart(head(), "layers.2")), tmp_path / "skin")
    assert read_skin(directory).kind == "lora+retrieval+probe"
    reference = transformers.AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    tokens = torch.arange(5, 29).reshape(2, 12)
    base = load_base(place, dtype="float32")
    bank = Bank(base.model)
    bank.select(bank.add(lora.config, lora.tensors))
    with torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(reference, directory)(tokens).logits
        ours = cast(Any, base.model).head(base.model(Inputs(tokens)).hidden)
    bank.close()
    assert_near(ours, theirs, rel=1e-4)
