/* The server: its configuration, an answer as a stream of events, votes. Where it wants a key, every request brings it. */
import * as store from "./store.js";

export class Failure extends Error {
  /* kind: nobody, offline, broken, worker, model, large, busy, context, moderation, key or failed: which sentence the page
   * says. cause: the server's own line. */
  constructor(kind, cause = "") {
    super(cause || kind);
    this.kind = kind;
    this.cause = cause;
  }
}

async function request(path, options = {}) {
  let response;
  const key = store.key(),
    headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("offline");
  }
  if (response.ok) return response;
  let cause = `HTTP ${response.status}`;
  try {
    cause = (await response.json()).error.message;
  } catch {
    /* not ours: a proxy's page */
  }
  throw new Failure(kind(response.status, cause), cause);
}

function kind(status, cause) {
  if (status === 401) return "key";
  if (status === 404) return "model";
  if (status === 413) return "large";
  if (/moderation/i.test(cause)) return "moderation";
  if (/context|max token length/i.test(cause)) return "context";
  if (status === 429 || (status === 503 && /queue|busy|full/i.test(cause))) return "busy";
  return status === 502 || status === 503 || status === 504 ? "worker" : "failed";
}

export const config = async () => (await request("/api/config")).json();

/* A picture of the server's; and an address to show it by, for with a key its own is not enough. */
export const picture = async path => (await request(path)).blob();
export const shown = async path => (store.key() ? URL.createObjectURL(await picture(path)) : path);

export async function vote(body) {
  await request("/api/vote", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    keepalive: false,
  });
}

/* One answer. on({text} | {queue} | {done}) for each event; throws Failure, or AbortError when signal says stop. */
export async function chat(body, signal, on) {
  const response = await request("/api/chat", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "",
    ended = false;
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const event = JSON.parse(line.slice(5));
        if (event.error) throw new Failure(code(event.error), event.error.cause || event.error.message);
        ended ||= !!event.done;
        on(event);
      }
    }
  } catch (error) {
    if (error instanceof Failure || error.name === "AbortError") throw error;
    throw new Failure("broken");
  }
  if (!ended) throw new Failure("broken");
}

function code(error) {
  if (error.code === 2 || error.code === 3) return "worker";
  return kind(0, `${error.message} ${error.cause ?? ""}`);
}
