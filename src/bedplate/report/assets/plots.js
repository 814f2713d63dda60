// Lines over an axis, as inline SVG: axes, ticks, logarithms, a cursor for the pointer and for the arrow keys.

const SAMPLES = 240;

/** A scale from values to pixels and back. */
function scaled(scale, low, high, from, to) {
  const into = scale === "log" ? Math.log10 : (x) => x;
  const out = scale === "log" ? (x) => 10 ** x : (x) => x;
  const [a, b] = [into(low), into(high)];
  const span = b - a || 1;
  return {
    at: (x) => from + ((into(x) - a) / span) * (to - from),
    value: (pixel) => out(a + ((pixel - from) / (to - from)) * span),
  };
}

/** Round values within the bounds, about `wanted` of them. */
function ticks(scale, low, high, wanted) {
  if (scale === "log") {
    const decades = Math.log10(high / low);
    const each = Math.max(1, Math.ceil(decades / wanted));
    const found = [];
    const within = decades < 1.3 ? [1, 2, 3, 5, 7] : decades < 2.6 && wanted > 3 ? [1, 3] : [1];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      if (power % each === 0) found.push(...within.map((digit) => Number(`${digit}e${power}`)));
    }
    const kept = found.filter((x) => x >= low * (1 - 1e-9) && x <= high * (1 + 1e-9));
    return kept.length > 1 ? kept : ticks("linear", low, high, wanted);
  }
  const rough = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((digit) => digit * power).find((one) => one >= rough * 0.999);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + 1e-9 * step; n++)
    found.push(Number((n * step).toPrecision(12)));
  return found;
}

/** Places to draw a line through: even in the scale, and to both sides of where it jumps. */
function places({ scale, low, high }, jumps = []) {
  const { value } = scaled(scale, low, high, 0, SAMPLES);
  const found = Array.from({ length: SAMPLES + 1 }, (_, n) => value(n));
  for (const jump of jumps) if (jump > low && jump < high) found.push(jump * (1 - 1e-9), jump * (1 + 1e-9));
  return found.sort((a, b) => a - b);
}

/** As SVG's path data; a gap where there is no value. */
function path(points) {
  let pen = "M";
  let text = "";
  for (const [x, y] of points) {
    if (y === null || !Number.isFinite(y)) {
      pen = "M";
      continue;
    }
    text += `${pen}${x.toFixed(1)} ${y.toFixed(1)}`;
    pen = "L";
  }
  return text;
}

const DASHES = ["", "7 3", "2 3", "9 3 2 3", "5 2", "1 3"];

function swatch(line) {
  const shown = line.mark
    ? drawn("path", { class: `mark ${line.mark}`, d: MARKS[line.mark](13, 6) })
    : drawn("line", {
        x1: 1,
        x2: 25,
        y1: 6,
        y2: 6,
        class: `line${line.out ? " out" : ""}`,
        "stroke-dasharray": line.dash ?? "",
      });
  return drawn("svg", { viewBox: "0 0 26 12", "aria-hidden": "true", class: line.colour ?? "" }, shown);
}

const MARKS = {
  dot: (x, y) => `M${x - 5} ${y}a5 5 0 1 0 10 0a5 5 0 1 0 -10 0`,
  hollow: (x, y) => `M${x} ${y - 5.5}L${x + 5.5} ${y}L${x} ${y + 5.5}L${x - 5.5} ${y}Z`,
  square: (x, y) => `M${x - 4.5} ${y - 4.5}h9v9h-9Z`,
};

/**
 * spec: x and y {scale, label, show, low, high (of y: found when left out)}, lines [{name, at(x), colour, dash, out,
 * show}], bands [{colour, low(x), high(x)}], points [{x, y, label, mark, colour, name}], rules [{x or y, label, here}],
 * jumps: where lines jump.
 */
