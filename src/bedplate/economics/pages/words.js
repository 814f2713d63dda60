// The answer in sentences: economics/costs/decisions/words.py, exclusions.py and breakeven.py, word for word.

/** Which bars are not reached, and by how much. */
function shortfalls(option, state) {
  const { v } = state,
    { bar_quality, bar_p95_ms } = DATA.shared,
    found = [];
  if (bar_quality !== null && option.quality !== null && state.low(option.quality) < v[bar_quality]) {
    const [low, high, bar] = [state.low(option.quality), state.high(option.quality), v[bar_quality]];
    found.push(
      `its quality ${high < bar ? `is at most ${general(high, 3)}` : `is only shown to be at least ${general(low, 3)}`}; ${general(bar, 3)} is wanted`,
    );
  }
  if (bar_p95_ms !== null) {
    const bar = general(v[bar_p95_ms], 6);
    if (option.p95_ms === null) found.push(`its p95_ms is not known; at most ${bar} is wanted`);
    else if (state.high(option.p95_ms) > v[bar_p95_ms])
      found.push(`its p95 latency is up to ${general(state.high(option.p95_ms), 4)} ms; at most ${bar} is wanted`);
  }
  return found;
}

/** One sentence. */
function answerText(decision) {
  const { answer, outcomes, ranking, volume } = decision,
    days = `over ${number(volume.days)} days`;
  const chosen = outcomes.find((one) => one.name === answer);
  if (answer === DATA.nothing.feasible) {
    const why = outcomes.map((one) => `${one.name} (${[...one.option.broken, ...one.short].join("; ")})`).join(", ");
    return `None of the ${outcomes.length} options will do: ${why}.`;
  }
  if (!chosen) return `None of them pays: the best, ${ranking[0].name}, would lose ${usd(ranking[0].net)} ${days}.`;
  const [low, high] = chosen.interval;
  const span = high - low <= 1e-9 * high ? "" : ` (${percent(DATA.draws.interval, 0)}: ${usd(low)} to ${usd(high)})`;
  const { method } = chosen.option;
  let said = `${method[0].toUpperCase()}${method.slice(1).toLowerCase()}: ${chosen.name} costs ${usd(chosen.total)} ${days}${span}, ${usd(chosen.per_call)} a call`;
  if (chosen.option.doubted) said += ", on a report without a PASS that holds";
  if (DATA.must_pay) said += `, and brings in ${usd(-chosen.net)} more than it costs`;
  if (ranking.length > 1) said += `; next is ${ranking[1].name}, which costs ${usd(ranking[1].net - chosen.net)} more`;
  else if (outcomes.length > 1) said += "; no other option is feasible";
  return `${said}.`;
}

/** Why: constraints and what they cost, who misses a bar, where the others' money goes. */
function reasonTexts(decision) {
  const { outcomes, ranking, answer } = decision,
    lines = [];
  for (const { name, because, says } of DATA.constraints) {
    const out = outcomes.filter((one) => one.option.broken.includes(name)).map((one) => one.name);
    lines.push(`${name} (${because}): ${says}. Ruled out: ${out.join(", ") || "none"}.`);
  }
  if (DATA.constraints.length && decision.unconstrained !== answer) lines.push(priceOfConstraints(decision));
  for (const one of outcomes)
    if (one.short.length && !one.option.broken.length) lines.push(`${one.name} is out: ${one.short.join("; ")}.`);
  const chosen = outcomes.find((one) => one.name === answer);
  if (chosen) for (const one of ranking) if (one !== chosen) lines.push(compared(one, chosen));
  for (const one of outcomes) {
    if (one.machines === null || one.option.broken.length) continue;
    lines.push(
      `${one.name}: ${one.machines} reserved ${one.machines === 1 ? "machine is" : "machines are"} paid day and night and busy ${figures(100 * one.busy, 2)}% of the time.`,
    );
  }
  if (chosen && ranking.length > 1 && decision.flips.some(({ place }) => !decision.state.exact(place))) {
    lines.push(`${chosen.name} is the answer in ${percent(chosen.best_in, 0)} of the draws from the stated ranges.`);
  }
  return lines;
}

function priceOfConstraints({ outcomes, answer, unconstrained }) {
  const names = DATA.constraints.map((one) => one.name).join(" and ");
  const free = outcomes.find((one) => one.name === unconstrained),
    chosen = outcomes.find((one) => one.name === answer);
  if (!free) return `Without ${names} it would be ${unconstrained}.`;
  return `Without ${names} it would be ${free.name} at ${usd(free.total)}${chosen ? `: ${names} costs ${usd(chosen.net - free.net)}` : ""}.`;
}

