/* The page: one conversation at a time, the earlier ones at the side. State is the conversation that is open; every change goes
 * into it first, is shown, and is stored. */
import { $, h, icon, save } from "./dom.js";
import { current, preferred, speak, t } from "./i18n.js";
import * as api from "./api.js";
import * as store from "./store.js";
import * as pictures from "./pictures.js";
import * as view from "./view.js";
import { prepare } from "./markdown.js";

let config = {
  models: [],
  examples: [],
  limits: { text: 1536, text_with_image: 1200, image_bytes: 20 << 20, images: 8 },
};
let conversation,
  pending = [],
  running = null; // running: AbortController of the answer that streams

const id = () => [...crypto.getRandomValues(new Uint8Array(16))].map(b => b.toString(16).padStart(2, "0")).join("");
const fresh = () => ({
  id: id(),
  title: "",
  model: $("#model").value,
  created: Date.now(),
  changed: Date.now(),
  messages: [],
});

/* ---- showing */
const actions = {
  busy: () => !!running,
  last: m => m === conversation.messages.at(-1),
  model: () => conversation.model,
  regenerate,
  resend,
  vote,
};

function showAll() {
  view.show($("#log"), conversation, actions);
  $("#welcome").hidden = conversation.messages.length > 0;
  $("#log").hidden = conversation.messages.length === 0;
  $("#clear").disabled = conversation.messages.length === 0;
  $("#export").hidden = conversation.messages.length === 0;
  $("#question").dataset.i18nPlaceholder = conversation.messages.length ? "placeholder_more" : "placeholder";
  $("#question").placeholder = t($("#question").dataset.i18nPlaceholder);
  document.title = conversation.title ? `${conversation.title} – LLaVA` : "LLaVA";
  showList();
}

function showList() {
  $("#list").replaceChildren(
    ...store
      .list()
      .map(c =>
        h(
          "li",
          { "aria-current": c.id === conversation.id && "true" },
          h(
            "button",
            { class: "open", type: "button", title: c.title, onclick: () => open(c) },
            c.title || t("untitled"),
          ),
          h(
            "button",
            {
              class: "remove",
              type: "button",
              "aria-label": t("remove_conversation", { title: c.title || t("untitled") }),
              onclick: () => remove(c),
            },
            icon("close"),
          ),
        ),
      ),
  );
}

function showPending() {
  $("#pictures").replaceChildren(
    ...pending.map(src =>
      h(
        "li",
        {},
        h("img", { src, alt: t("picture") }),
        h(
          "button",
          {
            type: "button",
            class: "icon",
            "aria-label": t("remove"),
            onclick: () => {
              pending = pending.filter(p => p !== src);
              showPending();
              $("#question").focus();
            },
          },
          icon("close"),
        ),
      ),
    ),
  );
}

function showRunning() {
  $("#send").hidden = !!running;
  $("#stop").hidden = !running;
  $("#log").setAttribute("aria-busy", String(!!running));
}

let notice;
function say(text) {
  $("#notice").textContent = text;
  $("#notice").hidden = !text;
  clearTimeout(notice);
  if (text) notice = setTimeout(say, 8000, "");
}

/* The end of the conversation stays in sight while it grows, unless the reader has scrolled away from it. */
let following = true;
const down = () => {
  const s = $("#scroll");
  following = true;
  s.scrollTop = s.scrollHeight;
};

function wireScroll() {
  const s = $("#scroll");
  s.addEventListener(
    "scroll",
    () => {
      following = s.scrollHeight - s.scrollTop - s.clientHeight < 80;
    },
    { passive: true },
  );
  const sizes = new ResizeObserver(() => {
    if (following) down();
  });
  sizes.observe($("#log"));
  sizes.observe(s);
}

/* ---- conversations */
async function keep() {
  if (!(await store.put(conversation))) say(t("storage"));
  showList();
}

function open(c) {
  running?.abort();
  conversation = c;
  if (config.models.includes(c.model)) $("#model").value = c.model;
  document.body.classList.remove("open");
  showAll();
  down();
  $("#question").focus();
}

async function remove(c) {
  if (!confirm(t("clear_sure"))) return;
  if (c === conversation) running?.abort();
  await store.remove(c.id);
  if (c === conversation) open(fresh());
  else showList();
}

/* ---- asking */
async function ask() {
  if (running) return;
  const text = $("#question").value.trim(),
    limit = pending.length ? config.limits.text_with_image : config.limits.text;
  if (!text && !pending.length) return;
  if (text.length > limit) return say(t("too_long", { n: limit }));
  conversation.messages.push({ role: "user", text, images: pending });
  conversation.title ||= text.slice(0, 80);
  conversation.model = $("#model").value;
  pending = [];
  $("#question").value = "";
  grow();
  showPending();
  say("");
  await answer(false);
}

