// The decision at what was moved. What anything costs is in COSTS: the formulas of economics/costs/decisions, as Python
// wrote them for this page. Here they are evaluated, compared over volumes, and each number is moved alone.

const OPTIONS = DATA.options.map((option, n) => ({ ...option, ...COSTS.options[n], places: new Set(option.uses) }));
const ALLOWED = OPTIONS.filter((option) => option.broken.length === 0);
const [CALLS, DAYS] = ["traffic.calls_per_day", "traffic.horizon_days"].map((name) =>
  DATA.rows.findIndex((row) => row.name === name),
);

/** The inputs' values with what was moved; a number that was moved is taken as exact. */
class State {
  constructor(values, moved) {
    this.v = DATA.rows.map((row) => (moved.has(row.name) ? values[row.name] : row.value));
    this.moved = moved;
  }

  exact(place) {
    const row = DATA.rows[place];
    return row.low === row.high || this.moved.has(row.name);
  }

  low(ranged, v = this.v) {
    return v[ranged.place] - (this.exact(ranged.place) ? 0 : ranged.below);
  }

  high(ranged, v = this.v) {
    return v[ranged.place] + (this.exact(ranged.place) ? 0 : ranged.above);
  }

  clears(option, v = this.v) {
    const { quality, p95_ms: latency } = DATA.bars;
    if (quality !== null && (option.quality === null || this.low(option.quality, v) < v[quality])) return false;
    return latency === null || (option.p95_ms !== null && this.high(option.p95_ms, v) <= v[latency]);
  }

  /** The name of the best option, or why there is none. */
  choose(options = ALLOWED, v = this.v) {
    return best(options.map((option) => ({ name: option.name, net: this.clears(option, v) ? option.net(v) : null })));
  }

  /** The draws, what was moved as it stands. */
  get draws() {
    const columns = Object.entries(DATA.draws.columns).filter(([place]) => !this.exact(Number(place)));
    if (!columns.length) return [];
    return Array.from({ length: DATA.draws.count }, (_, n) => {
      const v = [...this.v];
      for (const [place, column] of columns) v[place] = column[n];
      return v;
    });
  }
}

/** The values with another number at a place. */
function changed(v, place, x) {
  const values = [...v];
  values[place] = x;
  return values;
}

function best(rows) {
  const feasible = rows.filter(({ net }) => net !== null);
  if (!feasible.length) return DATA.nothing.feasible;
  const first = feasible.reduce((a, b) => (b.net < a.net ? b : a));
  return DATA.must_pay && first.net > 0 ? DATA.nothing.pays : first.name;
}

// --- searches

/** Where `holds` changes between two places, as seen from the outer one. */
function narrow(holds, inside, outside) {
  const beyond = holds(outside);
  while (Math.abs(outside - inside) > DATA.search.close * Math.max(Math.abs(outside), Math.abs(inside))) {
    const middle = (inside + outside) / 2;
    if (middle === inside || middle === outside) break;
    if (holds(middle) === beyond) outside = middle;
    else inside = middle;
  }
  return outside;
}

/** Where `holds` changes from one place to the next; 0 stands first where it holds from the beginning. */
function edges(holds, places) {
  const answers = places.map(holds);
  const changes = answers.flatMap((answer, n) =>
    n && answer !== answers[n - 1] ? [narrow(holds, places[n - 1], places[n])] : [],
  );
  return answers[0] ? [0, ...changes] : changes;
}

/** From where on `holds` stays true, or null. */
const lastChange = (changes) => (changes.length % 2 ? changes.at(-1) : null);

/** First-day calls from which on one more machine is reserved, as far as single machines matter. */
function machineSteps({ capacities }, v) {
  const count = Math.floor(DATA.search.machine_steps / Math.max(1, capacities.length));
  return capacities.flatMap((capacity) => Array.from({ length: count }, (_, n) => capacity(v) * (n + 1)));
}

function breakEven(first, second, { v }, draws) {
  const idle = changed(v, CALLS, 0);
  const [dear, cheap] = second.net(idle) > first.net(idle) ? [second, first] : [first, second];
  const difference = (place, values) => (x) => {
    const moved = changed(values, place, x);
    return dear.net(moved) - cheap.net(moved);
  };
  const cheaper = (place) => (x) => difference(place, v)(x) < 0;
  const { volumes, days, close } = DATA.search;
  const steps = [dear, cheap].flatMap((option) => machineSteps(option, v));
  const compared = [...volumes, ...steps.flatMap((step) => [step * (1 - close), step * (1 + close)])];
  const crossings = edges(cheaper(CALLS), compared.sort((a, b) => a - b)),
    calls = lastChange(crossings);
  const drawn = draws.map((values) => drawnBreakEven(difference(CALLS, values), volumes[0], volumes.at(-1)));
  return {
    dear,
    cheap,
    calls,
    windows: crossings.slice(0, calls === null ? undefined : -1),
    interval: drawn.length ? interval(drawn, calls ?? Infinity) : null,
    days: lastChange(edges(cheaper(DAYS), days)),
    extra: dear.call(v) - cheap.call(v),
  };
}

