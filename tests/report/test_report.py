from __future__ import annotations

import functools
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from matplotlib.path import Path as Path2D
from pydantic import ValidationError
from tests.report.sample import report, row

from bedplate.report import plots
from bedplate.report.formatting import calibration_remark, made_smaller, timing_remark
from bedplate.report.html import adaptation_page, confusions, headline
from bedplate.report.schema import ReportFile, report_schema

DOCS = Path(__file__).parents[2] / "docs"


@functools.cache
def plain_page() -> str:
    """The page of the report as it is."""
    return adaptation_page(report())


def test_the_page_says_what_the_report_says():
    page = plain_page()
    for phrase in (
        "PASS",
        "it clears",
        "0.880",
        "no time",
        "20 rows were left out",
        "target 0.8",
        "skipped",
        "MIT",
        "overtakes prompting (few_shot) at about 120 labels",
        "over 10 bins of equal width",
        "7 rows are scored differently",
        "beyond the labels there are",
        "labelled bad; lora, probe say",
        "64 of 64 rows gave the same answer",
        "chat:\nno template",
        "bfloat16 (native)",
        "int4 (native)",
        "12.3 → 6.7",
        "3 answers changed, worse by at most 0.008",
        "no format was tried",
        "valid has too few rows for it",
        "Rows with the same user or the same shop stay in one split",
        "1.26 ×",
        "sorted by length",
    ):
        assert phrase in page, phrase
    assert page == adaptation_page(report())  # the same report gives the same bytes


