"""The peers of the inference benchmarks, each in a process of its own, on the same GGUF and number of threads, and the
prompts that all get."""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import torch

import masks
from apart import PeerError, PeerProcess, call_in_process
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Generate, Sampling
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.models.checkpoints.checkpoint import locate
from bedplate.models.checkpoints.export import export_base
from comparison import Row, best_seconds, need

THREADS = torch.get_num_threads()
"""One for each core, as torch finds them (or OMP_NUM_THREADS says): every contestant gets as many."""
BASE = "smollm2-135m"
BASES = (BASE, "gemma3-270m")
DTYPES = ("float32", "bfloat16")


def add_base(parser: argparse.ArgumentParser) -> None:
    """The option that says which base of the catalogue is compared."""
    parser.add_argument("--base", default=BASE, choices=BASES)


def titled(base: str, name: str) -> str:
    """A row's name: the base stands before it where it is another one."""
    return name if base == BASE else f"{base} {name}"


def our_base(name: str = BASE) -> Base:
    """The base as the native kernel takes it, on every machine: what is compared is int4 from the same GGUF, and which
    dtype would be chosen without being asked is another question (defaults.py)."""
    return load_base(locate(name), dtype="bfloat16")


def fastest(build: Callable[[str], PeerProcess], trial: Callable[[Any], object]) -> tuple[Any, str]:
    """A peer in its fastest dtype here: made in each, tried briefly at what it will be measured at, the best of three
    turns; the others' processes end. Says what they would have taken."""
    timings: dict[str, float] = {}
    contenders: dict[str, PeerProcess] = {}
    for dtype in DTYPES:
        contenders[dtype] = build(dtype)
        timings[dtype] = best_seconds(
            lambda contender=contenders[dtype]: trial(contender), min(timings.values(), default=float("inf"))
        )
        best = min(timings, key=lambda dtype: timings[dtype])
        for slower in contenders.keys() - {best}:
            contenders.pop(slower).close()
    tried = ", ".join(f"{dtype} {seconds:.3g} s" for dtype, seconds in timings.items())
    print(f"{contenders[best].name} tried in {tried}: {best} it is", flush=True)
    return contenders[best], best


def prompt_tokens(count: int, vocabulary: int, seed: int = 0) -> list[int]:
    """Fixed random token ids: what a token is does not change what it costs."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, vocabulary, (count,), generator=generator).tolist()


class LlamaCpp:
    """llama.cpp through its Python bindings, its batch as large as the prompt, so that one call does the prefill.
    every_logit: of each token, not of the last alone; `loss` needs them."""

    def __init__(self, path: Path, context: int = 1024, every_logit: bool = False) -> None:
        import llama_cpp

        self._model = llama_cpp.Llama(
            str(path),
            n_ctx=context,
            n_batch=context,
            n_ubatch=512,
            n_threads=THREADS,
            n_threads_batch=THREADS,
            logits_all=every_logit,
            verbose=False,
        )

    def prefill(self, tokens: Sequence[int]) -> None:
        self._model.reset()
        self._model.eval(list(tokens))

    def decode(self, count: int) -> None:
        """`count` greedy steps after what was evaluated last."""
        for _ in range(count):
            self._model.eval([self._model.sample(temp=0.0)])

    def loss(self, tokens: Sequence[int]) -> float:
        """The summed negative log-likelihood of all tokens but the first."""
        self.prefill(tokens)
        logits_TV = torch.from_numpy(self._model.scores[: len(tokens) - 1].copy())
        return float(torch.nn.functional.cross_entropy(logits_TV, torch.tensor(tokens[1:]), reduction="sum"))


@cache
def _silent() -> Any:
    """A log that says nothing. Kept: llama.cpp calls it until the process ends, whoever set it."""
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda level, text, data: None)


class LlamaCppBatch:
    """llama.cpp's own batch API: several sequences in each call, as its server does it; greedy."""

    def __init__(self, path: Path, sequences: int, context: int) -> None:
        import llama_cpp

        self._api = llama_cpp
        llama_cpp.llama_log_set(_silent(), None)
        model_parameters = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_parameters)
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = sequences * context
        parameters.n_batch = parameters.n_ubatch = 512
        parameters.n_seq_max = sequences
        parameters.n_threads = parameters.n_threads_batch = THREADS
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(512, 0, sequences)

    def _decode(self, entries: Sequence[tuple[int, int, int, bool]]) -> list[int]:
        """Entries (token, position, sequence, whether its logits are wanted) → the likeliest next token of each wanted
        one."""
        import numpy as np

        batch, output_rows = self._batch, [i for i, batch_token in enumerate(entries) if batch_token[3]]
        batch.n_tokens = len(entries)
        for i, (token, position, sequence, logits) in enumerate(entries):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, logits
        if self._api.llama_decode(self._context, batch) != 0:
            raise RuntimeError("llama.cpp refused the batch")
        rows = (self._api.llama_get_logits_ith(self._context, i) for i in output_rows)
        return [int(np.ctypeslib.as_array(row, (self._vocabulary,)).argmax()) for row in rows]

    def generate(self, prompts: Sequence[Sequence[int]], count: int) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        last: list[int] = [0] * len(prompts)
        entries: list[tuple[int, int, int, bool]] = []
        for sequence, prompt in enumerate(prompts):
            entries += [(token, i, sequence, i == len(prompt) - 1) for i, token in enumerate(prompt)]
        for begin in range(0, len(entries), 512):
            part = entries[begin : begin + 512]
            ends = [batch_token[2] for batch_token in part if batch_token[3]]
            for sequence, token in zip(ends, self._decode(part), strict=True):
                last[sequence] = token
        for step in range(count - 1):
            last = self._decode([(t, len(prompts[s]) + step, s, True) for s, t in enumerate(last)])


