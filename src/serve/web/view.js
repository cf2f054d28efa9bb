/* A conversation as list items. The view knows nodes and words; what a button does is the caller's (actions). */
import { clip, h, icon } from "./dom.js";
import { t } from "./i18n.js";
import { render } from "./markdown.js";
import { enlarge } from "./pictures.js";

function thumbs(images) {
  return (
    images.length > 0 &&
    h(
      "div",
      { class: "thumbs" },
      images.map((src, i) =>
        h(
          "button",
          { type: "button", "aria-label": t("enlarge", { n: i + 1 }), onclick: () => enlarge(src) },
          h("img", { src, alt: t("picture") + " " + (i + 1) }),
        ),
      ),
    )
  );
}

function editor(message, actions, close) {
  const area = h("textarea", { "aria-label": t("question") });
  area.value = message.text;
  const form = h(
    "form",
    {
      class: "edit",
      onsubmit: event => {
        event.preventDefault();
        actions.resend(message, area.value);
      },
    },
    area,
    h(
      "div",
      { class: "row" },
      h("button", { type: "button", class: "quiet", onclick: close }, t("cancel")),
      h("button", { class: "primary" }, t("resend")),
    ),
  );
  area.addEventListener("keydown", event => {
    if (event.key === "Escape") {
      event.stopPropagation();
      close();
    }
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  return { form, area };
}

function question(message, actions) {
  const item = h("li", { class: "user" }, h("span", { class: "hidden" }, t("you")));
  const bubble = message.text && h("div", { class: "bubble", dir: "auto" }, message.text);
  const edit = h(
    "button",
    {
      type: "button",
      disabled: actions.busy(),
      onclick: () => {
        const { form, area } = editor(message, actions, () => {
          form.replaceWith(...shown);
          edit.focus();
        });
        const shown = [bubble, tools].filter(Boolean);
        shown[0].replaceWith(form);
        shown[1]?.remove();
        area.focus();
      },
    },
    icon("edit"),
    t("edit"),
  );
  const tools = h("div", { class: "tools" }, edit);
  item.append(...[thumbs(message.images ?? []), bubble, tools].filter(Boolean));
  return item;
}

function votes(message, actions) {
  return [
    ["upvote", "up"],
    ["downvote", "down"],
    ["flag", "flag"],
  ].map(([type, sign]) =>
    h(
      "button",
      {
        type: "button",
        "aria-label": t(type),
        title: t(type),
        "aria-pressed": String(message.vote === type),
        disabled: !!message.vote,
        onclick: () => actions.vote(message, type),
      },
      icon(sign),
    ),
  );
}

/* What an answer took: how many tokens, how fast, and after how long the first. */
function timing({ stopped, done }) {
  if (stopped) return t("stopped");
  if (!done || !(done.tokens > 0)) return "";
  const first = done.first_s ?? 0,
    rate = (done.tokens - 1) / (done.seconds - first),
    count = done.finish === "length" ? "cut" : done.tokens === 1 ? "token" : "tokens";
  return [
    t(count, { n: done.tokens }),
    done.tokens > 1 && rate > 0 && isFinite(rate) && t("rate", { n: rate.toFixed(rate < 100 ? 1 : 0) }),
    first < 1 ? t("first_ms", { n: Math.max(1, Math.round(first * 1000)) }) : t("first", { n: first.toFixed(1) }),
  ]
    .filter(Boolean)
    .join(" · ");
}

function failure(message, actions) {
  const { kind, cause } = message.error,
    said = { model: actions.model() };
  return h(
    "div",
    { class: "failure", role: "alert" },
    h(
      "p",
      {},
      t(kind === "failed" ? "failed" : "failed_" + kind, said),
      cause && cause !== kind && h("small", {}, cause),
    ),
    h("button", { type: "button", onclick: () => actions.regenerate(message) }, t("retry")),
  );
}

/* What the last letter of an answer stands in: the last paragraph, item, cell or line of code. */
function lastLine(node) {
  const blocks = "p, h3, h4, h5, h6, ul, ol, li, blockquote, pre, pre > code, table, tbody, tr, td";
  const last = node.lastElementChild;
  return last?.matches(blocks) ? lastLine(last) : node;
}

/* An answer; filled again and again while it streams. */
export class Answer {
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.body = h("div", { class: "answer", dir: "auto" });
    this.foot = h("div", { class: "tools" });
    this.node = h("li", { class: "assistant" }, h("span", { class: "hidden" }, t("it")), this.body, this.foot);
    this.show(true);
  }

  wait(text) {
    this.body.className = "answer waiting";
    this.body.textContent = text;
    this.foot.replaceChildren();
  }

  show(final) {
    const { message, actions } = this;
    this.body.className = "answer" + (final ? "" : " streaming");
    render(this.body, message.text, final);
    if (!final) {
      lastLine(this.body).append(h("span", { class: "cursor" }));
      return this.foot.replaceChildren();
    }
    const copy = h(
      "button",
      {
        type: "button",
        title: t("copy"),
        "aria-label": t("copy"),
        onclick: async () => (await clip(message.text)) && copy.replaceChildren(icon("done"), t("copied")),
      },
      icon("copy"),
    );
    const regenerate =
      actions.last(message) &&
      h(
        "button",
        {
          type: "button",
          onclick: () => actions.regenerate(message),
          title: t("regenerate"),
          "aria-label": t("regenerate"),
        },
        icon("again"),
      );
    this.foot.className = message.error ? "" : "tools";
    this.foot.replaceChildren(
      ...(message.error ? [failure(message, actions)] : [...votes(message, actions), copy, regenerate]).filter(
        Boolean,
      ),
      h("span", { class: "timing" }, timing(message)),
    );
  }
}

/* All messages of a conversation into list; returns the last answer's view, or undefined. */
export function show(list, conversation, actions) {
  let last;
  list.replaceChildren(
    ...conversation.messages.map(message => {
      if (message.role === "user") return question(message, actions);
      last = new Answer(message, actions);
      return last.node;
    }),
  );
  return last;
}

/* ---- a conversation as a file */
export function markdown(conversation) {
  const lines = [
    `# ${conversation.title}`,
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