def undrawn_page(values: Any) -> str:
    """The page of a report with its pictures made and not drawn, which takes most of its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "svg_of", lambda _, label: f'<svg aria-label="{label}"></svg>')
        return adaptation_page(values)


def with_text(values: Any, text: str) -> Any:
    """Every string in `values` replaced by `text`, but for the words that code depends on."""
    if isinstance(values, dict):
        code_keys = ("status", "split", "why", "rung", "skin", "by", "held", "what")
        return {key: child if key in code_keys else with_text(child, text) for key, child in values.items()}
    if isinstance(values, list):
        return [with_text(child, text) for child in values]
    return text if isinstance(values, str) and values not in ("below", "beyond") else values


@pytest.mark.parametrize("evil", ["<img src=x onerror=alert(1)>", "</style><script>alert(1)</script>", "{{ r }} $x_1$"])
def test_nothing_that_a_user_wrote_becomes_markup(evil: str):
    values = with_text(report(), evil)
    values["examples"]["rows"][0]["answers"] = {evil: evil}
    values["examples"]["rows"][0]["scores"] = {evil: 0.0}
    page = adaptation_page(values)
    assert "<img" not in page
    assert "<script" not in page
    assert page.count("</style>") == page.count("<style")
    if evil.startswith("{{"):
        assert page.count("{{ r }} $x_1$") >= 30


@pytest.mark.parametrize("missing", ["focus", "ledger", "curve"])
def test_a_page_without_a_part(missing: str):
    page = undrawn_page(report(**{missing: None}))
    assert "PASS" in page
    assert f'id="{missing}"' not in page


def test_outputs_without_labels_leave_their_parts_out():
    values = report()
    values["focus"] |= {"calibration": None, "confusion": None}
    values["data"]["card"] |= {"labels": None, "suspects": [], "suspect_count": 0}
    long = "a long answer " * 9
    values["examples"]["rows"][0] |= {"answers": {"lora": long}, "scores": {"lora": 0.43}}
    page = adaptation_page(values)
    ReportFile.model_validate(values)
    for absent in ("Calibration</h3>", "Confusion</h3>", "Labels</h3>", "Labels to check"):
        assert absent not in page
    assert "0.43 lora" in page
    assert f"{long}</dd>" in page.replace("\n", "")


def test_what_was_answered_has_a_column_where_a_skin_abstains():
    assert "score where it answers" in plain_page()
    values = report()
    for rung in values["rungs"]:
        rung["coverage"] = None if rung["status"] == "skipped" else 1.0
    assert "score where it answers" not in undrawn_page(values)


def test_the_verdicts_own_bound_and_what_calls_take_stand_in_the_table_and_the_plot():
    page = plain_page()
    assert "≥ 0.830</td>" in page
    assert "together hold with 95%" in page
    assert "2.0 (≤ 2.4)" in page
    assert "within the budget: p95 of 100 calls is 2 ms, at most 2 ms with 95.0% confidence" in page
    assert '<td class="n">0.872</td>' in page  # what is expected of it
    rows = [row("lora", 0.88, 0.02, split="test", reference=False, bound=0.83)]
    drawn = plots.quality_against_cost(rows, 0.8, "accuracy")
    assert drawn != plots.quality_against_cost([{**rows[0], "bound": None}], 0.8, "accuracy")


def test_a_rung_that_was_made_smaller_is_marked_and_what_test_was_opened_for_is_said():
    values = report()
    (probe,) = (part for part in values["not_tried"] if "20 rows were left out" in part["reason"])
    smaller = probe["rung"]
    assert made_smaller(values) == {smaller}
    page = undrawn_page(values)
    assert f">{smaller}*</th>" in page
    assert "had the time for a part of its rows only" in page
    assert "Test was opened for the nominees fixed before" in page
    assert "zero-shot and the references" not in page
    values["ledger"] = {**(values["ledger"] or {}), "number": 2}
    assert "it is verdict 2 on some of these rows" in undrawn_page(values)


def test_probabilities_that_are_far_off_and_calls_beside_other_work_are_warned_of():
    values = report()
    assert (calibration_remark(values), timing_remark(values)) == (None, None)
    for part in values["focus"]["calibration"]["bins"]:
        part |= {"confidence": 0.4, "accuracy": 0.75}
    values["focus"]["calibration"] |= {"error": 0.35, "n": sum(b["n"] for b in values["focus"]["calibration"]["bins"])}
    remark = "its probabilities are 0.35 too low on average (calibration error 0.35)"
    assert remark in (calibration_remark(values) or "")
    values["rungs"][-1] |= {"load": 1e3, "skin": "skins/x"}
    assert timing_remark(values) == (
        "calls were timed beside other work (load average 1000.0): times and prices may be too high"
    )
    assert remark[1:] in undrawn_page(values)


def test_the_headline_is_one_sentence_for_every_verdict():
    values = report()
    assert headline(values) == (
        "lora clears the bar of 0.8: accuracy 0.880, at least 0.830, at $0.0200 per 1,000 calls."
    )
    for status, phrase in (("FAIL", "No adaptation that was tested reaches"), ("INSUFFICIENT_DATA", "do not decide")):
        values["verdict"] |= {"status": status, "rung": None, "skin": None}
        assert phrase in headline(values)
        assert headline(values).count(". ") == 0
    values["verdict"]["status"] = "FAIL"
    values["nominees"]["confirmations"] = []
    assert "No skin could be judged" in headline(values)
    values["verdict"]["status"] = "OUT_OF_BUDGET"
    assert "fits the budget" in headline(values)


def test_an_exploratory_pass_is_headed_as_one_and_has_not_the_colours_of_a_pass():
    values = report()
    assert '<div class="verdict PASS"' in plain_page()
    values["verdict"]["exploratory"] = True
    page = undrawn_page(values)
    assert "<b>EXPLORATORY PASS</b>" in page
    assert "<title>toy: EXPLORATORY PASS</title>" in page
    assert '<div class="verdict"' in page


def test_rungs_without_a_result_are_folded_below_the_table():
    page = plain_page()
    table, _, folded = page.partition("Every rung")[2].partition("</table>")
    assert "no time" not in table
    assert "<details><summary>1 without a result: probe</summary>" in folded.replace("\n", "")
    assert "probe</strong> skipped: no time" in folded.replace("\n", "")


def drawn_axes(rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The axes of the cost picture."""
    figures: list[Any] = []
    monkeypatch.setattr(plots, "svg_of", lambda figure, label: figures.append(figure) or "")
    plots.quality_against_cost(rows, 0.8, "accuracy")
    figures[0].draw_without_rendering()
    return figures[0].axes[0]


def test_the_cost_axis_begins_at_0_and_labels_lie_on_no_line(monkeypatch: pytest.MonkeyPatch):
    rungs = (
        ("from_scratch", 0.79, 0.0),
        ("probe", 0.862, 0.0004),
        ("lora", 0.884, 0.0008),
        ("zero_shot", 0.847, 0.00085),
    )
    rows = [{**row(name, estimate, usd), "reference": False} for name, estimate, usd in rungs]
    rows += [{**row("majority", 0.586, 0.0), "reference": True}]
    axes = drawn_axes(rows, monkeypatch)
    assert axes.get_xlim()[0] == 0
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert len(boxes) == 6
    right = axes.get_xlim()[1]
    front = [(usd, estimate) for name, estimate, usd in rungs if name != "zero_shot"]
    for line in (front, [(0, 0.8), (right, 0.8)], [(0, 0.586), (right, 0.586)]):
        path = Path2D(axes.transData.transform(line))
        for name, box in boxes.items():
            assert not path.intersects_bbox(box, filled=False), (name, line)
    names = list(boxes)
    for i, name in enumerate(names):
        assert not any(boxes[name].overlaps(boxes[later]) for later in names[i + 1 :]), name


