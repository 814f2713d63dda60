// The page of a training plan: what is moved, and what is shown of it. MODEL has what it computes with.

const PRICE = DATA.price ?? { low: 0, central: 0, high: 0 };
const exactly = (value) => ({ low: value, central: value, high: value });

/** The share of the peak that so many devices reach with the layout of so many tokens, at the middle of its range. */
function curve({ tokens, devices }) {
  const layout = layoutOf(tokens * DATA.flops_per_token, nearest(DATA.devices.counts, devices));
  return DATA.mfu.given ?? MODEL.curve.at(devices) * DATA.mfu_factor * (layout?.mfu_factor ?? 1);
}
const lowest = (values) => curve(values) * DATA.mfu.low;
const highest = (values) => Math.min(1, curve(values) * DATA.mfu.high);

/** A run's figures. changed: names of what was moved, which is taken as exact; what was not has its own range. */
function training(values, changed) {
  const exact = DATA.mfu.given !== null || changed.has("mfu");
  const mfu = exact
    ? exactly(values.mfu)
    : { low: DATA.mfu.low * values.mfu, central: values.mfu, high: DATA.mfu.high * values.mfu };
  const price = changed.has("usd_per_hour") ? exactly(values.usd_per_hour) : PRICE;
  const flops = values.tokens * DATA.flops_per_token;
  const run = Object.fromEntries(
    MODEL.run_figures(
      flops, DATA.peak_flops_per_second, DATA.watts, values.devices, mfu, values.overhead, price, values.usd_per_kwh,
    ),
  );
  return {
    ...run, flops, exact, mfu, usd: DATA.price === null && !changed.has("usd_per_hour") ? null : run.usd,
    tokens_per_second: MODEL.tokens_per_second(DATA.peak_flops_per_second, mfu.central, DATA.flops_per_token),
    layout: layoutOf(flops, values.devices),
  };
}

/** From the table of layouts that were searched: by devices, and by the doublings of a step's sequences. */
function layoutOf(flops, devices) {
  const row = DATA.layout_of[devices];
  return DATA.layouts[row.given ?? row[MODEL.batch_doublings(flops, DATA.sequence_tokens)]];
}

/** The size of least loss for so many operations. */
function optimum(flops) {
  const parameters = MODEL.fit.best_parameters(flops);
  const tokens = flops / (6 * parameters);
  return { parameters, tokens, loss: MODEL.fit.loss(parameters, tokens) };
}

const days = (x) => (x < 1 ? `${general(24 * x, 3)} hours` : `${count(x)} days`);
const gigabytes = (x) => `${grouped(x / 1e9, 1)} GB`;
const rangeOf = (one, show) => range(one.low, one.high, show);

function sliders() {
  const { tokens, devices, price, mfu } = DATA;
  const at = price?.central ?? 1;
  const wide = (values) =>
    `${percent(lowest(values))} to ${percent(highest(values))} ${mfu.given === null ? "are reached on so many" : "around what was given"}`;
  return [
    {
      name: "tokens", label: "Tokens", scale: "log", ...tokens,
      hint: (values) => `${figures(values.tokens / DATA.parameters, 3)} for each parameter`,
    },
    {
      name: "devices", label: `Devices: ${DATA.device.title}`, scale: "list", list: devices.counts,
      stated: devices.stated,
      hint: `one of ${devices.counts.length} numbers whose layouts were searched; what is typed goes to the nearest`,
    },
    {
      name: "mfu", label: "MFU, share of the peak", scale: "linear", stated: curve, low: lowest, high: highest,
      hint: wide, show: percent,
      read: (text) => (text.includes("%") ? parsed(text) : parsed(text) > 1 ? parsed(text) / 100 : parsed(text)),
    },
    {
      name: "overhead", label: "Overhead: all of a run over its clean steps", scale: "linear",
      stated: DATA.overhead, low: 1, high: Math.max(2, Math.ceil(DATA.overhead + 0.5)), step: 0.01,
    },
    {
      name: "usd_per_hour", label: "USD an hour of one device", scale: "log", stated: at, low: at / 8, high: at * 8,
      show: (x) => `$${figures(x, 4)}`, unknown: price === null,
      hint: price?.source ?? "no price of this device is known",
    },
    {
      name: "usd_per_kwh", label: "USD a kilowatt-hour", scale: "linear", stated: DATA.usd_per_kwh, low: 0,
      high: Math.max(0.5, 2 * DATA.usd_per_kwh), step: 0.005, show: (x) => `$${figures(x, 4)}`,
      hint: "rent includes energy; it is no part of the dollars",
    },
  ];
}

