// Numbers as Python's format() prints them, and read as people type them. `usd`, `number` and `figures` are the terminal's
// own (economics/numbers/money.py), which each page brings along.

/** Python's f"{x:.{places}f}": the nearest, ties to even, of the number's exact binary value. */
function fixed(x, places) {
  const nearest = x.toFixed(places);
  if (Math.abs(x) >= 1e21) return nearest;
  const exact = x.toFixed(Math.min(100, places + 30));
  const cut = exact.length - 30;
  if (!/^50*$/.test(exact.slice(cut))) return nearest;
  const down = exact.slice(0, places ? cut : cut - 1); // a tie: toFixed went away from zero
  return Number(down.at(-1)) % 2 ? nearest : down;
}

/** With commas between thousands: Python's f"{x:,.{places}f}". */
function grouped(x, places = 0) {
  const [whole, ...rest] = fixed(x, places).split(".");
  return [whole.replace(/\B(?=(\d{3})+$)/g, ","), ...rest].join(".");
}

const trimmed = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);

/** Python's f"{x:.{count}g}". */
function general(x, count) {
  if (!x) return "0";
  const [digits, exponent] = x.toExponential(count - 1).split("e");
  const power = Number(exponent);
  if (power >= -4 && power < count) return trimmed(fixed(x, count - 1 - power));
  return `${trimmed(digits)}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
}

/** For narrow places: $6,806, $22.7k, $2.75M, $0.0021. */
function shortUsd(x) {
  const sign = x < 0 ? "-" : "";
  const size = Math.abs(x);
  if (size >= 1e9) return `${sign}$${grouped(size / 1e6)}M`;
  if (size >= 1e6) return `${sign}$${figures(size / 1e6, 3)}M`;
  if (size >= 1e4) return `${sign}$${figures(size / 1e3, 3)}k`;
  return size >= 100 ? `${sign}$${grouped(size)}` : `${sign}$${figures(size, 3)}`;
}

const SIZES = [
  ["T", 1e12],
  ["B", 1e9],
  ["M", 1e6],
];

/** Three digits (or more), with the suffix of their size: 15.6 T. */
function count(x, digits = 3) {
  for (const [suffix, size] of SIZES) {
    if (Math.abs(x) >= size) return x < 1000 * size ? `${general(x / size, digits)} ${suffix}` : general(x, digits);
  }
  return Math.abs(x) >= 1000 ? grouped(x) : general(x, digits);
}

/** A number that is typed back as it stands. */
const typed = (x) => (Math.abs(x) >= 1e6 ? count(x, 6) : Math.abs(x) >= 1000 ? grouped(x) : figures(x, 6));

const percent = (share, places = 1) => `${fixed(100 * share, places)}%`;
const operations = (x) =>
  x
    .toExponential(3)
    .replace(/e\+?(-?)(\d)$/, "e$10$2")
    .replace(/e(\d)/, "e+$1");

function duration(seconds) {
  return seconds < 1 ? `${general(1000 * seconds, 3)} ms` : `${general(seconds, 3)} s`;
}

const SUFFIXES = { k: 1e3, m: 1e6, b: 1e9, g: 1e9, t: 1e12, "%": 0.01, ms: 1e-3, s: 1, "": 1 };

/** "15.6 T", "300B", "1e12", "$2.50", "41 %", "800 ms" as a number; NaN where it is none. */
function parsed(text) {
  const found = /^\$?([-+]?(?:\d[\d,_]*\.?\d*|\.\d+)(?:e[-+]?\d+)?)(ms|[kmbgts%]?)$/.exec(
    text.toLowerCase().replace(/\s/g, ""),
  );
  return found === null ? NaN : Number((Number(found[1].replace(/[,_]/g, "")) * SUFFIXES[found[2]]).toPrecision(15));
}
