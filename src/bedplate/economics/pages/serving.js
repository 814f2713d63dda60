// The page of a serving plan: what it costs, from the loads that were simulated (MODEL has what it computes with), what
// is moved, and what is shown of it.

const SECONDS_PER_DAY = 86400;

/** A figure of one replica at a rate of calls a second, straight between the loads next to it (the least: a call alone);
 * null beyond them. */
function atRate(replica, name, rate) {
  const column = [replica.alone[name], ...replica.loads[name]];
  const place = (rate / replica.saturated_calls_per_second) * DATA.grid;
  if (place > DATA.grid * (1 + 1e-9)) return null;
  const below = Math.min(DATA.grid - 1, Math.floor(place));
  return column[below] + (place - below) * (column[below + 1] - column[below]);
}

/** Why no number of replicas helps, or null. */
function hopeless(replica, { total, first }) {
  const misses = [
    [total, replica.alone.total_p95, "its answer's end"], [first, replica.alone.first_token_p95, "its first token"],
  ];
  const missed = misses.find(([limit, seconds]) => limit !== null && seconds > limit);
  return missed
    ? `A call alone on an idle machine takes ${duration(missed[1])} until ${missed[2]} (at 95%), over the target of ${duration(missed[0])}: no number of replicas helps.`
    : null;
}

/** Calls a second of one replica within the target: the plan's own search, on the loads that it looks at. */
function capacity({ saturated_calls_per_second: full, alone, loads }, { total, first }) {
  const slack = (totalP95, firstP95) => MODEL.slack([[total, totalP95], [first, firstP95]]);
  const slackAt = (parts) => slack(loads.total_p95[parts - 1], loads.first_token_p95[parts - 1]);
  return MODEL.capacity_within(full, slack(alone.total_p95, alone.first_token_p95), slackAt);
}

/** The fleet of one case; null where even a call alone misses the target. Dollars are null without a price. */
function fleet(replica, values, price, calls = values.calls_per_day) {
  const target = targetOf(values);
  if (hopeless(replica, target) !== null) return null;
  const each = capacity(replica, target);
  const { saturated_calls_per_second: full } = replica, { tokens_per_call: tokens } = DATA.traffic;
  const figures = [...MODEL.fleet_for(calls, values.peak_factor, each, values.spare, price ?? 0, full, tokens)];
  const known = figures.map(([name, value]) => [name, price === null && name.includes("usd") ? null : value]);
  return { capacity: each, ...Object.fromEntries(known) };
}

const limitOf = (name, value) => (value >= LATENCY[name].high ? null : value);
const targetOf = (values) => ({
  total: limitOf("total", values.total_seconds), first: limitOf("first_token", values.first_token_seconds),
});

const CENTRAL = DATA.cases.central;
const NAMES = { low: "at the worst that engines reach", central: "expected", high: "at the best" };
/** The sliders of the targets: from less than a call alone takes to more than a full engine's; the end is none. */
const LATENCY = Object.fromEntries(
  ["total", "first_token"].map((name) => {
    const stated = DATA.target[`${name}_seconds`];
    const full = Math.max(...CENTRAL.loads[`${name}_p95`]);
    return [
      name,
      {
        low: Math.min(CENTRAL.alone[`${name}_p50`] * 0.7, stated ?? Infinity),
        high: Math.max(full * 3, (stated ?? 0) * 2),
      },
    ];
  }),
);

function latencySlider(name, label) {
  const { low, high } = LATENCY[name];
  return {
    name: `${name}_seconds`, label, scale: "log", low, high, stated: DATA.target[`${name}_seconds`] ?? high,
    show: (x) => (x >= high ? "none" : duration(x)),
    read: (text) => (/^\s*none\s*$/i.test(text) ? high : parsed(text)),
    hint: `a call alone: ${duration(CENTRAL.alone[`${name}_p95`])}`,
  };
}