function command(values, changed) {
  const words = [
    ...DATA.command, "--tokens", String(values.tokens), "--devices", String(values.devices), "--overhead",
    String(values.overhead),
  ];
  if (DATA.mfu.given !== null || changed.has("mfu")) words.push("--mfu", String(values.mfu));
  if (changed.has("usd_per_hour") || DATA.price?.source === "given")
    words.push("--usd-per-hour", String(values.usd_per_hour));
  return shell([...words, "--usd-per-kwh", String(values.usd_per_kwh)]);
}

function rowsOf(values, run) {
  const { gpu_hours, layout } = run;
  const hours = `${count(gpu_hours.central)} h`;
  const peak = `${general(DATA.peak_flops_per_second / 1e12, 4)}e12`;
  const rows = [
    {
      name: "parameters", label: "Parameters", of: DATA.parameters, show: count,
      range: DATA.active_parameters === DATA.parameters ? "" : `${count(DATA.active_parameters)} active`,
    },
    {
      name: "flops", label: "Operations", of: run.flops, show: operations,
      live: `${count(values.tokens)} tokens × ${operations(DATA.flops_per_token)} a token`,
    },
    { name: "mfu", label: "MFU", of: run.mfu, show: percent },
    {
      name: "gpu_hours", label: "Device-hours", of: gpu_hours, show: count,
      live: `${operations(run.flops)} × ${general(values.overhead, 4)} / (${peak} × ${general(values.mfu, 4)}) / 3600`,
    },
    { name: "days", label: "Days", of: run.days, show: count, live: `${hours} / ${grouped(values.devices)} / 24` },
    {
      name: "kwh", label: "Kilowatt-hours", of: run.kwh, show: count,
      live: `${hours} × ${general(DATA.device.watts, 4)} W / 1000 × ${general(DATA.pue, 4)}`,
    },
    {
      name: "energy_usd", label: "Energy, if paid apart", of: run.energy_usd, show: usd,
      live: `${count(run.kwh.central)} kWh × $${figures(values.usd_per_kwh, 4)}`,
    },
    {
      name: "tokens_per_second_per_device", label: "Tokens a second", of: run.tokens_per_second,
      show: (x) => `${count(x)} a device`,
      live: `${peak} × ${general(values.mfu, 4)} / ${operations(DATA.flops_per_token)}`,
    },
  ];
  if (run.usd !== null)
    rows.splice(5, 0, {
      name: "usd", label: "US dollars", of: run.usd, show: usd,
      live: `${hours} × $${figures(values.usd_per_hour, 4)}`,
    });
  if (layout.error) return rows;
  return [
    ...rows,
    { name: "global_batch_tokens", label: "Tokens of a step", of: layout.global_batch_tokens, show: count },
    {
      name: "bytes_per_device", label: "Bytes on a device", of: totalBytes(layout), show: gigabytes,
      range: `of ${gigabytes(DATA.device.memory_bytes)}`,
    },
  ];
}

const totalBytes = (layout) => Object.values(layout.bytes).reduce((sum, one) => sum + one, 0);

