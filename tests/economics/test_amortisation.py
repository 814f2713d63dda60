"""Rows that add up to the bill to the millionth, and who profits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.economics.test_usage import metrics_text

from bedplate.core.errors import BedplateError, ConfigError
from bedplate.economics.costs.amortisation import AmortisationFile, Statement, amortise, as_values

HOURS = 744  # October
FILE: dict[str, Any] = {
    "amortise": "October",
    "period": {"begins": "2026-10-01", "ends": "2026-11-01"},
    "machine": {"usd_per_hour": 0.4, "as_of": "2026-10-01", "source": "the tests"},
    "servers": [{"before": "a.txt", "after": "b.txt"}],
}
BEFORE = {"x": (10, 100, 50, 9), "y": (5, 70, 30, 4)}
AFTER = {"x": (1010, 80_100, 20_050, 36_009), "y": (505, 20_070, 80_030, 72_004)}


def statement(
    tmp_path: Path, *overrides: str, before: Any = None, after: Any = None, busy: Any = (20, 120_020), **changes: Any
) -> Statement:
    (tmp_path / "a.txt").write_text(metrics_text(before or BEFORE, busy and busy[0]))
    (tmp_path / "b.txt").write_text(metrics_text(after or AFTER, busy and busy[1]))
    path = tmp_path / "account.yaml"
    path.write_text(yaml.safe_dump({**FILE, **changes}))
    return amortise(AmortisationFile.load(path, overrides))


def adds_up(account: Statement) -> None:
    for rows in (account.skins, account.tenants):
        if rows:
            for column, whole in (
                ("machine_usd", account.bill_usd),
                ("base_usd", account.base_usd),
            ):  # to the millionth
                assert sum(round(getattr(row, column) * 1e6) for row in rows) == round(whole * 1e6)
            assert all(row.machine_usd >= 0 for row in rows)


def test_each_skin_pays_its_seconds_and_idle_time_is_a_row(tmp_path: Path) -> None:
    account = statement(tmp_path)
    rows = {row.name: row for row in account.skins}
    assert account.hours == HOURS
    assert account.bill_usd == 297.6
    assert float(rows["x"].machine_usd) == pytest.approx(36_000 / 3600 * 0.4)
    assert float(rows["y"].machine_usd) == pytest.approx(72_000 / 3600 * 0.4)
    # 120,000 s of steps, of which 108,000 belong to answered calls
    assert float(rows["(unanswered)"].machine_usd) == pytest.approx(12_000 / 3600 * 0.4)
    assert float(rows["(idle)"].machine_usd) == pytest.approx(297.6 - 120_000 / 3600 * 0.4)
    assert (rows["x"].calls, rows["x"].tokens) == (1000, 100_000)
    assert rows["x"].profit_usd == -rows["x"].machine_usd
    adds_up(account)


def test_idle_machines_are_never_cheap(tmp_path: Path) -> None:
    """A second machine that does nothing is on the bill, and on nobody's row but the idle one."""
    single, two = statement(tmp_path), statement(tmp_path, "machine.machines=2")
    assert two.bill_usd == 2 * single.bill_usd
    for before, after in zip(single.skins, two.skins, strict=True):
        assert after.machine_usd - before.machine_usd == pytest.approx(single.bill_usd * (after.row_type == "idle"))


def test_the_servers_own_price_may_differ_from_the_bill(tmp_path: Path) -> None:
    account = statement(tmp_path, "machine.usd_per_hour=0.8", "server_usd_per_hour=0.4")
    rows = {row.name: row for row in account.skins}
    assert rows["x"].compute_seconds == pytest.approx(36_000)
    assert float(rows["x"].machine_usd) == pytest.approx(8.0)
    adds_up(account)


@pytest.mark.parametrize(("by", "share"), [("calls", 2 / 3), ("tokens", 0.5), ("compute", 1 / 3)])
def test_a_base_is_spread_over_its_horizon_and_its_users(tmp_path: Path, by: str, share: float) -> None:
    account = statement(tmp_path, base={"usd": 10_000, "horizon_days": 310, "by": by})
    rows = {row.name: row for row in account.skins}
    assert account.base_usd == 1000  # 31 of 310 days
    assert float(rows["x"].base_usd) == pytest.approx(1000 * share, abs=1e-6)
    assert rows["x"].base_usd_per_call == pytest.approx(1000 * share / 1000)
    adds_up(account)
    long = statement(tmp_path, base={"usd": 10_000, "horizon_days": 10, "by": by})
    assert long.base_usd == 10_000  # never more than it cost


