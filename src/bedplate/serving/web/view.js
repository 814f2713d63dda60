// What is shown, and how: elements made of text only (nothing here parses markup), and texts that grow frame by frame.

export const byId = (id) => document.getElementById(id);

/** An element with properties (or attributes, where the name has a dash) and children; strings become text. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role" || name === "for") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

const BLOCK = 2000;

/** A text that arrives in pieces. The page is touched once a frame; only the last block of a long text is laid out anew. */
export class GrowingText {
  constructor(element) {
    this.element = element;
    this.text = "";
    this.shown = 0;
    this.frame = null;
  }

  push(piece) {
    this.text += piece;
    // a hidden tab has no frames: its text waits for finish()
    this.frame ??= requestAnimationFrame(() => this.show());
  }

  finish() {
    if (this.frame !== null) cancelAnimationFrame(this.frame);
    this.show();
  }

  show() {
    this.frame = null;
    const atEnd = nearEnd();
    while (this.shown < this.text.length) {
      if (!this.node || this.node.length >= BLOCK && this.node.data.endsWith("\n")) {
        this.node = document.createTextNode("");
        this.element.append(make("div", {}, this.node));
      }
      // a block ends with a line, so that the blocks under each other look as the text does
      const room = Math.max(0, BLOCK - 1 - this.node.length);
      const line = this.text.indexOf("\n", this.shown + room);
      const end = line < 0 ? this.text.length : line + 1;
      this.node.appendData(this.text.slice(this.shown, end));
      this.shown = end;
    }
    if (atEnd) window.scrollTo({ top: document.documentElement.scrollHeight });
  }
}

const nearEnd = () => window.innerHeight + window.scrollY >= document.documentElement.scrollHeight - 80;

const SAY_EVERY = 5000;

/** What a screen reader hears of a growing text: whole sentences, a few seconds apart, and the rest at the end. */
export class Announcer {
  constructor() {
    this.said = 0;
    this.last = performance.now();
    say("Answering.");
  }

  heard(text) {
    if (performance.now() - this.last < SAY_EVERY) return;
    const fresh = text.slice(this.said);
    const end = Math.max(...[". ", "! ", "? ", "\n"].map((mark) => fresh.lastIndexOf(mark)));
    if (end < 0) return;
    say(fresh.slice(0, end + 1));
    this.said += end + 1;
    this.last = performance.now();
  }

  end(text, rest = "") {
    say([text.slice(this.said), rest].filter(Boolean).join(" "));
  }
}

export function say(text) {
  byId("said").textContent = text;
}

/** Labels with bars, likeliest first. scores: log-probabilities. */
export function scoreBars(scores) {
  const rows = Object.entries(scores).sort((a, b) => b[1] - a[1]);
  const list = make("div", { className: "scores", role: "list", "aria-label": "Scores" });
  for (const [label, score] of rows) {
    const share = `${(100 * Math.exp(score)).toFixed(1)} %`;
    const bar = make("div", { className: "bar" });
    bar.style.width = share.replace(" ", "");
    const row = [
      make("span", { className: "label" }, label),
      make("span", { className: "track", "aria-hidden": "true" }, bar),
      make("span", { className: "n" }, share),
    ];
    const item = make("div", { role: "listitem" }, ...row);
    item.style.display = "contents";
    list.append(item);
  }
  return list;
}

export const seconds = (ms) => (ms < 1000 ? `${ms.toFixed(0)} ms` : `${(ms / 1000).toFixed(2)} s`);

/** Dollars as people read them: no exponents, but as many digits as a small price needs for two that count. */
export function dollars(usd) {
  if (!(usd > 0)) return "$0";
  const digits = usd >= 1000 ? 2 : Math.min(20, Math.max(4, 1 - Math.floor(Math.log10(usd))));
  return `$${usd.toLocaleString("en", { minimumFractionDigits: usd < 0.01 ? 0 : digits, maximumFractionDigits: digits })}`;
}

/** A definition list's content: [term, value] pairs. */
export function numbers(pairs) {
  return pairs.flatMap(([term, value]) => [make("dt", {}, term), make("dd", {}, value)]);
}

/** One text field per input. Enter sends, Shift+Enter is a new line (and so is Enter while a word is being composed). */
export class Fields {
  constructor(holder, prefix) {
    Object.assign(this, { holder, prefix, names: [] });
    holder.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.target.tagName !== "TEXTAREA") return;
      event.preventDefault();
      event.target.form.requestSubmit();
    });
  }

  /** Shows fields of these [name, label]s; what was written under a name that stays is kept. */
  show(wanted) {
    const kept = this.values();
    this.names = wanted.map(([name]) => name);
    this.holder.replaceChildren(...wanted.flatMap(([name, label], index) => {
      const id = `${this.prefix}-${index}`;
      const field = make("textarea", { id, name, rows: wanted.length > 1 ? 2 : 3, value: kept[name] ?? "" });
      return [make("label", { for: id }, label), field];
    }));
  }

  values() {
    return Object.fromEntries([...this.holder.querySelectorAll("textarea")].map((field) => [field.name, field.value]));
  }

  clear() {
    for (const field of this.holder.querySelectorAll("textarea")) field.value = "";
  }

  focus() {
    this.holder.querySelector("textarea")?.focus();
  }
}