def test_confusions_are_ordered_and_name_what_was_unusable():
    assert confusions(report()) == [
        ("good", "bad", 8, 8 / 48),
        ("bad", "good", 3, 3 / 52),
        ("bad", None, 1, 1 / 52),
    ]
    labels = [f"label {number}" for number in range(20)]
    values = report()
    counts = [[int(i == j) * 5 + int(j == (i + 1) % 20) for j in range(21)] for i in range(20)]
    values["focus"]["confusion"] = {"labels": labels, "counts": counts}
    assert "The most frequent of 20 confusions" in undrawn_page(values)


def test_plots_are_xml_that_follows_the_theme():
    rows = [{**row("a", 0.7, 0.01), "reference": False}, {**row("b", 0.5, 0), "reference": True}]
    values = report()
    for svg in (
        plots.quality_against_cost(rows, 0.8, "accuracy"),
        plots.reliability(values["focus"]["calibration"]["bins"]),
        plots.lengths({"train": list(range(11))}),
        plots.learning_curve(values["curve"], 0.8),
    ):
        ET.fromstring(svg)
        assert "var(--" in svg
        for colour in plots.VARIABLES:
            assert colour not in svg


def test_lengths_are_labelled_with_numbers_and_not_with_powers():
    for longest, expected in ((40, {"10", "20"}), (300_000, {"10", "1,000", "100,000"})):
        picture = ET.fromstring(plots.lengths({"train": [8, 12, 14, 16, 18, 20, 22, 24, 26, 28, longest]}))
        texts = {node.text for node in picture.iter("{http://www.w3.org/2000/svg}text") if node.text}
        assert expected <= texts, texts


def test_a_learning_curve_without_a_crossing_or_with_an_early_one_is_drawn():
    for labels, interval in (("beyond", [700.0, "beyond"]), ("below", ["below", 80.0]), (120.0, None)):
        curve = report()["curve"]
        curve["crossovers"][0] |= {"labels": labels, "interval": interval}
        svg = plots.learning_curve(curve, 0.8)
        assert ("overtakes" in svg) == (labels != "beyond")


def test_seeds_are_drawn_only_where_they_spread():
    seeds = [{"seed": 0, "estimate": 0.8, "interval": [0.7, 0.9], "chosen": True}]
    assert plots.seed_spread({"lora": seeds, "probe": []}, "accuracy") is None
    drawn = plots.seed_spread({"lora": [*seeds, {**seeds[0], "seed": 1, "chosen": False}]}, "accuracy")
    assert drawn is not None
    assert "seed 1" in drawn


def test_the_pareto_front_leaves_out_what_is_dearer_and_no_better():
    rows = [row("a", 0.7, 0.01), row("b", 0.69, 0.02), row("c", 0.9, 0.03), row("d", 0.8, 0.03)]
    assert [r["rung"] for r in plots.pareto(rows)] == ["a", "c"]


# --- the schema


def test_the_published_schema_is_current_and_a_schema():
    published = json.loads((DOCS / "report.schema.json").read_text("utf-8"))
    assert published == report_schema(), "run `make docs`"
    Draft202012Validator.check_schema(published)


def test_the_schema_takes_a_report_with_and_without_rows_and_nothing_else():
    check = Draft202012Validator(report_schema())
    values = report()
    check.validate(values)
    assert ReportFile.model_validate(values).verdict.rung == "lora"
    del values["rows"]
    check.validate(values)
    for spoil in (
        lambda v: v.update(extra=1),
        lambda v: v["verdict"].update(status="MAYBE"),
        lambda v: v["rungs"][0].update(new_fact=1),
        lambda v: v["curve"]["points"][0].update(size=0),
        lambda v: v["data"]["card"].pop("lengths"),
    ):
        spoiled = json.loads(json.dumps(values))
        spoil(spoiled)
        assert list(check.iter_errors(spoiled))
        with pytest.raises(ValidationError):
            ReportFile.model_validate(spoiled)


def test_every_part_of_the_schema_is_closed():
    """A field that is written and not published is an error; only a search's variants and details are free."""
    schema = report_schema()
    opened = [name for name, part in schema["$defs"].items() if part.get("additionalProperties") is not False]
    assert opened == ["Tried"]
