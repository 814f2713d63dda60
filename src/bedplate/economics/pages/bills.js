// What an option costs as a function of the sheet's values: economics/costs/decisions/{calls,work,bill,resolved_option}.py, line for
// line. `v` are the sheet's values; what an option holds are places in it (null: it has no such number).

const DAYS_PER_YEAR = 365,
  DAYS_PER_MONTH = 365 / 12,
  SECONDS_PER_DAY = 86400,
  MILLION = 1e6,
  SLACK = 1e-9;

const valueOr = (v, place, otherwise) => (place === null ? otherwise : v[place]);
const summed = (lines) => lines.reduce((sum, [, amount]) => sum + amount, 0);

// --- volume and machines

/** calls on the first day, growing by `growth` a year; day_count: the days, each with its calls over the first one's. */
function volumeOf(calls, growth, days) {
  const rate = Math.log1p(growth) / DAYS_PER_YEAR;
  const day_count = rate === 0 ? days : Math.expm1(rate * days) / rate;
  return { first: calls, growth, days, rate, day_count, calls: calls * day_count };
}

const machines = (fleet, calls) => Math.ceil(Math.max(fleet.at_least, calls / fleet.calls_per_day) - SLACK);

/** ln Γ for whole numbers: a sum where it is short, else Stirling's series, exact to a part in 10^16 from 16 on. */
function logGamma(n) {
  if (n < 16) {
    let sum = 0;
    for (let k = 2; k < n; k++) sum += Math.log(k);
    return sum;
  }
  const square = n * n;
  return (
    (n - 0.5) * Math.log(n) -
    n +
    0.5 * Math.log(2 * Math.PI) +
    (1 / 12 - (1 / 360 - (1 / 1260 - 1 / 1680 / square) / square) / square) / n
  );
}

/** Of a demand that begins with `calls` and grows as the volume's: it passes j machines at ln(j / first) / rate. */
function machineDays(fleet, volume, calls) {
  let { rate } = volume,
    first = calls;
  const { days } = volume;
  if (rate === 0) return machines(fleet, first) * days;
  if (rate < 0) [first, rate] = [first * Math.exp(rate * days), -rate]; // shrinking is growing, run backwards
  const begin = machines(fleet, first),
    end = machines(fleet, first * Math.exp(rate * days));
  if (begin === end) return begin * days;
  const passed = (logGamma(end) - logGamma(begin) + (end - begin) * Math.log(fleet.calls_per_day / first)) / rate;
  return begin * days + (end - begin) * days - passed;
}

/** First-day calls at which a machine is added on the first or on the last day. */
function fleetSteps(fleet, volume, upTo, most) {
  const found = [],
    begin = machines(fleet, 0);
  for (const grown of new Set([1, Math.exp(volume.rate * volume.days)])) {
    for (let j = begin; j < begin + most; j++) {
      const step = (j * fleet.calls_per_day) / grown;
      if (step <= upTo) found.push(step);
    }
  }
  return found;
}

/** USD by which the machines' cost rises per unit of ln(calls) around there. */
function bend(fleet, volume, calls) {
  if (volume.rate === 0) return 0;
  const [first, last] = [1, Math.exp(volume.rate * volume.days)].map((end) => machines(fleet, calls * end));
  return (fleet.usd_per_day * Math.abs(last - first)) / Math.abs(volume.rate);
}

// --- calls

function tokensOf(one, v) {
  const ratio = valueOr(v, one.ratio, 1);
  return {
    prefix: (v[one.instructions] + v[one.examples]) * ratio,
    fresh: v[one.input] * ratio,
    passages: valueOr(v, one.passages, 0) * ratio,
    output: v[one.output] * ratio,
  };
}

/** USD of one call of a hosted model, by part. */
function hostedLines(one, v, tokens) {
  const scale = valueOr(v, one.multiplier, 1) / MILLION;
  const price = v[one.input] * scale,
    out = v[one.output] * scale;
  const plain = [tokens.prefix * price, tokens.fresh * price, tokens.passages * price, tokens.output * out];
  let live = [prefixUsd(one, v, tokens.prefix, price, scale), ...plain.slice(1)];
  const waiting = v[one.waiting_share];
  if (waiting) {
    const batch = plain.map((amount) => amount * (1 - v[one.batch_discount]));
    const sum = (parts) => parts.reduce((a, b) => a + b, 0);
    if (sum(batch) < sum(live)) live = live.map((amount, n) => (1 - waiting) * amount + waiting * batch[n]);
  }
  return ["repeated prompt", "input", "passages", "output"].map((name, n) => [name, live[n]]);
}