/** Where the difference lies: the lines that are more than a twentieth of the sum of all differences, then the rest. */
function compared(one, chosen) {
  const ours = byName(chosen),
    theirs = byName(one);
  const differences = [...new Set([...theirs.keys(), ...ours.keys()])].map((what) => [
    what,
    (theirs.get(what) ?? 0) - (ours.get(what) ?? 0),
  ]);
  const whole = differences.reduce((sum, [, amount]) => sum + Math.abs(amount), 0);
  const told = differences.filter(([, amount]) => Math.abs(amount) > 0.05 * whole).sort((a, b) => b[1] - a[1]);
  const rest = differences.reduce((sum, [, amount]) => sum + amount, 0) - told.reduce((sum, [, amount]) => sum + amount, 0);
  if (Math.abs(rest) > 0.0005 * whole) told.push(["all else", rest]);
  return `${one.name} costs ${usd(one.net - chosen.net)} more: ${told.map(([what, amount]) => `${amount > 0 ? "+" : "-"}${usd(Math.abs(amount))} ${what}`).join(", ")}.`;
}

function byName(one) {
  const found = new Map();
  for (const [when, what, amount] of one.lines) {
    const name = when === "calls" ? `${what} (calls)` : what;
    found.set(name, (found.get(name) ?? 0) + amount);
  }
  return found.set("wrong answers less revenue", one.net - one.total);
}

function breakEvenText({ option, against, calls, interval, windows, days, reason }) {
  let said;
  if (calls === null) said = `${option.name} against ${against.name}: never; ${reason}`;
  else if (calls === 0) said = `${option.name} against ${against.name}: at any volume`;
  else {
    said = `${option.name} against ${against.name}: from ${number(calls)} calls a day`;
    const [low, high] = (interval ?? [0, 0]).map((end) => (end === null ? "never" : number(end)));
    if (low !== high) said += ` (${low} to ${high})`;
  }
  if (windows.length)
    said += `; not for good already at some volumes from ${number(Math.min(...windows.map(([low]) => low)))} to ${number(Math.max(...windows.map(([, high]) => high)))}`;
  if (calls)
    said += `; at this volume ${days === null ? "not within ten years" : days ? `after ${number(days)} days` : "at once"}`;
  return `${said}.`;
}

/** Why the dearer one never pays back: what a call saves does not cover what it adds. */
function whyNever(option, against, dear, cheap, savedTokens) {
  const [ours, theirs] = [dear, cheap].map((bill) => {
    const lines = new Map(bill.per_call);
    if (bill.fleet !== null) lines.set("machines at their fullest", bill.fleet.usd_per_day / bill.fleet.calls_per_day);
    if (bill.wrong_usd) lines.set("wrong answers", bill.wrong_usd);
    if (bill.earned_usd) lines.set("revenue", -bill.earned_usd);
    return lines;
  });
  const saves = [],
    adds = [];
  let total = 0;
  for (const what of new Set([...theirs.keys(), ...ours.keys()])) {
    const difference = (ours.get(what) ?? 0) - (theirs.get(what) ?? 0);
    total += difference;
    if (difference) (difference > 0 ? adds : saves).push(`$${general(Math.abs(difference), 3)} on ${what}`);
  }
  if (!saves.length)
    return `${option} costs more to start than ${against}, and ${total ? "no less" : "the same"} per call`;
  const tokens = savedTokens > 0 ? ` (the ${grouped(savedTokens)} prompt tokens it spares, at their price)` : "";
  return `a call of ${option} saves ${saves.join(" and ")}${tokens}, which does not cover the ${adds.join(" and ")} that it adds`;
}

/** Where the answer changes, or that it does not. */
function flipText({ row, value, below, above }) {
  const one = (side, flip) =>
    flip === null ? null : `${side} ${number(flip.at)} ${flip.to}${flip.within ? " (within its stated range)" : ""}`;
  const found = [one("below", below), one("above", above)].filter(Boolean);
  const now = `${row.name} (now ${number(value)}): `;
  return (
    now + (found.length ? found.join("; ") : `does not flip in [${number(row.search[0])}, ${number(row.search[1])}]`)
  );
}
