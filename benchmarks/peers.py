"""The peers of the inference benchmarks, on the same GGUF and the same number of threads."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

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


class Steps:
    """Prefill and decode timed apart: the decode of each turn follows an untimed prefill."""

    def __init__(self, peer: LlamaCpp | Transformers, tokens: Sequence[int], count: int) -> None:
        self._peer, self._tokens, self._count = peer, tokens, count

    def seconds(self, clock: Callable[[], float]) -> float:
        self._peer.prefill(self._tokens)
        start = clock()
        self._peer.decode(self._count)
        return clock() - start