function prefixUsd(one, v, tokens, price, scale) {
  if (one.cached === null || !tokens) return tokens * price;
  const hits = v[one.cached_share];
  const missed = one.write === null ? price : v[one.write] * scale;
  const padded = Math.max(tokens, v[one.smallest_prefix]);
  return Math.min(tokens * price, padded * (hits * v[one.cached] * scale + (1 - hits) * missed));
}

/** Seconds of the whole machine that one call takes. */
function busySeconds(one, v, tokens) {
  let busy;
  if (one.seconds !== null) busy = v[one.seconds];
  else
    busy =
      ((1 - v[one.cached_share]) * tokens.prefix + tokens.fresh + tokens.passages) / v[one.prefill] +
      tokens.output / v[one.decode];
  return one.embed === null ? busy : busy + tokens.fresh / v[one.embed];
}

function callLines(one, v, tokens) {
  if (one.kind === "hosted") return hostedLines(one, v, tokens);
  return one.reserved
    ? []
    : [["machine", (busySeconds(one, v, tokens) * (v[one.usd_per_hour] / 3600)) / v[one.utilisation]]];
}

function fleetOf(one, v, tokens) {
  if (one.kind === "hosted" || !one.reserved) return null;
  const busy = busySeconds(one, v, tokens) * v[one.peak];
  return {
    usd_per_day: v[one.usd_per_hour] * 24,
    calls_per_day: (SECONDS_PER_DAY * v[one.utilisation]) / busy,
    at_least: v[one.at_least],
  };
}

// --- work

function setupLines(one, v, days) {
  const months = days / DAYS_PER_MONTH;
  return {
    fixed: [
      ["engineering", v[one.hours] * v[one.hour]],
      ["evaluation labels", v[one.evaluation_labels] * v[one.label]],
      ["other", v[one.usd]],
    ],
    recurring: [
      ["upkeep", v[one.hours_per_month] * v[one.hour] * months],
      ["other, monthly", v[one.usd_per_month] * months],
    ],
  };
}

function tuningRun(one, v, tokens) {
  const seen = v[one.labels] * v[one.epochs] * (tokens.prefix + tokens.fresh + tokens.passages + tokens.output);
  if (one.usd_per_million !== null) return (seen * v[one.usd_per_million]) / MILLION;
  if (one.hours !== null) return v[one.hours] * v[one.usd_per_hour];
  return (seen / v[one.tokens_per_second] / 3600) * v[one.usd_per_hour];
}

/** How often something done on day 0 is done again before the horizon ends. */
const repetitions = (days, every) => Math.max(0, Math.ceil(days / every - 1e-9) - 1);

function tuningLines(one, v, tokens, days) {
  const run = tuningRun(one.compute, v, tokens);
  const recurring = [];
  if (one.hosting !== null) recurring.push(["tuned model's hosting", v[one.hosting] * 24 * days]);
  if (one.every_days !== null) {
    const once =
      (v[one.refresh_labels] + v[one.refresh_evaluation]) * v[one.label] + v[one.refresh_hours] * v[one.hour] + run;
    recurring.push(["tuning again", once * repetitions(days, v[one.every_days])]);
  }
  return {
    fixed: [
      ["training labels", v[one.compute.labels] * v[one.label]],
      ["tuning work", v[one.hours] * v[one.hour]],
      ["tuning compute", run],
    ],
    recurring,
  };
}

function retrievalLines(one, v, tokens, days) {
  const usdOf = (count) => {
    if (one.price !== null) return (count * v[one.price]) / MILLION;
    return one.embed === null || one.usd_per_hour === null ? 0 : (count / v[one.embed] / 3600) * v[one.usd_per_hour];
  };
  const months = days / DAYS_PER_MONTH,
    corpus = usdOf(v[one.corpus] * valueOr(v, one.ratio, 1));
  return {
    fixed: [["embedding the corpus", corpus]],
    recurring: [
      ["embedding what changes", corpus * v[one.changed_per_month] * months],
      ["index", v[one.usd_per_month] * months],
    ],
    per_call: [["query embedding", one.price === null ? 0 : usdOf(tokens.fresh)]], // a machine's own embedder costs its seconds
  };
}