class Transformers:
    """transformers, the exported base in this dtype, logits of the last position only."""

    def __init__(self, directory: Path, dtype: str, attention: str = "sdpa") -> None:
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        # New names that older versions do not know.
        warnings.filterwarnings("ignore", "`past_key_values`|The `paged", FutureWarning)
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=getattr(torch, dtype), attn_implementation=attention
        ).eval()
        self._cache: Any = None
        self._next = torch.zeros(1, 1, dtype=torch.int64)

    @torch.inference_mode()
    def prefill(self, tokens: Sequence[int]) -> None:
        out = self.model(torch.tensor([list(tokens)]), use_cache=True, logits_to_keep=1)
        self._cache, self._next = out.past_key_values, out.logits[:, -1:].argmax(-1)

    @torch.inference_mode()
    def decode(self, count: int) -> None:
        for _ in range(count):
            out = self.model(self._next, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
            self._next = out.logits[:, -1:].argmax(-1)

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]], count: int, **settings: Any) -> None:
        """One static batch of prompts of one length."""
        ids = torch.tensor([list(prompt) for prompt in prompts])
        fixed = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "pad_token_id": 0}
        self.model.generate(ids, attention_mask=torch.ones_like(ids), **fixed, **settings)

    @torch.inference_mode()
    def continuous(self, prompts: Sequence[Sequence[int]], count: int) -> int:
        """Its continuous batching; the number of tokens that came of it."""
        from transformers import GenerationConfig

        config = GenerationConfig(max_new_tokens=count, do_sample=False, eos_token_id=-1, pad_token_id=0)
        outputs = self.model.generate_batch([list(prompt) for prompt in prompts], generation_config=config)
        return sum(len(output.generated_tokens) for output in outputs.values())


@contextmanager
def exported(dtype: str = "float32", base: str = BASE) -> Generator[Path]:
    """The base as a directory that transformers loads."""
    with tempfile.TemporaryDirectory() as scratch:
        yield export_base(load_base(locate(base), dtype=dtype), Path(scratch) / "base")


def generations(prompts: Sequence[Sequence[int]], count: int, adapters: Sequence[str | None] = ()) -> list[Generate]:
    """Our requests: `count` greedy tokens after each prompt, with its adapter where there are some."""
    sampling = Sampling(max_tokens=count, ignore_eos=True)
    adapter_names = adapters or [None] * len(prompts)
    return [Generate(tuple(p), sampling, adapter=a) for p, a in zip(prompts, adapter_names, strict=True)]


@dataclass(frozen=True)
class Contest:
    """Ours and the peers' processes on one model, with the same prompt; `versions` by peer, `dtype` of transformers."""

    engine: Engine
    tokens: tuple[int, ...]
    llama_cpp: PeerProcess
    transformers: PeerProcess
    dtype: str
    versions: dict[str, str]
    base: str = BASE
    _seeds: Iterator[int] = field(default_factory=count)

    def ours(self, length: int) -> None:
        """A prompt and `length` greedy tokens after it, the first of which the prefill yields. Each prompt is a new
        one, so that nothing of it is cached."""
        fresh = prompt_tokens(len(self.tokens), self.engine.base.spec.vocab_size, next(self._seeds))
        self.engine.run(generations([fresh], length))

    def rows(
        self, name: str, speed: Mapping[str, float], goal: float | None = None, transformers_goal: float | None = None
    ) -> list[Row]:
        """Tokens per second by contestant → the benchmark's rows, with the goals against llama.cpp and transformers."""
        peers = {
            "llama.cpp": ("llama-cpp-python", name, goal, ""),
            "transformers": ("transformers", f"{name}_transformers", transformers_goal, self.dtype),
        }
        return [
            Row(
                titled(self.base, title),
                speed["ours"],
                speed[peer],
                "tokens/s",
                package,
                self.versions[package],
                goal=row_goal,
                peer_setting=setting,
            )
            for peer, (package, title, row_goal, setting) in peers.items()
        ]


def versions_of_peers() -> dict[str, str]:
    """By distribution; ends the benchmark where one is missing, or where llama.cpp is not built for this processor."""
    versions = {
        "llama-cpp-python": need("llama_cpp", "llama-cpp-python"),
        "transformers": need("transformers", "transformers"),
    }
    try:
        unfit = masks.llama_unfit(call_in_process("llama_cpp:llama_print_system_info").decode())
    except PeerError as error:
        print(f"llama.cpp FAILED: {error}", flush=True)
        return versions
    if unfit is not None:
        print(f"NOT MEASURED: the installed llama.cpp is no fair peer: {unfit}; install it anew, or make peers")
        sys.exit(3)
    return versions


@contextmanager
def contest(
    prompt: int, weights: str, trial: Callable[[Transformers, Sequence[int]], object], name: str = BASE
) -> Generator[Contest]:
    """One base as ours (with weights of this form, no guessing), llama.cpp's and transformers', and `prompt` tokens
    to begin with. trial: what transformers' dtype is chosen by."""
    versions = versions_of_peers()
    path, base = locate(name), our_base(name)
    tokens = tuple(prompt_tokens(prompt, base.spec.vocab_size))
    with exported(base=name) as directory, Engine(base, weights=weights, speculate=False) as engine:
        peer, dtype = fastest(
            lambda dtype: PeerProcess("peers:Transformers", directory, dtype),
            lambda contender: trial(contender, tokens),
        )
        yield Contest(engine, tokens, PeerProcess("peers:LlamaCpp", path), peer, dtype, versions, name)
