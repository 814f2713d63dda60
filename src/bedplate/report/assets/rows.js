// Rows of bars, as inline SVG: stacked parts of a sum, and how far a number may go. Each row is focused and read alone.

const BAR = { height: 20, title: 18, gap: 14 };

/** What bars have in common: a title and a text for each row, and a line that reads the row in focus. */
class Rows {
  constructor(host, title) {
    Object.assign(this, { title, spec: null });
    this.legend = make("ul", { className: "legend" });
    this.svg = drawn("svg", { role: "list", "aria-label": title });
    this.readout = make("p", { className: "readout" });
    this.element = make("figure", {}, make("figcaption", {}, title), this.legend, this.svg, this.readout);
    host.append(this.element);
    new ResizeObserver(() => {
      if (Math.round(this.element.clientWidth) !== this.width) this.render();
    }).observe(this.element);
  }

  draw(spec) {
    this.spec = spec;
    this.render();
  }

  render() {
    const width = (this.width = Math.round(this.element.clientWidth));
    if (!this.spec || width < 120) return;
    const { rows } = this.spec;
    const focused = [...this.svg.querySelectorAll("g[tabindex]")].indexOf(document.activeElement);
    const head = this.head(width);
    const each = BAR.title + BAR.height + BAR.gap;
    const height = head.height + rows.length * each;
    const groups = rows.map((row, n) => this.row(row, head.height + n * each, width));
    this.svg.setAttribute("viewBox", `0 0 ${width} ${Math.max(1, height)}`);
    this.svg.setAttribute("height", Math.max(1, height));
    this.svg.replaceChildren(...head.parts, ...groups);
    if (focused >= 0) groups[focused]?.focus();
    this.read(null);
  }

  row(row, top, width) {
    const room = Math.floor((width - 12) / 6.7) - row.note.length - 2;
    const name = row.name.length > room ? `${row.name.slice(0, Math.max(4, room - 1))}…` : row.name;
    const group = drawn(
      "g",
      { tabindex: 0, role: "listitem", "aria-label": row.read },
      drawn("rect", { x: 0, y: top, width, height: BAR.title + BAR.height + 4, fill: "transparent" }),
      drawn("text", { x: 0, y: top + 13 }, name),
      drawn("text", { class: "soft", x: width, y: top + 13, "text-anchor": "end" }, row.note),
      this.bar(row, top + BAR.title, width),
    );
    for (const event of ["pointerenter", "focus"]) group.addEventListener(event, () => this.read(row.read));
    for (const event of ["pointerleave", "blur"]) group.addEventListener(event, () => this.read(null));
    return group;
  }

  read(text) {
    this.readout.classList.toggle("on", text !== null);
    this.readout.textContent = text ?? this.spec.about ?? "Point at a row, or focus it, to read it.";
  }
}

/** rows: {name, note, read, parts [{name, value}], low, high (a whisker)}; names: of the parts, in order; limits: [{at, label}]. */
class Stacks extends Rows {
  draw(spec) {
    this.legend.replaceChildren(
      ...spec.names.map((name, n) =>
        make(
          "li",
          {},
          drawn(
            "svg",
            { viewBox: "0 0 26 12", "aria-hidden": "true", class: `c${n % 6}` },
            drawn("rect", { class: "part", width: 18, height: 11, x: 4 }),
          ),
          name,
        ),
      ),
    );
    super.draw(spec);
  }

  head(width) {
    const ends = this.spec.rows.flatMap((row) => [
      row.parts.reduce((sum, part) => sum + Math.max(0, part.value), 0),
      row.high ?? 0,
    ]);
    const most = Math.max(...ends, ...(this.spec.limits ?? []).map((one) => one.at), 1e-300);
    this.scale = (value) => (Math.max(0, value) / most) * (width - 2);
    const limits = this.spec.limits ?? [];
    const bottom = limits.length * 16 + this.spec.rows.length * (BAR.title + BAR.height + BAR.gap);
    const parts = limits.flatMap((one, n) => {
      const at = this.scale(one.at);
      return [
        drawn("line", { class: "rule", x1: at, x2: at, y1: n * 16, y2: bottom }),
        drawn("text", { class: "rule-text", x: at - 5, y: n * 16 + 11, "text-anchor": "end" }, one.label),
      ];
    });
    return { height: limits.length * 16 + (limits.length ? 4 : 0), parts };
  }

  bar(row, top) {
    let sum = 0;
    const parts = row.parts.map((part) => {
      const from = this.scale(sum);
      sum += Math.max(0, part.value);
      return part.value > 0
        ? drawn("rect", {
            class: `part c${this.spec.names.indexOf(part.name) % 6}`,
            x: from,
            y: top,
            width: Math.max(0.6, this.scale(sum) - from),
            height: BAR.height,
          })
        : null;
    });
    if (row.low !== undefined && row.high > row.low) {
      const [a, b, middle] = [this.scale(row.low), this.scale(row.high), top + BAR.height / 2];
      parts.push(
        drawn("path", { class: "whisker", d: `M${a} ${middle - 5}v10M${a} ${middle}H${b}M${b} ${middle - 5}v10` }),
      );
    }
    return parts;
  }
}

/** rows: {name, note, read, below, above (in ratio to now, or null), low, high (the stated range, in ratio)}. */
class Tornado extends Rows {
  head(width) {
    const seen = this.spec.rows
      .flatMap((row) => [row.below, row.above])
      .filter((one) => one > 0)
      .map((one) => Math.abs(Math.log10(one)));
    const most = Math.min(2, Math.max(0.35, ...seen) * 1.08);
    this.scale = scaled("log", 10 ** -most, 10 ** most, 8, width - 8);
    this.ends = [10 ** -most, 10 ** most];
    const bottom = 22 + this.spec.rows.length * (BAR.title + BAR.height + BAR.gap);
    const shown = [0.01, 0.03, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 100].filter(
      (one) => one >= this.ends[0] && one <= this.ends[1] && (most < 1.1 || ![0.2, 0.5, 2, 5].includes(one)),
    );
    const parts = shown.flatMap((one) => {
      const at = this.scale.at(one);
      return [
        drawn("line", { class: one === 1 ? "here" : "grid", x1: at, x2: at, y1: 16, y2: bottom }),
        drawn(
          "text",
          { class: "soft", x: at, y: 11, "text-anchor": "middle" },
          one === 1 ? "now" : `×${general(one, 2)}`,
        ),
      ];
    });
    return { height: 24, parts };
  }

  bar(row, top, width) {
    const into = (ratio, otherwise) =>
      ratio === null ? otherwise : this.scale.at(Math.min(this.ends[1], Math.max(this.ends[0], ratio)));
    const [from, to, middle] = [into(row.below, 0), into(row.above, width), top + BAR.height / 2];
    const parts = [
      drawn("rect", { class: "track", x: 0, y: top + 3, width, height: BAR.height - 6, rx: 2 }),
      drawn("rect", {
        class: "steady",
        x: from,
        y: top + 3,
        width: Math.max(1, to - from),
        height: BAR.height - 6,
        rx: 2,
      }),
    ];
    if (row.high > row.low)
      parts.push(
        drawn("rect", {
          class: "stated",
          x: into(row.low, 0),
          y: middle - 1.5,
          width: Math.max(2, into(row.high, width) - into(row.low, 0)),
          height: 3,
        }),
      );
    for (const ratio of [row.below, row.above])
      if (ratio !== null) parts.push(drawn("path", { class: "flip", d: MARKS.hollow(into(ratio, 0), middle) }));
    return parts;
  }
}