function pretrainingLines(one, v) {
  const part = 1 / v[one.features],
    run = one.run;
  const usdOfRun =
    typeof run === "number"
      ? v[run]
      : (v[run.tokens] * v[run.hours_per_token] * v[run.usd_per_machine_hour]) / run.devices_per_machine;
  return [
    ["pretraining compute", usdOfRun * v[one.runs] * part],
    ["pretraining data", v[one.data_usd] * part],
    ["pretraining work", v[one.hours] * v[one.hour] * part],
  ];
}

// --- the bill

function billOf(option, v) {
  const tokens = tokensOf(option.tokens, v),
    days = v[DATA.shared.days];
  const { fixed, recurring } = setupLines(option.setup, v, days);
  const per_call = callLines(option.calls, v, tokens);
  if (option.tuning) {
    const more = tuningLines(option.tuning, v, tokens, days);
    fixed.push(...more.fixed);
    recurring.push(...more.recurring);
  }
  if (option.retrieval) {
    const more = retrievalLines(option.retrieval, v, tokens, days);
    fixed.push(...more.fixed);
    recurring.push(...more.recurring);
    per_call.push(...more.per_call);
  }
  if (option.pretraining) fixed.push(...pretrainingLines(option.pretraining, v));
  const quality = option.quality === null ? null : v[option.quality.place];
  const bill = {
    fixed,
    recurring,
    per_call,
    fleet: fleetOf(option.calls, v, tokens),
    quality,
    wrong_usd: wrongUsd(v, quality),
    earned_usd: earned(v, quality),
  };
  for (const name of ["fixed", "recurring", "per_call"]) bill[name] = bill[name].filter(([, amount]) => amount);
  bill.standing_usd = summed(bill.fixed) + summed(bill.recurring);
  bill.call_usd = summed(bill.per_call);
  bill.net_call_usd = bill.call_usd + bill.wrong_usd - bill.earned_usd;
  return bill;
}

/** USD that one call's wrong answers cost, on average; and what one call brings in after its margin. */
function wrongUsd(v, quality) {
  return DATA.shared.wrong === null || quality === null ? 0 : v[DATA.shared.wrong] * (1 - quality);
}

function earned(v, quality) {
  const { revenue, margin, by_right_answer } = DATA.shared;
  if (revenue === null || margin === null) return 0;
  return v[revenue] * v[margin] * (!by_right_answer || quality === null ? 1 : quality);
}

const volumeAt = (v) => volumeOf(v[DATA.shared.calls], v[DATA.shared.growth], v[DATA.shared.days]);
const machinesUsd = (bill, volume, calls = volume.first) =>
  bill.fleet === null ? 0 : bill.fleet.usd_per_day * machineDays(bill.fleet, volume, calls);

/** All that is spent over the horizon; and what options are ranked by: with what wrong answers cost, less what comes in. */
const totalUsd = (bill, volume, calls = volume.first) =>
  bill.standing_usd + bill.call_usd * (calls * volume.day_count) + machinesUsd(bill, volume, calls);
const netUsd = (bill, volume, calls = volume.first) =>
  bill.standing_usd + bill.net_call_usd * calls * volume.day_count + machinesUsd(bill, volume, calls);

const idleUsd = (bill, volume) =>
  bill.standing_usd + (bill.fleet === null ? 0 : bill.fleet.usd_per_day * machines(bill.fleet, 0) * volume.days);
const marginalUsd = (bill) =>
  bill.net_call_usd + (bill.fleet === null ? 0 : bill.fleet.usd_per_day / bill.fleet.calls_per_day);

/** [when, what, USD]: they add up to the total. */
function billLines(bill, volume) {
  const found = [
    ...bill.fixed.map(([what, amount]) => ["once", what, amount]),
    ...bill.recurring.map(([what, amount]) => ["over time", what, amount]),
    ...bill.per_call.map(([what, amount]) => ["calls", what, amount * volume.calls]),
  ];
  if (bill.fleet !== null) found.push(["machines", "reserved machines", machinesUsd(bill, volume)]);
  return found.filter(([, , amount]) => amount);
}