function showLayout(parts, layout) {
  parts.text.textContent = layout.error ?? layout.text;
  parts.text.classList.toggle("error", Boolean(layout.error));
  parts.waits.textContent = layout.error
    ? ""
    : `Of an estimated step, idle stages take ${percent(layout.bubble_share, 0)}, and communication that is waited for ${percent(layout.communication_share, 0)}.`;
  parts.memory.element.hidden = Boolean(layout.error);
  if (layout.error) return;
  const names = Object.keys(layout.bytes);
  const inside = names.map((name) => ({ name, value: layout.bytes[name] }));
  const total = totalBytes(layout);
  const read = `${gigabytes(total)}: ${inside
    .filter((one) => one.value)
    .map((one) => `${one.name} ${gigabytes(one.value)}`)
    .join(", ")}`;
  const size = DATA.device.memory_bytes;
  const limits = [
    { at: size, label: `memory, ${gigabytes(size)}` },
    { at: size * (1 - DATA.margin), label: `${percent(1 - DATA.margin, 0)} of it, which layouts may take` },
  ];
  parts.memory.draw({
    names, rows: [{ name: "the fullest device", note: gigabytes(total), parts: inside, read }], limits, about: read,
  });
}

/** usd and days over the devices, with the MFU's range as a band. */
function showDevices(plots, values, run) {
  const counts = DATA.devices.counts;
  const x = {
    scale: "log", low: counts[0], high: counts.at(-1), whole: true, label: "devices", unit: "devices",
    show: (n) => (n >= 1e6 ? count(n) : grouped(n)),
  };
  const on = (n) => ({ tokens: values.tokens, devices: n });
  const place = values.mfu / curve(values); // within the range: kept on other numbers of devices
  const hours = (n, share) => (run.gpu_hours.central * values.mfu) / Math.min(1, share);
  const draw = (plot, of, y, colour) =>
    plot.draw({
      x, y: { scale: "log", loose: true, ...y }, height: 280, start: values.devices,
      lines: [{ name: y.label, colour, at: (n) => of(hours(n, curve(on(n)) * place), n) }],
      bands: run.exact
        ? []
        : [{ colour, low: (n) => of(hours(n, highest(on(n))), n), high: (n) => of(hours(n, lowest(on(n))), n) }],
      points: [
        {
          x: values.devices, y: of(run.gpu_hours.central, values.devices),
          label: y.show(of(run.gpu_hours.central, values.devices)), colour,
        },
      ],
    });
  plots.usd.element.hidden = run.usd === null;
  draw(plots.usd, (h) => h * values.usd_per_hour, { label: "US dollars", show: shortUsd }, "c0");
  draw(plots.days, (h, n) => h / n / 24, { label: "days", show: days }, "c1");
}

/** Loss over the size at the compute of now, the chosen point and the best one. */
function showLoss(plot, note, values, run) {
  const best = optimum(run.flops);
  const chosen = { parameters: DATA.parameters, tokens: values.tokens, loss: MODEL.fit.loss(DATA.parameters, values.tokens) };
  const wide =
    30 * Math.max(1, Math.max(best.parameters, chosen.parameters) / Math.min(best.parameters, chosen.parameters) / 10);
  const middle = Math.sqrt(best.parameters * chosen.parameters);
  plot.draw({
    x: {
      scale: "log", low: middle / wide, high: middle * wide, label: "parameters", unit: "parameters",
      show: (n) => count(n),
    },
    y: {
      scale: "linear", loose: true, label: "loss, nats a token", show: (x) => fixed(x, 2),
      high: Math.max(best.loss, chosen.loss) * 1.18, low: best.loss * 0.985,
    },
    start: chosen.parameters,
    lines: [
      {
        name: `loss at ${operations(run.flops)} operations`, colour: "c0",
        at: (n) => MODEL.fit.loss(n, run.flops / (6 * n)), show: (x) => fixed(x, 3),
      },
    ],
    points: [
      {
        x: best.parameters, y: best.loss, mark: "hollow", name: "least loss",
        label: `least: ${count(best.parameters)}`,
      },
      {
        x: chosen.parameters, y: chosen.loss, mark: "dot", colour: "c1", name: "this model",
        label: `this: ${count(chosen.parameters)}`,
      },
    ],
  });
  const ratio = (one) => figures(one.tokens / one.parameters, 3);
  note.replaceChildren(
    make(
      "li", {},
      `This model, ${count(chosen.parameters)} parameters on ${count(chosen.tokens)} tokens (${ratio(chosen)} a parameter): loss ${fixed(chosen.loss, 3)}.`,
    ),
    make(
      "li", {},
      `Least loss for the same operations: ${count(best.parameters)} parameters on ${count(best.tokens)} tokens (${ratio(best)} a parameter): loss ${fixed(best.loss, 3)}.`,
    ),
  );
  for (const [item, name] of [[note.children[0], "chosen"], [note.children[1], "optimum"]])
    item.dataset.figure = name;
  const outside = [
    ["parameters", chosen.parameters], ["tokens", chosen.tokens],
  ].filter(([name, x]) => x < MODEL.fit[name][0] || x > MODEL.fit[name][1]);
  if (outside.length)
    note.append(
      make(
        "li", {},
        `Extrapolated: the fitted runs had ${count(MODEL.fit.parameters[0])} to ${count(MODEL.fit.parameters[1])} parameters and ${count(MODEL.fit.tokens[0])} to ${count(MODEL.fit.tokens[1])} tokens.`,
      ),
    );
}

