/* The page: one conversation at a time, the others at the side. State is the conversation that is open; every change goes
 * into it first, is shown, and is stored. Answers go on streaming into conversations that are not open. */
import { $, h, save, say } from "./dom.js";
import { current, preferred, speak, t } from "./i18n.js";
import * as api from "./api.js";
import * as composer from "./composer.js";
import * as files from "./files.js";
import * as store from "./store.js";
import * as view from "./view.js";
import { prepare } from "./markdown.js";

const RETRY_MS = 5000; // between questions for a model when there is none

let config = {
  models: [],
  examples: [],
  limits: { text: 1536, text_with_image: 1200, image_bytes: 20 << 20, images: 8 },
};
let conversation;
const answers = new Map(); // conversation id: { conversation, message, stop: AbortController } of an answer that streams

const id = () => [...crypto.getRandomValues(new Uint8Array(16))].map(b => b.toString(16).padStart(2, "0")).join("");
const fresh = () => ({
  id: id(),
  title: "",
  model: $("#model").value,
  created: Date.now(),
  changed: Date.now(),
  messages: [],
});
const busy = () => answers.has(conversation.id);

/* ---- showing */
const messageActions = {
  busy,
  streaming: m => [...answers.values()].some(a => a.message === m),
  last: m => m === conversation.messages.at(-1),
  regenerate,
  resend,
  vote,
};
const titleActions = {
  current: id => id === conversation.id,
  answering: id => answers.has(id),
  open: openKept,
  remove,
};

function showAll() {
  const empty = conversation.messages.length === 0,
    title = conversation.title || (empty ? "" : t("untitled"));
  view.show($("#log"), conversation, messageActions);
  $("#welcome").hidden = !empty;
  for (const part of ["#log", "#export", "#clear"]) $(part).hidden = empty;
  $("#question").dataset.i18nPlaceholder = empty ? "placeholder" : "placeholder_more";
  $("#question").placeholder = t($("#question").dataset.i18nPlaceholder);
  document.title = title ? `${title} – LLaVA` : "LLaVA";
  $("h1").textContent = title || "LLaVA";
  history.replaceState(null, "", location.pathname + location.search + (empty ? "" : "#" + conversation.id));
  showRunning();
  showList();
}

function showList() {
  view.showTitles($("#list"), store.list(), titleActions);
}

/* Send or stop; the button that goes away leaves the focus to the other, or to the question. */
function showRunning() {
  const focus = document.activeElement,
    nowhere = focus === document.body && getSelection().isCollapsed,
    lost = nowhere || focus === $("#send") || focus === $("#stop");
  $("#send").hidden = busy();
  $("#stop").hidden = !busy();
  $("#log").parentElement.setAttribute("aria-busy", String(busy()));
  if (lost && !composer.coarse()) (busy() ? $("#stop") : $("#question")).focus();
}

/* The end of the conversation stays in sight while it grows, unless the reader has scrolled away from it. */
let following = true;
function down() {
  const s = $("#scroll");
  following = true;
  s.scrollTop = s.scrollHeight;
  $("#down").hidden = true;
}

function wireScroll() {
  const s = $("#scroll");
  const look = () => {
    following = s.scrollHeight - s.scrollTop - s.clientHeight < 80;
    $("#down").hidden = following;
  };
  s.addEventListener("scroll", look, { passive: true });
  const sizes = new ResizeObserver(() => (following ? down() : look()));
  sizes.observe($("#log"));
  sizes.observe(s);
  $("#down").addEventListener("click", down);
}

/* ---- conversations */
async function keep(which) {
  const kept = store.put(which);
  showList();
  if (!(await kept)) say(t("storage"));
}

function open(c) {
  conversation = c;
  if (config.models.includes(c.model)) $("#model").value = c.model;
  menu(false);
  showAll();
  down();
  composer.focus();
}

async function openKept(id) {
  const c = id === conversation.id ? conversation : (answers.get(id)?.conversation ?? (await store.get(id)));
  if (c) open(c);
  else if (store.title(id)) say(t("lost"));
}