class Plot {
  constructor(host, title) {
    Object.assign(this, { title, spec: null, cursor: null });
    this.legend = make("ul", { className: "legend" });
    this.svg = drawn("svg", {
      tabindex: 0,
      role: "slider",
      "aria-label": `${title}: cursor`,
      "aria-orientation": "horizontal",
      "aria-valuemin": 0,
      "aria-valuemax": 100,
      "aria-valuenow": 0,
    });
    this.readout = make("p", { className: "readout" });
    this.element = make(
      "figure",
      { className: "plot" },
      make("figcaption", {}, title),
      this.legend,
      this.svg,
      this.readout,
    );
    host.append(this.element);
    new ResizeObserver(() => {
      if (Math.round(this.element.clientWidth) !== this.width) this.render();
    }).observe(this.element);
    this.svg.addEventListener("pointermove", (event) =>
      this.point(this.x.value(event.clientX - this.svg.getBoundingClientRect().left)),
    );
    this.svg.addEventListener("pointerleave", () =>
      this.point(document.activeElement === this.svg ? this.cursor : null),
    );
    this.svg.addEventListener("focus", () =>
      this.point(this.cursor ?? this.spec?.start ?? this.x.value((this.left + this.right) / 2)),
    );
    this.svg.addEventListener("blur", () => this.point(null));
    this.svg.addEventListener("keydown", (event) => this.key(event));
  }

  draw(spec) {
    this.spec = spec;
    const entries = [...spec.lines, ...(spec.points ?? []).filter((one) => one.name)];
    this.legend.replaceChildren(
      ...(entries.length > 1 ? entries.map((one) => make("li", {}, swatch(one), one.name)) : []),
    );
    this.render();
  }

  key(event) {
    const step = { ArrowLeft: -0.01, ArrowDown: -0.01, ArrowRight: 0.01, ArrowUp: 0.01, PageDown: -0.1, PageUp: 0.1 }[
      event.key
    ];
    const end = { Home: this.spec.x.low, End: this.spec.x.high }[event.key];
    if (event.key === "Escape") this.point(null);
    else if (end !== undefined) this.point(end);
    else if (step) this.point(this.beside(this.cursor ?? this.spec.x.low, step));
    else return;
    event.preventDefault();
  }

  /** A share of the width further; of whole numbers at least the next. */
  beside(x, step) {
    const found = this.x.value(this.x.at(x) + step * (this.right - this.left));
    if (!this.spec.x.whole) return found;
    return step > 0 ? Math.max(found, x + 1) : Math.min(found, x - 1);
  }

  /** Moves the cursor; null takes it away. */
  point(x) {
    if (!this.spec || !this.x) return;
    const { low, high } = this.spec.x;
    this.cursor = x === null ? null : Math.min(high, Math.max(low, this.spec.x.whole ? Math.max(1, Math.round(x)) : x));
    this.showCursor();
  }

  showCursor() {
    this.line?.remove();
    this.line = null;
    this.readout.classList.toggle("on", this.cursor !== null);
    if (this.cursor === null) {
      this.readout.textContent = this.spec.about ?? "Point at it, or focus it and use the arrow keys, to read it.";
      this.svg.setAttribute("aria-valuetext", this.readout.textContent);
      return;
    }
    const { x, y, lines } = this.spec;
    const at = this.x.at(this.cursor);
    const values = lines.map((one) => [one, one.at(this.cursor)]);
    const dots = values
      .filter(([, value]) => value !== null && value >= this.low && value <= this.high)
      .map(([one, value]) => drawn("path", { class: `mark ${one.colour ?? ""}`, d: MARKS.dot(at, this.y.at(value)) }));
    this.line = drawn(
      "g",
      { "pointer-events": "none" },
      drawn("line", { class: "cursor", x1: at, x2: at, y1: this.top, y2: this.bottom }),
      dots,
    );
    this.svg.append(this.line);
    const said = values.map(
      ([one, value]) =>
        `${lines.length > 1 ? `${one.name} ` : ""}${value === null ? "–" : (one.show ?? y.show)(value)}`,
    );
    this.readout.textContent = `${(x.read ?? x.show)(this.cursor)}${x.unit ? ` ${x.unit}` : ""}: ${said.join(" · ")}`;
    this.svg.setAttribute("aria-valuetext", this.readout.textContent);
    this.svg.setAttribute("aria-valuenow", String(Math.round((100 * (at - this.left)) / (this.right - this.left))));
  }

