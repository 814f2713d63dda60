"""Other clients and options: LangChain's ChatOpenAI unmodified, the options of chats, the OpenAPI document."""

from __future__ import annotations

import httpx
import jsonschema
import openai
import pytest

from bedplate.serving.server.app import ROUTERS, document, request_bodies


def user_messages(text):
    return [{"role": "user", "content": text}]


def chat(client, **fields):
    request = {"model": "tiny", "messages": user_messages("hi there"), "max_tokens": 8, "temperature": 0} | fields
    return client.chat.completions.create(**request)


def text_of(reply):
    return reply.choices[0].message.content


def test_langchain(server, client):
    import langchain_openai
    from langchain_core.messages import HumanMessage, SystemMessage

    conversation = [{"role": "system", "content": "be nice"}, *user_messages("hi there")]
    expected = chat(client, messages=conversation)
    settings = {"base_url": f"{server.url}/v1", "api_key": "none", "model": "tiny", "max_retries": 0}
    with httpx.Client(trust_env=False) as http:
        model = langchain_openai.ChatOpenAI(**settings, temperature=0, max_tokens=8, http_client=http)
        turns = [SystemMessage("be nice"), HumanMessage("hi there")]
        reply = model.invoke(turns)
        assert reply.content == text_of(expected)
        assert reply.usage_metadata["input_tokens"] == expected.usage.prompt_tokens
        assert "".join(chunk.content for chunk in model.stream(turns)) == text_of(expected)
        embedder = langchain_openai.OpenAIEmbeddings(**settings, check_embedding_ctx_length=False, http_client=http)
        vectors = embedder.embed_documents(["hi", "there"])
    embeddings = client.embeddings.create(model="tiny", input=["hi", "there"]).data
    assert vectors[1] == pytest.approx(embeddings[1].embedding, abs=1e-6)


def test_seeds_repeat(client):
    options = {"temperature": 1.0, "seed": 7, "n": 2}
    first, repeated = chat(client, **options), chat(client, **options)
    assert [choice.message.content for choice in first.choices] == [
        choice.message.content for choice in repeated.choices
    ]
    assert first.choices[0].message.content != first.choices[1].message.content
    assert text_of(chat(client, temperature=1.0, seed=8)) != text_of(first)


def test_stops_and_limits(client):
    text = text_of(chat(client))
    for stop in (text[3], ["never there", text[3]]):
        reply = chat(client, stop=stop)
        assert (text_of(reply), reply.choices[0].finish_reason) == (text[: text.index(text[3])], "stop")
    short = chat(client, max_tokens=openai.omit, max_completion_tokens=3)
    assert (short.usage.completion_tokens, short.choices[0].finish_reason) == (3, "length")


def test_biases_and_penalties(server, client):
    token = server.tokenizer.encode("a")[0]
    assert text_of(chat(client, logit_bias={str(token): 100})) == "a" * 8
    penalised = text_of(chat(client, logit_bias={str(token): 30}, frequency_penalty=2.0, max_tokens=40))
    assert penalised != "a" * 40
    logprobs = chat(client, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    banned = server.tokenizer.encode(text_of(chat(client)))[0]
    assert len(logprobs) == 8
    assert text_of(chat(client, logit_bias={str(banned): -100})) != text_of(chat(client))


def test_usage_says_what_was_cached(client):
    chat(client, messages=user_messages("asked twice"))
    repeated = chat(client, messages=user_messages("asked twice"))
    assert repeated.usage.prompt_tokens_details.cached_tokens > 0
    chunks = list(
        chat(client, messages=user_messages("asked twice"), stream=True, stream_options={"include_usage": True})
    )
    assert chunks[-1].usage.prompt_tokens == repeated.usage.prompt_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_prompt_log_probabilities(server, client):
    ids = server.tokenizer.encode("this product is great")
    completion = client.completions.create(
        model="tiny", prompt=ids, max_tokens=1, temperature=0, echo=True, logprobs=1, extra_body={"prompt_logprobs": 2}
    ).choices[0]
    rows, echoed = completion.prompt_logprobs, completion.logprobs
    assert len(rows) == len(ids)
    assert len(echoed.token_logprobs) == len(ids) + 1
    assert rows[0] is None
    for token, row, logprob, top in zip(
        ids[1:], rows[1:], echoed.token_logprobs[1:], echoed.top_logprobs[1:], strict=False
    ):
        assert row[str(token)]["logprob"] == logprob
        assert max(candidate["logprob"] for candidate in row.values()) == max(top.values())
        assert logprob in top.values()
    whole = chat(client, extra_body={"prompt_logprobs": 0})
    assert len(whole.prompt_logprobs) == whole.usage.prompt_tokens


@pytest.mark.parametrize("seed", range(12))
def test_one_token_is_there_also_where_it_ends_the_text(server, client, seed):
    end = server.tokenizer.eos_id
    ids = server.tokenizer.encode("the answer is")[: 1 + seed % 4]
    reply = client.completions.create(
        model="tiny", prompt=ids, max_tokens=1, echo=True, logprobs=1, seed=seed, logit_bias={str(end): 100}
    ).choices[0]
    assert len(reply.logprobs.token_logprobs) == len(ids) + 1
    assert reply.finish_reason == "stop"
    assert reply.text == server.tokenizer.decode(ids)


def test_suffix_and_best_of(client):
    request = {"model": "tiny", "prompt": "hi", "max_tokens": 2}
    assert client.completions.create(**request, best_of=1).choices
    for fields in ({"suffix": "there"}, {"best_of": 2}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(**request, **fields)
        assert caught.value.param == next(iter(fields))


def test_the_document_lists_every_route(server):
    with httpx.Client(trust_env=False) as http:
        openapi = http.get(server.url + "/openapi.json").json()
    assert openapi == document(ROUTERS)
    for method, path in request_bodies(ROUTERS):
        assert method.lower() in openapi["paths"][path], path
    for schema in openapi["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_the_documents_schemas_take_what_the_server_takes():
    schemas = document(ROUTERS)["components"]["schemas"]

    def accepts(name, body):
        whole = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}
        return jsonschema.Draft202012Validator(whole).is_valid(body)

    for prompt in ("a", ["a", "b"], [1, 2], [[1], [2]]):
        assert accepts("CompletionRequest", {"model": "m", "prompt": prompt})
    assert not accepts("CompletionRequest", {"model": "m", "prompt": 1})
    for stop in ("a", ["a"]):
        assert accepts("ChatRequest", {"model": "m", "messages": user_messages("a"), "stop": stop})
    assert accepts("ChatRequest", {"model": "m", "messages": user_messages([{"type": "text", "text": "a"}])})
    assert not accepts("ChatRequest", {"model": "m", "messages": user_messages("a"), "n": 0})
    assert accepts("RerankRequest", {"model": "m", "query": "a", "documents": ["a", {"text": "b"}]})