function begin() {
  byId("about").textContent =
    `${count(DATA.parameters)} parameters on ${DATA.device.title}, ${DATA.precision}, ${DATA.execution} code, ${DATA.optimizer}, sequences of ${grouped(DATA.sequence_tokens)} tokens`;
  const figures_ = make("dl", { className: "figures" });
  const pair = make("div", { className: "pair" });
  section(
    "Dollars and days over the devices",
    "The bands are the range of MFU that published runs lie in; more devices reach a smaller share of their peak.",
    pair,
  );
  const plots = { usd: new Plot(pair, "US dollars over devices"), days: new Plot(pair, "Days over devices") };
  const parts = { text: make("p", { className: "layout" }), waits: make("p", { className: "muted small" }) };
  parts.text.dataset.figure = "layout";
  const holder = section(
    "Layout and memory", DATA.formulas.layout && `${DATA.formulas.layout.formula} (${DATA.formulas.layout.source})`,
    parts.text, parts.waits,
  );
  parts.memory = new Stacks(holder, "What a device holds, by part");
  section(
    "Every figure",
    "Central figures, the range beneath; with each the formula, the same with the numbers of now, and its source.",
    figures_,
  );
  const note = make("ul", { className: "lines" });
  let plot = null;
  if (MODEL.fit) {
    const law = section(
      "How large a model",
      `loss = E + A / N^α + B / D^β under 6·N·D operations (${MODEL.fit.source}), with the constants of the data that were fitted.`,
    );
    plot = new Plot(law, "Loss over model size at this compute");
    law.append(note);
  }
  const terminal = make("pre", { tabIndex: 0, "aria-label": "Command" });
  if (DATA.command.length) section("The same in the terminal", null, terminal);
  const lines = [`device: ${DATA.device.source}, ${DATA.device.as_of}`, `MFU: ${DATA.mfu.source}`];
  section("Sources", null, make("ul", { className: "lines small" }, lines.map((line) => make("li", {}, line))));

  const bench = new Workbench((values, changed) => {
    const run = training(values, changed);
    showHeadline([
      run.usd === null
        ? ["US dollars", "no price", "give one"]
        : ["US dollars", usd(run.usd.central), rangeOf(run.usd, shortUsd)],
      ["Time", days(run.days.central), rangeOf(run.days, days)],
      ["Device-hours", count(run.gpu_hours.central), rangeOf(run.gpu_hours, count)],
      ["Energy", `${count(run.kwh.central)} kWh`, rangeOf(run.kwh, count)],
      [
        "On a device", run.layout.error ? "does not fit" : gigabytes(totalBytes(run.layout)),
        `of ${gigabytes(DATA.device.memory_bytes)}`,
      ],
    ]);
    showFigures(figures_, rowsOf(values, run), DATA.formulas);
    showDevices(plots, values, run);
    showLayout(parts, run.layout);
    if (plot) showLoss(plot, note, values, run);
    terminal.textContent = command(values, changed);
  });
  bench.add(...sliders());
  bench.start();
}

begin();
