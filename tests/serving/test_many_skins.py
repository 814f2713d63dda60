"""Many LoRA skins and half as many prompt skins served at once from one process: each answers as it does alone."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch

from bedplate.inference.predict.predictor import Predictor
from bedplate.models.checkpoints.base import load_base
from bedplate.serving.server.app import loaded_server, server_config
from bedplate.skins.files import write_skin
from bedplate.skins.output import TextOutput
from bedplate.skins.prompt import Prompt
from bedplate.skins.skin import LoraPart, Skin

from .conftest import KERNEL, make_skins, running

COUNTS = [(20, 10), pytest.param((100, 50), marks=pytest.mark.slow)]
"""Of LoRA skins, and of prompt skins."""
TEXTS = ("this product is great", "it broke after a day")


def build(base, loras: int, prompts: int) -> list[Skin]:
    prompted, tuned = make_skins(base)[:2]
    skins: list[Skin] = []
    for number in range(loras):
        generator = torch.Generator().manual_seed(number)
        tensors = {k: torch.randn(v.shape, generator=generator) * 0.3 for k, v in tuned.lora.tensors.items()}
        lora = LoraPart(tuned.lora.config, tensors)
        # half of them choose a label, half write
        output = TextOutput(max_tokens=5) if number % 2 else tuned.output
        skins.append(dataclasses.replace(tuned, name=f"lora-{number}", lora=lora, output=output))
    for number in range(prompts):
        prompt = Prompt(f"Rule {number}: the answer is yes or no.\n{{{{ review }}}}\nAnswer:")
        output = TextOutput(max_tokens=5) if number % 2 else prompted.output
        skins.append(dataclasses.replace(prompted, name=f"prompt-{number}", prompt=prompt, output=output))
    return skins


@pytest.fixture(scope="module", params=COUNTS, ids=lambda counts: f"{sum(counts)} skins")
def skins(request, files, tmp_path_factory) -> tuple[Path, list[Skin]]:
    root = tmp_path_factory.mktemp("many")
    skins = build(load_base(files.base), *request.param)
    for skin in skins:
        write_skin(skin, root / skin.name)
    return root, skins


@pytest.fixture(scope="module")
def expected(files, skins) -> Iterator[dict[tuple[str, str], str]]:
    """Each skin alone, one call at a time, on an engine of its own."""
    with loaded_server(files.base, kernel=KERNEL) as state:
        answers: dict[tuple[str, str], str] = {}
        for skin in skins[1]:
            with Predictor(state.registry.engines[0], skin) as predictor:
                answers |= {(skin.name, text): predictor(text) for text in TEXTS}
        yield answers


@pytest.mark.parametrize("places", [pytest.param(128, marks=pytest.mark.slow), 8])
def test_each_of_many_skins_answers_as_it_does_alone(files, skins, expected, places):
    """With room for all of them in memory, and with room for eight adapters."""
    loras = sum(skin.lora is not None for skin in skins[1])
    config = server_config(files.base, adapters=places, skins_directory=skins[0], max_waiting=512)
    with loaded_server(config) as state, running(state) as url:
        assert len(state.registry.models) == 1 + len(skins[1])
        assert state.registry.engines[0].bank.slots == ()

        async def everything() -> dict[tuple[str, str], str]:
            limits = httpx.Limits(max_connections=64)
            async with httpx.AsyncClient(trust_env=False, timeout=120, limits=limits) as client:

                async def post_chat(name: str, text: str) -> str:
                    body = {"model": name, "messages": [{"role": "user", "content": text}], "temperature": 0}
                    reply = await client.post(f"{url}/v1/chat/completions", json=body)
                    assert reply.status_code == 200, reply.text
                    return reply.json()["choices"][0]["message"]["content"]

                keys = sorted(expected, key=lambda key: hash(key) % 1009)
                return dict(zip(keys, await asyncio.gather(*(post_chat(*key) for key in keys)), strict=True))

        answers = asyncio.run(everything())
        assert answers == expected
        assert len(state.registry.engines[0].bank.slots) == min(places, loras)
        # no two skins say the same everywhere, so that serving one in another's place would show
        written = [tuple(expected[f"lora-{n}", text] for text in TEXTS) for n in range(1, loras, 2)]
        assert len(set(written)) > 0.9 * len(written)
