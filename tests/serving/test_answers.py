"""Whoever answers can be served: a toy answerer without an engine behind the real routes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import cast

import httpx
import pytest

from bedplate.core.errors import RequestError
from bedplate.inference.engine.answers import ModelDescription
from bedplate.inference.engine.requests import Generate, Generation, Request, Result, Step, Stream, Usage
from bedplate.serving.models.served import Answer, AnswerPlan, Served
from bedplate.serving.server.app import loaded_server

from .conftest import running


class Shouter:
    """Answers a prompt of code points with the same text in capitals, word by word."""

    alive = True

    def submit(self, request: Request) -> Stream:
        stream = Stream(request)
        text = "".join(map(chr, request.tokens)).upper()
        for word in text.split(" "):
            stream.push(Step(None, f"{word} "))
        stream.finish(Generation(f"{text} ", (), (), "stop", usage=Usage(len(request.tokens), len(text.split(" ")))))
        return stream

    def run(self, requests: Sequence[Request]) -> list[Result]:
        return [self.submit(request).result(0) for request in requests]

    def tokenize(self, text: str) -> list[int]:
        return list(map(ord, text))

    def describe(self) -> ModelDescription:
        return ModelDescription("shouter", frozenset(["generate"]), 1000)


class ServedShouter(Served):
    """A model name that is no base of this server and no skin."""

    name, fingerprint, dimensions = "shouter", "toy", 0

    def __init__(self) -> None:
        self.answerer = Shouter()

    def chat(self, body, terms):
        return AnswerPlan(self.answerer, [Generate(tuple(self.answerer.tokenize(body.messages[-1].content)))])

    def answer(self, plan_result):
        generation = cast(Generation, plan_result.last)
        return Answer(generation.text, generation.finish_reason, generation.usage, generation)

    def describe(self):
        return {"kind": "toy"}

    def refusal(self):
        return RequestError("shouter only chats", param="model")


@pytest.fixture(scope="module")
def url(files, tmp_path_factory):
    with loaded_server(files.base, state=tmp_path_factory.mktemp("answers")) as state:
        state.registry.add(ServedShouter())
        with running(state) as address:
            yield address


def post(url: str, path: str, **fields: object) -> httpx.Response:
    message = {"role": "user", "content": "who answers here"}
    with httpx.Client(trust_env=False, timeout=30, verify=False) as client:
        return client.post(url + path, json={"model": "shouter", "messages": [message], **fields})


def test_a_toy_answerer_is_listed_and_chats_in_each_api(url):
    reply = post(url, "/v1/chat/completions").json()
    assert reply["choices"][0]["message"]["content"] == "WHO ANSWERS HERE "
    assert reply["usage"]["completion_tokens"] == 3
    assert post(url, "/v1/messages", max_tokens=9).json()["content"] == [{"type": "text", "text": "WHO ANSWERS HERE "}]
    models = httpx.get(f"{url}/v1/models", trust_env=False).json()["data"]
    assert models[-1]["bedplate"] == {"base": "shouter", "kind": "toy"}


def test_its_steps_are_streamed(url):
    lines = post(url, "/v1/chat/completions", stream=True).text.split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == "WHO ANSWERS HERE "


def test_what_it_cannot_do_is_refused(url):
    with httpx.Client(trust_env=False, timeout=30, verify=False) as client:
        refused = client.post(f"{url}/v1/embeddings", json={"model": "shouter", "input": "a"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")
