from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from tests.adaptation.conftest import write_task

from bedplate.adaptation.rungs import RUNGS, chosen_rungs, in_role
from bedplate.adaptation.rungs.rung import Role
from bedplate.adaptation.task.task_file import load_adapt_task
from bedplate.core.errors import ConfigError, UsageError


def test_rungs_are_called_as_their_rows_and_each_part_is_played_once():
    assert all(rung.name == name for name, rung in RUNGS.items())
    for role in get_args(Role):
        assert [name for name, rung in RUNGS.items() if rung.traits.role == role] == [in_role(role)]


def test_a_task_is_read(toy_task: Path):
    task, spec = load_adapt_task(toy_task, ["adapt.target.value=0.9"], ["lora", "majority"])
    assert task.task == "toy-sentiment"
    assert spec.target.value == 0.9
    assert chosen_rungs(spec) == ("majority", "lora")  # cheapest first, however they were given


@pytest.mark.parametrize(
    ("adapt", "message"),
    [
        ({"guards": {"mmlu": 0.1}}, "adapt.guards.mmlu"),
        ({"guards": {"retention": {"max_drop": 0}}}, "adapt.guards.retention.max_drop"),
        ({"guards": {"retention": {"sets": ["piqqa"]}}}, "there is no core set 'piqqa'"),
        ({"guards": {"refusal": {}}}, "adapt.guards.refusal.max_drop"),
        ({"budget": {"train_usd": -1}}, "adapt.budget.train_usd"),
        ({"traffic": {"calls_per_day": 5}}, "`traffic` is not supported yet"),
        ({"prompt": "p.jinja"}, "adapt.prompt: .*reads none of the inputs"),
        ({"prompt": {"file": "none.jinja"}}, "adapt.prompt: .*none.jinja"),
        ({"prompt": "{{ review }} {{ stars }}"}, "adapt.prompt: .*'stars', which is not an input"),
        ({"prompt": "{{ review }}\nSentiment: "}, "adapt.prompt: .*ends with a space"),
        ({"prompt": {"template": "{{ review }}", "file": "p.jinja"}}, "either a `template` or a `file`"),
        ({"prompt": {"template": "{{ review }}", "system": "Be brief."}}, "plain prompt has no system message"),
        ({"bases": ["https://api.example.com/v1"]}, "https://api.example.com/v1.* is an address; .*`adapt.hosted`"),
        ({"bases": ["a", "a"]}, "the base 'a' is named twice"),
        ({"bases": []}, "bases"),
        ({"rungs": ["zero-shot"]}, "there is no rung 'zero-shot'"),
        ({"rungs": ["lora", "lora"]}, "named twice"),
        ({"target": {"value": 1.2}}, "adapt.target.value"),
        ({"bugdet": {"p95_ms": 3}}, "did you mean 'budget'"),
        ({"machine": {"usd_per_hour": True, "as_of": "2026-11-24"}}, "usd_per_hour"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(tmp_path: Path, tiny_base: Path, adapt: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        load_adapt_task(write_task(tmp_path, tiny_base, **adapt))


def test_a_field_that_asks_for_nothing_is_no_error(tmp_path: Path, tiny_base: Path):
    load_adapt_task(write_task(tmp_path, tiny_base, guards={}, prompt=None))


def test_without_an_adapt_section(tmp_path: Path, toy_task: Path):
    text = toy_task.read_text()
    toy_task.write_text(text[: text.index("adapt:")])
    with pytest.raises(ConfigError, match="no `adapt` section"):
        load_adapt_task(toy_task)


def test_rungs_from_the_command_line_are_checked(toy_task: Path):
    with pytest.raises(UsageError, match="no rung 'lara'"):
        load_adapt_task(toy_task, (), ["lara"])
