// The page of a decision file: what is moved, the verdict, where the money goes, what pays from when on, what flips it.

const COLOURS = new Map(DATA.options.map((option, n) => [option.name, `c${n % 6}`]));
const WHENS = { once: "once", "over time": "over time", calls: "calls", machines: "reserved machines" };
const rowNamed = (name) => DATA.rows.find((row) => row.name === name);

/** A slider over where flipping points are looked for: in ratio where that spans much. */
function slider(name) {
  const row = rowNamed(name),
    [low, high] = row.search;
  const stated = row.low === row.high ? "" : `stated as ${typed(row.low)} to ${typed(row.high)}; `;
  return {
    name,
    label: name,
    scale: low > 0 && high / low >= 20 ? "log" : "linear",
    stated: row.value,
    low,
    high,
    hint: `${stated}${row.source}`,
  };
}

/** The list of numbers that have no slider yet; choosing a number gives it a slider. */
function chooser(bench) {
  const list = make("select", { id: "more" });
  const rest = () => DATA.rows.filter((row) => row.moves && !bench.has(row.name));
  const fill = () =>
    list.replaceChildren(
      make("option", { value: "" }, "choose a number …"),
      ...rest().map((row) => make("option", { value: row.name }, `${row.name} (${typed(row.value)})`)),
    );
  list.addEventListener("change", () => {
    if (!list.value) return;
    const { value } = list;
    bench.add(slider(value));
    bench.draw();
    fill();
    bench.controls.get(value).slider.focus();
  });
  fill();
  byId("controls").lastElementChild.append(make("label", { for: "more" }, "Move another number"), list);
  return fill;
}

function command(values, changed) {
  const stated = [...changed].filter((name) => rowNamed(name).said),
    unsaid = [...changed].filter((name) => !rowNamed(name).said);
  const words = stated.map((name) => `${name}=${values[name]}`);
  return (
    shell([...DATA.command, ...words]) + (unsaid.length ? `\n# and without an option there: ${unsaid.join(", ")}` : "")
  );
}

function showVerdict(decision) {
  const { outcomes, ranking, answer } = decision;
  const chosen = outcomes.find((outcome) => outcome.name === answer);
  const verdict = make("p", { className: `verdict ${chosen ? COLOURS.get(answer) : ""}` }, answerText(decision));
  verdict.dataset.figure = "answer";
  if (!chosen) return showHeadline([], verdict);
  const [low, high] = chosen.interval;
  const rows = [
    [`Over ${number(decision.state.v[DAYS])} days`, usd(chosen.total), range(low, high, shortUsd)],
    ["A call", usd(chosen.per_call), chosen.per_right === null ? "" : `${usd(chosen.per_right)} a right one`],
  ];
  if (ranking.length > 1) rows.push([`Ahead of ${ranking[1].name}`, usd(ranking[1].net - chosen.net), ""]);
  return showHeadline(rows, verdict);
}

function showTable(table, decision) {
  const heads = [
    "option",
    "weights, method",
    "total",
    "90% interval",
    "a call",
    "right answer",
    "quality (low)",
    "p95 ms",
    "best in",
  ];
  const rows = [...decision.outcomes]
    .sort((a, b) => b.feasible - a.feasible || a.net - b.net)
    .map((outcome) => {
      const [low, high] = outcome.interval,
        { quality, option } = outcome;
      const lowest = quality === null ? null : decision.state.low(option.quality);
      const cells = [
        shortUsd(outcome.total),
        low === high ? "" : `${shortUsd(low)} to ${shortUsd(high)}`,
        usd(outcome.per_call),
        outcome.per_right === null ? "" : usd(outcome.per_right),
        quality === null ? "" : fixed(quality, 3) + (lowest < quality ? ` (${fixed(lowest, 3)})` : ""),
        outcome.p95 === null ? "" : grouped(outcome.p95),
        !outcome.feasible ? "out" : outcome.best_in === null ? "" : percent(outcome.best_in, 0),
      ];
      const key = make("span", { className: `key ${COLOURS.get(outcome.name)}`, "aria-hidden": "true" });
      const row = make(
        "tr",
        { className: outcome.name === decision.answer ? "chosen" : outcome.feasible ? "" : "out" },
        make("td", {}, key, outcome.name),
        make("td", {}, option.method_in_short),
        cells.map((cell) => make("td", { className: "n" }, cell)),
      );
      Object.assign(row.dataset, {
        option: outcome.name,
        feasible: outcome.feasible,
        total: outcome.total,
        net: outcome.net,
        low,
        high,
        bestIn: outcome.best_in,
      });
      return row;
    });
  const head = make(
    "tr",
    {},
    heads.map((name, n) => make("th", { className: n > 1 ? "n" : "", scope: "col" }, name)),
  );
  table.replaceChildren(make("thead", {}, head), make("tbody", {}, rows));
}

