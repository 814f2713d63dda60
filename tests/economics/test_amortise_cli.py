"""`bedplate plan amortise` as a command: one sentence, rows with a footer, JSON, one line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bedplate.cli.main import main

ACCOUNT = Path(__file__).parents[2] / "examples/amortise/account.yaml"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_:
        main(["plan", "amortise", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(exit_.value.code or 0), out, err


def test_the_table_ends_with_what_the_rows_add_up_to(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, ACCOUNT)
    assert (code, err) == (0, "")
    assert out.startswith(
        "one server, one hour: skins brought in $0.982, and cost $0.400 of machine and $0.228 of the base"
    )
    rows = [line.split() for line in out.splitlines()]
    footers = [row for row in rows if row[:1] == ["all"]]
    assert [row[4:6] for row in footers] == [["$0.400", "$0.228"]] * 2
    assert any(row[:2] == ["(idle)", "$0.371"] for row in rows)


def test_json_adds_up_too(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, ACCOUNT, "--json")
    assert code == 0
    output = json.loads(out)
    for rows in (output["skins"], output["tenants"]):
        assert sum(round(row["machine_usd"] * 1e6) for row in rows) == round(output["bill_usd"] * 1e6) == 400_000
        for row in rows:
            profit = row["revenue_usd"] - row["machine_usd"] - row["base_usd"]
            assert row["profit_usd"] == pytest.approx(profit, abs=1e-9)


def test_overrides_and_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, ACCOUNT, "machine.machines=3", "--json")
    assert (code, json.loads(out)["bill_usd"]) == (0, 1.2)
    for override, message in (
        ("machine.usd_per_hour=0", "machine.usd_per_hour: input should be greater than 0"),
        ("revenue.skin={}", "did you mean 'skins'?"),
        ("access_logs=[metrics-end.txt]", "no answered model call in it"),
    ):
        code, out, err = run(capsys, ACCOUNT, override)
        assert code in {1, 2}
        assert out == ""
        assert message in err
        assert len(err.splitlines()) == 1


def test_a_decision_file_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    path = ACCOUNT.parents[1] / "decide/hosted_at_low_volume.yaml"
    code, _, err = run(capsys, path)
    assert (code, f"{path} is a decision file: bedplate plan decide {path}" in err) == (2, True)
