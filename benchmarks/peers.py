"""The peers of the inference benchmarks, on the same GGUF and the same number of threads."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bedplate.inference.engine import Engine
from bedplate.inference.requests import Generate, Sampling
from bedplate.models.checkpoints.base import load_base, locate
from bedplate.models.checkpoints.export import export_base
from comparison import Row, need

THREADS = min(2, os.cpu_count() or 1)


def prompt_tokens(count: int, vocabulary: int) -> list[int]:
    """Fixed random token ids: what a token is does not change what it costs."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, vocabulary, (count,), generator=generator).tolist()


class LlamaCpp:
    """llama.cpp through its Python bindings, its batch as large as the prompt, so that one call does the prefill."""

    def __init__(self, path: Path, context: int = 1024) -> None:
        import llama_cpp

        self._model = llama_cpp.Llama(
            str(path),
            n_ctx=context,
            n_batch=context,
            n_ubatch=512,
            n_threads=THREADS,
            n_threads_batch=THREADS,
            verbose=False,
        )

    def prefill(self, tokens: Sequence[int]) -> None:
        self._model.reset()
        self._model.eval(list(tokens))

    def decode(self, count: int) -> None:
        """`count` greedy steps after what was evaluated last."""
        for _ in range(count):
            self._model.eval([self._model.sample(temp=0.0)])


class Transformers:
    """transformers in bfloat16, the exported base, logits of the last position only."""

    def __init__(self, directory: Path) -> None:
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        warnings.filterwarnings(
            "ignore", "`past_key_values`", FutureWarning
        )  # its new name is unknown to older versions
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()
        self._cache: Any = None
        self._next = torch.zeros(1, 1, dtype=torch.int64)

    @torch.inference_mode()
    def prefill(self, tokens: Sequence[int]) -> None:
        out = self._model(torch.tensor([list(tokens)]), use_cache=True, logits_to_keep=1)
        self._cache, self._next = out.past_key_values, out.logits[:, -1:].argmax(-1)

    @torch.inference_mode()
    def decode(self, count: int) -> None:
        for _ in range(count):
            out = self._model(self._next, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
            self._next = out.logits[:, -1:].argmax(-1)


@dataclass(frozen=True)
class Contest:
    """Ours and the peers on one model, with the same prompt; `versions` by peer."""

    engine: Engine
    tokens: tuple[int, ...]
    llama_cpp: LlamaCpp
    transformers: Transformers
    versions: dict[str, str]

    def ours(self, count: int) -> None:
        """The prompt and `count` greedy tokens after it, the first of which the prefill yields."""
        self.engine.run([Generate(self.tokens, Sampling(max_tokens=count, ignore_eos=True))])

    def rows(self, name: str, speed: Mapping[str, float], goal: float | None = None) -> list[Row]:
        """Tokens per second by contestant → the benchmark's rows. The goal is against llama.cpp."""
        peers = {
            "llama.cpp": ("llama-cpp-python", name, goal),
            "transformers": ("transformers", f"{name}_transformers", None),
        }
        return [
            Row(title, speed["ours"], speed[peer], "tokens/s", package, self.versions[package], goal=wanted)
            for peer, (package, title, wanted) in peers.items()
        ]


@contextmanager
def contest(prompt: int) -> Generator[Contest]:
    """SmolLM2-135M as ours, llama.cpp's and transformers', and `prompt` tokens to begin with."""
    versions = {
        "llama-cpp-python": need("llama_cpp", "llama-cpp-python"),
        "transformers": need("transformers", "transformers"),
    }
    torch.set_num_threads(THREADS)
    path = locate("smollm2-135m")
    base = load_base(path)
    with tempfile.TemporaryDirectory() as scratch, Engine(base) as engine:
        theirs = Transformers(export_base(load_base(path, dtype="float32"), Path(scratch) / "base"))
        tokens = tuple(prompt_tokens(prompt, base.spec.vocab_size))
        yield Contest(engine, tokens, LlamaCpp(path), theirs, versions)
