"""Nobody learns from the prefix cache what a skin's prompt says, unless the skin is theirs to ask."""

from __future__ import annotations

import pytest
from tests.serving.conftest import Server
from tests.tiny import write_tiny_base

from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Generate, Sampling
from bedplate.models.checkpoints.base import load_base

from .conftest import head

SHORT = Sampling(max_tokens=1)


def cached(server: Server, tenant: str, model: str, tokens: tuple[int, ...]) -> int:
    body = {"model": model, "prompt": list(tokens), "max_tokens": 1}
    reply = server.post("/v1/completions", json=body, headers=head(tenant))
    assert reply.status_code == 200, reply.text
    return reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_a_guessed_prompt_of_a_skin_is_not_found_cached(target):
    """The skin's whole prompt, as its own calls send it, and as the prompt of a call to its base."""
    messages = [{"role": "user", "content": "works"}]
    body = {"model": "writer", "messages": messages, "max_tokens": 1}
    for _ in range(2):
        theirs = target.post("/v1/chat/completions", json=body, headers=head("them"))
    usage = theirs.json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > 16
    tokenized = target.post("/tokenize", json={"model": "writer", "messages": messages}, headers=head("them")).json()
    assert len(tokenized["tokens"]) == usage["prompt_tokens"]
    assert cached(target, "curious", "tiny", tuple(tokenized["tokens"])) == 0
    assert cached(target, "curious", "tiny", tuple(tokenized["tokens"])) > 16  # their own, of a moment ago


@pytest.mark.parametrize("paged", [False, True])
def test_what_is_pinned_for_some_is_used_by_those_that_say_so(tmp_path, paged):
    base = load_base(write_tiny_base(tmp_path / "tiny"))
    prefix, end = tuple(range(20, 84)), (7, 9)
    with Engine(base, kernel="torch", paged=paged) as engine:

        def cached_tokens(tenant: str, shared: int) -> int:
            request = Generate((*prefix, *end), sampling=SHORT, tenant=tenant, shared_tokens=shared)
            return engine.run([request])[0].usage.cached_tokens

        engine.pin(prefix, public=False)
        assert cached_tokens("us", 0) == 0
        assert cached_tokens("them", len(prefix)) == len(prefix)
        assert cached_tokens("others", len(prefix) - 16) == len(prefix) - 16  # what they share anyhow, and no more
        engine.pin(prefix)
        engine.unpin(prefix, public=False)
        assert cached_tokens("fourth", 0) == len(prefix)
        engine.unpin(prefix)
        assert cached_tokens("fifth", 0) == 0
