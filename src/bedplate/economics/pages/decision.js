// The page of a decision file: what is moved, the verdict, where the money goes, what pays from when on, what flips it.
// MODEL has the question, and what answers it and says so (economics/costs/decisions).

const QUESTION = MODEL.question;
const ALLOWED = QUESTION.options.filter((option) => option.broken.length === 0);
const VOLUME = QUESTION.inputs[QUESTION.calls_place];
const COLOURS = new Map(QUESTION.options.map((option, n) => [option.name, `c${n % 6}`]));
const WHENS = { once: "once", "over time": "over time", calls: "calls", machines: "reserved machines" };
const rowNamed = (name) => QUESTION.inputs.find((row) => row.name === name);
const moves = (name) => !DATA.fixed.includes(name);

/** A slider over where flipping points are looked for: in ratio where that spans much. */
function slider(name) {
  const row = rowNamed(name),
    [low, high] = row.search;
  const stated = row.exact ? "" : `stated as ${typed(row.low)} to ${typed(row.high)}; `;
  return {
    name, label: name, scale: low > 0 && high / low >= 20 ? "log" : "linear", stated: row.value, low, high,
    hint: `${stated}${row.source}`,
  };
}

/** The list of numbers that have no slider yet; choosing a number gives it a slider. */
function chooser(bench) {
  const list = make("select", { id: "more" });
  const rest = () => QUESTION.inputs.filter((row) => moves(row.name) && !bench.has(row.name));
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
  const unsaid = [...changed].filter((name) => DATA.unsaid.includes(name));
  const words = [...changed].filter((name) => !unsaid.includes(name)).map((name) => `${name}=${values[name]}`);
  return (
    shell([...DATA.command, ...words]) + (unsaid.length ? `\n# and without an option there: ${unsaid.join(", ")}` : "")
  );
}

/** Best first, then what is out. */
const ordered = ({ outcomes }) => [...outcomes].sort((a, b) => b.feasible - a.feasible || a.net_usd - b.net_usd);

function showVerdict(decision) {
  const { chosen, ranking, answer } = decision;
  const verdict = make("p", { className: `verdict ${chosen ? COLOURS.get(answer) : ""}` }, MODEL.answer(decision));
  verdict.dataset.figure = "answer";
  if (!chosen) return showHeadline([], verdict);
  const right = chosen.cost_per_right_answer;
  const rows = [
    [`Over ${number(decision.days)} days`, usd(chosen.total_usd), range(...chosen.total_interval, shortUsd)],
    ["A call", usd(chosen.cost_per_call), right === null ? "" : `${usd(right)} a right one`],
  ];
  if (ranking.length > 1)
    rows.push([`Ahead of ${ranking[1]}`, usd(decision.outcome(ranking[1]).net_usd - chosen.net_usd), ""]);
  return showHeadline(rows, verdict);
}

function showTable(table, decision) {
  const heads = [
    "option", "weights, method", "total", "90% interval", "a call", "right answer", "quality (low)", "p95 ms",
    "best in",
  ];
  const drawn = decision.question.drawn.size > 0;
  const rows = ordered(decision).map((outcome) => {
    const { name, feasible, quality, total_usd: total, net_usd: net, best_in: bestIn } = outcome;
    const [low, high] = outcome.total_interval;
    const lowest = quality === null ? null : outcome.quality_interval[0];
    const cells = [
      shortUsd(total), low === high ? "" : `${shortUsd(low)} to ${shortUsd(high)}`, usd(outcome.cost_per_call),
      outcome.cost_per_right_answer === null ? "" : usd(outcome.cost_per_right_answer),
      quality === null ? "" : fixed(quality, 3) + (lowest < quality ? ` (${fixed(lowest, 3)})` : ""),
      outcome.p95_ms === null ? "" : grouped(outcome.p95_ms), !feasible ? "out" : drawn ? percent(bestIn, 0) : "",
    ];
    const row = make(
      "tr", { className: name === decision.answer ? "chosen" : feasible ? "" : "out" },
      make("td", {}, make("span", { className: `key ${COLOURS.get(name)}`, "aria-hidden": "true" }), name),
      make("td", {}, outcome.method_in_short), cells.map((cell) => make("td", { className: "n" }, cell)),
    );
    Object.assign(row.dataset, { option: name, feasible, total, net, low, high, bestIn });
    return row;
  });
  const head = make("tr", {}, heads.map((name, n) => make("th", { className: n > 1 ? "n" : "", scope: "col" }, name)));
  table.replaceChildren(make("thead", {}, head), make("tbody", {}, rows));
}

