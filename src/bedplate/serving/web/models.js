// Which models there are, which are chosen, and what each is asked with.

import { listModels } from "./api.js";
import { byId, make } from "./view.js";

let known = [];
let several = false;
const chosen = { one: null, many: new Set() };
const listeners = [];

export const onChoice = (listener) => listeners.push(listener);
export const chosenModel = () => known.find((model) => model.id === chosen.one);
export const chosenModels = () => known.filter((model) => chosen.many.has(model.id));

export const isSkin = (model) => model.bedplate?.inputs !== undefined;
const inputsOf = (model) => model.bedplate?.inputs ?? [];
const PROMPT = "";

/** The [name, label]s of the fields that these models need; models of one input share one field. */
export function fieldsOf(models, label) {
  const wanted = new Map();
  for (const model of models) {
    const inputs = inputsOf(model);
    if (inputs.length > 1) for (const name of inputs) wanted.set(name, `Input ${name}`);
    else wanted.set(PROMPT, models.length === 1 && inputs.length === 1 ? `Input ${inputs[0]}` : label);
  }
  return wanted.size ? [...wanted] : [[PROMPT, label]];
}

/** What a model is told of the fields' values: a skin of several inputs takes a JSON object. */
export function contentFor(model, values) {
  const inputs = inputsOf(model);
  if (inputs.length < 2) return values[PROMPT] ?? "";
  return JSON.stringify(Object.fromEntries(inputs.map((name) => [name, values[name] ?? ""])));
}

/** One line about a model. */
export function about(model) {
  const facts = model.bedplate ?? {};
  if (!isSkin(model)) {
    const kind = facts.kind ?? "model";
    return facts.context_length ? `${kind}, ${facts.context_length.toLocaleString("en")} tokens of context` : kind;
  }
  const some = facts.output === "labels" ? "any" : "one";
  const output = facts.labels ? `${some} of ${facts.labels.join(", ")}` : facts.output;
  const on = facts.base === null ? "without a base" : `on ${facts.base}`;
  return `${facts.kind} skin ${on}: ${inputsOf(model).join(", ")} → ${output}`;
}

export async function loadModels() {
  const note = byId("models-note");
  note.textContent = "";
  try {
    known = await listModels();
  } catch (error) {
    note.textContent = error.message;
    return;
  }
  if (!chosenModel()) chosen.one = known[0]?.id ?? null;
  chosen.many = new Set(chosenModels().map((model) => model.id));
  draw();
}

/** Shows the list for choosing one model, or several. */
export function chooseSeveral(yes) {
  several = yes;
  byId("models-legend").textContent = yes ? "Models to compare" : "Model to chat with";
  if (yes && !chosen.many.size) for (const model of known.slice(0, 2)) chosen.many.add(model.id);
  draw();
}

function draw() {
  const sought = byId("search").value.trim().toLowerCase();
  const shown = known.filter((model) => `${model.id} ${about(model)}`.toLowerCase().includes(sought));
  byId("model-list").replaceChildren(...shown.map(row));
  byId("models-note").textContent = shown.length ? "" : known.length ? "No model matches the search." : "There are no models.";
  for (const listener of listeners) listener();
}

function row(model, index) {
  const id = `about-${index}`;
  const box = make("input", {
    type: several ? "checkbox" : "radio",
    name: "model",
    value: model.id,
    "aria-label": model.id,
    "aria-describedby": id,
    checked: several ? chosen.many.has(model.id) : chosen.one === model.id,
  });
  box.addEventListener("change", () => {
    if (!several) chosen.one = model.id;
    else if (box.checked) chosen.many.add(model.id);
    else chosen.many.delete(model.id);
    for (const listener of listeners) listener();
  });
  return make("label", { className: "model" }, box, make("span", {}, model.id, make("small", { id }, about(model))));
}

byId("search").addEventListener("input", draw);
byId("reload").addEventListener("click", loadModels);
