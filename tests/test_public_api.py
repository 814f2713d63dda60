"""The public names: sorted, all there, each the object its module defines."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import bedplate
from bedplate.cli.main import main
from bedplate.core.errors import BedplateError
from bedplate.economics.training.training_cost import plan_training


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
    assert bedplate.plan.train is plan_training


def test_plan_serves_as_the_command_line_does(capsys: pytest.CaptureFixture[str]) -> None:
    plan = bedplate.plan
    traffic = plan.Traffic(plan.lengths("200"), plan.lengths("20-40"), skin_tokens=100)
    found = plan.serve("llama-3.2-1b", traffic, 50_000, plan.device("l4"), target=plan.Target(total_seconds=3))
    words = (
        "plan serve llama-3.2-1b --device l4 --prompt-tokens 200 --output-tokens 20-40 --skin-tokens 100 --p95-ms 3000"
    )
    with pytest.raises(SystemExit) as ended:
        main([*words.split(), "--json"])
    assert ended.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert said["usd_per_call"] == found["central"].usd_per_call
    assert said["range"]["low"]["capacity_calls_per_second"] == found["low"].capacity_calls_per_second
    with pytest.raises(BedplateError, match="was not measured yet"):
        plan.serve("smollm2-135m", traffic, 100)


def test_plan_decides_and_amortises_from_files() -> None:
    root = Path(__file__).parents[1] / "examples"
    case = root / "decide/hosted_at_low_volume.yaml"
    assert bedplate.plan.decide(case).answer == "prompt-large"
    assert bedplate.plan.decide(case, ["traffic.calls_per_day=50000"]).answer != "prompt-large"
    assert bedplate.plan.amortise(root / "amortise/account.yaml").hours == 1
