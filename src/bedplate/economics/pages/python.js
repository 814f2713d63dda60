// What translated Python needs (economics/numbers/javascript.py): lists, tuples and sets are arrays, dicts are Maps. A
// plain object as the last argument holds keyword arguments.

const py = (() => {
  const each = (values) => (Array.isArray(values) ? values : [...(values instanceof Map ? values.keys() : values)]);
  const list = (values = []) => each(values).slice();
  const truth = (value) =>
    Array.isArray(value) ? value.length > 0 : value instanceof Map ? value.size > 0 : Boolean(value);
  const itself = (value) => value;

  /** Below, at or above 0; lists by their first difference. */
  function compared(a, b) {
    if (!Array.isArray(a)) return a < b ? -1 : a > b ? 1 : 0;
    const place = a.findIndex((value, n) => n >= b.length || compared(value, b[n]));
    return place < 0 ? a.length - b.length : place < b.length ? compared(a[place], b[place]) : 1;
  }

  const extreme = (sign) => (...values) => {
    const keywords = values.at(-1)?.constructor === Object ? values.pop() : {};
    const all = values.length > 1 ? values : each(values[0]);
    const { key = itself, default: otherwise } = keywords;
    return all.length ? all.reduce((best, value) => (sign * compared(key(value), key(best)) > 0 ? value : best)) : otherwise;
  };

  return {
    each,
    list,
    truth,
    tuple: list,
    set: (values) => [...new Set(each(values))],
    or: (value, ...others) => others.reduce((last, other) => (truth(last) ? last : other()), value),
    and: (value, ...others) => others.reduce((last, other) => (truth(last) ? other() : last), value),
    add: (a, b) => (Array.isArray(a) ? [...a, ...b] : a + b),
    at: (values, place) => (values instanceof Map ? values.get(place) : values.at(place)),
    put: (values, place, value) => {
      if (values instanceof Map) values.set(place, value);
      else values[place < 0 ? values.length + place : place] = value;
    },
    slice: (values, low, high, step) =>
      values.slice(low ?? 0, high ?? values.length).filter((_, n) => n % (step ?? 1) === 0),
    contains: (values, value) => (values instanceof Map ? values.has(value) : values.includes(value)),
    min: extreme(-1),
    max: extreme(1),
    len: (values) => values.size ?? values.length,
    sum: (values) => each(values).reduce((sum, value) => sum + value, 0),
    any: (values) => each(values).some(truth),
    all: (values) => each(values).every(truth),
    sorted: (values, { key = itself } = {}) => list(values).sort((a, b) => compared(key(a), key(b))),
    enumerate: (values) => each(values).map((value, n) => [n, value]),
    zip: (first, second) => each(first).map((value, n) => [value, each(second)[n]]),
    map: (change, values) => each(values).map((value) => change(value)),
    range: (low, high, step = 1) => {
      const [begin, end] = high === undefined ? [0, low] : [low, high];
      return Array.from({ length: Math.max(0, Math.ceil((end - begin) / step)) }, (_, n) => begin + n * step);
    },
    next: (values, otherwise) => (values.length ? values[0] : otherwise),
    int: Math.trunc,
    replace: (record, changes) => Object.assign(Object.create(Object.getPrototypeOf(record)), record, changes),
    append: (values, value) => values.push(value),
    pop: (values) => values.pop(),
    count: (values, value) => values.filter((candidate) => candidate === value).length,
    index: (values, value) => values.indexOf(value),
    get: (values, key, otherwise = null) => values.get(key) ?? otherwise,
    items: (values) => [...values],
    keys: list,
    values: (values) => [...values.values()],
    join: (glue, values) => each(values).join(glue),
    capitalize: (text) => text.charAt(0).toUpperCase() + text.slice(1).toLowerCase(),
    rstrip: (text, character) => {
      while (text.endsWith(character)) text = text.slice(0, -1);
      return text;
    },
    /** Python's format(): `.3g`, `,.0f`, `.0%`. */
    format: (value, form) => {
      const [, comma, places = 6, type] = /^(,?)(?:\.(\d+))?([fg%])$/.exec(form);
      if (type === "%") return percent(value, Number(places));
      if (type === "g") return general(value, Number(places));
      return comma ? grouped(value, Number(places)) : fixed(value, Number(places));
    },
  };
})();
