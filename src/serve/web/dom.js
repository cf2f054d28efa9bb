/* Elements. Text only ever becomes text nodes: nothing here parses HTML. */

export const $ = (selector, root = document) => root.querySelector(selector);

/* h("button", { class: "x", onclick: f, "aria-label": "y" }, "text", child, ...): falsy children are left out. */
export function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key in node && typeof value !== "string") node[key] = value;
    else node.setAttribute(key === "htmlFor" ? "for" : key, value === true ? "" : value);
  }
  node.append(...children.flat().filter(c => c !== undefined && c !== null && c !== false && c !== ""));
  return node;
}

const drawings = {
  upvote: "M7 11v9M7 11l4-8c1.5 0 2.6 1.2 2.4 2.7L13 9h5.5a1.8 1.8 0 0 1 1.8 2.1l-1.2 7a2 2 0 0 1-2 1.9H7M7 11H4v9h3",
  downvote: "M17 13V4M17 13l-4 8c-1.5 0-2.6-1.2-2.4-2.7L11 15H5.5a1.8 1.8 0 0 1-1.8-2.1l1.2-7A2 2 0 0 1 6.9 4H17M17 13h3V4h-3",
  flag: "M5 21V4M5 4h12l-2.5 4.5L17 13H5",
  again: "M20 11a8 8 0 1 0-2.3 6.3M20 5v6h-6",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  done: "m5 13 4.5 4.5L19 7",
  edit: "m4 20 1-4L16 5l3 3L8 19zM13.5 7.5l3 3",
  close: "M6 6l12 12M18 6 6 18",
};

/* A line drawing that takes the colour of the text; nothing for screen readers, the button beside it has a label. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg"),
    path = document.createElementNS(svg.namespaceURI, "path");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", drawings[name]);
  svg.append(path);
  return svg;
}

/* Makes nodes the children of list, in their order. Those that stay are not touched: the focus stays in them, and a screen
 * reader reads only what is new. */
export function sync(list, nodes) {
  nodes.forEach((node, i) => list.children[i] !== node && list.insertBefore(node, list.children[i] ?? null));
  while (list.children.length > nodes.length) list.lastElementChild.remove();
}

/* A line above the composer, for a while; mild: no trouble. "" takes it away. */
let notice;
export function say(text, mild = false) {
  const line = $("#notice");
  line.textContent = text;
  line.className = mild ? "mild" : "";
  line.hidden = !text;
  clearTimeout(notice);
  if (text) notice = setTimeout(say, 8000, "");
}

/* Puts text on the clipboard; false: the browser does not let us. Over plain http, as in most local networks, there is no
 * navigator.clipboard: then the text is selected in a field and copied as a person would. */
export async function clip(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const before = document.activeElement,
      field = h("textarea", { class: "hidden", readOnly: true });
    field.value = text;
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    before?.focus();
    return done;
  }
}

export function save(name, type, text) {
  const link = h("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
