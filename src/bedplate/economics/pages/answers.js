// Which option is best, from which volume on one pays back, and what would change the answer:
// economics/costs/decisions/{exclusions,breakeven,sensitivity,decision}.py, line for line.

const TEN_YEARS = 3650,
  DAY_PLACES = 80,
  GRID_PLACES = 160,
  MOST_STEPS = 300,
  HALVINGS = 60,
  BEYOND = 1e9;
const FLIP_PLACES = 16,
  CLOSE = 1e-9,
  SHARES = [(1 - DATA.draws.interval) / 2, (1 + DATA.draws.interval) / 2];

/** The sheet's values with what was moved; a number that was moved is taken as exact. */
class State {
  constructor(values = {}, moved = new Set()) {
    this.v = DATA.rows.map((row) => (moved.has(row.name) ? values[row.name] : row.value));
    this.moved = moved;
  }

  exact(place) {
    const row = DATA.rows[place];
    return row.low === row.high || this.moved.has(row.name);
  }

  /** The ends of a number that keeps the width of its range where it is varied. */
  low(ranged, v = this.v) {
    return v[ranged.place] - (this.exact(ranged.place) ? 0 : ranged.below);
  }

  high(ranged, v = this.v) {
    return v[ranged.place] + (this.exact(ranged.place) ? 0 : ranged.above);
  }

  clears(option, v = this.v) {
    const { bar_quality: quality, bar_p95_ms: latency } = DATA.shared;
    if (quality !== null && (option.quality === null || this.low(option.quality, v) < v[quality])) return false;
    return latency === null || (option.p95_ms !== null && this.high(option.p95_ms, v) <= v[latency]);
  }

  /** Net USD, null where it misses a bar. */
  net(option, v = this.v) {
    return this.clears(option, v) ? netUsd(billOf(option, v), volumeAt(v)) : null;
  }

  /** The draws, what was moved as it stands. */
  get draws() {
    const columns = Object.entries(DATA.draws.columns).filter(([place]) => !this.exact(Number(place)));
    return Array.from({ length: DATA.draws.count }, (_, n) => {
      const v = [...this.v];
      for (const [place, column] of columns) v[place] = column[n];
      return v;
    });
  }
}

const allowed = () => DATA.options.filter((one) => one.broken.length === 0);

/** The name of the best of these nets, or why there is none. */
function best(options, nets) {
  let found = null;
  options.forEach((one, n) => {
    if (nets[n] !== null && (found === null || nets[n] < found[0])) found = [nets[n], one.name];
  });
  if (found === null) return DATA.nothing.feasible;
  return DATA.must_pay && found[0] > 0 ? DATA.nothing.pays : found[1];
}

/** Linear between the order statistics; `ordered` may end in infinities. */
function percentile(ordered, share) {
  const at = share * (ordered.length - 1),
    below = Math.floor(at);
  const low = ordered[below],
    high = ordered[Math.min(below + 1, ordered.length - 1)];
  if (low === high || high === Infinity) return at === below ? low : high;
  return low + (at - below) * (high - low);
}

const ascending = (values) => [...values].sort((a, b) => a - b);

// --- break-evens

/** From which first-day calls on `dear` costs less than `cheap` for good (null: never), and windows in which it does. */
function cheaperFrom(dear, cheap, volume) {
  const extra = idleUsd(dear, volume) - idleUsd(cheap, volume),
    saving = marginalUsd(cheap) - marginalUsd(dear);
  if (dear.fleet === null && cheap.fleet === null)
    return { calls: saving > 0 ? extra / saving / volume.day_count : null, windows: [] };
  const slack = slackOf(dear, cheap, volume);
  const far = saving ? (Math.abs(extra) + slack) / Math.abs(saving) / volume.day_count : BEYOND;
  const settled = Math.min(BEYOND, Math.max(far, 1e-6) * 1.01);
  const cheaper = (calls) => netUsd(dear, volume, calls) < netUsd(cheap, volume, calls);
  const windows = [];
  let begin = null,
    last = 0;
  for (const point of turns(dear, cheap, volume, settled)) {
    if (cheaper(point) !== (begin !== null)) {
      const found = change(cheaper, last, point);
      if (begin === null) begin = found;
      else {
        windows.push([begin, found]);
        begin = null;
      }
    }
    last = point;
  }
  if (begin !== null && saving <= 0) {
    windows.push([begin, settled]);
    begin = null;
  }
  return { calls: begin, windows };
}

/** What a machine more or less, over all days, may amount to. */
const slackOf = (dear, cheap, volume) =>
  [dear, cheap].reduce((sum, { fleet }) => sum + (fleet === null ? 0 : fleet.usd_per_day * volume.days * 2), 0);