/** Cost over volume: each option a line, break-evens where two of them cross for good. */
function showVolume(plot, decision) {
  const { question, outcomes, break_evens } = decision,
    [low, high] = VOLUME.search,
    v = question.values,
    now = v[question.calls_place];
  const at = (calls) => v.map((value, place) => (place === question.calls_place ? calls : value));
  const nets = new Map(question.options.map(({ name, net }) => [name, (calls) => net(at(calls))]));
  const feasible = outcomes.filter((outcome) => outcome.feasible);
  const money = outcomes.every((outcome) => outcome.net_usd === outcome.total_usd);
  const positive = outcomes.every(({ name }) => nets.get(name)(low) > 0 && nets.get(name)(high) > 0);
  const crossings = break_evens.filter(
    ({ option, against, calls_per_day: calls }) =>
      calls && [option, against].every((name) => decision.outcome(name).feasible),
  );
  const jumps = question.options.flatMap((option) => MODEL.machine_steps(option, v));
  const points = crossings.map(({ option, calls_per_day: calls }) => {
    const y = nets.get(option)(calls);
    const lowest = Math.min(...feasible.map(({ name }) => nets.get(name)(calls)));
    return { x: calls, y, mark: "hollow", label: y <= lowest + 1e-6 * Math.abs(lowest) ? number(calls) : "" };
  });
  if (points.length) points[0].name = "break-even";
  plot.draw({
    x: {
      scale: "log", low: Math.max(low, VOLUME.value / 1e4), high, label: "calls a day", unit: "calls a day",
      show: (x) => count(x), read: number,
    },
    y: {
      scale: positive ? "log" : "linear",
      label: money ? "US dollars over the horizon" : "US dollars over the horizon, with wrong answers, less revenue",
      show: shortUsd,
    },
    lines: outcomes.map((outcome, n) => ({
      name: outcome.feasible ? outcome.name : `${outcome.name} (out)`, colour: COLOURS.get(outcome.name),
      dash: DASHES[n % 6], out: !outcome.feasible, at: nets.get(outcome.name),
    })),
    points: [...points, ...feasible.map((outcome) => ({ x: now, y: outcome.net_usd, colour: COLOURS.get(outcome.name) }))],
    rules: [{ x: now, label: `now ${number(now)}`, here: true }],
    jumps: jumps.filter((calls) => calls >= low && calls <= high),
    start: now,
    height: 380,
  });
}

const paid = (outcome, when) => outcome.lines.reduce((sum, [period, , usd]) => sum + (period === when ? usd : 0), 0);

function showParts(stacks, decision) {
  const rows = ordered(decision).map((outcome) => {
    const parts = Object.entries(WHENS).map(([when, name]) => ({ name, value: paid(outcome, when) }));
    const lines = [...outcome.lines].sort((a, b) => b[2] - a[2]);
    const bill = lines.map(([when, what, amount]) => `${usd(amount)} ${what} (${when})`);
    const [low, high] = outcome.total_interval,
      total = usd(outcome.total_usd);
    const name = outcome.feasible ? outcome.name : `${outcome.name} (out)`;
    return { name, note: total, parts, low, high, read: `${outcome.name}, ${total}: ${bill.join(", ")}` };
  });
  stacks.draw({
    names: Object.values(WHENS), rows,
    about: "The line over a bar holds 90% of the draws. Point at a row, or focus it, for its bill.",
  });
}

