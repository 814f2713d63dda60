"""An encoder–decoder over HTTP with LoRA skins on it, beside itself in one batch: what peft and transformers write."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import peft
import pytest
import torch
import transformers
from tests.seq2seq import write_tiny_t5
from tests.serving.conftest import Server, running
from tokenizers import Tokenizer

from bedplate.adapters.bank import Bank
from bedplate.adapters.lora import LoraConfig
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.serving.server.app import loaded_server
from bedplate.skins.files import write_skin
from bedplate.skins.output import TextOutput
from bedplate.skins.prompt import Prompt
from bedplate.skins.skin import BaseReference, EvaluatedWith, InputField, LoraPart, Skin

TEXTS = ("the cat sat on the mat", "a dog ran to the old barn", "birds sing in the trees at dawn")
PROMPT = "say it again: "
ADAPTERS = {"all": LoraConfig(r=2, alpha=4), "some": LoraConfig(r=3, alpha=3, targets=("q", "cross.v", "down"))}
LENGTH = 9


@dataclass(frozen=True)
class Written:
    """A base and its skins on disk."""

    base: Path
    skins: tuple[Path, ...]

    def expected(self, name: str) -> list[str]:
        """What transformers writes to each text, greedily, with peft's adapter where a skin is asked."""
        model: Any = transformers.AutoModelForSeq2SeqLM.from_pretrained(self.base)
        if name in ADAPTERS:
            model = peft.PeftModel.from_pretrained(model, self.base.parent / name)
        tokenizer = Tokenizer.from_file(str(self.base / "tokenizer.json"))
        texts: list[str] = []
        for text in TEXTS:
            ids = torch.tensor([tokenizer.encode(PROMPT * (name in ADAPTERS) + text).ids])
            with torch.no_grad():
                written = model.eval().generate(input_ids=ids, max_new_tokens=LENGTH, do_sample=False)[0]
            texts.append(tokenizer.decode(written.tolist()))
        return texts


def lora_skin(base: Base, name: str, seed: int) -> Skin:
    bank, config = Bank(base.model), ADAPTERS[name]
    generator = torch.Generator().manual_seed(seed)
    shapes = bank.state(bank.add(config))
    tensors = {key: torch.randn(value.shape, generator=generator) * 0.4 for key, value in shapes.items()}
    bank.close()
    return Skin(
        name=name,
        bases={"main": BaseReference.of("t5", "t5", base.identity)},
        inputs={"text": InputField()},
        output=TextOutput(max_tokens=LENGTH),
        prompt=Prompt(PROMPT + "{{ text }}"),
        lora=LoraPart(config, tensors),
        evaluated_with=EvaluatedWith(weights="float32"),
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    root = tmp_path_factory.mktemp("seq2seq")
    directory = write_tiny_t5(root / "t5", TEXTS * 4)
    model: Any = transformers.AutoModelForSeq2SeqLM.from_pretrained(directory)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():  # so much that what is written depends on what was read
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.4)
    model.save_pretrained(directory)
    base = load_base(directory)
    skins = tuple(write_skin(lora_skin(base, name, seed), root / name) for seed, name in enumerate(ADAPTERS))
    return Written(directory, skins)


@pytest.fixture(scope="module")
def translator(written: Written, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    state_directory = tmp_path_factory.mktemp("seq2seq-state")
    with loaded_server(written.base, written.skins, state=state_directory) as state, running(state) as url:
        yield Server(url, state, {})


def chat_text(client: openai.OpenAI, name: str, text: str, stream: bool) -> str:
    request: dict[str, Any] = {"model": name, "messages": [{"role": "user", "content": text}], "temperature": 0}
    if name not in ADAPTERS:
        request["max_tokens"] = LENGTH
    if not stream:
        return client.chat.completions.create(**request).choices[0].message.content or ""
    pieces = client.chat.completions.create(**request, stream=True)
    return "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)


def together(server: Server, calls: Sequence[tuple[str, str, bool]]) -> list[str]:
    """The answers to calls that all wait before the first is computed."""
    engine = server.state.registry.engines[0]
    with server.client as client, ThreadPoolExecutor(len(calls)) as pool:
        with engine.exclusive():
            replies = [pool.submit(chat_text, client, *call) for call in calls]
            end = time.monotonic() + 30
            while engine.waiting < len(calls) and not any(reply.done() for reply in replies):
                assert time.monotonic() < end, "the calls did not arrive"
                time.sleep(0.002)
        return [reply.result() for reply in replies]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks
def test_skins_and_their_base_answer_in_one_batch_as_peft_does(written: Written, translator: Server) -> None:
    names = ("t5", *ADAPTERS)
    expected = {name: written.expected(name) for name in names}
    assert len({tuple(text.strip() for text in texts) for texts in expected.values()}) == len(names)
    assert all(len({text.strip() for text in texts}) == len(TEXTS) for texts in expected.values())
    with translator.client as client:
        assert {model.id for model in client.models.list()} == {*names}
        for name in ADAPTERS:  # which are loaded when they are first asked
            assert chat_text(client, name, TEXTS[0], False).strip() == expected[name][0].strip()
    calls = [(name, text, stream) for text in TEXTS for name in names for stream in (False, True)]
    before = translator.state.registry.engines[0].stats()
    answers = together(translator, calls)
    for (name, text, _), answer in zip(calls, answers, strict=True):
        assert answer.strip() == expected[name][TEXTS.index(text)].strip(), (name, text)
    after = translator.state.registry.engines[0].stats()
    assert after.steps - before.steps < 4 * LENGTH  # one by one it would be as many for each two calls
    assert after.adapters == len(ADAPTERS)
    with translator.client as client:
        completed = client.completions.create(model="t5", prompt=list(TEXTS), max_tokens=LENGTH, temperature=0)
    assert [choice.text.strip() for choice in completed.choices] == [text.strip() for text in expected["t5"]]
