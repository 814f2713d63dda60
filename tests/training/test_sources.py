"""Sources: ranks share every step, the corpus is read as it is needed, its hash decides what is resumed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bedplate.core.errors import DataError, TrainingError
from bedplate.training.batch import TrainingExample
from bedplate.training.config import TrainConfig
from bedplate.training.loop import train
from bedplate.training.objectives.language import NextToken, Sft
from bedplate.training.ranks import Ranks
from bedplate.training.sources import DocumentSource, ExampleSource

CONFIG = TrainConfig(learning_rate=0.01, schedule="constant", warmup=0.0, clip=None, save_seconds=None)


def example(number: int) -> TrainingExample:
    return TrainingExample((1, 2, *range(number % 7 + 1), 3), (*(False,) * (number % 7 + 3), True), f"e{number}")


@given(
    count=st.integers(1, 40),
    size=st.integers(1, 9),
    world=st.integers(1, 5),
    micro=st.sampled_from([1, 20, 10_000]),
    order=st.sampled_from(["given", "shuffled", "length"]),
    documents=st.booleans(),
)
def test_ranks_share_every_step_in_one_order(count, size, world, micro, order, documents) -> None:
    def source(shard: tuple[int, int]):
        if documents:
            lengths = [n % 7 + 1 for n in range(count)]
            rows = [[n] * length for n, length in enumerate(lengths)]
            return DocumentSource(rows, 8, size, micro_rows=micro % 3 + 1, seed=1, epochs=2, shard=shard)
        rows = [example(n) for n in range(count)]
        return ExampleSource(rows, size, seed=1, epochs=2, order=order, micro_tokens=micro, shard=shard)

    def drawn(shard: tuple[int, int]) -> list[list[str]]:
        return [[id for batch in step for id in batch.ids] for step in source(shard)]

    ranks = [drawn((rank, world)) for rank in range(world)]
    assert [[id for part in parts for id in part] for parts in zip(*ranks, strict=True)] == drawn((0, 1))
    assert source((0, 1)).identity == source((world - 1, world)).identity
    if not documents:  # as many examples for each as can be
        assert all(max(map(len, parts)) - min(map(len, parts)) <= 1 for parts in zip(*ranks, strict=True))


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0)])
def test_ranks_that_are_none(shard) -> None:
    with pytest.raises(DataError, match=f"no rank {shard[0]} of {shard[1]}"):
        ExampleSource([example(0)], 1, shard=shard)


def test_two_ranks_gradients_are_those_of_the_whole_step(make_decoder, make_examples, tmp_path, monkeypatch) -> None:
    """Of unequal shares, since every rank divides by what all of them weigh together."""
    from bedplate.training.optimizers import Optimization

    examples, gradients, clip = make_examples(7), [], Optimization.clip
    monkeypatch.setattr(
        Optimization,
        "clip",
        lambda self: gradients.append({n: p.grad.clone() for n, p in self.parameters.items()}) or clip(self),
    )
    losses = []
    for rank, world in ((0, 1), (0, 2), (1, 2)):
        model = make_decoder()
        shards = [ExampleSource(examples, 7, micro_tokens=40, shard=(shard_rank, world)) for shard_rank in range(world)]
        peer_weight = sum(
            Sft().weights(batch)["sft"]
            for i, shard_source in enumerate(shards)
            if i != rank
            for step in shard_source
            for batch in step
        )

        class WithOthers(Ranks):
            def sums(self, local_sums, peer_weight=peer_weight):
                return {name: value + (peer_weight if name == "sft" else 0.0) for name, value in local_sums.items()}

        source = ExampleSource(examples, 7, micro_tokens=40, shard=(rank, world))
        out = tmp_path / f"{rank}-{world}"
        result = train(model, source, Sft(), CONFIG, out, model.named_parameters(), ranks=WithOthers())
        losses.append(result.losses["sft"])
    assert losses[0] == pytest.approx(losses[1] + losses[2])
    whole, first, second = gradients
    for name, gradient in whole.items():
        torch.testing.assert_close(first[name] + second[name], gradient, msg=name)


def test_what_is_logged_is_of_all_ranks(make_decoder, make_examples, tmp_path) -> None:
    calls: list[set[str]] = []

    class Two(Ranks):
        def sums(self, local_sums):
            calls.append(set(local_sums))
            return {name: 2 * value for name, value in local_sums.items()}  # two ranks with the same share

    model = make_decoder()
    source = ExampleSource(make_examples(4), 4)
    result = train(model, source, Sft(), CONFIG, tmp_path, model.named_parameters(), ranks=Two())
    alone = make_decoder()
    expected = train(alone, ExampleSource(make_examples(4), 4), Sft(), CONFIG, tmp_path / "1", alone.named_parameters())
    assert calls == [{"sft"}, {"loss/sft", "tokens", "targets", "examples"}]
    assert result.losses["sft"] == pytest.approx(expected.losses["sft"])
    assert (result.examples, result.tokens) == (8, 2 * expected.tokens)


class OnDisk(Sequence[list[int]]):
    """Documents that are read when they are asked for."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths, self.reads = lengths, list[int]()

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, number: int) -> list[int]: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[list[int]]: ...
    def __getitem__(self, number):
        self.reads.append(number)
        return [(number + i) % 61 for i in range(self.lengths[number])]


def test_documents_are_read_in_the_steps_that_hold_them(make_decoder, tmp_path) -> None:
    corpus = OnDisk([5, 8, 3, 8, 8, 2, 7, 8])
    source = DocumentSource(corpus, 8, 2, lengths=corpus.lengths, content="0" * 64)
    assert source.identity["documents"] == "0" * 64
    assert source.steps == 4
    drawn = iter(source)
    assert corpus.reads == []
    (batch,) = next(drawn)
    assert sorted(set(corpus.reads)) == sorted(int(id) for id in batch.ids)
    model = make_decoder(torch.float32)
    source = DocumentSource(corpus, 8, 2, lengths=corpus.lengths, content="0" * 64)
    train(model, source, NextToken(), CONFIG, tmp_path, model.named_parameters())
    assert sorted(set(corpus.reads)) == list(range(8))


def test_examples_are_read_when_they_are_drawn() -> None:
    class Lazy(Sequence[TrainingExample]):
        reads: list[int] = []  # noqa: RUF012

        def __len__(self) -> int:
            return 9

        def __getitem__(self, number):
            if not 0 <= number < 9:
                raise IndexError(number)
            self.reads.append(number)
            return example(number)

    examples = Lazy()
    source = ExampleSource(examples, 3, content="1" * 64)
    assert examples.reads == list(range(9))  # looked through once, and not kept
    examples.reads.clear()
    assert source.identity["examples"] == "1" * 64
    assert [batch.ids for batch in next(iter(source))] == [("e0", "e1", "e2")]
    assert examples.reads == [0, 1, 2]


def test_the_content_decides_whether_a_run_is_resumed(make_decoder, make_examples, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"save_steps": 1})

    def stop(step: int, _: object) -> None:
        if step == 1:
            raise InterruptedError

    def run(examples, content, on_checkpoint=None):
        model = make_decoder()
        source = ExampleSource(examples, 2, content=content)
        return train(model, source, Sft(), config, tmp_path, model.named_parameters(), on_checkpoint)

    with pytest.raises(InterruptedError):
        run(make_examples(6), "a" * 64, stop)
    with pytest.raises(TrainingError, match=r"changed: source\.examples: "):
        run(make_examples(6, seed=1), "b" * 64)
    assert run(make_examples(6), "a" * 64).resumed_at == 1