async function remove(id) {
  if (!confirm(t("clear_sure", { title: store.title(id)?.title || t("untitled") }))) return;
  answers.get(id)?.stop.abort();
  answers.delete(id); /* what comes yet is for nobody */
  const next = $("#list [aria-current]")?.nextElementSibling;
  await store.remove(id);
  if (id === conversation.id) return open(fresh());
  showList();
  (next ?? $("#new")).querySelector?.(".open")?.focus();
}

/* What another tab has stored or removed. */
async function changedElsewhere(id) {
  showList();
  if (id !== conversation.id || busy()) return;
  const c = await store.get(id);
  if (id !== conversation.id || busy()) return;
  if (!c) return open(fresh());
  conversation = c;
  showAll();
}

async function importFiles(chosen) {
  let n = 0,
    last;
  try {
    for (const file of chosen) {
      for (const c of await files.read(file)) {
        const there = store.title(c.id);
        if (there?.changed !== c.changed) {
          if (there || !c.id) c.id = id(); /* another one of the same origin: both stay */
          await keep(c);
        }
        last = c.id;
        n++;
      }
    }
    say(t("imported", { n }), true);
  } catch (error) {
    say(error.message);
  }
  if (last) openKept(last);
}

async function exportAs(format) {
  if (format === "md") save(files.name(conversation) + ".md", "text/markdown", files.markdown(conversation));
  if (format === "json") save(files.name(conversation) + ".json", "application/json", files.json(conversation));
  if (format === "all") {
    const all = await Promise.all(store.list().map(c => answers.get(c.id)?.conversation ?? store.get(c.id)));
    const day = new Date().toISOString().slice(0, 10);
    save(`llava-${day}-all.json`, "application/json", files.json(all.filter(Boolean)));
  }
}

/* ---- asking */
async function ask() {
  const to = conversation;
  if (answers.has(to.id)) return;
  const question = await composer.take();
  if (!question) return;
  to.messages.push({ role: "user", ...question });
  to.title ||= [...question.text.replace(/\s+/g, " ")].slice(0, 80).join("");
  await answer(to, false);
}

/* A question once more, with another text; what came after it goes. */
async function resend(message, text) {
  const words = text.trim(),
    limit = message.images?.length ? config.limits.text_with_image : config.limits.text;
  if (busy() || !(words || message.images?.length)) return;
  if (composer.length(words) > limit) return say(t("too_long", { n: limit }));
  conversation.messages.length = conversation.messages.indexOf(message);
  conversation.messages.push({ role: "user", text: words, images: message.images });
  await answer(conversation, false);
}

async function regenerate(message) {
  if (busy()) return;
  conversation.messages.length = conversation.messages.indexOf(message);
  await answer(conversation, true);
}

/* What the model is told: questions that got no answer are left out, but for the last. */
function told(messages) {
  const out = [];
  for (const m of messages) {
    if (m.role === "assistant" && !m.text) out.pop();
    else out.push({ role: m.role, text: m.text, ...(m.images?.length && { images: m.images }) });
  }
  return out;
}

function parameters() {
  const value = name => $(`#parameters [name="${name}"]`).value;
  return {
    temperature: Number(value("temperature")),
    top_p: Number(value("top_p")),
    max_new_tokens: Number(value("max_new_tokens")),
    image_process_mode: value("image_process_mode"),
  };
}

/* Streams the answer to the last question into the conversation it was asked in, whatever is shown meanwhile. It is stored
 * at the beginning too, as one that was stopped: so the question outlives a tab that is closed. */
