/* A conversation as list items, and the titles of all of them. The view knows nodes and words; what a button does is the
 * caller's (actions). A message keeps its node as long as it is in memory, so that showing again touches only what differs. */
import { clip, h, icon, sync } from "./dom.js";
import { t } from "./i18n.js";
import { render } from "./markdown.js";
import { enlarge } from "./pictures.js";

/* A button of a drawing, whose label is said and shown on hover. */
function tool(name, label, onclick) {
  return h("button", { type: "button", title: t(label), "aria-label": t(label), onclick }, icon(name));
}

function thumbs(images) {
  return h(
    "div",
    { class: "thumbs" },
    images.map((src, i) => {
      const alt = `${t("picture")} ${i + 1}`;
      return h(
        "button",
        { type: "button", "aria-label": t("enlarge", { n: i + 1 }), onclick: () => enlarge(src, alt) },
        h("img", { src, alt }),
      );
    }),
  );
}

/* ---- a question, which can be changed and sent again */
class Question {
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.edit = h("button", { type: "button", onclick: () => this.open() }, icon("edit"), t("edit"));
    this.shown = [
      message.images?.length > 0 && thumbs(message.images),
      message.text && h("div", { class: "bubble", dir: "auto" }, message.text),
      h("div", { class: "tools", "aria-live": "off" }, this.edit),
    ].filter(Boolean);
    this.node = h("li", { class: "user" }, h("span", { class: "hidden" }, t("you")), this.shown);
    this.refresh();
  }

  refresh() {
    this.edit.disabled = this.actions.busy();
  }

  open() {
    const { message, actions } = this,
      rest = this.shown.filter(n => n.className !== "thumbs"),
      area = h("textarea", { "aria-label": t("question"), dir: "auto" });
    area.value = message.text;
    const close = () => {
      form.replaceWith(...rest);
      this.edit.focus();
    };
    const submit = event => {
      event.preventDefault();
      actions.resend(message, area.value);
    };
    const form = h(
      "form",
      { class: "edit", onsubmit: submit },
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
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229) {
        event.preventDefault();
        form.requestSubmit();
      }
    });
    rest[0].replaceWith(form);
    for (const n of rest.slice(1)) n.remove();
    area.style.height = area.scrollHeight + 4 + "px";
    area.focus();
  }
}

/* ---- an answer */

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

function failure({ kind, cause, model = "" }) {
  return h(
    "div",
    { class: "failure", role: "alert" },
    h(
      "p",
      {},
      t(kind === "failed" ? "failed" : "failed_" + kind, { model }),
      cause && cause !== kind && h("small", {}, cause),
    ),
  );
}

/* What the last letter of an answer stands in: the last paragraph, item, cell or line of code. */
function lastLine(node) {
  const blocks = "p, h3, h4, h5, h6, ul, ol, li, blockquote, pre, pre > code, .wide, table, tbody, tr, td";
  const last = node.lastElementChild;
  return last?.matches(blocks) ? lastLine(last) : node;
}

class Answer {
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.waiting = t("thinking");
    this.cursor = h("span", { class: "cursor" });
    this.body = h("div", { class: "answer", dir: "auto" });
    this.foot = h("div", { "aria-live": "off" });
    this.node = h("li", { class: "assistant" }, h("span", { class: "hidden" }, t("it")), this.body, this.foot);
    this.show();
  }

  /* The text as far as it has come; while it streams again and again, at its end once more. */
  show() {
    const { message } = this,
      final = !this.actions.streaming(message);
    if (!final && !message.text) {
      this.body.className = "answer waiting";
      this.body.textContent = this.waiting;
      return;
    }
    this.body.className = "answer" + (final ? "" : " streaming");
    this.cursor.remove();
    render(this.body, message.text, final);
    if (final) this.close();
    else lastLine(this.body).append(this.cursor);
  }

  /* Sets what stands below an answer that has ended. */
  close() {
    const { message, actions } = this;
    this.votes = ["upvote", "downvote", "flag"].map(type => {
      const voted = async () => (await actions.vote(message, type)) && this.copy.focus();
      const button = tool(type, type, voted);
      button.dataset.vote = type;
      return button;
    });
    this.copy = tool(
      "copy",
      "copy",
      async () => (await clip(message.text)) && this.copy.replaceChildren(icon("done"), t("copied")),
    );
    const again = () => actions.regenerate(message);
    this.again = message.error ? h("button", { type: "button", onclick: again }, t("retry")) : tool("again", "regenerate", again);
    this.foot.className = message.error ? "" : "tools";
    if (message.error) {
      const box = failure(message.error);
      box.append(this.again);
      this.foot.replaceChildren(box);
    } else {
      this.foot.replaceChildren(
        ...(message.text ? [...this.votes, this.copy] : []),
        this.again,
        h("span", { class: "timing" }, timing(message)),
      );
    }
    this.refresh();
  }

  refresh() {
    const { message, actions } = this;
    if (!this.again) return; /* it streams */
    for (const button of this.votes) {
      button.setAttribute("aria-pressed", String(message.vote === button.dataset.vote));
      button.disabled = !!message.vote;
    }
    this.again.hidden = actions.busy() || !actions.last(message);
  }
}

let views = new WeakMap();

/* The view of a message, which there is from now on. */
export function of(message, actions) {
  if (!views.has(message)) views.set(message, new (message.role === "user" ? Question : Answer)(message, actions));
  return views.get(message);
}

/* All messages of a conversation into list. */
export function show(list, conversation, actions) {
  const shown = conversation.messages.map(message => of(message, actions));
  for (const view of shown) view.refresh();
  sync(
    list,
    shown.map(view => view.node),
  );
}

/* What was shown is made anew next time: the language is another, or Markdown has come. */
export function forget() {
  views = new WeakMap();
  items.clear();
}

/* ---- titles */
const items = new Map(); // conversation id: its list item

/* Titles into list. actions: { current, answering }(id), open(id), remove(id, title) */
export function showTitles(list, titles, actions) {
  const there = new Set(titles.map(c => c.id));
  for (const id of items.keys()) if (!there.has(id)) items.delete(id);
  sync(
    list,
    titles.map(({ id, title, changed }) => {
      const said = title || t("untitled");
      if (items.get(id)?.dataset.title !== said) {
        const opener = h("button", { class: "open", type: "button", dir: "auto", onclick: () => actions.open(id) }, said),
          label = t("remove_conversation", { title: said }),
          remover = h("button", { class: "remove", type: "button", "aria-label": label, onclick: () => actions.remove(id) });
        remover.append(icon("close"));
        items.set(id, h("li", { "data-title": said }, opener, remover));
      }
      const item = items.get(id);
      item.firstChild.title = `${said}\n${new Date(changed).toLocaleString(document.documentElement.lang)}`;
      item.toggleAttribute("data-answering", actions.answering(id));
      if (actions.current(id)) item.setAttribute("aria-current", "true");
      else item.removeAttribute("aria-current");
      return item;
    }),
  );
}
