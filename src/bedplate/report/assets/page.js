// The page: elements of text only (nothing here parses markup), what was moved, and when it is drawn anew.

const DATA = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

/** An element with properties (or attributes, where the name has a dash) and children; strings become text. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role" || name === "for") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.flat().filter((child) => child !== null));
  return element;
}

function drawn(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.flat().filter((child) => child !== null));
  return element;
}

/** A section with a heading, in the page's main part. */
function section(title, about, ...children) {
  const id = `s-${title.toLowerCase().replace(/\W+/g, "-")}`;
  const found = make(
    "section",
    { "aria-labelledby": id },
    make("h2", { id }, title),
    about && make("p", { className: "muted small" }, about),
    ...children,
  );
  byId("main").append(found);
  return found;
}

/** The few figures on top: [name, value, range]. */
function showHeadline(rows, verdict = null) {
  const list = make(
    "dl",
    {},
    rows.map(([name, value, range]) =>
      make(
        "div",
        {},
        make("dt", {}, name),
        make("dd", { className: "value" }, value),
        make("dd", { className: "range" }, range ?? ""),
      ),
    ),
  );
  byId("headline").replaceChildren(make("div", {}, verdict, list));
  say(
    verdict === null
      ? rows
          .slice(0, 3)
          .map(([name, value]) => `${name}: ${value}`)
          .join(", ")
      : verdict.textContent,
  );
}

new ResizeObserver(() =>
  document.documentElement.style.setProperty("--head", `${byId("headline").offsetHeight}px`),
).observe(byId("headline"));

let saying = null;

/** For those who listen: what it comes to, once nothing has moved for a while. */
function say(text) {
  clearTimeout(saying);
  saying = setTimeout(() => {
    if (byId("said").textContent !== text) byId("said").textContent = text;
  }, 700);
}

/**
 * Figures beside their formulas. row: {name, label, of, show, range, live}; of: a number, {low, central, high}, or
 * nothing (a formula alone); live: the formula with the numbers of now. The element's value has all digits.
 */
function showFigures(list, rows, formulas) {
  list.replaceChildren(
    ...rows.map(({ name, label, of = null, show, range: around, live }) => {
      const { formula, source } = formulas[name];
      const how = [
        make("span", {}, formula),
        live ? make("span", { className: "live" }, live) : null,
        make("span", { className: "source" }, source),
      ];
      const shown = make("dd", { className: "value" });
      shown.dataset.figure = name;
      if (of !== null) {
        const ranged = of.central !== undefined,
          beneath = around ?? (ranged ? range(of.low, of.high, show) : "");
        shown.append(
          make("data", { value: of.central ?? of }, show(of.central ?? of)),
          ...(beneath ? [make("small", {}, beneath)] : []),
        );
        if (ranged) Object.assign(shown.dataset, { low: of.low, high: of.high });
      }
      return make("div", {}, make("dt", {}, label), shown, make("dd", { className: "how" }, how));
    }),
  );
}

function showLines(list, lines) {
  list.replaceChildren(...lines.map((line) => make("li", {}, line)));
}

const range = (low, high, show) => (low === high ? "" : `${show(low)} to ${show(high)}`);

/** Arguments as a shell takes them. */
const shell = (words) =>
  words.map((word) => (/^[\w./:,+=@%-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`)).join(" ");

/** Calls `update` with the values when something moves, at most once a frame; keeps what was moved in the address. */
class Workbench {
  constructor(update) {
    this.controls = new Map();
    this.update = update;
    this.frame = null;
    this.reset = make("button", { type: "button", disabled: true }, "Back to what was stated");
    this.reset.addEventListener("click", () => {
      for (const control of this.controls.values()) control.set(null);
      this.moved();
    });
    byId("controls").addEventListener("submit", (event) => event.preventDefault());
    byId("controls").append(make("div", { className: "row" }, this.reset));
  }

  add(...specs) {
    for (const spec of specs) {
      const control = new Control(spec, () => this.moved());
      this.controls.set(spec.name, control);
      byId("controls").lastElementChild.before(control.element);
    }
  }

  has(name) {
    return this.controls.has(name);
  }

  /** By name; what is not moved has its stated value, which may rest on other values. */
  get values() {
    const values = {};
    for (const [name, control] of this.controls) values[name] = control.value(values);
    return values;
  }

  get changed() {
    return new Set([...this.controls].filter(([, control]) => control.own !== null).map(([name]) => name));
  }

  /** Takes what the address says, then draws. */
  start(open = () => {}) {
    for (const [name, text] of new URLSearchParams(location.hash.slice(1))) {
      const value = Number(text);
      open(name);
      if (text && Number.isFinite(value)) this.controls.get(name)?.set(value);
    }
    this.draw();
  }

  moved() {
    this.frame ??= requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.frame = null;
    const values = this.values;
    for (const control of this.controls.values()) control.show(values);
    const changed = this.changed;
    this.reset.disabled = changed.size === 0;
    const address = new URLSearchParams(
      [...changed].map((name) => [name, String(this.controls.get(name).own)]),
    ).toString();
    history.replaceState(null, "", address ? `#${address}` : location.pathname + location.search);
    this.update(values, changed);
  }
}