function sliders() {
  const { calls_per_day: calls, usd_per_hour: price } = DATA;
  const at = price ?? 1;
  return [
    {
      name: "calls_per_day", label: "Calls a day", scale: "log", stated: calls, low: calls / 100, high: calls * 100,
      hint: (values) => `${general(values.calls_per_day / SECONDS_PER_DAY, 3)} a second on average`,
    },
    {
      name: "peak_factor", label: "The busiest hour's rate over the mean", scale: "linear",
      stated: DATA.peak_factor, low: 1, high: Math.max(10, Math.ceil(DATA.peak_factor * 2)), step: 0.1,
    },
    latencySlider("total", "95% of answers end within"),
    latencySlider("first_token", "95% have a first token within"),
    {
      name: "usd_per_hour", label: "USD an hour of a replica", scale: "log", stated: at, low: at / 8, high: at * 8,
      show: (x) => `$${figures(x, 4)}`, unknown: price === null,
      hint: price === null ? "no price is known" : DATA.price_source,
    },
    {
      name: "spare", label: "Replicas beyond need", scale: "linear", stated: DATA.spare, low: 0,
      high: Math.max(10, DATA.spare * 2), step: 1, whole: true,
    },
  ];
}

function command(values, changed) {
  const words = [
    ...DATA.command, "--calls-per-day", String(values.calls_per_day), "--peak-factor", String(values.peak_factor),
    "--spare", String(values.spare),
  ];
  const { total, first } = targetOf(values);
  if (total !== null) words.push("--p95-ms", String(Number((1000 * total).toPrecision(15))));
  if (first !== null) words.push("--first-token-ms", String(Number((1000 * first).toPrecision(15))));
  if (changed.has("usd_per_hour") || DATA.price_source === "given")
    words.push("--usd-per-hour", String(values.usd_per_hour / DATA.devices));
  return shell(words);
}

/** From the worst to the best case, where there are such. */
function between(all, name, show) {
  const plans = ["low", "high"].filter((end) => end in all).map((end) => all[end]);
  if (plans.length < 2) return "";
  const known = plans
    .filter((plan) => plan !== null)
    .map((plan) => plan[name])
    .sort((a, b) => a - b);
  if (known.length < 2) return `${known.map(show).join("")}${known.length ? " to never" : "never"}`;
  return range(known[0], known.at(-1), show);
}

function rowsOf(values, all) {
  const plan = all.central,
    replica = CENTRAL;
  const rate = (x) => `${general(x, 3)} calls/s`;
  const rows = [
    {
      name: "alone", label: "A call alone", of: replica.alone.total_p50, show: duration,
      range: `p95 ${duration(replica.alone.total_p95)}, first token ${duration(replica.alone.first_token_p50)}`,
    },
    {
      name: "tokens_per_second", label: "When full", of: replica.saturated_tokens_per_second,
      show: (x) => `${grouped(x)} tokens/s`, range: `${rate(replica.saturated_calls_per_second)} of one replica`,
    },
  ];
  if (plan === null) return rows;
  const mean = general(values.calls_per_day / SECONDS_PER_DAY, 4),
    price = `$${figures(values.usd_per_hour, 4)}`;
  const ranged = (name, label, show, live) => ({
    name, label, of: plan[name], show, range: between(all, name, show), live,
  });
  const latency = (name, label, at) => ({
    name, label, of: atRate(replica, "total_p95", at), show: duration,
    range: `p50 ${duration(atRate(replica, "total_p50", at))}, first token p95 ${duration(atRate(replica, "first_token_p95", at))}`,
    live: `at ${rate(at)} of each replica; a step runs ${percent(atRate(replica, "utilisation", at), 0)} of the time`,
  });
  rows.push(
    ranged("capacity", "Capacity of a replica", rate),
    ranged(
      "replicas", "Replicas", grouped,
      `⌈${mean}/s × ${general(values.peak_factor, 4)} / ${general(plan.capacity, 4)}/s⌉ + ${values.spare}`,
    ),
  );
  if (plan.usd_per_day !== null) {
    rows.push(
      ranged(
        "usd_per_call", "US dollars a call", usd,
        `${grouped(plan.replicas)} × ${price} × 24 / ${typed(values.calls_per_day)}`,
      ),
      ranged(
        "usd_per_million_tokens", "A million tokens", usd,
        `${usd(plan.usd_per_call)} / ${general(DATA.traffic.tokens_per_call, 4)} × 10⁶`,
      ),
      ranged("usd_per_day", "US dollars a day", usdOfDay, `${grouped(plan.replicas)} × ${price} × 24`),
      ranged(
        "floor_usd_per_call", "The floor of a call", usd,
        `${price} / 3600 / ${general(replica.saturated_calls_per_second, 4)}`,
      ),
    );
  }
  return [
    ...rows, latency("at_peak", "p95, busiest hour", plan.peak_rate),
    latency("at_mean", "p95, on average", plan.mean_rate),
  ];
}