function resend(message, text) {
  if (running || !(text.trim() || message.images?.length)) return;
  conversation.messages.length = conversation.messages.indexOf(message);
  conversation.messages.push({ role: "user", text: text.trim(), images: message.images });
  return answer(false);
}

function regenerate(message) {
  if (running) return;
  conversation.messages.length = conversation.messages.indexOf(message);
  return answer(true);
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
    temperature: +value("temperature"),
    top_p: +value("top_p"),
    max_new_tokens: +value("max_new_tokens"),
    image_process_mode: value("image_process_mode"),
  };
}

/* Streams the answer to the last question into the conversation it was asked in, whatever is shown meanwhile. */
async function answer(again) {
  const asked = conversation,
    message = { role: "assistant", text: "" };
  const body = {
    conversation: asked.id,
    messages: told(asked.messages),
    ...parameters(),
    regenerate: again,
  };
  asked.messages.push(message);
  running = new AbortController();
  const mine = running,
    started = performance.now();
  showAll();
  showRunning();
  const shown = new view.Answer(message, actions);
  shown.wait(t("thinking"));
  $("#log").lastElementChild.replaceWith(shown.node);
  down();
  let drawn = 0,
    first = 0;
  const draw = () => {
    drawn = 0;
    shown.show(false);
  };
  try {
    if (!asked.model) await configure(); /* a worker may have come since */
    asked.model ||= $("#model").value;
    if (!asked.model) throw new api.Failure("nobody");
    await api.chat({ model: asked.model, ...body }, mine.signal, event => {
      if (event.queue > 0 && !message.text) shown.wait(t("queued", { n: event.queue }));
      if (event.text) {
        first ||= performance.now() - started;
        message.text += event.text;
        drawn ||= requestAnimationFrame(draw);
      }
      if (event.done)
        message.done = { first_s: first / 1000, seconds: (performance.now() - started) / 1000, ...event.done };
    });
  } catch (error) {
    if (error.name === "AbortError") message.stopped = true;
    else message.error = { kind: error.kind ?? "failed", cause: error.cause || error.message };
    if (error.kind === "key") unlock();
  }
  cancelAnimationFrame(drawn);
  if (running === mine) running = null;
  showRunning();
  if (asked === conversation) showAll();
  await store.put(asked).then(kept => kept || say(t("storage")));
  showList();
}

async function vote(message, type) {
  const messages = told(conversation.messages.slice(0, conversation.messages.indexOf(message) + 1)).map(
    ({ role, text }) => ({ role, text }),
  );
  try {
    await api.vote({ type, model: conversation.model, conversation: conversation.id, messages });
  } catch (error) {
    return say(t(error.kind === "offline" ? "failed_offline" : "failed") + " " + (error.cause ?? ""));
  }
  message.vote = type;
  showAll();
  await keep();
}

/* ---- pictures */
async function attach(files) {
  for (const file of files) {
    if (pending.length >= config.limits.images) return say(t("too_many", { n: config.limits.images }));
    try {
      pending.push(await pictures.read(file, config.limits));
    } catch (error) {
      say(error.message);
    }
    showPending();
  }
  $("#question").focus();
}

async function camera() {
  if (matchMedia("(pointer: coarse)").matches) {
    const input = h("input", {
      type: "file",
      accept: "image/*",
      capture: "environment",
      onchange: () => attach(input.files),
    });
    return input.click();
  }
  try {
    const src = await pictures.photograph();
    if (src) pending.push(src);
    showPending();
  } catch {
    say(t("no_camera"));
  }
}

async function example(e) {
  const blob = await api.picture(e.image);
  pending = [];
  $("#question").value = e.text;
  grow();
  await attach([new File([blob], e.image.split("/").pop(), { type: blob.type })]);
}