async function answer(to, again) {
  const message = { role: "assistant", text: "", stopped: true },
    mine = { conversation: to, message, stop: new AbortController() },
    body = { conversation: to.id, messages: told(to.messages), ...parameters(), regenerate: again },
    started = performance.now();
  to.model = $("#model").value;
  to.changed = Date.now();
  to.messages.push(message);
  answers.set(to.id, mine);
  const shown = () => view.of(message, messageActions);
  showAll();
  down();
  keep(to);
  let drawn = 0,
    first = 0;
  const draw = () => {
    drawn = 0;
    shown().show();
  };
  try {
    if (!to.model) await configure(); /* a worker may have come since */
    to.model ||= $("#model").value;
    if (!to.model) throw new api.Failure("nobody");
    await api.chat({ model: to.model, ...body }, mine.stop.signal, event => {
      if (event.queue > 0) shown().waiting = t("queued", { n: event.queue });
      if (event.text) {
        first ||= performance.now() - started;
        message.text += event.text;
      }
      if (event.done)
        message.done = { first_s: first / 1000, seconds: (performance.now() - started) / 1000, ...event.done };
      drawn ||= requestAnimationFrame(draw);
    });
    delete message.stopped;
  } catch (error) {
    if (error.name !== "AbortError") {
      delete message.stopped;
      message.error = { kind: error.kind ?? "failed", cause: error.cause || error.message, model: to.model };
    }
  }
  cancelAnimationFrame(drawn);
  if (answers.get(to.id) !== mine) return; /* removed */
  answers.delete(to.id);
  to.changed = Date.now();
  shown().show();
  if (to === conversation) showAll();
  await keep(to);
  if (message.error?.kind === "key") unlock();
  else if (message.error) configure(); /* the models may be others by now */
}

async function vote(message, type) {
  const on = conversation,
    { id, model, messages } = on,
    soFar = told(messages.slice(0, messages.indexOf(message) + 1)).map(({ role, text }) => ({ role, text }));
  try {
    await api.vote({ type, model, conversation: id, messages: soFar });
  } catch (error) {
    say(trouble(error));
    return false;
  }
  message.vote = type;
  say(t("voted"), true);
  showAll();
  await keep(on);
  return true;
}

/* ---- what the server offers */
const trouble = error => t(error.kind === "offline" ? "failed_offline" : "failed") + " " + (error.cause ?? "");

async function example(e) {
  try {
    const blob = await api.picture(e.image);
    composer.clear();
    composer.write(e.text);
    await composer.attach([new File([blob], e.image.split("/").pop(), { type: blob.type })]);
  } catch (error) {
    say(trouble(error));
  }
}

/* The server refused the key, or there was none: asks for one until it opens. */
function unlock() {
  const form = $("#lock form");
  $("#wrong").hidden = !store.key();
  form.reset();
  form.onsubmit = event => {
    event.preventDefault();
    store.key(form.elements.key.value.trim(), form.elements.lasting.checked);
    $("#lock").close();
    configure();
  };
  if (!$("#lock").open) $("#lock").showModal();
}

function showModels() {
  const asked = new URLSearchParams(location.search).get("model"),
    before = $("#model").value,
    names = config.models.length ? config.models : [""];
  if ([...$("#model").options].map(o => o.value).join("\n") === names.join("\n") && before) return;
  $("#model").replaceChildren(...names.map(name => h("option", { value: name }, name || t("no_model"))));
  const want = [before, asked, store.setting("model")].find(name => config.models.includes(name));
  if (want) $("#model").value = want;
}

let examples = "";
async function showExamples() {
  const now = JSON.stringify(config.examples);
  if (now === examples) return;
  examples = now;
  const sources = await Promise.all(config.examples.map(e => api.shown(e.image).catch(() => e.image)));
  const small = event => event.target.classList.toggle("small", event.target.naturalWidth < 200);
  $("#examples").replaceChildren(
    ...config.examples.map((e, i) =>
      h(
        "button",
        { type: "button", onclick: () => example(e) },
        h("img", { src: sources[i], alt: "", onload: small }),
        h("span", { dir: "auto" }, e.text),
      ),
    ),
  );
}

/* Asks for models, examples and limits; as long as there is no server or no model, again and again. */
let retry,
  said = false;
async function configure() {
  let failed = false;
  clearTimeout(retry);
  try {
    config = { ...config, ...(await api.config()) };
    if (said) say("");
    said = false;
  } catch (error) {
    if (error.kind === "key") {
      showModels();
      return unlock();
    }
    failed = true;
    if (!said && !config.models.length) say(trouble(error));
    said = !config.models.length;
  }
  showModels();
  if (failed || !config.models.length) retry = setTimeout(configure, RETRY_MS);
  document.documentElement.classList.toggle("embed", !!config.embed);
  $("#files").multiple = config.limits.images > 1;
  await showExamples();
}

/* ---- settings */
function theme(choice) {
  paint(choice);
  $("#theme").dataset.choice = choice;
  $("#theme").textContent = t("theme_" + choice);
}

