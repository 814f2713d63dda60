"""`bedplate plan decide` as a process: the answer first, JSON without infinities, one line for what is wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bedplate.cli.main import main

EXAMPLES = Path(__file__).parents[3] / "examples/decide"
LOW = EXAMPLES / "hosted_at_low_volume.yaml"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_:
        main(["plan", "decide", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(exit_.value.code or 0), out, err


def values(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    code, out, _ = run(capsys, *arguments, "--json")
    assert code == 0
    return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} in the JSON"))


def test_the_answer_comes_first_then_reasons_then_what_would_flip_it(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, LOW)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "ticket routing, 800 a day"
    assert lines[1].startswith("Prompt a hosted model: prompt-large costs $6,806")
    places = [out.index(text) for text in ("\nwhy\n", "\nbreak-even volumes\n", "\nwhat would change the answer")]
    assert places == sorted(places)
    assert "traffic.calls_per_day (now 800): above 12,396 tune-small" in out
    assert "do not as far as looked (--all shows them)" in out
    assert not [line for line in lines if len(line) > 120]


def test_all_shows_every_bill_and_what_does_not_flip(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, LOW, "--all")
    assert "does not flip in [0.03, 3]" in out
    assert "the bill of tune-open" in out
    assert "$7,008 reserved machines (machines)" in out


def test_all_four_cases_are_answered_at_once_with_the_prices_among_them(capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted(EXAMPLES.glob("*.yaml"))
    assert EXAMPLES / "prices.yaml" in files
    output = values(capsys, *files)
    assert [case["answer"] for case in output["cases"]] == ["own-3b", "prompt-large", "tune-open", "retrieval-small"]
    for case in output["cases"]:
        assert case["reasons"]
        assert case["flips"][0]["below"] or case["flips"][0]["above"]


def test_json_of_one_case_is_one_object_whose_lines_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    output = values(capsys, LOW)
    assert (output["answer"], output["method"]) == ("prompt-large", "prompt a hosted model")
    for option in output["options"]:
        assert sum(line["usd"] for line in option["lines"]) == pytest.approx(option["total_usd"])
        low, high = option["total_interval"]
        assert low <= option["total_usd"] <= high
    assert {row["option"] for row in output["break_evens"]} >= {"tune-small", "tune-open"}


def test_overrides_reach_the_case_and_the_prices(capsys: pytest.CaptureFixture[str]) -> None:
    assert values(capsys, LOW, "traffic.calls_per_day=20000")["answer"] == "tune-small"
    dear = values(capsys, LOW, "prices.hosted.hosted-large.usd_per_million_output=1000")
    assert dear["options"][0]["total_usd"] > values(capsys, LOW)["options"][0]["total_usd"]


def test_prices_may_be_others_and_old_ones_warn(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    old = tmp_path / "ours.yaml"
    old.write_text((EXAMPLES / "prices.yaml").read_text().replace("2026-11-01", "2020-01-01"))
    output = values(capsys, LOW, "--prices", old)
    assert any("hosted.hosted-large: the price is of 2020-01-01" in line for line in output["warnings"])
    assert "look it up again" in run(capsys, LOW, old)[1]
    second_file = tmp_path / "again.yaml"
    shutil.copy(old, second_file)
    code, _, err = run(capsys, LOW, old, second_file)
    assert (code, "there are two price files" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a decision file"),
        (["none.yaml"], "none.yaml: the config file does not exist"),
        ([EXAMPLES / "prices.yaml"], "name a decision file"),
        ([LOW, "traffic.calls_per_dya=3"], "unknown key 'calls_per_dya'; did you mean 'calls_per_day'?"),
        ([LOW, "traffic.calls_per_day=0"], "up to 1e12 is wanted (got 0)"),
        ([LOW, "options.prompt-large.model=hosted-lrge"], "did you mean 'hosted-large' or 'hosted-small'?"),
        ([LOW, "prices.hosted.hosted-large.usd_per_million_input=-2"], "a number above 0 is wanted (got -2)"),
        ([LOW, "--price", "x"], "No such option: --price"),
        ([LOW, "--prices", "none.yaml"], "none.yaml does not exist"),
    ],
)
def test_what_is_wrong_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[object], message: str) -> None:
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_mistake_in_a_file_has_its_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    broken = tmp_path / "case.yaml"
    broken.write_text(LOW.read_text().replace("  horizon_days: 365", "  horizon_dys: 365"))
    _, _, err = run(capsys, broken, "--prices", EXAMPLES / "prices.yaml")
    number = broken.read_text().splitlines().index("  horizon_dys: 365") + 1
    assert f"line {number}: traffic.horizon_dys: unknown key 'horizon_dys'; did you mean 'horizon_days'?" in err


def test_no_torch_no_numpy() -> None:
    code = (
        "import sys\nfrom bedplate.cli.main import main\n"
        f"try:\n    main(['plan', 'decide', {str(EXAMPLES / 'open_weights_at_volume.yaml')!r}, '--json'])\n"
        "except SystemExit as e:\n    assert e.code == 0\n"
        "heavy = {m.split('.')[0] for m in sys.modules} & {'torch', 'numpy', 'scipy', 'matplotlib'}\n"
        "assert not heavy, heavy"
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr


def test_init_writes_files_that_decide_at_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    case = tmp_path / "mine.yaml"
    assert run(capsys, "--init", case)[0] == 0
    assert case.read_text().count("#") > 15
    output = values(capsys, case)
    assert output["answer"]
    assert output["warnings"][0].startswith("EXAMPLE prices, made up: hosted.hosted-large")
    code, _, err = run(capsys, "--init", case)
    assert code == 2
    assert "exists already; name another file" in err
    assert "--overwrite" not in err, "an option that this command lacks"
    (tmp_path / "prices.yaml").write_text("prices: mine\n")
    assert run(capsys, "--init", tmp_path / "other.yaml")[0] == 0
    assert (tmp_path / "prices.yaml").read_text() == "prices: mine\n", "prices that are there stay"


def test_a_mistyped_case_is_told_with_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, EXAMPLES / "hosted_at_low_volum.yaml")
    assert code == 2
    assert f"did you mean '{LOW}'?" in " ".join(err.split())


def test_a_base_of_ones_own_without_its_costs_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    case = EXAMPLES / "from_scratch_for_isolation.yaml"
    left_out = ("data_usd=0", "hours=0", "run.model=1b")
    overrides = [f"options.own-1b.pretraining.{change}" for change in left_out]
    output = values(capsys, case, *overrides, "options.own-1b.upkeep.hours_per_month=0")
    notes = {option["name"]: option["notes"] for option in output["options"]}
    assert notes["own-1b"][0] == (
        "WARNING: a base of one's own whose staff (pretraining.hours) and data (pretraining.data_usd) and upkeep cost "
        "nothing here; state them"
    )
    assert not any("WARNING" in note for note in notes["own-3b"])


def test_a_price_file_alone_is_named_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    prices = EXAMPLES / "prices.yaml"
    code, _, err = run(capsys, prices)
    assert (code, err) == (2, f"error: {prices} is a price file; {NAME_ONE}\n")
    assert run(capsys)[2] == f"error: {NAME_ONE}\n"


NAME_ONE = "name a decision file: bedplate plan decide CASE.yaml (--init writes one to start from)"


def test_overrides_are_named_as_they_were_given(capsys: pytest.CaptureFixture[str]) -> None:
    _, _, err = run(capsys, LOW, "prices.staff.engineer.usd_per_hour=-3")
    assert err.startswith("error: override 'prices.staff.engineer.usd_per_hour=-3': ")
    _, _, err = run(capsys, LOW, "options.tune_open.quality=0.9")
    assert f"{LOW} has no options.tune_open; did you mean 'options.tune-open'?" in err
