"""litellm, unmodified, over /v1/chat/completions, /v1/messages and /v1/embeddings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from tests.serving.conftest import Server

from .conftest import CLOCK_TOOL, TOOL, WEATHER
from .test_tool_results import TURN

CLIENT = Path(__file__).parent / "litellm_client.py"


@pytest.mark.slow  # seconds of imports
def test_chats_calls_results_and_vectors_through_litellm(mixed_server: Server) -> None:
    tools = [TOOL, CLOCK_TOOL]
    ran = subprocess.run(
        [sys.executable, str(CLIENT)],
        input=json.dumps({"url": mixed_server.url, "turn": TURN, "tools": tools}),
        capture_output=True,
        text=True,
        timeout=240,
        # It would fetch its table of prices.
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "127.0.0.1"},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    results = json.loads(ran.stdout.splitlines()[-1])
    with mixed_server.client as client:
        vectors = client.embeddings.create(model="tiny", input=["hi", "there"]).data
    for provider in ("openai", "anthropic"):
        text, tokens = results[provider]
        assert tokens == 6
        assert results[f"{provider} streamed"] == text
        assert results[f"{provider} called"]
        prompt_tokens, with_results = results[f"{provider} prompts"]
        assert with_results > prompt_tokens  # what was called, and its results, are in the second prompt
        for name, arguments in results[f"{provider} called"]:
            assert name in {"weather", "now"}
            jsonschema.validate(arguments, WEATHER if name == "weather" else {"type": "object", "maxProperties": 0})
    for vector, reference in zip(results["vectors"], vectors, strict=True):
        assert vector == pytest.approx(reference.embedding, abs=1e-6)
