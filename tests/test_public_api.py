"""The public names: sorted, all there, each the object its module defines."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

import bedplate
from bedplate.cli.main import main
from bedplate.core.arguments import fits, need
from bedplate.core.errors import BedplateError, UsageError
from bedplate.economics.training.training_cost import plan_training
from bedplate.inference.predict.local import LocalModel


def test_all_is_sorted_and_is_what_dir_shows() -> None:
    assert sorted(bedplate.__all__) == bedplate.__all__
    assert dir(bedplate) == bedplate.__all__


@pytest.mark.parametrize("name", bedplate.__all__)
def test_every_name_resolves(name: str) -> None:
    assert getattr(bedplate, name) is not None


def test_type_checkers_see_the_same_modules() -> None:
    tree = ast.parse(Path(bedplate.__file__).read_text("utf-8"))
    imports = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imports == bedplate._MODULES
    assert sorted([*imports, "BedplateError", "__version__"]) == bedplate.__all__


def test_unknown_name_lists_the_names() -> None:
    with pytest.raises(AttributeError, match="its names are BedplateError, Skin"):
        bedplate.nothing  # noqa: B018


def test_plan_is_light_and_is_what_its_own_modules_define() -> None:
    """The cost model answers without torch, and is not there before it is asked for."""
    code = (
        "import sys, bedplate; assert 'bedplate.economics' not in sys.modules; bedplate.plan.train; "
        "print(*sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'numpy', 'scipy', 'transformers'}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
    assert sorted(bedplate.plan.__all__) == bedplate.plan.__all__
    assert bedplate.plan.train.__wrapped__ is plan_training  # type: ignore[attr-defined]
    assert dir(bedplate.plan) == bedplate.plan.__all__


def test_plan_serves_as_the_command_line_does(capsys: pytest.CaptureFixture[str]) -> None:
    plan = bedplate.plan
    traffic = plan.Traffic(plan.lengths("200"), plan.lengths("20-40"), skin_tokens=100)
    fleet = plan.serve("llama-3.2-1b", traffic, 50_000, plan.device("l4"), target=plan.LatencyTarget(total_seconds=3))
    words = (
        "plan serve llama-3.2-1b --device l4 --prompt-tokens 200 --output-tokens 20-40 --skin-tokens 100 --p95-ms 3000"
    )
    with pytest.raises(SystemExit) as ended:
        main([*words.split(), "--json"])
    assert ended.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["usd_per_call"] == fleet["central"].usd_per_call
    assert printed["range"]["low"]["capacity_calls_per_second"] == fleet["low"].capacity_calls_per_second
    with pytest.raises(BedplateError, match="was not measured"):
        plan.serve("smollm2-135m", traffic, 100)


def test_plan_decides_and_amortises_from_files() -> None:
    root = Path(__file__).parents[1] / "examples"
    case = root / "decide/hosted_at_low_volume.yaml"
    assert bedplate.plan.decide(case).answer == "prompt-large"
    assert bedplate.plan.decide(case, ["traffic.calls_per_day=50000"]).answer != "prompt-large"
    assert bedplate.plan.amortise(root / "amortise/account.yaml").hours == 1


PAGE = (Path(__file__).parents[1] / "docs/python-api.md").read_text("utf-8")
RETURNED = ("inference.predict.local:LocalModel", "inference.predict.skin_bases:LoadedSkin", "report.run_report:Report")
"""Classes of what the API returns, whose methods are as public as its functions."""


def functions() -> dict[str, Callable[..., object]]:
    """Every function of the API, and every method of what it returns that takes arguments."""
    callables: dict[str, Callable[..., object]] = {}
    for place, names in ((bedplate, bedplate.__all__), (bedplate.plan, bedplate.plan.__all__)):
        for name in names:
            value = getattr(place, name)
            if inspect.isfunction(value):
                callables[name if place is bedplate else f"plan.{name}"] = value
    for name in ("generate", "score", "embed", "classify", "logits"):
        callables[f"LocalModel.{name}"] = getattr(LocalModel, name)
    return callables


FUNCTIONS = functions()
UNCHECKED = {("adapt", "data"), ("adapt", "executor"), ("adapt", "task")}
UNCHECKED |= {("evaluate", "data"), ("evaluate", "model"), ("evaluate", "task"), ("init", "data"), ("compare", "rows")}
"""Tables of any library, and whatever predicts or runs jobs: what is none is said by what asks them."""


def parameters() -> list[tuple[str, str]]:
    return [
        (name, parameter)
        for name, function in FUNCTIONS.items()
        for parameter, how in inspect.signature(function).parameters.items()
        if parameter != "self" and how.kind is not how.VAR_KEYWORD and (name, parameter) not in UNCHECKED
    ]


@pytest.mark.parametrize(("name", "parameter"), parameters())
def test_a_wrong_type_is_named(name: str, parameter: str) -> None:
    with pytest.raises(UsageError, match=rf"^{parameter} is of type object; give "):
        FUNCTIONS[name](**{parameter: object()})


def test_a_wrong_member_of_a_list_is_named() -> None:
    for hint in (Sequence[str], Sequence[str] | None, str | list[str]):
        with pytest.raises(UsageError, match=r"^texts\[1\] is nan; give "):
            need("texts", ["a", float("nan"), 3], hint)
    with pytest.raises(UsageError, match=r"^texts is 3; give Sequence\[str\]"):
        need("texts", 3, Sequence[str])


def test_near_types_are_told_apart() -> None:
    for hint, good, bad in (
        (int, [1, np.int64(1)], [True, 1.0, "1", None]),
        (float, [1, 1.5, np.float32(1)], [True, "1.5"]),
        (bool, [True], [1, "yes"]),
        (str | Path, ["a", Path("a")], [b"a", 1]),
        (Sequence[str], [["a"], ("a",), [], np.array(["a"])], ["a", [1], {"a": 1}, 3]),
        (Sequence[int] | None, [None, [1], np.array([1])], ["1", [1.5]]),
        (Literal["auto", "torch"] | None, ["auto", None], ["autp", 1, ["auto"]]),
        (Mapping[str, int], [{"a": 1}], [[1], "a"]),
        (Callable[[str], None] | None, [print, None], ["print"]),
    ):
        for value in good:
            assert fits(value, hint), (hint, value)
        for value in bad:
            assert not fits(value, hint), (hint, value)


def test_the_type_that_is_needed_is_named() -> None:
    for call, message in (
        (lambda: bedplate.adapt("task.yaml", "out", rungs="lora"), "rungs is 'lora'; give Sequence[str]"),
        (lambda: bedplate.adapt("task.yaml", "out", budget="soon"), "budget 'soon' is not a length of time"),
        (lambda: bedplate.adapt("task.yaml", None), "out is None; give "),
        (lambda: bedplate.plan.train(device="h100"), "device is 'h100'; give "),
        (
            lambda: bedplate.plan.LatencyTarget(total_seconds="6"),
            "total_seconds is '6'; give float | None",
        ),
        (lambda: bedplate.plan.ReplicaEngine(max_rows="8"), "max_rows is '8'; give int"),
        (lambda: bedplate.plan.Traffic("250~900", 80), "prompt is '250~900'; give "),
        (lambda: bedplate.load("x", kernel="rust"), "kernel is 'rust'; give Literal['auto', 'torch', 'native']"),
        (lambda: bedplate.load("x", allow_other_weights=1), "allow_other_weights is 1; give bool"),
    ):
        with pytest.raises(UsageError, match=re.escape(message)):
            call()  # type: ignore[no-untyped-call]


def test_a_budget_may_have_its_unit(tmp_path: Path) -> None:
    for budget in ("10m", "1.5h", 600):
        with pytest.raises(bedplate.BedplateError, match=r"none\.yaml"):
            bedplate.adapt(tmp_path / "none.yaml", tmp_path / "out", budget=budget)


def test_what_is_too_long_for_a_line_loses_whole_parts_of_its_middle() -> None:
    plan = bedplate.plan.train("llama-3.1-8b", 1e12, bedplate.plan.device("h100"), 256)
    fields = [f"{name}={value}" for name, value in plan._facts()]
    begin, end = re.fullmatch(r"<TrainingPlan (.*), … \d+ more …, (.*)>", repr(plan)).groups()  # type: ignore[union-attr]
    shown_fields = [*begin.split(", "), *end.split(", ")]
    assert begin == ", ".join(fields[: len(begin.split(", "))])
    assert end == ", ".join(fields[-len(end.split(", ")) :])
    assert len(shown_fields) < len(fields)


def members() -> list[str]:
    names = list(bedplate.__all__) + [f"plan.{name}" for name in bedplate.plan.__all__]
    for place in RETURNED:
        module, name = place.split(":")
        cls = getattr(importlib.import_module(f"bedplate.{module}"), name)
        names += [f"{name}.{member}" for member in dir(cls) if not member.startswith("_")]
    return names


def test_every_public_name_is_documented() -> None:
    lacking: list[str] = []
    for name in members():
        owner, _, member = name.rpartition(".")
        place = bedplate if not owner else bedplate.plan
        if owner not in ("", "plan"):
            module = next(location.split(":")[0] for location in RETURNED if location.endswith(f":{owner}"))
            place = getattr(importlib.import_module(f"bedplate.{module}"), owner)
        if name != "__version__" and not (getattr(place, member).__doc__ or "").strip():
            lacking.append(f"{name} has no docstring")
        if not re.search(rf"\b{re.escape(member)}\b", PAGE):
            lacking.append(f"docs/python-api.md does not name {name}")
    assert not lacking


def test_results_of_the_cost_model_are_shown_short() -> None:
    plan = bedplate.plan
    h100, root = plan.device("h100"), Path(__file__).parents[1] / "examples"
    traffic = plan.Traffic(plan.lengths("200"), plan.lengths("20-40"))
    fleet = plan.serve("llama-3.2-1b", traffic, 50_000, h100)
    shown = [
        h100,
        plan.train("llama-3.1-8b", 1e12, h100, 256),
        plan.tune("llama-3.2-1b", 3000, 300, h100),
        plan.budget(1e5, h100, 8),
        fleet["central"],
        plan.decide(root / "decide/hosted_at_low_volume.yaml"),
        plan.amortise(root / "amortise/account.yaml"),
    ]
    for result in shown:
        assert len(repr(result)) < 500, repr(result)
        assert repr(result).startswith(f"<{type(result).__name__} ")
        assert result._repr_html_().startswith("<div>")  # type: ignore[attr-defined]