/** One draw's break-even; infinite is never. */
function drawnBreakEven(difference, low, high) {
  if (difference(high) >= 0) return Infinity;
  if (difference(low) < 0) return 0;
  while (high / low > DATA.search.draw_ratio) {
    const middle = Math.sqrt(low * high);
    if (difference(middle) < 0) high = middle;
    else low = middle;
  }
  const [above, below] = [difference(low), difference(high)];
  return low + ((high - low) * above) / (above - below);
}

/** Percentiles of the draws, widened to hold the value. */
function interval(drawn, value) {
  const ordered = [...drawn].sort((a, b) => a - b),
    tail = (1 - DATA.draws.interval) / 2;
  return [Math.min(value, percentile(ordered, tail)), Math.max(value, percentile(ordered, 1 - tail))];
}

function percentile(ordered, share) {
  const at = share * (ordered.length - 1),
    below = Math.floor(at);
  const [low, high] = [ordered[below], ordered[Math.min(below + 1, ordered.length - 1)]];
  if (low === high || high === Infinity) return at === below ? low : high;
  return low + (at - below) * (high - low);
}

/** Of every number that an option depends on, nearest flip first, then those that do not flip. */
function flippingPoints(state) {
  const answer = state.choose(),
    ratio = (value, at) => (value <= 0 || at <= 0 ? 1000 : Math.max(value / at, at / value));
  const outward = (place, end) => {
    const value = state.v[place],
      same = (x) => state.choose(ALLOWED, changed(state.v, place, x)) === answer;
    let inside = value;
    for (const spot of searched(value, end)) {
      if (!same(spot)) {
        const at = narrow(same, inside, spot),
          { low, high } = DATA.rows[place];
        const within = state.exact(place) ? at === value : low <= at && at <= high;
        return { at, to: state.choose(ALLOWED, changed(state.v, place, at)), within };
      }
      inside = spot;
    }
    return null;
  };
  const used = [...new Set(ALLOWED.flatMap((option) => option.uses))].sort((a, b) => a - b);
  const flips = used.map((place) => {
    const row = DATA.rows[place],
      value = state.v[place];
    const [below, above] = row.search.map((end) => outward(place, end));
    const nearness = Math.min(...[below, above].filter(Boolean).map((flip) => ratio(value, flip.at)), Infinity);
    return { row, place, value, below, above, nearness };
  });
  return flips.sort((a, b) => (a.nearness === b.nearness ? 0 : a.nearness - b.nearness));
}

function searched(value, end) {
  if (value === end) return [];
  const count = DATA.search.places,
    shares = Array.from({ length: count - 1 }, (_, n) => (n + 1) / count);
  const wide = value > 0 && end > 0 && !(end / value > 0.5 && end / value < 2);
  return [...shares.map((share) => (wide ? value * (end / value) ** share : value + (end - value) * share)), end];
}

// --- all of it

function outcome(option, state, draws, wins) {
  const { v } = state,
    total = option.total(v),
    calls = COSTS.calls(v);
  const quality = option.quality === null ? null : v[option.quality.place];
  return {
    option,
    name: option.name,
    total,
    quality,
    net: option.net(v),
    feasible: option.broken.length === 0 && state.clears(option),
    interval: draws.length ? interval(draws.map(option.total), total) : [total, total],
    per_call: total / calls,
    per_right: quality ? total / calls / quality : null,
    p95: option.p95_ms === null ? null : v[option.p95_ms.place],
    lines: option.lines.map((line, n) => ({ ...line, usd: option.amounts[n](v) })).filter(({ usd }) => usd),
    machines: option.machines?.(v) ?? null,
    busy: option.busy?.(v) ?? null,
    best_in: draws.length ? wins / draws.length : null,
  };
}

function decide(state) {
  const draws = state.draws;
  const feasible = ALLOWED.filter((option) => state.clears(option));
  const winners = draws.map((v) => best(feasible.map((option) => ({ name: option.name, net: option.net(v) }))));
  const wins = (option) => winners.filter((name) => name === option.name).length;
  const outcomes = OPTIONS.map((option) => outcome(option, state, draws, wins(option)));
  return {
    state,
    outcomes,
    calls: COSTS.calls(state.v),
    ranking: outcomes.filter((outcome) => outcome.feasible).sort((a, b) => a.net - b.net),
    answer: state.choose(),
    unconstrained: state.choose(OPTIONS),
    break_evens: ALLOWED.flatMap((first, n) => ALLOWED.slice(n + 1).map((second) => breakEven(first, second, state, draws))),
    flips: flippingPoints(state),
  };
}