def test_revenue_less_both_shares_is_profit(tmp_path: Path) -> None:
    revenue = {
        "skins": {
            "x": {"usd_per_call": 0.02, "usd_per_million_tokens": 3},
            "y": {"usd_per_month": 73},
            "w": {"usd_per_month": 73},
        }
    }
    account = statement(tmp_path, revenue=revenue, base={"usd": 10_000, "horizon_days": 310, "by": "calls"})
    rows = {row.name: row for row in account.skins}
    assert float(rows["x"].revenue_usd) == pytest.approx(1000 * 0.02 + 0.1 * 3)
    assert float(rows["y"].revenue_usd) == pytest.approx(73 * 744 / 730, abs=1e-6)
    assert rows["x"].profit_usd == rows["x"].revenue_usd - rows["x"].machine_usd - rows["x"].base_usd
    assert rows["w"].calls == 0
    assert account.warnings == ("revenue.skins.w: it answered no call in this time",)
    adds_up(account)


@pytest.mark.parametrize("by", ["tokens", "calls"])
def test_busy_time_may_be_divided_otherwise(tmp_path: Path, by: str) -> None:
    account = statement(tmp_path, f"by={by}")
    rows = {row.name: row for row in account.skins}
    part = {"tokens": 0.5, "calls": 2 / 3}[by]
    assert float(rows["x"].machine_usd) == pytest.approx(120_000 / 3600 * 0.4 * part, abs=1e-5)
    assert "(unanswered)" not in rows
    adds_up(account)


def log_line(tenant: str, model: str, seconds: float, day: int = 2) -> str:
    fields = {
        "time": f"2026-10-{day:02}T00:00:00.000Z",
        "model": model,
        "tenant": tenant,
        "prompt": 80,
        "completion": 20,
    }
    return json.dumps({**fields, "cost_usd": seconds * 0.4 / 3600})


def test_tenants_are_of_the_access_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(
        "\n".join([log_line("shop", "x", 7200)] * 5 + [log_line("press", "y", 3600)] * 20) + "\n"
    )
    revenue = {"tenants": {"shop": {"usd_per_call": 2}, "pres": {"usd_per_month": 1}}}
    account = statement(tmp_path, access_logs=["log"], revenue=revenue)
    rows = {row.name: row for row in account.tenants}
    assert float(rows["shop"].machine_usd) == pytest.approx(4.0)
    assert float(rows["press"].machine_usd) == pytest.approx(8.0)
    assert float(rows["shop"].profit_usd) == pytest.approx(6.0)
    adds_up(account)
    assert account.warnings == (
        "the access logs have 2,500 tokens, the metrics 200,000: they do not cover the same calls",
        "revenue.tenants.pres: it answered no call in this time; did you mean 'press'?",
    )
    only_log = {key: value for key, value in FILE.items() if key != "servers"}
    path = tmp_path / "log.yaml"
    path.write_text(yaml.safe_dump({**only_log, "access_logs": ["log"]}))
    alone = amortise(AmortisationFile.load(path))
    assert {row.name for row in alone.skins} == {"x", "y", "(idle)"}
    adds_up(alone)


def test_a_plan_needs_no_server(tmp_path: Path) -> None:
    planned = {key: value for key, value in FILE.items() if key != "servers"}
    planned["expected"] = {
        "x": {"calls_per_day": 1000, "tokens_per_call": 400, "seconds_per_call": 0.5},
        "y": {"calls_per_day": 3000, "tokens_per_call": 100, "seconds_per_call": 0.1},
    }
    planned["base"] = {"usd": 36_500, "horizon_days": 365, "by": "tokens"}
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(planned))
    account = amortise(AmortisationFile.load(path))
    rows = {row.name: row for row in account.skins}
    assert rows["x"].base_usd_per_call == pytest.approx(3100 * 4 / 7 / 31_000)
    assert float(rows["x"].machine_usd) == pytest.approx(31_000 * 0.5 / 3600 * 0.4, abs=1e-6)
    adds_up(account)


