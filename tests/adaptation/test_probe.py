"""What a probe's features are computed in."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.near import assert_near
from tests.tiny import tiny_spec

from bedplate.adaptation.context.outcome import OutOfTime, Skip
from bedplate.adaptation.context.throughput import Throughput
from bedplate.adaptation.rungs import answers
from bedplate.adaptation.rungs.probe import Probe, _fastest, _Pace
from bedplate.models.build import build
from bedplate.models.decoder import Decoder
from bedplate.models.inputs import Inputs
from bedplate.skins.phrasings import text_prompt
from bedplate.skins.prompt import Prompt
from bedplate.training import precision

TOKENS = Inputs(torch.tensor([[5, 3, 7, 2, 9]]))


def base(dtype: torch.dtype) -> Decoder:
    torch.manual_seed(0)
    model = build(tiny_spec(), dtype)
    assert isinstance(model, Decoder)
    return model.eval().requires_grad_(False)


def context(train_dtype: str) -> Any:
    return SimpleNamespace(spec=SimpleNamespace(train_dtype=train_dtype))


def features(model: Decoder) -> torch.Tensor:
    with torch.inference_mode():
        return model(TOKENS, capture=("layers.1",)).captured["layers.1"]


def test_weights_are_widened_and_are_as_before_afterwards() -> None:
    model, widened = base(torch.bfloat16), base(torch.float32)
    widened.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rounded = features(model)
    with _fastest(context("float32"), model):
        assert_near(features(model), features(widened))
    assert model.embedding.weight.dtype == torch.bfloat16
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(features(model), rounded)


def test_weights_are_never_rounded() -> None:
    model = base(torch.float32)
    expected = features(model)
    with _fastest(context("bfloat16"), model):
        assert torch.equal(features(model), expected)


def test_without_room_the_base_computes_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "free_bytes", lambda: 0)
    model = base(torch.bfloat16)
    expected = features(model)
    with _fastest(context("float32"), model):
        assert torch.equal(features(model), expected)


def planned_on(seconds: float, rows: int = 1000) -> Any:
    """The plan of a probe where a row of the prompt takes 40 ms and one of the inputs alone 20 ms, and where calls on
    the mean of a prompt's tokens read its instructions too."""
    form, alone = Prompt("Rate it.\n{{ review }}\nRating:"), text_prompt(["review"])
    rows_of_groups = [SimpleNamespace(group=str(i // 2), inputs={}) for i in range(rows)]
    tokens = {form: [1] * (150 + 40), alone: [1] * 20}
    stub: Any = SimpleNamespace(
        task=SimpleNamespace(output=SimpleNamespace(labels=("good", "bad"))),
        labels=("good", "bad"),
        fields=["review"],
        train=rows_of_groups,
        valid=rows_of_groups[:500],
        model=SimpleNamespace(base=SimpleNamespace(spec=SimpleNamespace(layers=30))),
        backbone=SimpleNamespace(
            poolings=("last", "mean"),
            shared_tokens=lambda prompt: 150 if prompt == form else 0,
            tokens=lambda prompt, _: tokens[prompt],
        ),
        smallest=False,
        throughput=Throughput(token=1e-3, call=0.05, tokens=40.0),
        timing=3.0,
        seconds_left=seconds,
        room=lambda share: seconds * share,
        plain_prompt=lambda: (form, None),
    )
    return Probe().plan(stub)


def test_with_time_both_prompts_are_read_on_all_rows() -> None:
    plan = planned_on(2000.0)
    assert (plan.settings["prompts"], plan.settings["rows"], plan.left_out) == (["form", "text"], 1000, ())


def test_the_inputs_alone_are_read_where_they_save_most_of_the_rows() -> None:
    plan = planned_on(150.0)
    assert (plan.settings["prompts"], plan.settings["rows"], plan.left_out) == (["text"], 1000, ())
    assert plan.seconds < 75.0


def test_no_probe_is_planned_where_even_the_inputs_alone_take_too_long() -> None:
    skip = planned_on(10.0)
    assert isinstance(skip, Skip)
    assert skip.seconds is not None
    assert skip.seconds < planned_on(150.0).seconds


def test_a_slower_machine_is_seen_by_what_the_prompt_that_is_read_should_take() -> None:
    """Rows of the inputs alone that take as long as those of the whole prompt should."""
    slowdowns: list[float] = []
    stub: Any = SimpleNamespace(
        throughput=Throughput(token=1e-3, call=0.05, tokens=40.0),
        valid=[None] * 10,
        timing=1.0,
        fit_room=lambda slower: slowdowns.append(slower) or 1e9,
    )
    row_seconds = 40e-3 * 5 / 6
    assert not _Pace(stub, heads=6, times=0.5).ends(64, row_seconds)
    assert not _Pace(stub, heads=6).ends(64, row_seconds)
    assert slowdowns == pytest.approx([2.0, 1.0])


@pytest.mark.parametrize(("seconds", "sizes"), [(math.inf, [600]), (1000.0, [16, 584]), (8.0, [16] * 37 + [8])])
def test_rows_are_answered_in_parts_that_leave_time_to_stop(
    monkeypatch: pytest.MonkeyPatch, seconds: float, sizes: list[int]
) -> None:
    """A row takes 0.05 s: a tenth of 1,000 s is all of them, a tenth of 8 s is 16."""
    clock, asked = [0.0], list[int]()

    def predict(_: Any, examples: list[Any]) -> list[None]:
        asked.append(len(examples))
        clock[0] += 0.05 * len(examples)
        return [None] * len(examples)

    monkeypatch.setattr(answers, "predict_examples", predict)
    monkeypatch.setattr(answers, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    stub: Any = SimpleNamespace(smallest=False, fit_seconds_left=seconds, check_time=lambda *_: None)
    assert len(answers.predict_in_time(stub, None, [object()] * 600)) == 600  # type: ignore[arg-type]
    assert asked == sizes


@pytest.mark.parametrize(("stops_after", "answered"), [(math.inf, 300), (96, 96), (48, None)])
def test_a_fitted_skin_is_judged_on_the_rows_that_there_was_time_for(
    monkeypatch: pytest.MonkeyPatch, stops_after: float, answered: int | None
) -> None:
    """A probe that had been fitted was thrown away where the time for all of valid was not there, and 80 s with it."""

    def check_time(_: float, done: int, *_args: int) -> None:
        if done >= stops_after:
            raise OutOfTime(100.0)

    monkeypatch.setattr(answers, "predict_examples", lambda _, examples: [None] * len(examples))  # pyright: ignore
    rows = [SimpleNamespace(id=f"r{number}") for number in range(300)]
    stub: Any = SimpleNamespace(
        smallest=False, fit_seconds_left=0.0, check_time=check_time, valid=rows, ordered=lambda rows, _: rows[::-1]
    )
    if answered is None:
        with pytest.raises(OutOfTime):
            answers.answers_in_time(stub, None)  # type: ignore[arg-type]
    else:
        assert list(answers.answers_in_time(stub, None)) == [row.id for row in rows[::-1][:answered]]  # type: ignore[arg-type]
