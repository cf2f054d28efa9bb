/* An answer's Markdown as nodes. marked only cuts the text into tokens; each token becomes nodes here, so no HTML ever
 * exists that would have to be cleaned, and what looks like HTML in an answer is shown as the text that it is. Code is
 * coloured and formulas are set by libraries that are fetched when the first of them is seen. Without the libraries text
 * stays text. */
import { clip, h, icon, sync } from "./dom.js";
import { t } from "./i18n.js";

const once = new Map(),
  there = new Set();

/* Loads a script that defines a global; there: those that have come. */
function script(path) {
  if (!once.has(path)) {
    once.set(
      path,
      new Promise((resolve, reject) => {
        const come = () => resolve(there.add(path));
        document.head.append(h("script", { src: path, onload: come, onerror: () => reject(new Error(path)) }));
      }),
    );
  }
  return once.get(path);
}

export async function prepare() {
  try {
    await script("/vendor/marked.js");
    marked.use({ extensions: formulas, breaks: true });
  } catch {
    /* plain text then */
  }
}

/* ---- formulas: \( \), \[ \], $$ $$, and $ $ where it cannot be money */
const rules = [
  { level: "block", start: /\$\$|\\\[/, match: /^(?:\$\$([\s\S]+?)\$\$|\\\[([\s\S]+?)\\\])[ \t]*(?:\n|$)/ },
  {
    level: "inline",
    start: /\$|\\\(|\\\[/,
    match: /^(?:\$\$([^\n]+?)\$\$|\\\(([^\n]+?)\\\)|\\\[([^\n]+?)\\\]|\$(?![\s\d])([^$\n]*?[^\s$\\])\$(?!\d))/,
  },
];
const formulas = rules.map(({ level, start, match }) => ({
  name: level + "_formula",
  level,
  start: source => source.match(start)?.index,
  tokenizer(source) {
    const found = match.exec(source);
    if (found)
      return {
        type: level + "_formula",
        raw: found[0],
        text: found.slice(1).find(x => x !== undefined),
        display: /^(\$\$|\\\[)/.test(found[0]),
      };
  },
}));

/* ---- tokens to nodes. marked escapes the text of some tokens for HTML, which is undone. */
const entities = { "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#39;": "'" };
const plain = text => text.replace(/&(?:amp|lt|gt|quot|#39);/g, e => entities[e]);
const all = tokens => (tokens ?? []).map(node);

function link(token) {
  if (!/^(?:https?:|mailto:)/i.test(token.href ?? ""))
    return h("span", {}, token.tokens ? all(token.tokens) : plain(token.text));
  return h(
    "a",
    { href: plain(token.href), target: "_blank", rel: "noopener noreferrer nofollow" },
    token.tokens ? all(token.tokens) : plain(token.text),
  );
}

function item(token) {
  return h(
    "li",
    {},
    token.task && h("input", { type: "checkbox", disabled: true, checked: !!token.checked }),
    all(token.tokens),
  );
}

function table(token) {
  const row = (cells, tag) =>
    h(
      "tr",
      {},
      cells.map((cell, i) => h(tag, { align: token.align[i] }, all(cell.tokens))),
    );
  const body = token.rows.map(cells => row(cells, "td"));
  return h("div", { class: "wide" }, h("table", {}, h("thead", {}, row(token.header, "th")), h("tbody", {}, body)));
}

const makers = {
  space: () => "",
  hr: () => h("hr"),
  br: () => h("br"),
  heading: token => h("h" + Math.min(6, token.depth + 2), {}, all(token.tokens)),
  paragraph: token => h("p", {}, all(token.tokens)),
  blockquote: token => h("blockquote", {}, all(token.tokens)),
  list: token =>
    h(
      token.ordered ? "ol" : "ul",
      { start: token.ordered && token.start !== 1 && String(token.start) },
      token.items.map(item),
    ),
  table,
  code: token =>
    h("pre", {}, h("code", { "data-language": (token.lang ?? "").match(/^[\w+#.-]+/)?.[0] }, token.text)),
  strong: token => h("strong", {}, all(token.tokens)),
  em: token => h("em", {}, all(token.tokens)),
  del: token => h("del", {}, all(token.tokens)),
  codespan: token => h("code", {}, plain(token.text)),
  link,
  image: link,
  escape: token => plain(token.text),
  html: token => token.raw,
  text: token => (token.tokens ? h("span", {}, all(token.tokens)) : plain(token.text)),
  block_formula: token => h("span", { class: "formula display" }, token.text),
  inline_formula: token => h("span", { class: token.display ? "formula display" : "formula" }, token.text),
};
const node = token => (makers[token.type] ?? makers.html)(token);

/* A paragraph, list, listing, ... as an element, with its code coloured and its formulas set. */
function block(token) {
  const made = node(token),
    root = h("div", {}, typeof made === "string" ? h("p", { class: "plain" }, made) : made);
  for (const code of root.querySelectorAll("pre > code[data-language]"))
    dress(code, code.dataset.language, "/vendor/highlight.js", colour);
  for (const formula of root.querySelectorAll(".formula"))
    dress(formula, formula.className, "/vendor/katex.js", typeset);
  return root.firstChild;
}

/* Fills target with text; final: no more comes. Blocks that are as they were the last time stay, and with them what the reader
 * has marked or scrolled in them. Listings that have ended have a button to copy them. */
export function render(target, text, final) {
  if (!window.marked) return target.replaceChildren(h("p", { class: "plain" }, text));
  if (!drawn.has(target)) target.replaceChildren();
  const before = drawn.get(target) ?? [],
    blocks = marked
      .lexer(text)
      .filter(token => token.type !== "space")
      .map((token, i) => {
        const key = JSON.stringify(token);
        return before[i]?.key === key ? before[i] : { key, node: block(token) };
      });
  drawn.set(target, blocks);
  const nodes = blocks.map(b => b.node);
  sync(target, nodes);
  for (const code of target.querySelectorAll("pre > code:only-child"))
    if (final || !nodes.at(-1).contains(code)) code.parentElement.append(copier(code));
}

const drawn = new WeakMap(); // target: [{ key, node }] of its blocks

function copier(code) {
  const copied = async () => (await clip(code.textContent)) && copy.replaceChildren(icon("done"), t("copied"));
  const copy = h("button", { type: "button", onclick: copied }, t("copy"));
  return copy;
}

/* Makes node, which holds text, into what maker makes of it once its library is there. An answer that streams is made again
 * with every word: what was made of the same text stays, up to KEPT of them. */
const dressed = new Map(),
  KEPT = 256;

function dress(node, kind, library, maker) {
  const key = kind + "\n" + node.textContent;
  const make = () => {
    const source = node.textContent;
    node.textContent = source; /* without the cursor, which may have got in meanwhile */
    try {
      maker(node);
    } catch {
      node.textContent = source;
    }
    if (dressed.size >= KEPT) dressed.delete(dressed.keys().next().value);
    dressed.set(key, node.cloneNode(true));
  };
  if (dressed.has(key)) node.replaceChildren(...dressed.get(key).cloneNode(true).childNodes);
  else if (there.has(library)) make();
  else script(library).then(make, () => {});
}

function colour(code) {
  const name = code.dataset.language;
  if (!hljs.getLanguage(name)) return;
  code.className = name;
  hljs.highlightBlock(code);
}

function typeset(formula) {
  const style = "/vendor/katex.css";
  if (!document.querySelector(`link[href="${style}"]`))
    document.head.append(h("link", { rel: "stylesheet", href: style }));
  katex.render(formula.textContent, formula, {
    displayMode: formula.classList.contains("display"),
    throwOnError: false,
    trust: false,
    maxExpand: 200,
    maxSize: 20,
  });
}