/** Volumes between two of which the difference only rises or only falls. */
function turns(dear, cheap, volume, settled) {
  const fleets = [
    [1, dear.fleet],
    [-1, cheap.fleet],
  ].filter(([, fleet]) => fleet !== null);
  const steps = ascending(new Set(fleets.flatMap(([, fleet]) => fleetSteps(fleet, volume, settled, MOST_STEPS))));
  const points = new Set([settled, ...steps.flatMap((step) => [step * (1 - 1e-10), step * (1 + 1e-8)])]);
  const slope = (dear.net_call_usd - cheap.net_call_usd) * volume.day_count;
  const edges = [0, ...steps, settled];
  for (let n = 1; slope && n < edges.length; n++) {
    const middle = (edges[n - 1] + edges[n]) / 2;
    const turn = -fleets.reduce((sum, [sign, fleet]) => sum + sign * bend(fleet, volume, middle), 0) / slope;
    if (edges[n - 1] < turn && turn < edges[n]) points.add(turn);
  }
  const end = steps.at(-1);
  if (steps.length && end * 2 < settled)
    for (let i = 0; i < GRID_PLACES; i++) points.add(settled * (end / settled) ** (i / GRID_PLACES));
  return ascending(points).filter((point) => point > 0 && point <= settled);
}

/** Where a yes or no changes between two places. */
function change(holds, low, high) {
  const there = holds(high);
  for (let n = 0; n < HALVINGS; n++) {
    const middle = (low + high) / 2;
    if (middle === low || middle === high) break;
    if (holds(middle) === there) high = middle;
    else low = middle;
  }
  return high;
}

/** Days at this volume until the extra cost has come back for good; null is never within ten years. */
function daysUntilCheaper(dear, cheap, v) {
  const changed = [...v];
  const cheaper = (days) => {
    changed[DATA.shared.days] = days;
    const volume = volumeAt(changed);
    return netUsd(billOf(dear, changed), volume) < netUsd(billOf(cheap, changed), volume);
  };
  const spots = Array.from({ length: DAY_PLACES }, (_, i) => (TEN_YEARS * (i + 1)) / DAY_PLACES);
  if (!cheaper(spots.at(-1))) return null;
  let after = spots.at(-1);
  for (const spot of spots.reverse()) {
    if (!cheaper(spot)) return change(cheaper, spot, after);
    after = spot;
  }
  return cheaper(1e-9) ? 0 : change(cheaper, 0, after);
}

/** One draw's break-even, to a part in ten thousand; infinite is never. */
function quick(dear, cheap, volume) {
  const extra = idleUsd(dear, volume) - idleUsd(cheap, volume),
    saving = marginalUsd(cheap) - marginalUsd(dear);
  if (saving <= 0) return Infinity;
  if (dear.fleet === null && cheap.fleet === null) return Math.max(0, extra) / saving / volume.day_count;
  if (extra <= 0) return 0;
  let low = 0,
    high = (extra + slackOf(dear, cheap, volume)) / saving / volume.day_count;
  while (high - low > 1e-4 * high) {
    const middle = (low + high) / 2;
    if (netUsd(dear, volume, middle) < netUsd(cheap, volume, middle)) high = middle;
    else low = middle;
  }
  return high;
}

/** Of every pair that the constraints allow; bills by option, at the values and at each draw. */
function breakEvens(state, volume, bills, drawn, volumes) {
  const options = allowed(),
    found = [];
  options.forEach((one, i) =>
    options.slice(i + 1).forEach((other) => {
      const idle = (option) => idleUsd(bills.get(option), volume);
      const [dear, cheap] = idle(other) > idle(one) ? [other, one] : [one, other];
      const { calls, windows } = cheaperFrom(bills.get(dear), bills.get(cheap), volume);
      const saved = calls === null ? tokensOf(cheap.tokens, state.v).prefix - tokensOf(dear.tokens, state.v).prefix : 0;
      found.push({
        option: dear,
        against: cheap,
        calls,
        windows,
        interval: drawn.size
          ? widened(
              calls,
              drawn.get(dear).map((bill, n) => quick(bill, drawn.get(cheap)[n], volumes[n])),
            )
          : null,
        days: daysUntilCheaper(dear, cheap, state.v),
        reason: calls === null ? whyNever(dear.name, cheap.name, bills.get(dear), bills.get(cheap), saved) : null,
      });
    }),
  );
  return found;
}

/** 90% of the draws, widened to hold the stated numbers' own; null in it is never. */
function widened(value, drawn) {
  const ordered = ascending(drawn),
    own = value ?? Infinity;
  const ends = [Math.min(own, percentile(ordered, 0.05)), Math.max(own, percentile(ordered, 0.95))];
  return ends.map((end) => (end === Infinity ? null : end));
}

// --- what would change the answer