function sayIn(language) {
  speak(language);
  $("#language").textContent = t("language");
  $("#language").lang = language === "zh" ? "en" : "zh";
  theme($("#theme").dataset.choice ?? "auto");
  view.forget();
}

function wireParameters() {
  const inputs = [...document.querySelectorAll("#parameters [name]")];
  const show = () => {
    for (const { value, parentElement } of inputs) {
      const output = $("output", parentElement);
      if (output) output.value = value;
    }
  };
  for (const input of inputs) {
    const first = input.value,
      kept = store.setting(input.name);
    input.value = kept ?? first;
    if (!input.value) input.value = first; /* a choice that there is no more */
    input.addEventListener("input", () => {
      store.setting(input.name, input.value);
      show();
    });
    $("#defaults").addEventListener("click", () => {
      input.value = first;
      store.setting(input.name, first);
      show();
    });
  }
  show();
}

/* ---- wiring */
function menu(on) {
  document.body.classList.toggle("open", on);
  $("#main").inert = on;
  $("#menu").setAttribute("aria-expanded", String(on));
  if (on) $("#new").focus();
}

function wireHeader() {
  $("#new").addEventListener("click", () => {
    open(fresh());
    configure();
  });
  $("#clear").addEventListener("click", () => remove(conversation.id));
  $("#model").addEventListener("change", event => store.setting("model", event.target.value));
  $("#menu").addEventListener("click", () => menu(true));
  $("#scrim").addEventListener("click", () => menu(false));
  matchMedia("(max-width: 48rem)").addEventListener("change", () => menu(false));
  $("#export").addEventListener("click", event => {
    const format = event.target.dataset.format;
    if (!format) return;
    $("#export").open = false;
    $("#export summary").focus();
    exportAs(format);
  });
  document.addEventListener("click", event => {
    if (!event.target.closest("#export")) $("#export").open = false;
  });
}

function wireSettings() {
  $("#theme").addEventListener("click", () => {
    const all = ["auto", "light", "dark"];
    theme(store.setting("theme", all[(all.indexOf($("#theme").dataset.choice) + 1) % 3]));
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme($("#theme").dataset.choice));
  $("#language").addEventListener("click", () => {
    sayIn(store.setting("language", current() === "zh" ? "en" : "zh"));
    showModels();
    showAll();
  });
  $("#import").addEventListener("click", () => {
    const input = h("input", { type: "file", accept: ".json,application/json", multiple: true });
    input.addEventListener("change", () => importFiles([...input.files]));
    input.click();
  });
}

function wirePage() {
  const stop = () => answers.get(conversation.id)?.stop.abort();
  $("#stop").addEventListener("click", stop);
  document.addEventListener("keydown", event => {
    if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
    if ($("#export").open) {
      $("#export").open = false;
      $("#export summary").focus();
    } else if (document.body.classList.contains("open")) {
      menu(false);
      $("#menu").focus();
    } else stop();
  });
  addEventListener("hashchange", () => openKept(location.hash.slice(1)));
  addEventListener("online", configure);
  /* A page that goes away takes along what has come of its answers. */
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) for (const a of answers.values()) store.put(a.conversation);
  });
  addEventListener("beforeunload", () => {
    for (const a of answers.values()) a.stop.abort();
  });
}

/* Works as soon as it is wired; conversations, models and Markdown come when they come. */
async function start() {
  sayIn(new URLSearchParams(location.search).get("lang") ?? store.setting("language") ?? preferred());
  theme(store.setting("theme") ?? "auto");
  conversation = fresh();
  wireParameters();
  composer.wire({ limits: () => config.limits, ask, import: importFiles });
  wireHeader();
  wireSettings();
  wirePage();
  wireScroll();
  const wanted = location.hash.slice(1);
  showAll();
  composer.focus();
  const marked = prepare().then(() => {
    view.forget();
    showAll();
  });
  const kept = store.load().then(async lasting => {
    store.watch(changedElsewhere);
    if (!lasting) say(t("storage"));
    showList();
    if (wanted && !conversation.messages.length) await openKept(wanted);
  });
  await Promise.all([marked, kept, configure()]);
  document.documentElement.dataset.ready = "true";
}

start();