  /** The bounds of y: what is given, or what is drawn. */
  bounds(samples) {
    const { y, bands = [], points = [], rules = [] } = this.spec;
    const seen = [
      ...samples.flatMap(({ points: all }) => all.map(([, value]) => value)),
      ...points.map((one) => one.y),
      ...rules.map((one) => one.y),
    ];
    for (const band of bands) for (const x of this.xs) seen.push(band.low(x), band.high(x));
    const real = seen.filter((value) => value !== null && Number.isFinite(value) && (y.scale !== "log" || value > 0));
    let low = y.low ?? Math.min(...real),
      high = y.high ?? Math.max(...real);
    if (!(high > low)) [low, high] = [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1];
    if (y.scale === "log") return [y.low ?? low / (high / low) ** 0.06, y.high ?? high * (high / low) ** 0.1];
    if (y.low === undefined && low > 0 && !y.loose) low = 0;
    return [low < 0 || y.loose ? low - (high - low) * 0.08 : low, y.high ?? high + (high - low) * 0.1];
  }

  render() {
    const width = (this.width = Math.round(this.element.clientWidth));
    if (!this.spec || width < 120) return;
    const { x, y, lines, bands = [], points = [], rules = [], jumps } = this.spec;
    const height = Math.round(Math.min(this.spec.height ?? 320, Math.max(210, width * 0.62)));
    this.xs = places(x, jumps);
    const samples = lines.map((one) => ({ one, points: this.xs.map((place) => [place, one.at(place)]) }));
    [this.low, this.high] = this.bounds(samples);
    const yTicks = ticks(y.scale, this.low, this.high, height < 260 ? 4 : 5);
    Object.assign(this, {
      left: 12 + 6.6 * Math.max(...yTicks.map((one) => y.show(one).length)),
      right: width - 14,
      top: 24,
      bottom: height - 40,
    });
    this.x = scaled(x.scale, x.low, x.high, this.left, this.right);
    this.y = scaled(y.scale, this.low, this.high, this.bottom, this.top);
    const clip = (value) =>
      value === null
        ? null
        : Math.min(
            this.bottom + 400,
            Math.max(this.top - 400, this.y.at(y.scale === "log" ? Math.max(value, 1e-300) : value)),
          );
    const parts = [...this.axes(yTicks), this.clipPath()];
    for (const band of bands) {
      const there = this.xs.map((place) => [this.x.at(place), clip(band.high(place))]),
        back = this.xs.map((place) => [this.x.at(place), clip(band.low(place))]).reverse();
      parts.push(
        drawn("path", {
          class: `band ${band.colour ?? ""}`,
          d: `${path(there)}${path(back).replace("M", "L")}Z`,
          "clip-path": `url(#${this.clip})`,
        }),
      );
    }
    for (const { one, points: all } of samples) {
      parts.push(
        drawn("path", {
          class: `line ${one.colour ?? ""}${one.out ? " out" : ""}`,
          "stroke-dasharray": one.dash ?? "",
          d: path(all.map(([place, value]) => [this.x.at(place), clip(value)])),
          "clip-path": `url(#${this.clip})`,
        }),
      );
    }
    for (const one of rules) parts.push(...this.rule(one));
    const taken = points.map((one) => ({
      left: this.x.at(one.x) - 6,
      right: this.x.at(one.x) + 6,
      top: this.y.at(one.y) - 6,
      bottom: this.y.at(one.y) + 6,
    }));
    for (const one of points) parts.push(...this.mark(one, taken));
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.setAttribute("height", height);
    this.svg.replaceChildren(...parts);
    this.line = null;
    this.showCursor();
  }