/* ---- settings */
function theme(choice) {
  const dark = choice === "dark" || (choice !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("#theme").dataset.choice = choice;
  $("#theme").textContent = t("theme_" + choice);
}

function say_in(language) {
  speak(language);
  $("#language").textContent = t("language");
  $("#language").lang = language === "zh" ? "en" : "zh";
  theme($("#theme").dataset.choice ?? "auto");
}

function grow() {
  const area = $("#question");
  area.style.height = "auto";
  area.style.height = area.scrollHeight + "px";
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

async function configure() {
  try {
    config = { ...config, ...(await api.config()) };
  } catch (error) {
    if (error.kind === "key") unlock();
    else say(t(error.kind === "offline" ? "failed_offline" : "failed") + " " + (error.cause ?? ""));
  }
  const asked = new URLSearchParams(location.search).get("model"),
    before = $("#model").value;
  $("#model").replaceChildren(...config.models.map(name => h("option", { value: name }, name)));
  if (!config.models.length) $("#model").append(h("option", { value: "" }, t("no_model")));
  const want = [before, asked, store.setting("model")].find(name => config.models.includes(name));
  if (want) $("#model").value = want;
  document.documentElement.classList.toggle("embed", !!config.embed);
  $("#files").multiple = config.limits.images > 1;
  const sources = await Promise.all(config.examples.map(e => api.shown(e.image).catch(() => e.image)));
  $("#examples").replaceChildren(
    ...config.examples.map((e, i) =>
      h(
        "button",
        { type: "button", onclick: () => example(e) },
        h("img", {
          src: sources[i],
          alt: "",
          onload: event => event.target.classList.toggle("small", event.target.naturalWidth < 200),
        }),
        h("span", {}, e.text),
      ),
    ),
  );
}

function wireParameters() {
  for (const input of document.querySelectorAll("#parameters [name]")) {
    const kept = store.setting(input.name),
      output = input.parentElement.querySelector("output");
    if (kept !== null && [...(input.options ?? [])].every(o => o.value !== undefined)) input.value = kept;
    const show = () => {
      if (output) output.value = input.value;
    };
    input.addEventListener("input", () => {
      store.setting(input.name, input.value);
      show();
    });
    show();
  }
}

function wireComposer() {
  const area = $("#question");
  area.addEventListener("input", grow);
  area.addEventListener("keydown", event => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229) {
      event.preventDefault();
      ask();
    }
  });
  $("#composer").addEventListener("submit", event => {
    event.preventDefault();
    ask();
  });
  $("#stop").addEventListener("click", () => {
    running?.abort();
    area.focus();
  });
  $("#attach").addEventListener("click", () => $("#files").click());
  $("#files").addEventListener("change", event =>
    attach([...event.target.files]).then(() => {
      event.target.value = "";
    }),
  );
  $("#camera").addEventListener("click", camera);
  document.addEventListener("paste", event => {
    const files = [...(event.clipboardData?.files ?? [])].filter(f => f.type.startsWith("image/"));
    if (files.length) {
      event.preventDefault();
      attach(files);
    }
  });
  let depth = 0;
  const over = on => {
    $("#drop").hidden = !on;
    if (!on) depth = 0;
  };
  const carries = event => [...(event.dataTransfer?.types ?? [])].includes("Files");
  document.addEventListener("dragenter", event => {
    if (carries(event)) {
      depth++;
      over(true);
    }
  });
  document.addEventListener("dragleave", () => {
    if (depth && --depth === 0) over(false);
  });
  document.addEventListener("dragover", event => {
    if (carries(event)) event.preventDefault();
  });
  document.addEventListener("drop", event => {
    if (carries(event)) {
      event.preventDefault();
      over(false);
      attach([...event.dataTransfer.files]);
    }
  });
}

function wireRest() {
  $("#new").addEventListener("click", () => {
    open(fresh());
    configure();
  });
  $("#clear").addEventListener("click", () => remove(conversation));
  $("#model").addEventListener("change", event => {
    store.setting("model", event.target.value);
    conversation.model = event.target.value;
  });
  $("#menu").addEventListener("click", () => menu(!document.body.classList.contains("open")));
  $("#main").addEventListener("click", event => {
    if (!event.target.closest("#menu")) menu(false);
  });
  $("#theme").addEventListener("click", () => {
    const all = ["auto", "light", "dark"];
    theme(store.setting("theme", all[(all.indexOf($("#theme").dataset.choice) + 1) % 3]));
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme($("#theme").dataset.choice));
  $("#language").addEventListener("click", () => {
    say_in(store.setting("language", current() === "zh" ? "en" : "zh"));
    showAll();
  });
  $("#export").addEventListener("click", event => {
    const format = event.target.dataset.format,
      name = `llava-${new Date(conversation.created).toISOString().slice(0, 10)}`;
    if (format === "json") save(name + ".json", "application/json", JSON.stringify(conversation, null, 2));
    if (format === "md") save(name + ".md", "text/markdown", view.markdown(conversation));
    if (format) $("#export").open = false;
  });
  document.addEventListener("click", event => {
    if (!event.target.closest("#export")) $("#export").open = false;
  });
  document.addEventListener("keydown", event => {
    if (event.key !== "Escape") return;
    $("#export").open = false;
    if (document.body.classList.contains("open")) {
      menu(false);
      $("#menu").focus();
    } else if (!$("#viewer").open && !$("#shutter").open) running?.abort();
  });
  addEventListener("beforeunload", () => running?.abort());
}

function menu(on) {
  document.body.classList.toggle("open", on);
  $("#menu").setAttribute("aria-expanded", String(on));
  if (on) $("#new").focus();
}

async function start() {
  say_in(new URLSearchParams(location.search).get("lang") ?? store.setting("language") ?? preferred());
  theme(store.setting("theme") ?? "auto");
  wireParameters();
  wireComposer();
  wireRest();
  wireScroll();
  conversation = fresh();
  const [, kept] = await Promise.all([prepare(), store.load(), configure()]);
  conversation.model = $("#model").value;
  if (!kept.lasting) say(t("storage"));
  showAll();
  showRunning();
  $("#question").focus();
  document.documentElement.dataset.ready = "true";
}

start();