function showFlips(tornado, lists, decision) {
  const [flipping, steady] = [true, false].map((flips) => decision.sensitivities.filter((row) => row.flips === flips));
  const rows = flipping.slice(0, 14).map((sensitivity) => {
    const { input, below, above } = sensitivity;
    const ratio = (x) => (input.value > 0 ? Math.max(1e-3, x / input.value) : x > input.value ? 1e3 : 1e-3);
    const to = [below, above].filter(Boolean).map((flip) => (flip.to.startsWith("nothing") ? "nothing" : flip.to));
    return {
      name: input.name, note: [...new Set(to)].join(", "), read: MODEL.flips(sensitivity),
      below: below && ratio(below.at), above: above && ratio(above.at), low: input.exact ? 1 : ratio(input.low),
      high: input.exact ? 1 : ratio(input.high),
    };
  });
  tornado.element.hidden = rows.length === 0;
  tornado.draw({
    rows,
    about:
      "Blue: how far a number may go, alone, before the answer changes to what is named on the right. Black: its stated range.",
  });
  showLines(lists.flips, flipping.length ? flipping.map(MODEL.flips) : ["nothing that was varied"]);
  showLines(lists.steady, steady.map(MODEL.flips));
}

/** The formulas that a case needs, with the numbers of the answer (or of the first option, where there is none). */
function rowsOf(decision) {
  const { outcomes, ranking, calls, question } = decision;
  const outcome = decision.chosen ?? (ranking.length ? decision.outcome(ranking[0]) : outcomes[0]);
  const has = DATA.options[outcome.name],
    some = (what) => Object.values(DATA.options).some((traits) => traits[what]);
  const ofCall = outcome.lines.filter(([when]) => when === "calls");
  const call = {
    of: paid(outcome, "calls") / calls, show: usd,
    live: ofCall.map(([, what, amount]) => `${usd(amount / calls)} ${what}`).join(" + "),
  };
  const row = (name, label, figure = {}) => ({ name, label, ...figure });
  const byUse = (traits) => !traits.hosted && !traits.reserved;
  return [
    row("calls", "Calls", {
      of: calls, show: number,
      live: `${number(question.values[question.calls_place])} on the first day, ${number(decision.days)} days`,
    }),
    some("hosted") && row("hosted call", "Hosted call", has.hosted ? call : {}),
    some("hosted") && row("calls that may wait", "Calls that may wait"),
    Object.values(DATA.options).some(byUse) &&
      row("call on a machine paid by use", "Call, paid by use", byUse(has) ? call : {}),
    some("reserved") &&
      row("reserved machines", "Reserved machines", has.reserved ? { of: paid(outcome, "machines"), show: usd } : {}),
    some("refresh") && row("tuning again", "Tuning again"),
    some("pretraining") && row("pretraining", "Pretraining"),
    row("total", `Total of ${outcome.name}`, {
      of: { low: outcome.total_interval[0], central: outcome.total_usd, high: outcome.total_interval[1] },
      show: usd, live: Object.keys(WHENS).map((when) => usd(paid(outcome, when))).join(" + "),
    }),
    outcome.cost_per_right_answer !== null &&
      row("right answer", "A right answer", {
        of: outcome.cost_per_right_answer, show: usd,
        live: `${usd(outcome.total_usd)} / ${number(calls)} / ${general(outcome.quality, 4)}`,
      }),
    row("ranking", "What options are ranked by", { of: outcome.net_usd, show: usd }),
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
  const examples = QUESTION.warnings.filter((line) => line.startsWith("EXAMPLE")).map((line) => `${line}. `);
  byId("about").textContent =
    `${examples.join("")}${QUESTION.options.length} options; bars of quality and latency clear with the whole stated range, and a number that is moved is taken as exact`;
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
    "Options", null,
    make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Options" }, table),
  );
  const stacks = new Stacks(
    section("Where the money goes", null), "Paid once, over time, by the call, and for machines that stand ready",
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
  const notes = [
    ...QUESTION.options.flatMap((option) => option.notes.map((note) => `${option.name}: ${note}`)),
    ...QUESTION.warnings,
  ];
  if (notes.length) showLines(listed("Taken for granted, and the age of prices")[1], notes);
  pays.hidden = ALLOWED.length < 2;

  const bench = new Workbench((values, changed) => {
    const decision = MODEL.solve(QUESTION.moved(new Map([...changed].map((name) => [name, values[name]]))));
    showVerdict(decision);
    showLines(why, MODEL.reasons(decision));
    showVolume(plot, decision);
    showLines(evens, decision.break_evens.map(MODEL.break_even));
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
    if (bench.has(name) || !rowNamed(name) || !moves(name)) return;
    bench.add(slider(name));
    fill();
  });
}

begin();
