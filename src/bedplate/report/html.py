# ruff: noqa: E501 (markup)
"""Reports as one self-contained page each: no script, no font, no picture is fetched from anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_STYLE = """
:root { --ink:#1b1f24; --paper:#ffffff; --panel:#f5f6f8; --faint:#c9ced6; --muted:#667080; --accent:#2457d6;
  --target:#c2410c; --good:#15803d; --bad:#b91c1c; --unsure:#a16207; }
@media (prefers-color-scheme: dark) { :root { --ink:#e6e8eb; --paper:#14171c; --panel:#1d2128; --faint:#3a414c;
  --muted:#98a2b3; --accent:#7aa2ff; --target:#fb923c; --good:#4ade80; --bad:#f87171; --unsure:#facc15; } }
* { box-sizing:border-box; }
body { margin:0; background:var(--paper); color:var(--ink); font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif; }
main { max-width:64rem; margin:0 auto; padding:2rem 1.25rem 4rem; }
h1 { font-size:1.7rem; margin:0 0 .25rem; } h2 { font-size:1.15rem; margin:2.25rem 0 .6rem; }
p { margin:.4rem 0; } .muted { color:var(--muted); } small { color:var(--muted); }
.verdict { background:var(--panel); border-left:.35rem solid var(--unsure); padding:1rem 1.2rem; margin:1.2rem 0;
  border-radius:.3rem; }
.verdict.PASS { border-color:var(--good); } .verdict.FAIL { border-color:var(--bad); }
.verdict b { font-size:1.1rem; letter-spacing:.02em; }
.PASS b { color:var(--good); } .FAIL b { color:var(--bad); } .INSUFFICIENT_DATA b { color:var(--unsure); }
.scroll { overflow-x:auto; } table { border-collapse:collapse; width:100%; font-size:.92rem; }
th,td { text-align:left; padding:.4rem .6rem; border-bottom:1px solid var(--faint); vertical-align:top; }
td.n,th.n { text-align:right; font-variant-numeric:tabular-nums; white-space:nowrap; }
tr.chosen td { background:var(--panel); font-weight:600; } td.reason { font-weight:400; color:var(--muted); min-width:16rem; }
figure { margin:.6rem 0; } figure svg { max-width:100%; height:auto; } figcaption { color:var(--muted); font-size:.88rem; }
svg text { fill:var(--ink); font-family:system-ui,sans-serif; }
.right { color:var(--good); } .wrong { color:var(--bad); }
code { background:var(--panel); padding:.1rem .3rem; border-radius:.2rem; overflow-wrap:anywhere; }
ul { margin:.3rem 0; padding-left:1.2rem; } td.text { white-space:pre-wrap; overflow-wrap:anywhere; }
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ r.task }}: {{ r.verdict.status }}</title><style>{{ style }}</style></head><body><main>
<h1>{{ r.task }}</h1>
<p class="muted">on {{ r.base }} ({{ r.settings.dtype }}), {{ r.target.metric }} of at least {{ r.target.value }}
with {{ "%g"|format(r.target.confidence * 100) }}% confidence</p>
<div class="verdict {{ r.verdict.status }}"><b>{{ r.verdict.status.replace("_", " ") }}</b>
{% if r.verdict.rung %} · {{ r.verdict.rung }}{% endif %}
<p>{{ r.verdict.reason }}</p>
{% if r.comparison %}<p>On test, {{ r.comparison.a }} minus {{ r.comparison.b }} is
{{ "%+.3f"|format(r.comparison.difference) }} ({{ "%.3f"|format(r.comparison.interval[0]) }} to
{{ "%.3f"|format(r.comparison.interval[1]) }}), p = {{ "%.2g"|format(r.comparison.p_value) }}
({{ r.comparison.test.replace("_", " ") }}; the pair was fixed before test was opened).</p>{% endif %}
{% if r.verdict.skin %}<p>The skin: <code>{{ r.verdict.skin }}</code></p>{% endif %}</div>

<h2>Quality against cost</h2>
<figure>{{ cost_plot }}<figcaption>Bars are {{ "95%" }} intervals that respect groups. Filled points: test; open points:
valid. Prices: ${{ r.machine.usd_per_hour }} an hour for this machine as of {{ r.machine.as_of }}, one call at a
time.</figcaption></figure>

<h2>Every rung</h2>
<div class="scroll"><table><tr><th>rung</th><th>split</th><th class="n">{{ r.target.metric }}</th>
<th class="n">interval</th><th class="n">n</th><th class="n">groups</th><th class="n">$ / 1k calls</th>
<th class="n">p50 ms</th><th class="n">p95 ms</th><th class="n">fit s</th><th>how</th></tr>
{% for row in r.rungs %}<tr{% if row.rung == r.verdict.rung %} class="chosen"{% endif %}>
<td>{{ row.rung }}</td><td>{{ row.split }}</td>
{% if row.status == "done" %}<td class="n">{{ "%.3f"|format(row.estimate) }}</td>
<td class="n">{{ "%.3f"|format(row.interval[0]) }}–{{ "%.3f"|format(row.interval[1]) }}</td>
<td class="n">{{ row.n }}</td><td class="n">{{ row.groups }}</td><td class="n">{{ "%.4f"|format(row.usd_per_1k_calls) }}</td>
<td class="n">{{ "%.1f"|format(row.p50_ms) }}</td><td class="n">{{ "%.1f"|format(row.p95_ms) }}</td>
<td class="n">{{ "%.1f"|format(row.train_seconds) }}</td><td class="reason">{{ row.reason if row.split == "valid" else "" }}</td>
{% else %}<td colspan="8">{{ row.status }}</td><td class="reason">{{ row.reason }}</td>{% endif %}</tr>{% endfor %}</table></div>
<p><small>Everything was chosen on valid. Test was opened once, for the nominees fixed before, with zero-shot and the
references beside them.</small></p>

<h2>Nominees</h2>
<ul>{% for rung, reason in r.nominees.reasons.items() %}<li>{{ rung }}: {{ reason }}</li>{% endfor %}</ul>
{% if r.nominees.confirmations %}<div class="scroll"><table><tr><th>nominee</th><th class="n">test</th>
<th class="n">lower bound</th><th class="n">at</th><th class="n">upper bound</th><th class="n">at</th><th>clears the target</th>
</tr>{% for c in r.nominees.confirmations %}<tr><td>{{ c.rung }}</td><td class="n">{{ "%.3f"|format(c.estimate) }}</td>
<td class="n">{{ "–" if c.lower is none else "%.3f"|format(c.lower) }}</td><td class="n">{{ "%.2f%%"|format(100*c.lower_confidence) }}</td>
<td class="n">{{ "–" if c.upper is none else "%.3f"|format(c.upper) }}</td><td class="n">{{ "%.2f%%"|format(100*c.upper_confidence) }}</td>
<td>{{ "yes" if c.passed else "no" }}</td></tr>{% endfor %}</table></div>{% endif %}
{% if r.ledger %}<p><small>Verdict number {{ r.ledger.number }} on these test rows; it may spend
{{ "%.4f"|format(r.ledger.alpha) }} of error.</small></p>{% endif %}

{% if seeds_plot %}<h2>Seeds</h2><figure>{{ seeds_plot }}<figcaption>Each seed by itself; they are a spread, never pooled.
The skin is the chosen one.</figcaption></figure>{% endif %}

{% if r.focus %}<h2>A closer look at {{ r.focus.rung }} on {{ r.focus.split }}</h2>
{% if calibration_plot %}<figure>{{ calibration_plot }}<figcaption>Confidence against the share of right answers; expected
calibration error {{ "%.3f"|format(r.focus.calibration.error) }}.</figcaption></figure>{% endif %}
<div class="scroll"><table><tr><th>slice, worst first</th><th class="n">n</th><th class="n">row score</th><th class="n">interval</th></tr>
{% for s in r.focus.slices %}<tr><td>{{ s.by }}: {{ s.value }}</td><td class="n">{{ s.n }}</td>
<td class="n">{{ "%.3f"|format(s.estimate) }}</td><td class="n">{{ "%.3f"|format(s.interval[0]) }}–{{ "%.3f"|format(s.interval[1]) }}</td>
</tr>{% endfor %}</table></div>{% endif %}

{% if r.examples.wrong or r.examples.right %}<h2>Examples from valid ({{ r.examples.rung }})</h2>
<div class="scroll"><table><tr><th>text</th><th>wanted</th><th>answered</th></tr>
{% for kind in ("wrong", "right") %}{% for e in r.examples[kind] %}<tr><td class="text">{{ e.text }}</td><td>{{ e.target }}</td>
<td class="{{ kind }}">{{ e.prediction if e.prediction is not none else "(nothing usable)" }}</td></tr>{% endfor %}{% endfor %}
</table></div><p><small>Mistakes first, the surest on top.</small></p>{% endif %}

<h2>What was tried</h2>
{% for rung, tried in r.search.items() %}<p>{{ rung }}</p><ul>{% for t in tried %}<li>{{ t.name }}:
{% if t.failure %}{{ t.failure }}{% else %}{{ "%.3f"|format(t.estimate) }} on {{ t.n }} {{ t.split }} rows{% endif %}</li>{% endfor %}</ul>{% endfor %}

<h2>What was left out</h2>
{% if r.left_out or r.data.notes %}<ul>{% for rung, notes in r.left_out.items() %}{% for note in notes %}<li>{{ rung }}: {{ note }}</li>
{% endfor %}{% endfor %}{% for note in r.data.notes %}<li>{{ note }}</li>{% endfor %}</ul>{% else %}<p>Nothing.</p>{% endif %}

<h2>Data and settings</h2>
<div class="scroll"><table>{% for name, value in facts %}<tr><th>{{ name }}</th><td><code>{{ value }}</code></td></tr>{% endfor %}</table></div>
</main></body></html>
"""


def adaptation_page(report: Mapping[str, Any]) -> str:
    """The page of a ladder's report (the content of report.json)."""
    import jinja2
    from markupsafe import Markup

    from bedplate.report import plots

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    # written by us from numbers and escaped names, so it may stand as it is
    drawn = {name: None if svg is None else Markup(svg) for name, svg in _plots(report, plots).items()}
    return environment.from_string(_PAGE).render(r=_plain(report), style=Markup(_STYLE), facts=_facts(report), **drawn)


def _plots(report: Mapping[str, Any], plots: Any) -> dict[str, str | None]:
    rows: dict[str, dict[str, Any]] = {}
    for row in report["rungs"]:  # a test row replaces the rung's valid row
        if row["status"] == "done":
            rows[row["rung"]] = {**row, "reference": row["skin"] is None}
    seeds = {row["rung"]: row["seeds"] for row in report["rungs"] if row["split"] == "valid"}
    focus = report["focus"]
    bins = None if focus is None or focus["calibration"] is None else focus["calibration"]["bins"]
    target = report["target"]
    return {
        "cost_plot": plots.quality_against_cost(list(rows.values()), target["value"], target["metric"]),
        "seeds_plot": plots.seed_spread(seeds, target["metric"]),
        "calibration_plot": plots.reliability(bins) if bins else None,
    }


def _plain(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report without its rows, which the page does not show; every tried variant has the same keys."""
    search = {
        rung: [{"failure": None, "estimate": 0.0, **tried} for tried in tries]
        for rung, tries in report["search"].items()
    }
    return {**{key: value for key, value in report.items() if key != "rows"}, "search": search}


def _facts(report: Mapping[str, Any]) -> list[tuple[str, Any]]:
    facts: list[tuple[str, Any]] = [(f"rows {name}", count) for name, count in report["data"]["counts"].items()]
    facts += [(f"sha256 {name}", value) for name, value in report["data"]["hashes"].items()]
    facts += [("licence", value) for value in report["data"]["licences"]]
    facts += [(name, report["settings"][name]) for name in ("seed", "budget_seconds", "version", "weights_id")]
    facts += [(f"machine {name}", value) for name, value in report["machine"].items()]
    return facts
