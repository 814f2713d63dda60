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

from .conftest import NOW, TOOL, WEATHER
from .test_tool_results import TURN

CLIENT = Path(__file__).parent / "litellm_client.py"


@pytest.mark.slow  # seconds of imports
def test_chats_calls_results_and_vectors_through_litellm(wide: Server) -> None:
    tools = [TOOL, NOW]
    ran = subprocess.run(
        [sys.executable, str(CLIENT)],
        input=json.dumps({"url": wide.url, "turn": TURN, "tools": tools}),
        capture_output=True,
        text=True,
        timeout=240,
        # It would fetch its table of prices.
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "127.0.0.1"},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    with wide.client as client:
        vectors = client.embeddings.create(model="tiny", input=["hi", "there"]).data
    for way in ("openai", "anthropic"):
        text, tokens = found[way]
        assert tokens == 6
        assert found[f"{way} streamed"] == text
        assert found[f"{way} called"]
        asked, with_results = found[f"{way} prompts"]
        assert with_results > asked  # what was called, and its results, are in the second prompt
        for name, arguments in found[f"{way} called"]:
            assert name in {"weather", "now"}
            jsonschema.validate(arguments, WEATHER if name == "weather" else {"type": "object", "maxProperties": 0})
    for one, other in zip(found["vectors"], vectors, strict=True):
        assert one == pytest.approx(other.embedding, abs=1e-6)
