// The server's API: one place that knows its addresses, its errors and its streams.

const KEY = "bedplate.key";
let askForKey = async () => false;

/** ask(message): when the server wants a key; message: why the one that was sent will not do, "" where none was. */
export function onKeyWanted(ask) {
  askForKey = ask;
}

// Kept by the tab alone, and only after the server asked for it.
export const apiKey = () => sessionStorage.getItem(KEY);
export const keepKey = (key) => sessionStorage.setItem(KEY, key);

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** A response that is good; else an ApiError with the server's message. A 401 asks for a key and tries again. */
export async function request(path, options = {}) {
  for (;;) {
    const key = apiKey();
    const headers = { ...options.headers, ...(key === null ? {} : { authorization: `Bearer ${key}` }) };
    let response;
    try {
      response = await fetch(path, { ...options, headers, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The server cannot be reached.", 0);
    }
    if (response.ok) return response;
    const message = await messageOf(response);
    if (response.status !== 401 || options.quiet || !(await askForKey(key === null ? "" : message))) {
      throw new ApiError(message, response.status);
    }
  }
}

async function messageOf(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return `The server answered ${response.status} ${response.statusText}.`;
  }
}

export async function listModels() {
  return (await (await request("/v1/models")).json()).data;
}

/** Asks for a chat and yields each chunk of its stream. */
export async function* streamChat(body, signal) {
  const response = await request("/v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.message, 200);
    yield chunk;
  }
  throw new ApiError("The answer broke off: the server closed the connection.", 0);
}

/** The data of server-sent events. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      held += value.replaceAll("\r\n", "\n");
      const parts = held.split("\n\n");
      held = parts.pop();
      for (const part of parts) {
        const lines = part.split("\n").filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * One answer, measured from here. onText gets each piece. Gives {text, finish, label, scores, usage, cost, first, total}:
 * times in ms, what the server did not say is undefined.
 */
export async function ask(body, signal, onText) {
  const start = performance.now();
  const answer = { text: "" };
  for await (const chunk of streamChat(body, signal)) {
    const choice = chunk.choices?.[0];
    const piece = choice?.delta?.content;
    if (piece) {
      answer.first ??= performance.now() - start;
      answer.text += piece;
      onText(piece);
    }
    if (choice?.finish_reason) answer.finish = choice.finish_reason;
    if (choice?.bedplate) {
      answer.label = choice.bedplate.label;
      answer.scores = choice.bedplate.scores;
    }
    if (chunk.usage) answer.usage = chunk.usage;
    if (chunk.bedplate?.cost_usd !== undefined) answer.cost = chunk.bedplate.cost_usd;
  }
  answer.total = performance.now() - start;
  return answer;
}

/** Tokens a second after the first one; undefined where there were fewer than two. */
export function speed(answer) {
  const made = answer.usage?.completion_tokens ?? 0;
  const span = answer.total - answer.first;
  return made > 1 && span > 0 ? (1000 * (made - 1)) / span : undefined;
}
