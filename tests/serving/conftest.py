"""One real server in a thread, on a tiny random base with a skin of each kind, shared by the room's tests."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from tests.servers.threaded import served
from tests.tiny import NATIVE_SHAPE, write_tiny_base

from bedplate.adapters.bank import Bank
from bedplate.adapters.head import Head
from bedplate.adapters.lora import LoraConfig
from bedplate.inference.native.library import load
from bedplate.inference.native.packed_weights import unsupported
from bedplate.inference.predict.classical import ClassicalPredictor
from bedplate.inference.predict.predictor import Predictor
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.models.decoder import Decoder
from bedplate.serving.request.server_state import ServerState
from bedplate.serving.server.app import create_app, loaded_server
from bedplate.skins.classical import Classical
from bedplate.skins.files import read_skin, write_skin
from bedplate.skins.output import LabelOutput, LabelsOutput, TextOutput
from bedplate.skins.prompt import Demonstration, Prompt
from bedplate.skins.skin import BaseReference, EvaluatedWith, InputField, LoraPart, ProbePart, Skin
from bedplate.text.tokenizer import Tokenizer

LABELS = ("negative", "positive")
INPUTS = ("this product is great", "it broke after a day", "terrible <|im_end|> works well", "ü 😀 \n ok")
SKINS = ("prompted", "tuned", "probed", "writer", "pair", "several", "worded")
TOPICS = ("price", "quality", "delivery")
KERNEL = "torch" if isinstance(load(), str) else "native"
"""What runs the tiny base: a server without skins would choose by what it measures."""


@dataclass
class Server:
    """A running server, the state behind it, and the skins that it serves."""

    url: str
    state: ServerState
    skins: Mapping[str, Any]
    """A predictor of each."""

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=30)

    @property
    def tokenizer(self) -> Tokenizer:
        """The main base's."""
        return self.state.registry.engines[0].base.need_tokenizer()

    def request(self, method: str, path: str, **request: Any) -> httpx.Response:
        with httpx.Client(trust_env=False, timeout=30, verify=False) as client:  # reads no certificates
            return client.request(method, self.url + path, **request)

    def post(self, path: str, **request: Any) -> httpx.Response:
        return self.request("POST", path, **request)

    def chat(self, **fields: Any) -> httpx.Response:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2} | fields
        return self.post("/v1/chat/completions", json=body)

    def idle(self, seconds: float = 10.0) -> bool:
        """Whether the engine comes to rest: no running rows, nothing waiting."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not self.state.registry.engines[0].running and not self.state.registry.engines[0].waiting:
                return True
            time.sleep(0.01)
        return False


def judged_with(base: Base) -> EvaluatedWith:
    """What a skin says that was judged on this base as it is: by the native kernel where that runs it."""
    kernel = "torch" if unsupported(base.spec, base.dtype, base.device) else "native"
    return EvaluatedWith(weights="float32", kernel=kernel)


def make_skins(base: Base) -> list[Skin]:
    reference = BaseReference.of("tiny", "llama", base.identity)
    label = LabelOutput(labels=LABELS, continuations=(" negative", " positive"))
    plain = Prompt("Review: {{ review }}\nSentiment:")
    assert isinstance(base.model, Decoder)
    bank, config = Bank(base.model), LoraConfig(r=2, alpha=4, targets=("q", "down"))
    torch.manual_seed(1)
    tensors = {name: torch.randn(value.shape) * 0.3 for name, value in bank.state(bank.add(config)).items()}
    bank.close()
    head = Head(torch.randn(2, base.spec.hidden_size), torch.randn(2), LABELS)
    common: dict[str, Any] = {"bases": {"main": reference}, "evaluated_with": judged_with(base)}
    review = {"review": InputField()}
    question_answer = {"question": InputField(), "answer": InputField()}
    shots = (Demonstration({"review": "bad"}, "negative"), Demonstration({"review": "ok"}, "positive"))
    chat = Prompt("{{ review }}", format="chat", system="the answer is yes or no")
    return [
        Skin(name="prompted", inputs=review, output=label, prompt=plain, **common),
        Skin(
            name="tuned",
            inputs=review,
            output=label,
            prompt=plain,
            lora=LoraPart(config, tensors),
            **common,
        ),
        Skin(
            name="probed",
            inputs=review,
            output=label,
            prompt=plain,
            probe=ProbePart(head, "layers.2"),
            **common,
        ),
        Skin(
            name="writer",
            inputs=review,
            output=TextOutput(max_tokens=24),
            prompt=chat,
            demonstrations=shots,
            **common,
        ),
        Skin(
            name="pair",
            inputs=question_answer,
            output=label,
            prompt=Prompt("{{ question }} {{ answer }}:"),
            **common,
        ),
        Skin(
            name="several",
            inputs=review,
            output=LabelsOutput(labels=TOPICS, threshold=0.4),
            prompt=plain,
            probe=ProbePart(Head(torch.randn(3, base.spec.hidden_size), torch.zeros(3), TOPICS), "layers.2"),
            **common,
        ),
        Skin(
            name="worded",
            bases={},
            inputs=review,
            output=LabelOutput(labels=LABELS),
            prompt=Prompt("{{ review }}"),
            classical=words_model(),
        ),
    ]


def words_model() -> Classical:
    """A model that knows some words of INPUTS."""
    terms = ("broke", "great", "product is", "terrible", "ü")
    weight = np.array([[2.0, -1.0, 0.5, 1.5, 0.1], [-2.0, 1.5, -0.5, -1.0, 0.7]], np.float32)
    idf = np.array([1.5, 1.25, 2.0, 1.75, 3.0], np.float32)
    return Classical(terms, idf, weight, np.array([0.25, -0.25], np.float32), LABELS)


@dataclass(frozen=True)
class Files:
    base: Path
    skins: Sequence[Path]


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    root = tmp_path_factory.mktemp("serving")
    directory = write_tiny_base(root / "tiny", **NATIVE_SHAPE)
    skins = make_skins(load_base(directory))
    return Files(directory, [write_skin(skin, root / skin.name) for skin in skins])


@contextlib.contextmanager
def running(state: ServerState, grace: int | None = None) -> Generator[str]:
    """The URL of a real server in a thread. At the end it waits for requests as long as `grace` says, or not at all."""
    with served(create_app(state), grace, lifespan="on") as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def server(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # Predictors of another engine on the same files: what the served answers are compared with.
    directory = tmp_path_factory.mktemp("server-state")
    with (
        loaded_server(files.base, files.skins, state=directory) as state,
        running(state) as url,
        loaded_server(files.base, kernel=KERNEL) as reference_state,
    ):
        read = {path.name: read_skin(path) for path in files.skins}
        predictors = {
            name: Predictor(reference_state.registry.engines[0], skin)
            if skin.classical is None
            else ClassicalPredictor(skin)
            for name, skin in read.items()
        }
        yield Server(url, state, predictors)


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return server.client
