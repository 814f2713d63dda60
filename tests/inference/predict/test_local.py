"""The stable surface of a loaded base, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tests.near import assert_near

import bedplate
from bedplate.core.errors import ContextLengthExceeded, RequestError, UsageError
from bedplate.inference.predict.local import LocalModel
from bedplate.models.precision import dtype_name


def test_load_by_directory_generates_from_text_and_messages(tiny_dir: Path, reference: Any) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_dir)
    messages = [{"role": "user", "content": "is it great?"}]
    with bedplate.load(tiny_dir) as model:
        for prompt, ids in (
            ("the answer is", tokenizer("the answer is", add_special_tokens=False)["input_ids"]),
            (messages, tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)),
        ):
            ours = model.generate(prompt, max_tokens=12)
            theirs = reference.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, pad_token_id=0)
            expected = theirs[0, len(ids) :].tolist()
            if expected[-1] == tokenizer.eos_token_id:
                expected.pop()
                assert ours.finish_reason == "stop"
            assert list(ours.token_ids) == expected
            assert ours.text == tokenizer.decode(expected, skip_special_tokens=True)


def test_logits_and_scores(model: LocalModel, reference: Any) -> None:
    tokens = model.tokenizer.encode("the product is great")
    assert_near(torch.from_numpy(model.logits(tokens)), reference(torch.tensor([tokens])).logits[0])
    scores = model.score("the product is", [" great", " terrible quality"])
    for text, score in zip((" great", " terrible quality"), scores, strict=True):
        whole = model.tokenizer.encode("the product is" + text)
        start = len(model.tokenizer.encode("the product is"))
        assert whole[:start] == model.tokenizer.encode("the product is")
        logprobs = reference(torch.tensor([whole])).logits[0].log_softmax(-1)
        expected = sum(float(logprobs[i - 1, whole[i]]) for i in range(start, len(whole)))
        assert score == pytest.approx(expected, abs=1e-4)


def test_logits_past_the_context_are_refused(model: LocalModel) -> None:
    context = model.base.spec.main.context_length
    assert len(model.logits([3] * context)) == context
    with pytest.raises(ContextLengthExceeded, match=f"{context + 1} tokens are given, but the context .* is {context}"):
        model.logits([3] * (context + 1))


def test_score_where_the_continuation_merges_into_the_prompt(model: LocalModel) -> None:
    # " grea" + "t" is one token more than " great": the merged token is scored as a whole.
    assert model.tokenizer.encode("is great") != model.tokenizer.encode("is grea") + model.tokenizer.encode("t")
    merged = model.score("the product is grea", ["t"])[0]
    prompt = model.tokenizer.encode("the product is grea")
    whole = model.tokenizer.encode("the product is great")
    first_difference = next(i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b)
    logprobs = torch.from_numpy(model.logits(whole)).log_softmax(-1)
    expected = sum(float(logprobs[i - 1, whole[i]]) for i in range(first_difference, len(whole)))
    assert merged == pytest.approx(expected, abs=1e-4)
    with pytest.raises(RequestError, match="nothing to score"):
        model.score("the product", [""])


def test_embed_pools_the_mean_unless_told(model: LocalModel, reference: Any) -> None:
    tokens = model.tokenizer.encode("terrible quality")
    states = reference.model(torch.tensor([tokens])).last_hidden_state[0]
    for vector, ours in (
        (states.mean(0), model.embed(["terrible quality"])),
        (states[-1], model.embed(["terrible quality"], pooling="last")),
    ):
        np.testing.assert_allclose(ours[0], (vector / vector.norm()).numpy(), atol=1e-5)


def test_embed_gives_unit_vectors(model: LocalModel) -> None:
    vectors = model.embed(["the product is great", "terrible", "the product is great"])
    assert vectors.dtype == np.float32
    assert vectors.shape == (3, 48)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[2], atol=1e-6)
    with pytest.raises(UsageError, match="texts is 'one text'; give Sequence"):
        model.embed("one text")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_dtype_is_as_asked(tiny_dir: Path, dtype: str) -> None:
    with bedplate.load(tiny_dir, dtype=dtype) as model:
        assert dtype_name(model.base.dtype) == dtype
        assert {dtype_name(p.dtype) for p in model.base.model.parameters()} == {dtype}
        assert model.generate("the", max_tokens=2).usage.completion_tokens <= 2


@pytest.mark.real
def test_minilm_embeddings_equal_transformers_mean_pooling(minilm_dir: Path) -> None:
    texts = ["A cat sits on the mat.", "Un chat est assis.", "The stock market fell sharply today, analysts said.", "x"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_dir)
    theirs_model = transformers.AutoModel.from_pretrained(minilm_dir).eval()
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = theirs_model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    theirs = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1).numpy()
    with bedplate.load(minilm_dir) as model:
        ours = model.embed(texts)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.real
@pytest.mark.slow  # transformers takes all of its blocks apart in Python; a small file is in the tests of checkpoints
def test_smollm2_logits_equal_transformers_gguf_load_bit_for_bit(smollm2_gguf: Path) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2_gguf.parent, gguf_file=smollm2_gguf.name, dtype=torch.float32
    ).eval()
    with bedplate.load(smollm2_gguf, dtype="float32") as model:
        tokens = model.tokenizer.encode("The capital of France is Paris, and the capital of Italy is")
        with torch.no_grad():
            expected = theirs(torch.tensor([tokens])).logits[0]
        torch.testing.assert_close(torch.from_numpy(model.logits(tokens)), expected, atol=1e-4, rtol=1e-4)
        answer = model.generate("The capital of France is", max_tokens=4).text
        assert "Paris" in answer
