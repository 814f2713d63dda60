// What serving costs, from the loads that were simulated. COSTS has the fleet's formulas, as Python wrote them.

const SECONDS_PER_DAY = 86400;

/** A figure of one replica at a rate of calls a second, straight between the loads next to it; null beyond them. */
function atRate(replica, name, rate) {
  const column = replica.loads[name];
  const place = (rate / replica.saturated_calls_per_second) * DATA.grid;
  if (place > DATA.grid * (1 + 1e-9)) return null;
  if (place <= 1) return column[0];
  const below = Math.min(DATA.grid - 1, Math.floor(place));
  return column[below - 1] + (place - below) * (column[below] - column[below - 1]);
}

/** Why no number of replicas helps, or null. */
function hopeless(replica, { total, first }) {
  const misses = [
    [total, replica.alone.total_p95, "its answer's end"],
    [first, replica.alone.first_token_p95, "its first token"],
  ];
  const missed = misses.find(([limit, seconds]) => limit !== null && seconds > limit);
  return missed
    ? `A call alone on an idle machine takes ${duration(missed[1])} until ${missed[2]} (at 95%), over the target of ${duration(missed[0])}: no number of replicas helps.`
    : null;
}

/** How far latencies meet the target: the least of limit / latency − 1. */
function slack({ total, first }, totalP95, firstP95) {
  return Math.min(
    total === null ? Infinity : total / Math.max(totalP95, 1e-12) - 1,
    first === null ? Infinity : first / Math.max(firstP95, 1e-12) - 1,
  );
}

/** Calls a second of one replica within the target: the plan's own search, on the loads that it looks at. */
function capacity(replica, target) {
  const full = replica.saturated_calls_per_second;
  if (target.total === null && target.first === null) return 0.9 * full;
  let low = 0,
    high = DATA.grid,
    above = slack(target, replica.alone.total_p95, replica.alone.first_token_p95),
    below = -1;
  for (let looks = 1; high - low > 1; looks++) {
    const share = looks % 3 === 0 ? 0.5 : above / (above - below);
    const middle = Math.min(Math.max(low + Math.floor(share * (high - low) + 0.5), low + 1), high - 1);
    const margin = slack(target, replica.loads.total_p95[middle - 1], replica.loads.first_token_p95[middle - 1]);
    if (margin >= 0) [low, above] = [middle, margin];
    else [high, below] = [middle, margin];
  }
  return ((low || 0.5) * full) / DATA.grid;
}

/** The fleet of one case; null where even a call alone misses the target. Dollars are null without a price. */
function fleet(replica, values, price, calls = values.calls_per_day) {
  const target = targetOf(values);
  if (hopeless(replica, target) !== null) return null;
  const each = capacity(replica, target);
  const v = [calls, values.peak_factor, each, values.spare, price ?? 0, replica.saturated_calls_per_second];
  const figures = Object.entries(COSTS).map(([name, formula]) => [
    name,
    price === null && name.includes("usd") ? null : formula(v),
  ]);
  return { capacity: each, ...Object.fromEntries(figures) };
}

const limitOf = (name, value) => (value >= LATENCY[name].high ? null : value);
const targetOf = (values) => ({
  total: limitOf("total", values.total_seconds),
  first: limitOf("first_token", values.first_token_seconds),
});