function headline(all) {
  const plan = all.central;
  const money =
    plan.usd_per_call === null
      ? [["US dollars a call", "no price", "give one"]]
      : [
          ["US dollars a call", usd(plan.usd_per_call), between(all, "usd_per_call", usd)],
          ["A million tokens", usd(plan.usd_per_million_tokens), between(all, "usd_per_million_tokens", usd)],
        ];
  return [
    ...money, ["Replicas", grouped(plan.replicas), between(all, "replicas", grouped)],
    [
      "p95, busiest hour", duration(atRate(CENTRAL, "total_p95", plan.peak_rate)),
      `p50 ${duration(atRate(CENTRAL, "total_p50", plan.peak_rate))}`,
    ],
  ];
}

const usdOfDay = (x) => `$${grouped(x, 2)}`;

function showLatency(plot, values, plan) {
  const replica = CENTRAL,
    full = replica.saturated_calls_per_second,
    { total, first } = targetOf(values);
  const line = (name, figure, colour, dash) => ({ name, colour, dash, at: (rate) => atRate(replica, figure, rate) });
  const points =
    plan === null
      ? []
      : [
          ["peak", plan.peak_rate],
          ["mean", plan.mean_rate],
        ].flatMap(([name, rate], n) => [
          { x: rate, y: atRate(replica, "total_p95", rate), label: name, mark: n ? "square" : "dot", colour: "c1" },
          { x: rate, y: atRate(replica, "total_p50", rate), mark: n ? "square" : "dot", colour: "c0" },
        ]);
  const rules = [];
  if (total !== null) rules.push({ y: total, label: `target ${duration(total)}` });
  if (first !== null) rules.push({ y: first, label: `first token within ${duration(first)}` });
  if (plan !== null) rules.push({ x: plan.capacity, label: "capacity", here: true });
  plot.draw({
    x: {
      scale: "linear", low: 0, high: full, label: "calls a second of one replica", unit: "calls/s",
      show: (x) => general(x, 3),
    },
    y: { scale: "linear", label: "seconds until the answer's end", show: (x) => general(x, 3), low: 0 },
    lines: [
      line("p95", "total_p95", "c1"), line("p50", "total_p50", "c0", "7 3"),
      line("first token p95", "first_token_p95", "c4", "2 3"),
    ].map((each) => ({ ...each, show: duration })),
    points,
    rules,
    start: plan?.peak_rate,
  });
}

