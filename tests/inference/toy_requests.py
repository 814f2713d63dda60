"""Request types that no engine knows: what one more file of `engine/requests` would hold.

`Norm` and `Likeliest` read a prompt. `Feedback` feeds vectors: its last hidden state is the next input, as in
continuous thought (https://arxiv.org/abs/2412.06769). `Denoise` has no tokens: it takes a latent
through N denoising steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bedplate.core.errors import RequestError
from bedplate.inference.engine.requests.base import Request, Result
from bedplate.inference.engine.requests.job import PassRequest, PassResult, RequestJob
from bedplate.inference.forward.batch import LatentInput
from bedplate.models.decoder import Decoder


@dataclass(frozen=True)
class Norm(Request):
    """The length of the last token's state."""


@dataclass(frozen=True)
class Likeliest(Request):
    """The likeliest token after each of `tokens`."""


@dataclass(frozen=True)
class Feedback(Request):
    """The last hidden state after the prompt and `steps` vectors, each of which is the state before it."""

    steps: int = 1


@dataclass(frozen=True)
class Denoise(Request):
    """What `steps` denoising steps make of noise [patches, channels] drawn from `seed`."""

    seed: int = 0
    steps: int = 4
    patches: int = 6
    channels: int = 3


@dataclass(frozen=True)
class Answer(Result):
    value: Any


class NormJob(RequestJob[Norm]):
    norm = 0.0

    def pass_request(self, begin: int, end: int) -> PassRequest:
        return PassRequest(states=True)

    def consume(self, pass_result: PassResult) -> None:
        if pass_result.end == len(self.tokens):
            self.norm = float(pass_result.states_TD[-1].float().norm())
            self.ended = "stop"

    def result(self) -> Answer:
        return Answer(self.norm, **self.account())


class LikeliestJob(RequestJob[Likeliest]):
    reusable = None

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.likeliest: list[int] = []

    def pass_request(self, begin: int, end: int) -> PassRequest:
        return PassRequest(range(begin, end))

    def consume(self, pass_result: PassResult) -> None:
        self.likeliest += pass_result.logits_WV.argmax(-1).tolist()
        if pass_result.end == len(self.tokens):
            self.ended = "stop"

    def restart(self) -> None:
        super().restart()
        self.likeliest = []

    def result(self) -> Answer:
        return Answer(tuple(self.likeliest), **self.account())


class FeedbackJob(RequestJob[Feedback]):
    has_features = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.thoughts: list[Tensor] = []
        self.last_D: Tensor | None = None

    @property
    def reusable(self) -> int:
        return self.prompt_end - 1  # what its vectors stand for is known to nobody else

    @property
    def max_new_tokens(self) -> int:
        return self.request.steps

    def pass_request(self, begin: int, end: int) -> PassRequest:
        first = max(begin, self.prompt_end)
        thoughts = self.thoughts[first - self.prompt_end : end - self.prompt_end] if end > self.prompt_end else []
        vectors = [(first, torch.stack(thoughts))] if thoughts else []
        return PassRequest(states=True, vectors=vectors)

    def consume(self, pass_result: PassResult) -> None:
        if pass_result.end < len(self.tokens):
            return
        self.last_D = pass_result.states_TD[-1]
        if len(self.thoughts) == self.request.steps:
            self.ended = "stop"
        else:
            self.thoughts.append(self.last_D)
            self.tokens.append(0)

    def result(self) -> Answer:
        assert self.last_D is not None
        return Answer(tuple(self.last_D.tolist()), **self.account())


class DenoiseJob(RequestJob[Denoise]):
    has_features, is_sequence = True, False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        request = self.request
        self.latents_PC = noise(request.seed, request.patches, request.channels)
        self.step = 0

    def check(self) -> None:
        if "denoise" not in self.resources.base.can:
            raise RequestError(f"{self.resources.base.name} cannot denoise")

    @property
    def cost(self) -> int:
        """One denoising step: it is computed when all of its patches are paid for."""
        return self.request.patches * (self.step + 1) - self.computed_tokens

    def pass_request(self, begin: int, end: int) -> PassRequest:
        if end < self.request.patches * (self.step + 1):
            return PassRequest()
        return PassRequest(latents=LatentInput(self.latents_PC, timestep(self.step, self.request.steps), self.adapter))

    def consume(self, pass_result: PassResult) -> None:
        self.latents_PC = stepped(self.latents_PC, pass_result.denoised_TC, self.request.steps)
        self.step += 1
        if self.step == self.request.steps:
            self.ended = "stop"

    def result(self) -> Answer:
        return Answer(tuple(self.latents_PC.flatten().tolist()), **self.account())


def noise(seed: int, patches: int, channels: int) -> Tensor:
    return torch.randn(patches, channels, generator=torch.Generator().manual_seed(seed))


def timestep(step: int, steps: int) -> float:
    return 1 - step / steps


def stepped(latents_PC: Tensor, velocity_PC: Tensor, steps: int) -> Tensor:
    """One Euler step."""
    return latents_PC - velocity_PC / steps


class DenoisingDecoder(Decoder):
    """A decoder whose blocks predict latents' velocity as well: a unified model in little."""

    can = Decoder.can | {"denoise"}

    def denoise(self, latents_BTC: Tensor, timesteps_B: Tensor, condition_BSD: Tensor | None = None) -> Tensor:
        return torch.tanh(latents_BTC.flip(1) * timesteps_B[:, None, None]) + latents_BTC.mean(1, keepdim=True)


def reference_denoised(model: DenoisingDecoder, request: Denoise) -> tuple[float, ...]:
    """The same, one latent at a time."""
    latents_PC = noise(request.seed, request.patches, request.channels)
    for step in range(request.steps):
        times_B = torch.tensor([timestep(step, request.steps)])
        latents_PC = stepped(latents_PC, model.denoise(latents_PC[None], times_B)[0], request.steps)
    return tuple(latents_PC.flatten().tolist())


def toy_requests(prompt: Sequence[int], number: int) -> Request:
    """One of the toys in turn."""
    tokens = tuple(prompt)
    return (Norm(tokens), Likeliest(tokens), Feedback(tokens, steps=3), Denoise((), seed=number))[number % 4]
