// Live numbers, read from the text of /metrics every second while they are looked at.

import { request } from "./api.js";
import { byId, dollars, numbers } from "./view.js";

const EVERY = 1000;
const WINDOW = 30; // readings that rates are taken over

/** Prometheus' text: the sum over its labels of every series, by name. Lines that are no samples are passed over. */
export function parse(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const match = /^([A-Za-z_:][\w:]*)(?:\{.*\})?\s+(\S+)/.exec(line);
    if (!match || line.startsWith("#")) continue;
    const value = Number(match[2]);
    if (Number.isFinite(value)) found.set(match[1], (found.get(match[1]) ?? 0) + value);
  }
  return found;
}

const NAMES = {
  running: "bedplate:num_requests_running",
  waiting: "bedplate:num_requests_waiting",
  made: "bedplate:generation_tokens_total",
  sought: "bedplate:prefix_cache_queries_total",
  cached: "bedplate:prefix_cache_hits_total",
  firstSum: "bedplate:time_to_first_token_seconds_sum",
  firstCount: "bedplate:time_to_first_token_seconds_count",
  cost: "bedplate:request_cost_usd_total",
};

let timer = null;
let readings = [];

async function read() {
  const note = byId("live-note");
  try {
    const found = parse(await (await request("/metrics", { quiet: true })).text());
    note.textContent = "";
    const now = Object.fromEntries(Object.entries(NAMES).map(([key, name]) => [key, found.get(name)]));
    readings = [...readings, { at: performance.now(), ...now }].slice(-WINDOW);
    draw();
  } catch (error) {
    const absent = error.status === 404;
    note.textContent = absent ? "This server has no /metrics." : error.message;
    if (absent) return;
  }
  if (byId("live").open && !document.hidden) timer = setTimeout(read, EVERY);
}

/** How much a counter rose over the readings; undefined where the server does not write it. */
function rise(name, from = readings[0]) {
  const last = readings.at(-1);
  return last[name] === undefined || from[name] === undefined ? undefined : last[name] - from[name];
}

function draw() {
  const last = readings.at(-1);
  const span = (last.at - readings[0].at) / 1000;
  const made = rise("made");
  const count = rise("firstCount");
  const first = count ? rise("firstSum") / count : last.firstCount ? last.firstSum / last.firstCount : undefined;
  const shown = (value, as) => (value === undefined || Number.isNaN(value) ? "–" : as(value));
  byId("live-numbers").replaceChildren(...numbers([
    ["Running", shown(last.running, String)],
    ["Waiting", shown(last.waiting, String)],
    ["Tokens/s", shown(span > 0 && made !== undefined ? made / span : undefined, (value) => value.toFixed(1))],
    ["Time to first token", shown(first, (value) => `${(1000 * value).toFixed(0)} ms`)],
    ["Prompt tokens cached", shown(last.sought ? last.cached / last.sought : undefined, (value) => `${(100 * value).toFixed(1)} %`)],
    ["Cost so far", shown(last.cost, dollars)],
  ]));
}

function start() {
  clearTimeout(timer);
  readings = [];
  if (byId("live").open && !document.hidden) read();
}

byId("live").addEventListener("toggle", start);
document.addEventListener("visibilitychange", start);