  clipPath() {
    this.clip ??= `clip-${document.querySelectorAll("clipPath").length}`;
    return drawn(
      "clipPath",
      { id: this.clip },
      drawn("rect", {
        x: this.left,
        y: this.top - 8,
        width: this.right - this.left,
        height: this.bottom - this.top + 8,
      }),
    );
  }

  axes(yTicks) {
    const { x, y } = this.spec;
    const wide = Math.max(...ticks(x.scale, x.low, x.high, 6).map((one) => x.show(one).length)) * 7 + 22;
    const xTicks = ticks(x.scale, x.low, x.high, Math.max(2, Math.floor((this.right - this.left) / wide)));
    const parts = yTicks.flatMap((one) => [
      drawn("line", { class: "grid", x1: this.left, x2: this.right, y1: this.y.at(one), y2: this.y.at(one) }),
      drawn("text", { class: "soft", x: this.left - 7, y: this.y.at(one) + 4, "text-anchor": "end" }, y.show(one)),
    ]);
    let last = -Infinity;
    for (const one of xTicks) {
      const at = this.x.at(one),
        text = x.show(one);
      parts.push(drawn("line", { class: "axis", x1: at, x2: at, y1: this.bottom, y2: this.bottom + 4 }));
      if (at - text.length * 3.4 < last + 8 || at + text.length * 3.4 > this.right + 13) continue;
      last = at + text.length * 3.4;
      parts.push(drawn("text", { class: "soft", x: at, y: this.bottom + 17, "text-anchor": "middle" }, text));
    }
    parts.push(drawn("line", { class: "axis", x1: this.left, x2: this.right, y1: this.bottom, y2: this.bottom }));
    parts.push(drawn("text", { class: "soft", x: this.right, y: this.bottom + 34, "text-anchor": "end" }, x.label));
    parts.push(drawn("text", { class: "soft", x: 0, y: 11 }, y.label));
    return parts;
  }

  rule({ x, y, label, here }) {
    const upright = x !== undefined;
    const at = upright ? this.x.at(x) : this.y.at(y);
    if (!(upright ? at >= this.left - 1 && at <= this.right + 1 : at >= this.top - 9 && at <= this.bottom + 1))
      return [];
    const ends = upright
      ? { x1: at, x2: at, y1: this.top - 4, y2: this.bottom }
      : { x1: this.left, x2: this.right, y1: at, y2: at };
    const late = at > (this.left + this.right) / 2;
    const place = upright
      ? { x: late ? at - 5 : at + 5, y: this.top + 4, "text-anchor": late ? "end" : "start" }
      : { x: this.right - 2, y: at - 5, "text-anchor": "end" };
    return [
      drawn("line", { class: here ? "here" : "rule", ...ends }),
      drawn("text", { class: here ? "soft halo" : "rule-text halo", ...place }, label ?? ""),
    ];
  }

  mark({ x, y, label = "", mark = "dot", colour = "" }, taken) {
    const [at, up] = [this.x.at(x), this.y.at(y)];
    if (!(at >= this.left - 1 && at <= this.right + 1 && up >= this.top - 9 && up <= this.bottom + 1)) return [];
    const shown = drawn("path", { class: `mark ${mark} ${colour}`, d: MARKS[mark](at, up) });
    const wide = label.length * 6.6;
    const right = at + 9 + wide <= this.right + 8;
    const box = (dy) => ({
      left: right ? at + 7 : at - 7 - wide,
      right: right ? at + 9 + wide : at - 7,
      top: up + dy - 12,
      bottom: up + dy + 3,
    });
    const free = (one) =>
      one.top > 0 &&
      taken.every(
        (other) => one.right < other.left || one.left > other.right || one.bottom < other.top || one.top > other.bottom,
      );
    const dy = [-8, 16, -22, 30, 4].find((one) => free(box(one)));
    if (!label || dy === undefined) return [shown];
    taken.push(box(dy));
    return [
      shown,
      drawn(
        "text",
        { class: "halo", x: right ? at + 8 : at - 8, y: up + dy, "text-anchor": right ? "start" : "end" },
        label,
      ),
    ];
  }
}
