// One conversation with one model.

import { ask, speed } from "./api.js";
import { showReport } from "./dialogs.js";
import { about, chosenModel, contentFor, fieldsOf, isSkin, onChoice } from "./models.js";
import { Announcer, byId, dollars, Fields, GrowingText, make, scoreBars, seconds } from "./view.js";

const fields = new Fields(byId("chat-fields"), "message");
const turns = []; // {asked, reply}: what was sent, and what came (null where it failed)
let running = null;
let modelId;

onChoice(() => {
  const model = chosenModel();
  byId("report").hidden = !model?.bedplate?.report;
  if (!model || model.id === modelId) return;
  modelId = model.id;
  fields.show(fieldsOf([model], "Message"));
  const alone = isSkin(model) && turns.length ? " It reads only your next message, not the conversation." : "";
  byId("chat-about").textContent = `${model.id}: ${about(model)}.${alone}`;
});

/**
 * The sampling settings that the page's fields give. Empty ones are left out; and a skin, which has settings of its own
 * that it was judged with, gets only those that were changed here.
 */
export function sampling(model) {
  const given = Object.entries({ temperature: "temperature", max_tokens: "max-tokens", seed: "seed" })
    .map(([name, id]) => [name, byId(id)])
    .filter(([, field]) => field.value !== "" && !(isSkin(model) && field.value === field.defaultValue));
  return Object.fromEntries(given.map(([name, field]) => [name, Number(field.value)]));
}

/** The messages for a model: a skin gets its input alone, a base the system prompt and what was said before. */
export function messagesFor(model, content, before = []) {
  const now = { role: "user", content };
  if (isSkin(model)) return [now];
  const system = byId("system").value.trim();
  const said = before
    .filter((turn) => turn.reply !== null)
    .flatMap((turn) => [{ role: "user", content: turn.asked }, { role: "assistant", content: turn.reply }]);
  return [...(system ? [{ role: "system", content: system }] : []), ...said, now];
}

async function answer(content) {
  const model = chosenModel();
  if (!model || running) return;
  const turn = { asked: content, reply: null };
  const text = make("div", { className: "text writing", "aria-busy": "true" });
  const shown = make("li", { className: "turn answer" }, make("h3", {}, model.id), text);
  turn.elements = [make("li", { className: "turn asked" }, make("h3", {}, "You"), make("div", { className: "text" }, content)), shown];
  byId("turns").append(...turn.elements);
  shown.scrollIntoView({ block: "end" });
  const growing = new GrowingText(text);
  const announcer = new Announcer();
  running = new AbortController();
  buttons();
  const messages = messagesFor(model, content, turns);
  turns.push(turn);
  try {
    const found = await ask({ model: model.id, messages, ...sampling(model) }, running.signal, (piece) => {
      growing.push(piece);
      announcer.heard(growing.text);
    });
    growing.finish();
    turn.reply = found.text;
    if (found.scores) shown.append(scoreBars(found.scores));
    shown.append(make("p", { className: "facts" }, factLine(found)));
    announcer.end(found.text, "The answer is complete.");
  } catch (error) {
    growing.finish();
    if (error.name === "AbortError") {
      turn.reply = growing.text;
      shown.append(make("p", { className: "facts" }, "stopped"));
      announcer.end("", "Stopped.");
    } else {
      shown.append(make("p", { className: "error" }, error.message));
      announcer.end("", `Error: ${error.message}`);
    }
  } finally {
    text.classList.remove("writing");
    text.removeAttribute("aria-busy");
    running = null;
    buttons();
  }
}

function factLine(found) {
  return facts(found).map(([term, value]) => `${term} ${value}`).join(" · ");
}

/** What is known of an answer, as [term, value] pairs. */
export function facts(found) {
  const { usage } = found;
  const rate = speed(found);
  const why = { length: "token limit", content_filter: "filter" }[found.finish];
  const pairs = [
    ["first token", found.first === undefined ? "–" : seconds(found.first)],
    ["tokens/s", rate === undefined ? "–" : rate.toFixed(1)],
    ["prompt", usage ? `${usage.prompt_tokens}` : "–"],
    ["cached", usage ? `${usage.prompt_tokens_details?.cached_tokens ?? 0}` : "–"],
    ["completion", usage ? `${usage.completion_tokens}` : "–"],
    ["latency", seconds(found.total)],
    ["price", found.cost === undefined ? "not set" : dollars(found.cost)],
  ];
  return why ? [...pairs, ["ended by", why]] : pairs;
}

function buttons() {
  byId("send").disabled = running !== null;
  byId("stop").disabled = running === null;
  byId("again").disabled = running !== null || !turns.length;
}

export function stop() {
  running?.abort();
}

export function regenerate() {
  if (running || !turns.length) return;
  const last = turns.pop();
  for (const element of last.elements) element.remove();
  answer(last.asked);
}

export function fresh() {
  stop();
  turns.length = 0;
  byId("turns").replaceChildren();
  buttons();
  fields.focus();
}

export const focusMessage = () => fields.focus();

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const model = chosenModel();
  const values = fields.values();
  if (running || !model || !Object.values(values).some((value) => value.trim())) return;
  const content = contentFor(model, values);
  fields.clear();
  fields.focus();
  answer(content);
});
byId("stop").addEventListener("click", () => {
  stop();
  fields.focus();
});
byId("again").addEventListener("click", regenerate);
byId("fresh").addEventListener("click", fresh);
byId("report").addEventListener("click", () => showReport(chosenModel().id));
fields.show([["", "Message"]]);
