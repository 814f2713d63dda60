// One prompt to several models at once, side by side.

import { ask } from "./api.js";
import { facts, messagesFor, sampling } from "./chat.js";
import { chosenModels, contentFor, fieldsOf, onChoice } from "./models.js";
import { byId, Fields, GrowingText, make, numbers, say, scoreBars } from "./view.js";

const fields = new Fields(byId("compare-fields"), "prompt");
let running = null;

onChoice(() => {
  const models = chosenModels();
  fields.show(fieldsOf(models, "Prompt"));
  byId("compare-about").textContent =
    models.length < 2 ? "Choose two or more models in the list." : models.map((model) => model.id).join(" · ");
  buttons();
});

function column(model) {
  const text = make("div", { className: "text writing", "aria-busy": "true" });
  const found = make("dl", { className: "numbers" });
  const element = make("article", { className: "column", "aria-label": model.id }, make("h3", {}, model.id), text, found);
  return { model, element, text, found, growing: new GrowingText(text) };
}

async function fill(one, values, signal) {
  const { model, element, text, found, growing } = one;
  const started = performance.now();
  try {
    const body = { model: model.id, messages: messagesFor(model, contentFor(model, values)), ...sampling(model) };
    const answer = await ask(body, signal, (piece) => growing.push(piece));
    if (answer.scores) element.insertBefore(scoreBars(answer.scores), found);
    found.append(...numbers(facts(answer)));
  } catch (error) {
    const stopped = error.name === "AbortError";
    const said = stopped ? `stopped after ${((performance.now() - started) / 1000).toFixed(1)} s` : error.message;
    element.insertBefore(make("p", { className: stopped ? "facts" : "error" }, said), found);
  } finally {
    growing.finish();
    text.classList.remove("writing");
    text.removeAttribute("aria-busy");
  }
}

function buttons() {
  byId("run").disabled = running !== null || chosenModels().length < 2;
  byId("stop-all").disabled = running === null;
}

export function stopAll() {
  running?.abort();
}

export const focusPrompt = () => fields.focus();

byId("comparer").addEventListener("submit", async (event) => {
  event.preventDefault();
  const models = chosenModels();
  const values = fields.values();
  if (running || models.length < 2 || !Object.values(values).some((value) => value.trim())) return;
  const columns = models.map(column);
  byId("columns").replaceChildren(...columns.map((one) => one.element));
  running = new AbortController();
  buttons();
  say(`Asking ${models.length} models.`);
  await Promise.all(columns.map((one) => fill(one, values, running.signal)));
  running = null;
  buttons();
  say("All models have answered.");
});
byId("stop-all").addEventListener("click", () => {
  stopAll();
  fields.focus();
});