/** Of every number that may vary and that an option depends on, nearest flip first, then those that do not flip. */
function flippingPoints(state) {
  const options = allowed(),
    base = options.map((one) => state.net(one)),
    answer = best(options, base);
  const changed = [...state.v];
  const found = [];
  DATA.rows.forEach((row, place) => {
    if (row.search === null || !options.some((one) => one.places.has(place))) return;
    const value = state.v[place];
    const choice = (x) => {
      changed[place] = x;
      return best(
        options,
        options.map((one, n) => (one.places.has(place) ? state.net(one, changed) : base[n])),
      );
    };
    const within = (at) => (state.exact(place) ? at === value : row.low <= at && at <= row.high);
    const [below, above] = row.search.map((end) => outward(choice, answer, value, end, within));
    changed[place] = value;
    const nearness = Math.min(...[below, above].filter(Boolean).map((flip) => apart(value, flip.at)), Infinity);
    found.push({ row, place, value, below, above, nearness });
  });
  return found.sort((a, b) => (a.nearness === b.nearness ? 0 : a.nearness - b.nearness));
}

function outward(choice, answer, value, end, within) {
  let inside = value;
  for (const spot of outwards(value, end)) {
    if (choice(spot) === answer) {
      inside = spot;
      continue;
    }
    let outside = spot;
    while (Math.abs(outside - inside) > CLOSE * Math.max(Math.abs(outside), Math.abs(inside))) {
      const middle = (inside + outside) / 2;
      if (middle === inside || middle === outside) break;
      if (choice(middle) === answer) inside = middle;
      else outside = middle;
    }
    return { at: outside, to: choice(outside), within: within(outside) };
  }
  return null;
}

function outwards(value, end) {
  if (value === end) return [];
  const steps = Array.from({ length: FLIP_PLACES - 1 }, (_, i) => (i + 1) / FLIP_PLACES);
  const ratio = value > 0 && end > 0 && !(0.5 < end / value && end / value < 2);
  return [...steps.map((step) => (ratio ? value * (end / value) ** step : value + (end - value) * step)), end];
}

/** How far apart, as a ratio from 1 up; zero is as far as a factor of a thousand. */
const apart = (value, at) => (value <= 0 || at <= 0 ? 1000 : Math.max(value / at, at / value));

// --- all of it

function outcome(option, state, bill, volume, drawn, volumes, wins) {
  const total = totalUsd(bill, volume),
    { v } = state;
  const interval = drawn.length ? ascending(drawn.map((one, n) => totalUsd(one, volumes[n]))) : [total];
  const busiest = volume.first * Math.max(1, (1 + volume.growth) ** (volume.days / DAYS_PER_YEAR));
  const seconds = bill.fleet === null ? 0 : volume.calls * busySeconds(option.calls, v, tokensOf(option.tokens, v));
  return {
    option,
    bill,
    name: option.name,
    total,
    net: netUsd(bill, volume),
    feasible: option.broken.length === 0 && state.clears(option),
    interval: [Math.min(total, percentile(interval, SHARES[0])), Math.max(total, percentile(interval, SHARES[1]))],
    per_call: total / volume.calls,
    per_right: bill.quality ? total / volume.calls / bill.quality : null,
    quality_low: option.quality === null ? null : state.low(option.quality),
    p95: option.p95_ms === null ? null : v[option.p95_ms.place],
    short: shortfalls(option, state),
    lines: billLines(bill, volume),
    machines: bill.fleet === null ? null : machines(bill.fleet, busiest),
    busy: bill.fleet === null ? null : seconds / (machineDays(bill.fleet, volume, volume.first) * SECONDS_PER_DAY),
    best_in: drawn.length ? wins / drawn.length : null,
  };
}

/** The decision at some values; `flips` only where they are wanted. */
function decide(state) {
  const { v } = state,
    options = DATA.options,
    volume = volumeAt(v);
  const uncertain = DATA.rows.some((_, place) => !state.exact(place));
  const draws = uncertain ? state.draws : [];
  const bills = new Map(options.map((one) => [one, billOf(one, v)]));
  const drawn = new Map(uncertain ? options.map((one) => [one, draws.map((each) => billOf(one, each))]) : []);
  const volumes = draws.map(volumeAt);
  const feasible = allowed().filter((one) => state.clears(one));
  const winners = draws.map((_, n) =>
    best(
      feasible,
      feasible.map((one) => netUsd(drawn.get(one)[n], volumes[n])),
    ),
  );
  const outcomes = options.map((one) =>
    outcome(
      one,
      state,
      bills.get(one),
      volume,
      drawn.get(one) ?? [],
      volumes,
      winners.filter((name) => name === one.name).length,
    ),
  );
  const pick = (some) =>
    best(
      some,
      some.map((one) => state.net(one)),
    );
  return {
    state,
    volume,
    uncertain,
    outcomes,
    ranking: outcomes.filter((one) => one.feasible).sort((a, b) => a.net - b.net),
    answer: pick(allowed()),
    unconstrained: pick(options),
    break_evens: breakEvens(state, volume, bills, drawn, volumes),
    flips: flippingPoints(state),
  };
}

for (const one of DATA.options) one.places = new Set(one.uses);
