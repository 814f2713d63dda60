// The decision in sentences, as the terminal says it (economics/costs/decisions/explanation.py).

const named = (decision, name) => decision.outcomes.find((outcome) => outcome.name === name);

/** Which bars are not reached, and by how much. */
function shortfalls({ option }, { state }) {
  const { quality, p95_ms: latency } = DATA.bars,
    short = [];
  if (quality !== null && option.quality !== null && state.low(option.quality) < state.v[quality]) {
    const [low, high, bar] = [state.low(option.quality), state.high(option.quality), state.v[quality]];
    const size = high < bar ? `is at most ${general(high, 3)}` : `may be as low as ${general(low, 3)}`;
    short.push(`its quality ${size}, and the bar is ${general(bar, 3)}`);
  }
  if (latency !== null) {
    const bar = `and the bar is ${general(state.v[latency], 6)}`;
    if (option.p95_ms === null) short.push(`its p95_ms is not known, ${bar}`);
    else if (state.high(option.p95_ms) > state.v[latency])
      short.push(`its p95 latency is up to ${general(state.high(option.p95_ms), 4)} ms, ${bar}`);
  }
  return short;
}

/** One sentence. */
function answerText(decision) {
  const { answer, outcomes, ranking, state } = decision,
    days = `over ${number(state.v[DAYS])} days`;
  const chosen = named(decision, answer);
  if (answer === DATA.nothing.feasible) {
    const why = outcomes.map((outcome) => `${outcome.name} (${[...outcome.option.broken, ...shortfalls(outcome, decision)].join("; ")})`);
    return `None of the ${outcomes.length} options will do: ${why.join(", ")}.`;
  }
  if (!chosen) return `None of them pays: the best, ${ranking[0].name}, would lose ${usd(ranking[0].net)} ${days}.`;
  const [low, high] = chosen.interval;
  const span = high - low <= 1e-9 * high ? "" : ` (${percent(DATA.draws.interval, 0)}: ${usd(low)} to ${usd(high)})`;
  const method = chosen.option.method[0].toUpperCase() + chosen.option.method.slice(1).toLowerCase();
  let sentence = `${method}: ${chosen.name} costs ${usd(chosen.total)} ${days}${span}, ${usd(chosen.per_call)} a call`;
  if (chosen.option.doubted) sentence += ", on a report without a valid PASS";
  if (DATA.must_pay) sentence += `, and brings in ${usd(-chosen.net)} more than it costs`;
  if (ranking.length > 1) sentence += `; next is ${ranking[1].name}, which costs ${more(ranking[1].net - chosen.net)}`;
  else if (outcomes.length > 1) sentence += "; no other option is feasible";
  return `${sentence}.`;
}

const more = (dollars) => (dollars ? `${usd(dollars)} more` : "as much");

/** Why: constraints and what they cost, who misses a bar, where the others' money goes, how busy machines are. */
function reasonTexts(decision) {
  const { outcomes, ranking, answer, unconstrained } = decision,
    chosen = named(decision, answer);
  const lines = DATA.constraints.map(({ name, because, says }) => {
    const out = outcomes.filter((outcome) => outcome.option.broken.includes(name)).map((outcome) => outcome.name);
    return `${name} (${because}): ${says}. Ruled out: ${out.join(", ") || "none"}.`;
  });
  if (DATA.constraints.length && unconstrained !== answer) {
    const names = DATA.constraints.map((outcome) => outcome.name).join(" and "),
      free = named(decision, unconstrained);
    const price = chosen && free ? `: ${names} costs ${usd(chosen.net - free.net)}` : "";
    lines.push(`Without ${names} it would be ${free ? `${free.name} at ${usd(free.total)}${price}` : unconstrained}.`);
  }
  for (const outcome of outcomes) {
    const short = shortfalls(outcome, decision);
    if (short.length && !outcome.option.broken.length) lines.push(`${outcome.name} is out: ${short.join("; ")}.`);
  }
  if (chosen) lines.push(...ranking.filter((outcome) => outcome !== chosen).map((outcome) => compared(outcome, chosen)));
  for (const { name, machines, busy, option } of outcomes) {
    if (machines === null || option.broken.length) continue;
    const are = machines === 1 ? "machine is" : "machines are";
    lines.push(`${name}: ${machines} reserved ${are} paid day and night and busy ${figures(100 * busy, 2)}% of the time.`);
  }
  if (chosen && ranking.length > 1 && decision.flips.some(({ place }) => !decision.state.exact(place)))
    lines.push(`${chosen.name} is the answer in ${percent(chosen.best_in, 0)} of the draws from the stated ranges.`);
  return lines;
}

/** Where the difference lies: the lines that are more than a twentieth of all differences, then the rest. */
function compared(outcome, chosen) {
  const [ours, theirs] = [chosen, outcome].map(byName);
  const names = [...new Set([...theirs.keys(), ...ours.keys()])];
  const differences = names.map((what) => [what, (theirs.get(what) ?? 0) - (ours.get(what) ?? 0)]);
  const sum = (pairs) => pairs.reduce((all, [, amount]) => all + amount, 0);
  const whole = differences.reduce((all, [, amount]) => all + Math.abs(amount), 0);
  const large = differences.filter(([, amount]) => Math.abs(amount) > 0.05 * whole).sort((a, b) => b[1] - a[1]);
  const rest = sum(differences) - sum(large);
  if (Math.abs(rest) > 0.0005 * whole) large.push(["all else", rest]);
  const parts = large.map(([what, amount]) => `${amount > 0 ? "+" : "-"}${usd(Math.abs(amount))} ${what}`).join(", ");
  return `${outcome.name} costs ${more(outcome.net - chosen.net)}${parts && `: ${parts}`}.`;
}

function byName(outcome) {
  const amounts = new Map();
  for (const { when, what, usd } of outcome.lines) {
    const name = when === "calls" ? `${what} (calls)` : what;
    amounts.set(name, (amounts.get(name) ?? 0) + usd);
  }
  return amounts.set("wrong answers less revenue", outcome.net - outcome.total);
}

function breakEvenText({ dear, cheap, calls, interval: drawn, windows, days, extra }) {
  let sentence = `${dear.name} against ${cheap.name}: `;
  if (calls === null) sentence += `never; a call of it costs ${extra > 0 ? `${usd(extra)} more` : "no less"} at great volume`;
  else if (calls === 0) sentence += "at any volume";
  else {
    sentence += `from ${number(calls)} calls a day`;
    const [low, high] = (drawn ?? [0, 0]).map((end) => (end === Infinity ? "never" : number(end)));
    if (low !== high) sentence += ` (${low} to ${high})`;
  }
  if (windows.length)
    sentence += `; for a while also at volumes from ${number(Math.min(...windows))} to ${number(Math.max(...windows))}`;
  if (calls)
    sentence += `; at this volume ${days === null ? "not within ten years" : days ? `after ${number(days)} days` : "at once"}`;
  return `${sentence}.`;
}

/** Where the answer changes, or that it does not. */
function flipText({ row, value, below, above }) {
  const side = (name, flip) =>
    flip && `${name} ${number(flip.at)} ${flip.to}${flip.within ? " (within its stated range)" : ""}`;
  const sides = [side("below", below), side("above", above)].filter(Boolean);
  const [low, high] = row.search.map(number);
  return `${row.name} (now ${number(value)}): ${sides.join("; ") || `does not flip in [${low}, ${high}]`}`;
}
