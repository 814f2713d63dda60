"""The openai client, unmodified, against the real server; its answers against the engine's own."""

from __future__ import annotations

import asyncio
import json
import math

import openai
import pytest

from bedplate.inference.engine.requests import Generate, Sampling

from .conftest import INPUTS, SKINS


def user_messages(text):
    return [{"role": "user", "content": text}]


def test_models_are_listed_and_found(server, client):
    assert [model.id for model in client.models.list()] == ["tiny", *SKINS]
    model = client.models.retrieve("tuned")
    assert (model.id, model.owned_by, model.object) == ("tuned", "bedplate", "model")
    assert model.bedplate["kind"] == "lora"
    assert model.bedplate["labels"] == ["negative", "positive"]
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("other/model")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("name", ["prompted", "tuned", "probed", "worded"])
@pytest.mark.parametrize("text", INPUTS)
def test_label_skins_answer_as_predictors_do(server, client, name, text):
    (expected,) = server.skins[name].predict([text], one_by_one=True)
    reply = client.chat.completions.create(model=name, messages=user_messages(text), temperature=0)
    choice = reply.choices[0]
    assert (choice.message.content, choice.finish_reason) == (expected.output, "stop")
    # A prefix that is cached changes last bits.
    expected_details = {
        "label": expected.output,
        "probability": pytest.approx(expected.probabilities[expected.output], abs=1e-4),
        "probabilities": pytest.approx(expected.probabilities, abs=1e-4),
        "scores": pytest.approx(dict(expected.scores), abs=1e-4),
    }
    assert choice.bedplate == expected_details
    assert reply.usage.prompt_tokens == expected.prompt_tokens
    # More than the skin's own prompt may lie in the cache: tests share this server, in any order.
    cached = reply.usage.prompt_tokens_details.cached_tokens
    assert min(expected.cached_tokens, 1) <= cached < expected.prompt_tokens
    assert reply.usage.total_tokens == expected.prompt_tokens
    completion = client.completions.create(model=name, prompt=text).choices[0]
    assert completion.text == expected.output
    assert completion.bedplate == expected_details
    chunks = list(client.chat.completions.create(model=name, messages=user_messages(text), stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == expected.output
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].choices[0].bedplate == expected_details


@pytest.mark.parametrize("text", INPUTS)
def test_a_head_for_several_labels_answers_as_its_predictor_does(server, client, text):
    (expected,) = server.skins["several"].predict([text], one_by_one=True)
    chosen = [label for label, score in expected.scores.items() if math.exp(score) >= 0.4]
    assert json.loads(expected.output) == chosen
    choice = client.chat.completions.create(model="several", messages=user_messages(text)).choices[0]
    assert choice.message.content == expected.output
    assert choice.bedplate == {
        "labels": chosen,
        "probabilities": pytest.approx(expected.probabilities, abs=1e-4),
        "scores": pytest.approx(dict(expected.scores), abs=1e-4),
    }
    (row,) = server.post("/v1/classify", json={"model": "several", "input": text}).json()["data"]
    assert (row["label"], row["labels"], row["num_classes"]) == (expected.output, chosen, 3)
    assert row["probs"] == pytest.approx([math.exp(score) for score in expected.scores.values()], abs=1e-4)
    assert list(row["probabilities"].items()) == list(zip(expected.scores, row["probs"], strict=True))


@pytest.mark.parametrize("text", INPUTS)
def test_text_skins_answer_and_stream_as_predictors_do(server, client, text):
    (expected,) = server.skins["writer"].predict([text], one_by_one=True)
    reply = client.chat.completions.create(model="writer", messages=user_messages(text))
    assert reply.choices[0].message.content == expected.output
    assert reply.usage.completion_tokens == expected.completion_tokens
    stream = client.chat.completions.create(
        model="writer", messages=user_messages(text), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected.output
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == expected.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len([c for c in chunks if c.choices and c.choices[0].delta.content]) > 1
    shorter = client.chat.completions.create(model="writer", messages=user_messages(text), max_tokens=2)
    assert shorter.usage.completion_tokens <= 2


def test_skins_of_several_inputs_take_an_object(server, client):
    row = {"question": "is it great", "answer": "yes"}
    reply = client.chat.completions.create(model="pair", messages=user_messages(json.dumps(row)))
    assert reply.choices[0].message.content == server.skins["pair"].predict([row], one_by_one=True)[0].output
    for content in ("yes", "[1]", '{"question": "a"}', '{"question": "a", "answer": 1}', '{"question": NaN}'):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="pair", messages=user_messages(content))
        assert caught.value.param == "messages"


@pytest.mark.parametrize("model", ["prompted", "writer", "worded"])
def test_a_skin_drops_no_message_silently(server, client, model):
    system, turns = (
        {"role": "system", "content": "always no"},
        [*user_messages("bad"), {"role": "assistant", "content": "y"}],
    )
    asked = user_messages(INPUTS[0])
    for messages in ([system, *asked], [*turns, *asked], [*asked, *asked], [system], [*asked, turns[1]]):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=model, messages=messages)
        assert caught.value.param == "messages"
        assert f"{model!r} is a skin and reads one user message" in caught.value.message
    kept = client.responses.create(model=model, input=INPUTS[0])
    for body in ({"instructions": "always no"}, {"previous_response_id": kept.id}, {"input": messages}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(**{"model": model, "input": INPUTS[0], **body})
        assert (caught.value.param, "reads one user message" in caught.value.message) == ("input", True)
    for body in ({"system": "always no"}, {"messages": [*turns, *asked]}):
        request = {"model": model, "max_tokens": 4, "messages": asked, **body}
        refused = server.post("/v1/messages", json=request)
        assert (refused.status_code, "reads one user message" in refused.json()["error"]["message"]) == (400, True)


@pytest.mark.parametrize("model", ["prompted", "probed", "worded", "writer", "pair"])
@pytest.mark.parametrize("text", ["", " \n"])
def test_a_skin_answers_no_empty_input(server, model, text):
    content = json.dumps({"question": text, "answer": text}) if model == "pair" else text
    asks = {
        "/v1/chat/completions": {"messages": user_messages(content)},
        "/v1/completions": {"prompt": content},
        "/v1/responses": {"input": content},
        "/v1/messages": {"messages": user_messages(content), "max_tokens": 4},
    }
    if model != "writer":
        asks["/v1/classify"] = {"input": ["fine", content] if model != "pair" else json.loads(content)}
    for path, body in asks.items():
        refused = server.post(path, json={"model": model, **body})
        assert refused.status_code == 400, (path, refused.text)
        message = refused.json()["error"]["message"]
        assert "empty" in message
        assert f"skin {model!r} answers about a text: give one" in message or not text


def test_a_skin_of_several_inputs_names_them_to_who_sends_a_conversation(client):
    messages = [{"role": "system", "content": "x"}, *user_messages('{"question": "a", "answer": "b"}')]
    with pytest.raises(openai.BadRequestError, match="a JSON object of question, answer") as caught:
        client.chat.completions.create(model="pair", messages=messages)
    assert caught.value.param == "messages"


def solo(server, text, **sampling):
    """The engine's own answer to one chat message."""
    engine = server.skins["writer"].engine
    tokens = engine.base.tokenizer.encode_chat(user_messages(text))
    return engine.run([Generate(tuple(tokens), Sampling(**sampling))])[0]


def test_the_base_chats_as_the_engine_does_streamed_or_not(server, client):
    for settings in ({"temperature": 0}, {"temperature": 0.8, "seed": 7, "top_p": 0.9}):
        expected = solo(server, INPUTS[0], max_tokens=30, stop=("e b",), **settings)
        request = {
            "model": "tiny",
            "messages": user_messages(INPUTS[0]),
            "max_completion_tokens": 30,
            "stop": ["e b"],
            **settings,
        }
        reply = client.chat.completions.create(**request)
        assert reply.choices[0].message.content == expected.text
        assert reply.choices[0].finish_reason == expected.finish_reason
        assert reply.usage.completion_tokens == len(expected.token_ids)
        chunks = list(client.chat.completions.create(**request, stream=True))
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == expected.text
        assert chunks[-1].choices[0].finish_reason == expected.finish_reason


def test_text_parts_join_and_housekeeping_fields_change_nothing(server, client):
    parts = [{"type": "text", "text": INPUTS[0][:5]}, {"type": "text", "text": INPUTS[0][5:]}]
    reply = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": parts}],
        max_tokens=8,
        temperature=0,
        user="someone",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        parallel_tool_calls=True,
        response_format={"type": "text"},
        logit_bias={},
        tools=[],
        n=1,
        extra_body={"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0},
    )
    assert reply.choices[0].message.content == solo(server, INPUTS[0], max_tokens=8).text


def test_n_choices_differ_by_seed_and_repeat(server, client):
    request = {
        "model": "tiny",
        "messages": user_messages("hi"),
        "max_tokens": 12,
        "n": 4,
        "seed": 3,
        "temperature": 1.5,
    }
    reply = client.chat.completions.create(**request)
    texts = [choice.message.content for choice in reply.choices]
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert texts[0] == solo(server, "hi", max_tokens=12, temperature=1.5, seed=3).text
    assert len(set(texts)) > 1
    repeated = client.chat.completions.create(**request)
    assert [choice.message.content for choice in repeated.choices] == texts
    streamed = dict.fromkeys(range(4), "")
    for chunk in client.chat.completions.create(**request, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert list(streamed.values()) == texts


def test_chat_logprobs(server, client):
    expected = solo(server, "hi", max_tokens=6, logprobs=3)
    request = {
        "model": "tiny",
        "messages": user_messages("hi"),
        "max_tokens": 6,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 3,
    }
    content = client.chat.completions.create(**request).choices[0].logprobs.content
    assert [token_logprob.logprob for token_logprob in content] == pytest.approx(expected.logprobs, abs=1e-4)
    assert [len(token_logprob.top_logprobs) for token_logprob in content] == [3] * len(content)
    assert b"".join(bytes(token_logprob.bytes) for token_logprob in content).decode("utf-8", "replace") == expected.text
    streamed = [
        token_logprob
        for chunk in client.chat.completions.create(**request, stream=True)
        if chunk.choices[0].logprobs
        for token_logprob in chunk.choices[0].logprobs.content
    ]
    assert [token_logprob.token for token_logprob in streamed] == [token_logprob.token for token_logprob in content]


def test_completions_of_strings_and_ids(server, client):
    tokenizer = server.tokenizer
    prompts = ["this product", "the answer is"]
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    options = {"model": "tiny", "max_tokens": 6, "temperature": 0}
    texts = [choice.text for choice in client.completions.create(prompt=prompts, **options).choices]
    assert [choice.text for choice in client.completions.create(prompt=ids, **options).choices] == texts
    assert [
        client.completions.create(prompt=prompt, **options).choices[0].text for prompt in (*prompts, *ids)
    ] == texts * 2
    usage = client.completions.create(prompt=prompts, n=2, **options).usage
    assert usage.prompt_tokens == sum(map(len, ids))
    streamed = dict.fromkeys(range(2), "")
    for chunk in client.completions.create(prompt=prompts, stream=True, echo=True, **options):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert list(streamed.values()) == [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
    default = client.completions.create(model="tiny", prompt="this", temperature=0).usage
    assert default.completion_tokens <= 16


def test_echo_with_logprobs_of_the_prompt(server, client):
    prompt = "the product is great"
    reply = client.completions.create(model="tiny", prompt=prompt, max_tokens=3, temperature=0, echo=True, logprobs=1)
    choice, ids = reply.choices[0], server.tokenizer.encode(prompt)
    engine = server.skins["writer"].engine
    expected = engine.run([Generate(tuple(ids), Sampling(max_tokens=3, logprobs=1, prompt_logprobs=1))])[0]
    logprobs = choice.logprobs.token_logprobs
    assert logprobs[0] is None
    assert logprobs[1:] == pytest.approx([*expected.prompt_logprobs[1:], *expected.logprobs], abs=1e-4)
    assert choice.text == prompt + expected.text
    # each token's text stands where text_offset says
    for token, offset in zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True):
        assert token.startswith("bytes:") or choice.text[offset:].startswith(token)
    only = client.completions.create(model="tiny", prompt=ids, max_tokens=0, echo=True, logprobs=0).choices[0]
    assert only.text == prompt
    assert only.logprobs.token_logprobs[1:] == pytest.approx(expected.prompt_logprobs[1:], abs=1e-4)


def test_sixteen_streams_at_once_equal_solo_answers(server):
    prompts = [f"{INPUTS[i % 4]} {i}" for i in range(16)]

    async def all_at_once():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

            async def stream_text(prompt):
                stream = await client.chat.completions.create(
                    model="tiny", messages=user_messages(prompt), stream=True, temperature=0, max_tokens=20
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*map(stream_text, prompts))

    assert asyncio.run(all_at_once()) == [solo(server, prompt, max_tokens=20).text for prompt in prompts]
    assert server.idle()


def test_async_client(server):
    async def chat_text():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            reply = await client.chat.completions.create(model="prompted", messages=user_messages(INPUTS[0]))
            return reply.choices[0].message.content

    assert asyncio.run(chat_text()) == server.skins["prompted"](INPUTS[0])


@pytest.mark.real
@pytest.mark.slow
def test_the_real_base_answers_the_openai_client(smollm2_gguf):
    from bedplate.serving.server.app import loaded_server

    from .conftest import Server, running

    # In the file's own 4 bits, with 8-bit activations, it names monuments, as llama.cpp does on the same file.
    with loaded_server(smollm2_gguf, name="smollm2-135m", weights="bfloat16") as state, running(state) as url:
        client = Server(url, state, {}).client
        request = {
            "model": "smollm2-135m",
            "messages": user_messages("What is the capital of France?"),
            "temperature": 0,
        }
        text = client.chat.completions.create(**request, max_tokens=24).choices[0].message.content
        assert "Paris" in text
        chunks = client.chat.completions.create(**request, max_tokens=24, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