/** Cost over volume: each option a line, break-evens where two of them cross for good. */
function showVolume(plot, decision) {
  const { outcomes, break_evens, state } = decision,
    [low, high] = DATA.rows[CALLS].search,
    now = state.v[CALLS];
  const nets = new Map(outcomes.map(({ name, option }) => [name, (calls) => option.net(changed(state.v, CALLS, calls))]));
  const feasible = outcomes.filter((outcome) => outcome.feasible);
  const money = outcomes.every((outcome) => outcome.net === outcome.total);
  const positive = outcomes.every(({ name }) => nets.get(name)(low) > 0 && nets.get(name)(high) > 0);
  const crossings = break_evens.filter(
    ({ dear, cheap, calls }) => calls && [dear, cheap].every((outcome) => feasible.some(({ option }) => option === outcome)),
  );
  const points = crossings.map(({ dear, calls }) => {
    const y = nets.get(dear.name)(calls);
    const lowest = Math.min(...feasible.map((outcome) => nets.get(outcome.name)(calls)));
    return { x: calls, y, mark: "hollow", label: y <= lowest + 1e-6 * Math.abs(lowest) ? number(calls) : "" };
  });
  if (points.length) points[0].name = "break-even";
  plot.draw({
    x: {
      scale: "log",
      low: Math.max(low, DATA.rows[CALLS].value / 1e4),
      high,
      label: "calls a day",
      unit: "calls a day",
      show: (x) => count(x),
      read: number,
    },
    y: {
      scale: positive ? "log" : "linear",
      label: money ? "US dollars over the horizon" : "US dollars over the horizon, with wrong answers, less revenue",
      show: shortUsd,
    },
    lines: outcomes.map((outcome, n) => ({
      name: outcome.feasible ? outcome.name : `${outcome.name} (out)`,
      colour: COLOURS.get(outcome.name),
      dash: DASHES[n % 6],
      out: !outcome.feasible,
      at: nets.get(outcome.name),
    })),
    points: [...points, ...feasible.map((outcome) => ({ x: now, y: outcome.net, colour: COLOURS.get(outcome.name) }))],
    rules: [{ x: now, label: `now ${number(now)}`, here: true }],
    jumps: OPTIONS.flatMap((option) => machineSteps(option, state.v)).filter((calls) => calls >= low && calls <= high),
    start: now,
    height: 380,
  });
}

const paid = (outcome, when) => outcome.lines.filter((line) => line.when === when).reduce((sum, line) => sum + line.usd, 0);

function showParts(stacks, decision) {
  const rows = [...decision.outcomes]
    .sort((a, b) => b.feasible - a.feasible || a.net - b.net)
    .map((outcome) => {
      const sums = Object.entries(WHENS).map(([when, name]) => ({
        name,
        value: paid(outcome, when),
      }));
      const told = [...outcome.lines]
        .sort((a, b) => b.usd - a.usd)
        .map((line) => `${usd(line.usd)} ${line.what} (${line.when})`)
        .join(", ");
      return {
        name: outcome.feasible ? outcome.name : `${outcome.name} (out)`,
        note: usd(outcome.total),
        parts: sums,
        low: outcome.interval[0],
        high: outcome.interval[1],
        read: `${outcome.name}, ${usd(outcome.total)}: ${told}`,
      };
    });
  stacks.draw({
    names: Object.values(WHENS),
    rows,
    about: "The line over a bar holds 90% of the draws. Point at a row, or focus it, for its bill.",
  });
}

function showFlips(tornado, lists, decision) {
  const flipping = decision.flips.filter((outcome) => outcome.below !== null || outcome.above !== null);
  const rows = flipping.slice(0, 14).map((outcome) => {
    const ratio = (x) => (outcome.value > 0 ? Math.max(1e-3, x / outcome.value) : x > outcome.value ? 1e3 : 1e-3);
    const to = [outcome.below, outcome.above].filter(Boolean).map((flip) => flip.to);
    return {
      name: outcome.row.name,
      note: [...new Set(to)].map((name) => (name.startsWith("nothing") ? "nothing" : name)).join(", "),
      read: flipText(outcome),
      below: outcome.below && ratio(outcome.below.at),
      above: outcome.above && ratio(outcome.above.at),
      low: decision.state.exact(outcome.place) ? 1 : ratio(outcome.row.low),
      high: decision.state.exact(outcome.place) ? 1 : ratio(outcome.row.high),
    };
  });
  tornado.element.hidden = rows.length === 0;
  tornado.draw({
    rows,
    about:
      "Blue: how far a number may go, alone, before the answer changes to what is named on the right. Black: its stated range.",
  });
  showLines(lists.flips, flipping.length ? flipping.map(flipText) : ["nothing that was varied"]);
  showLines(lists.steady, decision.flips.filter((outcome) => outcome.below === null && outcome.above === null).map(flipText));
}