function showCost(plot, values, all, paid) {
  plot.element.hidden = paid === null;
  if (paid === null) return;
  const { low, high } = { low: DATA.calls_per_day / 100, high: DATA.calls_per_day * 100 };
  const price = (replica) => (calls) => fleet(replica, values, paid, calls)?.usd_per_call ?? null;
  const plan = all.central;
  const step = plan === null ? 0 : (plan.capacity * SECONDS_PER_DAY) / values.peak_factor;
  const others = ["high", "low"].filter((name) => name in DATA.cases);
  plot.draw({
    x: { scale: "log", low, high, label: "calls a day", unit: "calls a day", show: (x) => count(x) },
    y: { scale: "log", label: "US dollars a call", show: usd },
    lines: [
      { name: NAMES.central, colour: "c0", at: price(CENTRAL) },
      ...others.map((name, n) => ({
        name: NAMES[name], colour: n ? "c5" : "c2", dash: DASHES[n + 1], out: true, at: price(DATA.cases[name]),
      })),
    ],
    points:
      plan === null
        ? []
        : [{ x: values.calls_per_day, y: plan.usd_per_call, label: usd(plan.usd_per_call), colour: "c0" }],
    rules: plan === null ? [] : [{ y: plan.floor_usd_per_call, label: "always full" }],
    jumps: Array.from({ length: 40 }, (_, n) => (n + 1) * step).filter(Boolean),
    start: values.calls_per_day,
  });
}

function begin() {
  const { prompt, output, skin_tokens, skins } = DATA.traffic;
  const skin = skin_tokens ? `, after ${grouped(skin_tokens)} cached ones of the skin` : "";
  byId("about").textContent =
    `Prompts of ${prompt} tokens${skin}, answers of ${output}${skins > 1 ? `, ${skins} skins` : ""}; ${DATA.basis}`;
  const trouble = make("p", { className: "error", role: "alert" });
  trouble.dataset.figure = "trouble";
  const pair = make("div", { className: "pair" });
  section(
    "Latency and cost",
    `One replica was simulated at ${DATA.grid} loads up to the one that saturates it, calls coming at random. Machines that idle are paid for, so a call's price falls in steps.`,
    trouble, pair,
  );
  const plots = {
    latency: new Plot(pair, "Latency against load, one replica"),
    cost: new Plot(pair, "Dollars a call against volume"),
  };
  const list = make("dl", { className: "figures" });
  section(
    "Every figure",
    "With the formula, the same with the numbers of now, and its source; beneath a figure what the worst and the best speeds make of it.",
    list,
  );
  const held = Object.entries(DATA.memory).filter(([, value]) => value);
  if (held.length) {
    const total = held.reduce((sum, [, value]) => sum + value, 0),
      show = (x) => `${general(x / 1e9, 3)} GB`;
    const names = held.map(([name]) => name.replaceAll("_", " "));
    const read = held.map(([, value], n) => `${names[n]} ${show(value)}`).join(", ");
    new Stacks(section("Memory", null), "What a replica holds, by part").draw({
      names,
      rows: [
        {
          name: "one replica", note: show(total), read,
          parts: held.map(([, value], n) => ({ name: names[n], value })),
        },
      ],
      about: read,
    });
  }
  const terminal = make("pre", { tabIndex: 0, "aria-label": "Command" });
  if (DATA.command.length) section("The same in the terminal", null, terminal);
  section(
    "Sources", null,
    make(
      "ul", { className: "lines small" },
      [`speeds: ${DATA.basis}`, `price: ${DATA.price_source}`].map((line) => make("li", {}, line)),
    ),
  );

  const bench = new Workbench((values, changed) => {
    const paid = changed.has("usd_per_hour") ? values.usd_per_hour : DATA.usd_per_hour;
    const all = Object.fromEntries(Object.entries(DATA.cases).map(([name, replica]) => [name, fleet(replica, values, paid)]));
    const plan = all.central;
    trouble.textContent = hopeless(CENTRAL, targetOf(values)) ?? "";
    showHeadline(plan === null ? [["Replicas", "never", ""]] : headline(all));
    showFigures(list, rowsOf(values, all), DATA.formulas);
    showLatency(plots.latency, values, plan);
    showCost(plots.cost, values, all, paid);
    terminal.textContent = command(values, changed);
  });
  bench.add(...sliders());
  bench.start();
}

begin();