@given(
    seconds=st.lists(st.floats(0.001, 1e5), min_size=1, max_size=8),
    rate=st.floats(0.01, 50),
    price=st.floats(1, 1e6),
    extra=st.floats(0, 1e5),
)
@settings(deadline=None, max_examples=15)
def test_rows_add_up_whatever_the_numbers(
    tmp_path_factory: pytest.TempPathFactory, seconds: list[float], rate: float, price: float, extra: float
) -> None:
    after = {f"s{i}": (1 + i, 10, 10, busy_seconds) for i, busy_seconds in enumerate(seconds)}
    account = statement(
        tmp_path_factory.mktemp("account"),
        f"machine.usd_per_hour={rate!r}",
        "server_usd_per_hour=0.4",
        before={"s0": (0, 0, 0, 0)},
        after=after,
        busy=(0, sum(seconds) + extra),
        base={"usd": price, "horizon_days": 777, "by": "calls"},
    )
    adds_up(account)
    values = as_values(account)
    assert sum(row["machine_usd"] for row in values["skins"]) == pytest.approx(values["bill_usd"], abs=1e-6)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("machine.usd_per_hour=0", "machine.usd_per_hour: input should be greater than 0"),
        ("machine.usd_per_hour=.nan", "finite number"),
        ("machine.machines=0", "machine.machines: input should be greater than or equal to 1"),
        ("period.ends=2026-10-01", "not after it begins"),
        ("base={usd: -1, horizon_days: 3}", "base.usd: input should be greater than 0"),
        ("base={usd: 1, horizon_days: 0}", "base.horizon_days: input should be greater than 0"),
        ("base={usd: 1, horizon_days: 3, by: token}", "input should be 'compute', 'tokens' or 'calls'"),
        ("revenue={skin: {}}", "did you mean 'skins'?"),
        ("revenue={skins: {x: {usd_per_cal: 1}}}", "did you mean 'usd_per_call'?"),
        ("servers=[]", "say what was used"),
        ("expected={x: {calls_per_day: 3}}", "`expected` is for a plan"),
        ("servers=[{after: c.txt}]", "c.txt: cannot be read"),
        ("period.ends=2026-10-02", "take 33.33 hours of the machines ($13.33), more than the 24.00 hours ($9.60) of 1"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(BedplateError) as caught:
        statement(tmp_path, override)
    assert message in str(caught.value)


def test_more_calls_than_the_machines_can_take_are_told_in_hours(tmp_path: Path) -> None:
    expected = {"x": {"calls_per_day": 86_400, "seconds_per_call": 2}}
    with pytest.raises(BedplateError, match=r"1,488.00 hours .* 744.00 hours \(\$297.60\) .* and seconds_per_call$"):
        statement(tmp_path, servers=[], expected=expected)


def test_a_machines_price_that_is_not_the_servers_is_noticed(tmp_path: Path) -> None:
    assert not statement(tmp_path).warnings
    (warning,) = statement(tmp_path, "machine.usd_per_hour=1").warnings
    assert "counted $12 for 120,000 s of engine steps, $0.36 an hour, and compute is reckoned at $1" in warning
    assert "server_usd_per_hour" in warning
    assert not statement(tmp_path, "machine.usd_per_hour=1", "server_usd_per_hour=0.4").warnings


def test_without_a_price_on_the_server_compute_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(metrics_text(BEFORE, usd_per_hour=None))
    (tmp_path / "b.txt").write_text(metrics_text(AFTER, usd_per_hour=None))
    path = tmp_path / "account.yaml"
    path.write_text(yaml.safe_dump(FILE))
    with pytest.raises(ConfigError, match="by: compute needs what calls cost: set `price`"):
        amortise(AmortisationFile.load(path))
    with pytest.raises(ConfigError, match="by: tokens needs how long the engines were busy"):
        amortise(AmortisationFile.load(path, ["by=tokens"]))
    (tmp_path / "b.txt").write_text(metrics_text(AFTER, 120_000, usd_per_hour=None))
    account = amortise(AmortisationFile.load(path, ["by=tokens"]))
    adds_up(account)
    with pytest.raises(ConfigError, match=r"base\.by: compute needs what calls cost"):
        amortise(AmortisationFile.load(path, ["by=tokens", "base={usd: 9, horizon_days: 9, by: compute}"]))


def test_the_example_adds_up() -> None:
    account = amortise(AmortisationFile.load(Path(__file__).parents[2] / "examples/amortise/account.yaml"))
    adds_up(account)
    assert not account.warnings
    assert [row.name for row in account.skins] == ["tickets", "reviews", "smollm2-135m", "(unanswered)", "(idle)"]
    assert {row.name for row in account.tenants} == {"shop", "press", "key:3f9c2a7be410", "(unanswered)", "(idle)"}
    skins, tenants = (sum(row.calls for row in rows) for rows in (account.skins, account.tenants))
    assert skins == tenants == 60


@pytest.mark.parametrize("by", ["compute", "tokens", "calls"])
def test_a_period_without_calls_is_all_idle(tmp_path: Path, by: str) -> None:
    account = statement(tmp_path, f"by={by}", after=BEFORE, busy=(20, 20))
    assert [row.machine_usd for row in account.skins] == [0, 0, account.bill_usd]


def test_what_failed_calls_took_is_the_same_in_both_tables() -> None:
    account = amortise(AmortisationFile.load(Path(__file__).parents[2] / "examples/amortise/account.yaml"))
    skins, tenants = (
        [row.machine_usd for row in rows if row.row_type == "unanswered"] for rows in (account.skins, account.tenants)
    )
    assert skins == tenants
