"""Encoder–decoders on the engine: transformers' own greedy texts, however requests are cut, mixed and cached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tests.inference.engine.test_isolation import load

from bedplate.core.errors import ContextLengthExceeded, NotFiniteError, RequestError, UsageError
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Embed, Embedding, Generate, Generation, Request, Sampling, Score, Scores
from bedplate.inference.measure.parity import reference_of
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.models.families import FAMILIES
from bedplate.models.specs import EncoderDecoderSpec

LENGTH, PENALTY = 40, 1.5
SAMPLING = Sampling(max_tokens=LENGTH, ignore_eos=True, repetition_penalty=PENALTY)
"""A random model repeats itself; what it has said is made unlikely."""

NOISE = {"t5": 0.4, "bart": 0.7, "marian": 0.2}
"""So much that what is written depends on what was read."""


def pair(directory: Path, name: str, shared: bool = True, **generation: Any) -> tuple[Any, Base]:
    """A tiny random model of transformers, and the base that is loaded of it. shared: it reads and writes the same
    tokens."""
    family = FAMILIES["hf", name]
    specs = [cast(EncoderDecoderSpec, family.to_spec(config)) for config in family.examples]
    # transformers' caches have as many layers on both sides.
    fitting = [i for i, spec in enumerate(specs) if spec.layers == spec.main.layers and spec.shared_embedding == shared]
    example = family.examples[fitting[0]]
    reference = reference_of(family, example, 0)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for parameter in reference.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * NOISE[name])
    # At the length limit transformers ends a text by force; here it ends for its length.
    for field, value in ({"forced_eos_token_id": None} | generation).items():
        setattr(reference.generation_config, field, value)
    reference.save_pretrained(directory)
    reference.generation_config.eos_token_id = None
    return reference, load_base(directory, "float32", "cpu")


FAMILY_NAMES = ("t5", "bart", "marian", "marian of two vocabularies")


@pytest.fixture(
    scope="module",
    params=["t5", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bart", "marian")), FAMILY_NAMES[3]],
)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Base]:
    name, _, separate = request.param.partition(" of ")
    return pair(tmp_path_factory.mktemp("base"), name, shared=not separate)


def prompts(base: Base, lengths: Sequence[int] = (5, 40, 17, 40, 3, 29)) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(3)
    return [tuple(torch.randint(3, base.spec.source_vocab_size, (n,), generator=generator).tolist()) for n in lengths]


def theirs(reference: Any, prompt: Sequence[int], **how: Any) -> list[int]:
    """What transformers writes, without the decoder's start."""
    from transformers import GenerationConfig

    start = reference.config.decoder_start_token_id
    settings = (
        {"max_new_tokens": LENGTH, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        | {"repetition_penalty": PENALTY}
        | how
    )
    config = GenerationConfig(decoder_start_token_id=start, **settings)
    with torch.no_grad():
        return reference.generate(torch.tensor([prompt]), generation_config=config)[0, 1:].tolist()


@pytest.fixture(scope="module")
def reference_texts(loaded: tuple[Any, Base]) -> list[list[int]]:
    """What transformers writes to each of the prompts."""
    reference, base = loaded
    return [theirs(reference, prompt) for prompt in prompts(base)]


def texts(results: Sequence[object]) -> list[list[int]]:
    return [list(cast(Generation, result).token_ids) for result in results]


ENGINE_OPTIONS: dict[str, dict[str, Any]] = {
    "batched": {},
    "chunks": {"max_step_tokens": 7, "max_rows": 2},
    "speculated": {"speculate": True},
    "paged": {"paged": True, "max_step_tokens": 7, "slot_tokens": 400, "cache_bytes": 0},
    "preempted": {"slot_tokens": 130, "cache_bytes": 0},
}
QUICK_OPTIONS = {"t5": ("chunks", "speculated", "preempted"), "marian of two vocabularies": ("paged",)}
"""The slow tests run every family with all of them."""


@pytest.mark.parametrize(
    ("loaded", "name"),
    [
        pytest.param(family, name, marks=() if name in QUICK_OPTIONS.get(family, ()) else pytest.mark.slow)
        for family in FAMILY_NAMES
        for name in ENGINE_OPTIONS
    ],
    indirect=["loaded"],
)
def test_greedy_texts_are_transformers_own(
    loaded: tuple[Any, Base], reference_texts: list[list[int]], name: str
) -> None:
    """Batched, in chunks, in few rows, in blocks, preempted and computed again, guessed ahead."""
    base, how, expected = loaded[1], ENGINE_OPTIONS[name], reference_texts
    sources = prompts(base)
    assert len({tuple(text) for text in expected}) == len(sources)
    if "slot_tokens" in how:
        main = base.spec.main
        token_bytes = 2 * 4 * main.layers * main.attention.kv_heads * main.attention.head_dim
        tokens, how = how["slot_tokens"], {name: value for name, value in how.items() if name != "slot_tokens"}
        how["slot_bytes"] = tokens * token_bytes
    requests: list[Request] = [Generate(prompt, SAMPLING) for prompt in sources]
    with Engine(base, **how) as engine:
        assert texts(engine.run(requests)) == expected
        assert texts(engine.run(requests[::-1])) == expected[::-1]
        stats = engine.stats()
        assert (stats.prefix_hits > 0) == ("cache_bytes" not in how)
        assert (stats.preemptions > 0) == (how.get("slot_bytes") is not None and "paged" not in how)


def test_what_is_read_is_shared_whole_and_by_one_tenant_only(loaded: tuple[Any, Base]) -> None:
    _, base = loaded
    prompt = prompts(base)[1]
    with Engine(base) as engine:
        cached = [
            engine.run([Generate(tokens, SAMPLING, tenant=tenant)])[0].usage.cached_tokens
            for tokens, tenant in ((prompt, "a"), (prompt, "a"), (prompt, "b"), (prompt[:-1], "a"), (prompt[:-1], "a"))
        ]
    assert cached == [0, len(prompt), 0, 0, len(prompt) - 1]


def test_scores_are_the_loss_of_each_output(loaded: tuple[Any, Base]) -> None:
    reference, base = loaded
    source, *outputs = prompts(base, (30, 4, 1, 9))
    outputs = [tuple(token % base.spec.vocab_size for token in output) for output in outputs]
    expected: list[float] = []
    for output in outputs:
        with torch.no_grad():
            loss = reference(torch.tensor([source]), labels=torch.tensor([output])).loss
        expected.append(-float(loss) * len(output))
    engine_options: list[dict[str, Any]] = [
        {},
        {"max_step_tokens": 5},
        {"paged": True, "slot_bytes": 1 << 20, "cache_bytes": 0},
    ]
    for how in engine_options:
        with Engine(base, **how) as engine:
            [scores] = engine.run([Score(source, tuple(outputs))])
        assert cast(Scores, scores).totals == pytest.approx(expected, rel=1e-5)


def test_embeddings_are_of_the_encoders_states(loaded: tuple[Any, Base]) -> None:
    reference, base = loaded
    sources = prompts(base)
    with Engine(base, max_step_tokens=16) as engine:
        mixed: list[Request] = [Embed(prompt, normalise=False) for prompt in sources]
        results = engine.run([*mixed, Generate(sources[0], SAMPLING), Embed(sources[1], "last", 1, normalise=False)])
    encoder = reference.get_encoder()
    for prompt, result in zip(sources, results, strict=False):
        with torch.no_grad():
            states = encoder(torch.tensor([prompt])).last_hidden_state[0]
        torch.testing.assert_close(torch.tensor(cast(Embedding, result).vector), states.mean(0), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        hidden = encoder(torch.tensor([sources[1]]), output_hidden_states=True).hidden_states[1][0, -1]
    torch.testing.assert_close(torch.tensor(cast(Embedding, results[-1]).vector), hidden, rtol=1e-4, atol=1e-5)
    assert texts([results[-2]]) == [theirs(reference, sources[0])]


def test_a_first_token_may_be_forced_and_some_never_come(tmp_path: Path) -> None:
    """`forced_bos_token_id`, `bad_words_ids`, `suppress_tokens` of generation_config.json; penalties look at the answer
    alone."""
    reference, plain = pair(tmp_path / "plain", "bart")
    prompt = prompts(plain)[2]
    first, second, third = theirs(reference, prompt)[:3]
    how: dict[str, Any] = {"forced_bos_token_id": 11, "bad_words_ids": [[first], [second]], "suppress_tokens": [third]}
    reference, base = pair(tmp_path / "forced", "bart", **how)
    assert base.decoder_start == (2, 11)
    expected = theirs(reference, prompt, **how)
    sampling = Sampling(max_tokens=LENGTH - 1, ignore_eos=True, repetition_penalty=PENALTY)
    with Engine(base) as engine:
        answers = texts(engine.run([Generate(prompt, sampling), Generate(prompt, SAMPLING)]))
    assert [11, *answers[0]] == expected
    assert not {first, second, third} & set(answers[1])
    assert len(expected) == LENGTH


def test_what_it_cannot_do_is_refused(loaded: tuple[Any, Base]) -> None:
    _, base = loaded
    [prompt] = prompts(base, (4,))
    room = base.spec.main.context_length - 1
    with Engine(base) as engine:
        [whole] = engine.run([Generate(prompt, Sampling(max_tokens=None, ignore_eos=True))])
        assert len(cast(Generation, whole).token_ids) == room
        for request, error, words in (
            (Generate(prompt, Sampling(max_tokens=room + 1)), ContextLengthExceeded, "the decoder of .* writes"),
            (Generate(prompt * 200), ContextLengthExceeded, "the encoder of .* reads"),
            (Generate(prompt, Sampling(4, prompt_logprobs=1)), RequestError, "no log-probabilities"),
        ):
            with pytest.raises(error, match=words):
                engine.run([request])
        with pytest.raises(UsageError, match="soft prompts are for decoders alone"):
            engine.load_soft_prompt("p", torch.zeros(4, base.spec.hidden_size))


@pytest.mark.parametrize(
    ("loaded", "paged"),
    [
        pytest.param(family, paged, marks=() if family == quick else pytest.mark.slow)
        for paged, quick in ((False, "t5"), (True, "bart"))
        for family in FAMILY_NAMES
    ],
    indirect=["loaded"],
)
def test_infinities_of_one_reach_no_other(loaded: tuple[Any, Base], paged: bool) -> None:
    """In the encoder and the decoder, beside each other and in the rows that they leave."""
    base, sources = loaded[1], prompts(loaded[1])
    how: dict[str, Any] = {"paged": True, "slot_bytes": 1 << 22, "cache_bytes": 1 << 20} if paged else {}
    with Engine(base, **how) as engine:
        load(engine)
        sampling = Sampling(max_tokens=9, ignore_eos=True)
        requests = [
            Generate(source, sampling, adapter=key) for source, key in zip(sources, [None, "good"] * 3, strict=True)
        ]
        alone = [engine.run([replace(request, tenant="alone")])[0] for request in requests]
        for _ in range(2):
            with engine.exclusive():
                bad = [engine.submit(Generate(source, sampling, adapter="bad")) for source in sources[1:4]]
                good = [engine.submit(request) for request in requests]
            assert texts([stream.result(timeout=60) for stream in good]) == texts(alone)
            for stream in bad:
                with pytest.raises(NotFiniteError, match="adapter 'bad'"):
                    stream.result(timeout=60)
