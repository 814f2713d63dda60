// What training costs (economics/training/training_cost.py and scaling_laws.py, hardware/mfu.py), as functions of what is moved.

/** The share of the peak that so many devices reach, at the middle of its range. */
function curve(devices) {
  const { given, first, floor, beta, factor } = DATA.mfu;
  return given ?? (floor + (first - floor) * (8 / Math.max(devices, 8)) ** beta) * factor;
}

const lowest = (devices) => curve(devices) * DATA.mfu.low;
const highest = (devices) => Math.min(1, curve(devices) * DATA.mfu.high);

/** {low, central, high} times a number, or times what is stretched the same way. */
const times = (one, by) => ({
  low: one.low * (by.low ?? by),
  central: one.central * (by.central ?? by),
  high: one.high * (by.high ?? by),
});

/** changed: names of what was moved, which is taken as exact; what was not has its own range. usd: null without a price. */
function training(values, changed) {
  const { tokens, devices, overhead } = values;
  const flops = DATA.flops_per_token * tokens;
  const exact = DATA.mfu.given !== null || changed.has("mfu");
  const mfu = exact
    ? { low: values.mfu, central: values.mfu, high: values.mfu }
    : { low: DATA.mfu.low * values.mfu, central: values.mfu, high: DATA.mfu.high * values.mfu };
  const ideal = (flops * overhead) / DATA.peak_flops_per_second / 3600;
  const gpu_hours = { low: ideal / mfu.high, central: ideal / mfu.central, high: ideal / mfu.low };
  const price = changed.has("usd_per_hour") ? values.usd_per_hour : DATA.price;
  const kwh = times(gpu_hours, (DATA.device.watts / 1000) * DATA.pue);
  return {
    flops,
    exact,
    mfu,
    gpu_hours,
    price,
    kwh,
    days: times(gpu_hours, 1 / devices / 24),
    usd: price === null ? null : times(gpu_hours, price),
    energy_usd: times(kwh, values.usd_per_kwh),
    tokens_per_second_per_device: (DATA.peak_flops_per_second * mfu.central) / DATA.flops_per_token,
    layout: layoutOf(flops, devices),
  };
}

/** From the table of layouts that were searched: by devices, and by the power of two of a step's sequences. */
function layoutOf(flops, devices) {
  const row = DATA.layout_of[devices];
  const sequences = Math.max(1, Math.round((0.292 * flops ** 0.3271) / DATA.sequence_tokens));
  return DATA.layouts[row.given ?? row[Math.floor(Math.log2(sequences))]];
}

const loss = (parameters, tokens) =>
  DATA.fit.floor + DATA.fit.a * parameters ** -DATA.fit.alpha + DATA.fit.b * tokens ** -DATA.fit.beta;

/** The size of least loss for so many operations, in closed form (2203.15556, approach 3). */
function optimum(flops) {
  const { alpha, beta, a, b } = DATA.fit;
  const parameters = ((alpha * a) / (beta * b)) ** (1 / (alpha + beta)) * (flops / 6) ** (beta / (alpha + beta));
  const tokens = flops / (6 * parameters);
  return { parameters, tokens, loss: loss(parameters, tokens) };
}