/** The formulas that a case needs, with the numbers of the answer (or of the first option, where there is none). */
function rowsOf({ answer, outcomes, ranking, calls, state }) {
  const outcome = outcomes.find(({ name }) => name === answer) ?? ranking[0] ?? outcomes[0];
  const { has } = outcome.option,
    some = (what) => DATA.options.some((option) => option.has[what]);
  const ofCall = outcome.lines.filter(({ when }) => when === "calls").map(({ what, usd }) => ({ what, usd: usd / calls }));
  const call = {
    of: paid(outcome, "calls") / calls,
    show: usd,
    live: ofCall.map((line) => `${usd(line.usd)} ${line.what}`).join(" + "),
  };
  const row = (name, label, figure = {}) => ({ name, label, ...figure });
  const byUse = (option) => !option.has.hosted && !option.has.reserved;
  return [
    row("calls", "Calls", {
      of: calls,
      show: number,
      live: `${number(state.v[CALLS])} on the first day, ${number(state.v[DAYS])} days`,
    }),
    some("hosted") && row("hosted call", "Hosted call", has.hosted ? call : {}),
    some("hosted") && row("calls that may wait", "Calls that may wait"),
    DATA.options.some(byUse) && row("call on a machine paid by use", "Call, paid by use", byUse(outcome.option) ? call : {}),
    some("reserved") &&
      row("reserved machines", "Reserved machines", has.reserved ? { of: paid(outcome, "machines"), show: usd } : {}),
    some("refresh") && row("tuning again", "Tuning again"),
    some("pretraining") && row("pretraining", "Pretraining"),
    row("total", `Total of ${outcome.name}`, {
      of: { low: outcome.interval[0], central: outcome.total, high: outcome.interval[1] },
      show: usd,
      live: Object.keys(WHENS).map((when) => usd(paid(outcome, when))).join(" + "),
    }),
    outcome.per_right !== null &&
      row("right answer", "A right answer", {
        of: outcome.per_right,
        show: usd,
        live: `${usd(outcome.total)} / ${number(calls)} / ${general(outcome.quality, 4)}`,
      }),
    row("ranking", "What options are ranked by", { of: outcome.net, show: usd }),
    row("break-even", "Break-even"),
    row("intervals", "Intervals"),
    row("flipping point", "Flipping point"),
  ].filter(Boolean);
}

function listed(title, about = null) {
  const list = make("ul", { className: "lines" });
  return [section(title, about, list), list];
}

function begin() {
  byId("about").textContent =
    `${DATA.options.length} options; bars of quality and latency clear with the whole stated range, and a number that is moved is taken as exact`;
  const [, why] = listed("Why");
  why.dataset.figure = "reasons";
  const plot = new Plot(
    section("Cost against volume", "Over the horizon. Diamonds are break-evens; what is out is drawn faint."),
    "US dollars over calls a day",
  );
  const [pays, evens] = listed("Break-even volumes");
  evens.dataset.figure = "break-evens";
  const table = make("table", {});
  section(
    "Options",
    null,
    make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Options" }, table),
  );
  const stacks = new Stacks(
    section("Where the money goes", null),
    "Paid once, over time, by the call, and for machines that stand ready",
  );
  const turns = section("What would change the answer", "Each number alone, nearest first.");
  const tornado = new Tornado(turns, "How far each number may go");
  const lists = { flips: make("ul", { className: "lines small" }), steady: make("ul", { className: "lines small" }) };
  lists.flips.dataset.figure = "flips";
  lists.steady.dataset.figure = "steady";
  turns.append(
    make("details", {}, make("summary", {}, "In words"), lists.flips),
    make("details", {}, make("summary", {}, "What would not change it"), lists.steady),
  );
  const formulas = make("dl", { className: "figures" });
  section("How it is computed", "Each formula with its source, and with the numbers of the answer.", formulas);
  const terminal = make("pre", { tabIndex: 0, "aria-label": "Command" });
  if (DATA.command.length) section("The same in the terminal", null, terminal);
  const notes = [...DATA.options.flatMap((outcome) => outcome.notes.map((note) => `${outcome.name}: ${note}`)), ...DATA.warnings];
  if (notes.length) showLines(listed("Taken for granted, and the age of prices")[1], notes);
  pays.hidden = ALLOWED.length < 2;

  const bench = new Workbench((values, changed) => {
    const decision = decide(new State(values, changed));
    showVerdict(decision);
    showLines(why, reasonTexts(decision));
    showVolume(plot, decision);
    showLines(evens, decision.break_evens.map(breakEvenText));
    showTable(table, decision);
    showParts(stacks, decision);
    showFlips(tornado, lists, decision);
    showFigures(formulas, rowsOf(decision), DATA.formulas);
    terminal.textContent = command(values, changed);
  });
  const shown = DATA.sliders.filter((name) => rowNamed(name).search !== null);
  bench.add(...shown.map(slider));
  const fill = chooser(bench);
  bench.start((name) => {
    if (bench.has(name) || !rowNamed(name)?.moves) return;
    bench.add(slider(name));
    fill();
  });
}

begin();
