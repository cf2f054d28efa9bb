/* Conversations as files: Markdown to read, JSON to bring back here or elsewhere. What comes in may be anything. */
import { t } from "./i18n.js";

const IMPORT_BYTES = 512 << 20;

export function markdown(conversation) {
  const lines = [
    `# ${conversation.title || t("untitled")}`,
    "",
    `${conversation.model} · ${new Date(conversation.created).toISOString()}`,
  ];
  for (const m of conversation.messages) {
    lines.push("", `## ${m.role === "user" ? t("you") : t("it")}`, "");
    for (const src of m.images ?? []) lines.push(`![](${src})`, "");
    lines.push(m.text);
  }
  return lines.join("\n") + "\n";
}

export const json = value => JSON.stringify(value, null, 2);

/* A name for the file of a conversation: its day and title, without what file systems dislike. */
export function name(conversation) {
  const day = new Date(conversation.created).toISOString().slice(0, 10),
    words = conversation.title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "");
  return ["llava", day, [...words].slice(0, 40).join("")].filter(Boolean).join("-");
}

function expect(condition) {
  if (!condition) throw new Error(t("not_conversation"));
}

const text = x => (typeof x === "string" ? x : "");

/* Of a message what the page knows, and nothing else. */
function message(m) {
  const { role, images = [], vote, done, stopped, error } = m ?? {};
  expect((role === "user" || role === "assistant") && typeof m.text === "string" && Array.isArray(images));
  expect(images.every(src => typeof src === "string" && src.startsWith("data:image/")));
  const out = { role, text: m.text };
  if (images.length) out.images = images;
  if (["upvote", "downvote", "flag"].includes(vote)) out.vote = vote;
  if (stopped === true) out.stopped = true;
  if (error && typeof error === "object")
    out.error = { kind: text(error.kind) || "failed", cause: text(error.cause), model: text(error.model) };
  if (done && typeof done === "object") {
    const numbers = Object.entries(done).filter(([, value]) => Number.isFinite(value));
    out.done = { finish: text(done.finish), ...Object.fromEntries(numbers) };
  }
  return out;
}

function conversation(c) {
  expect(c && typeof c === "object" && Array.isArray(c.messages) && c.messages.length > 0);
  const when = x => (Number.isFinite(x) && Math.abs(x) < 8e15 ? x : Date.now());
  return {
    id: /^[0-9a-f]{32}$/.test(c.id) ? c.id : "",
    title: text(c.title).slice(0, 200),
    model: text(c.model),
    created: when(c.created),
    changed: when(c.changed),
    messages: c.messages.map(message),
  };
}

/* The conversations of a file that was exported: one, or a list of them. An Error's message is for people. */
export async function read(file) {
  let value = null;
  try {
    if (file.size <= IMPORT_BYTES) value = JSON.parse(await file.text());
    return (Array.isArray(value) ? value : [value]).map(conversation);
  } catch {
    throw new Error(t("not_conversation", { name: file.name }));
  }
}
