// One number that can be moved: a slider, and a field to type in.

const STEPS = 400;

/**
 * spec: name, label, hint, low, high, stated, scale ("log", "linear", "list"), and where they differ from the default:
 * list (of its values), step, show and read (a value as text, and back), unknown (nothing is stated: `stated` is only
 * where the slider begins). low, high, stated, hint may be functions of the values of the controls before it. What is
 * moved by a slider has three digits, so that what is shown is exact.
 */
class Control {
  constructor(spec, moved) {
    if (spec.list) Object.assign(spec, { low: spec.list[0], high: spec.list.at(-1) });
    Object.assign(this, { spec, own: null, wrong: null, text: spec.show ?? typed, read: spec.read ?? parsed });
    const id = `control-${[...byId("controls").querySelectorAll(".control")].length}`;
    this.slider = make("input", {
      type: "range",
      id,
      min: 0,
      max: this.last,
      step: 1,
      "aria-describedby": `${id}-hint`,
    });
    this.slider.dataset.name = spec.name;
    this.field = make("input", {
      type: "text",
      inputMode: "decimal",
      spellcheck: false,
      "aria-label": `${spec.label}, typed`,
      "aria-describedby": `${id}-hint`,
    });
    this.field.dataset.name = spec.name;
    this.hint = make("p", { className: "hint", id: `${id}-hint` });
    const line = make("div", { className: "line" }, make("label", { for: id }, ...breakable(spec.label)), this.field);
    this.element = make("div", { className: "control" }, line, this.slider, this.hint);
    this.slider.addEventListener("input", () => {
      this.slide(Number(this.slider.value));
      moved();
    });
    this.field.addEventListener("change", () => {
      if (this.type(this.field.value)) moved();
    });
  }

  get last() {
    const { scale, list, step, low, high } = this.spec;
    if (scale === "list") return list.length - 1;
    return scale === "linear" && step ? Math.round((high - low) / step) : STEPS;
  }

  bound(name) {
    const found = this.spec[name];
    return typeof found === "function" ? found(this.others ?? {}) : found;
  }

  /** Given the values of the controls before it. */
  value(others) {
    this.others = others;
    if (this.own === null) return this.bound("stated");
    return this.spec.scale === "list" ? this.own : Math.min(this.bound("high"), Math.max(this.bound("low"), this.own));
  }

  /** null: as stated. */
  set(value) {
    this.refuse(null);
    if (value !== null && this.spec.scale === "list") value = nearest(this.spec.list, value);
    this.own = value === null || (value === this.bound("stated") && !this.spec.unknown) ? null : value;
  }

  /** The value at a place of the slider. */
  at(place) {
    const { scale, list, step } = this.spec;
    if (scale === "list") return list[place];
    const low = this.bound("low"),
      high = this.bound("high"),
      share = place / this.last;
    if (place === 0) return low;
    if (place === this.last) return high;
    const found = scale === "log" ? low * (high / low) ** share : low + (high - low) * share;
    const rounded = step ? Number((Math.round(found / step) * step).toPrecision(12)) : Number(found.toPrecision(3));
    return Math.min(high, Math.max(low, this.spec.whole ? Math.round(rounded) : rounded));
  }

  place(value) {
    const { scale, list } = this.spec;
    if (scale === "list") return list.indexOf(nearest(list, value));
    const low = this.bound("low"),
      high = this.bound("high");
    const share = scale === "log" ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
    return high > low ? Math.min(this.last, Math.max(0, Math.round(share * this.last))) : 0;
  }

  slide(place) {
    this.set(place === this.place(this.bound("stated")) ? this.bound("stated") : this.at(place));
  }

  /** Whether it was a number that may stand here. */
  type(text) {
    if (text === this.shown) {
      this.refuse(null);
      return false;
    }
    const value = this.read(text);
    const low = this.bound("low"),
      high = this.bound("high");
    if (!(value >= low && value <= high) || (this.spec.whole && !Number.isInteger(value))) {
      this.refuse(`A ${this.spec.whole ? "whole " : ""}number from ${this.text(low)} to ${this.text(high)} is wanted.`);
      return false;
    }
    this.set(text === this.text(this.bound("stated")) ? this.bound("stated") : value);
    return true;
  }

  refuse(why) {
    this.wrong = why;
    this.field.setAttribute("aria-invalid", String(why !== null));
    this.hint.classList.toggle("error", why !== null);
    this.hint.textContent = why ?? this.said ?? "";
  }

  show(values) {
    this.others = values;
    const value = values[this.spec.name];
    this.shown = this.spec.unknown && this.own === null ? "" : this.text(value);
    this.slider.value = String(this.place(value));
    this.slider.setAttribute("aria-valuetext", this.shown);
    const stated = this.bound("stated");
    const hint = this.bound("hint") ?? "";
    this.said =
      this.own === null || this.spec.unknown ? hint : [`stated: ${this.text(stated)}`, hint].filter(Boolean).join("; ");
    this.element.classList.toggle("moved", this.own !== null);
    if (this.wrong) return; // what was typed stays until it is right
    this.field.value = this.shown;
    this.hint.textContent = this.said;
  }
}

/** A long name may break after its dots and underscores. */
const breakable = (name) =>
  name
    .split(/(?<=[._])/)
    .flatMap((part) => [part, make("wbr")])
    .slice(0, -1);

/** Of a sorted list, in ratio. */
function nearest(list, value) {
  return list.reduce((best, one) => (Math.abs(Math.log(one / value)) < Math.abs(Math.log(best / value)) ? one : best));
}
