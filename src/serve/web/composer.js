/* Where a question is written: its text, and its pictures from files, the clipboard, a drop or the camera. A picture has its
 * place as soon as it is chosen, and is read meanwhile. */
import { $, h, icon, say } from "./dom.js";
import { t } from "./i18n.js";
import * as pictures from "./pictures.js";

let pending = [], // { src: data URI, or null while it is read; read: Promise }
  taking = false,
  actions; // { limits(), ask(), import(files) }

export const coarse = () => matchMedia("(pointer: coarse)").matches;

/* Into the question; not on a phone, where that would cover half of the page by a keyboard. */
export function focus() {
  if (!coarse()) $("#question").focus();
}

export function grow() {
  const area = $("#question");
  area.style.height = "auto";
  area.style.height = area.scrollHeight + "px";
}

export function write(text) {
  $("#question").value = text;
  grow();
}

export const length = text => [...text].length; // as the server counts

function show() {
  $("#pictures").replaceChildren(
    ...pending.map((picture, i) => {
      const remove = () => {
        pending = pending.filter(p => p !== picture);
        show();
        ($("#pictures").children[i]?.querySelector("button") ?? $("#question")).focus();
      };
      return h(
        "li",
        {},
        picture.src ? h("img", { src: picture.src, alt: `${t("picture")} ${i + 1}` }) : h("span", { class: "reading" }),
        h("button", { type: "button", class: "icon", "aria-label": t("remove"), onclick: remove }, icon("close")),
      );
    }),
  );
}

/* Takes pictures in, as many as there may be; what is wrong with the others is said together. */
export async function attach(files) {
  const { limits } = actions,
    exported = files.filter(f => f.type === "application/json" || /\.json$/i.test(f.name)),
    chosen = files.filter(f => !exported.includes(f)),
    room = Math.max(0, limits().images - pending.length),
    wrong = chosen.length > room ? [t("too_many", { n: limits().images })] : [];
  if (exported.length) actions.import(exported);
  const added = chosen.slice(0, room).map(file => {
    const picture = { src: null };
    picture.read = pictures
      .read(file, limits())
      .then(src => {
        picture.src = src;
      })
      .catch(error => {
        wrong.push(error.message);
        pending = pending.filter(p => p !== picture);
      })
      .finally(show);
    return picture;
  });
  pending.push(...added);
  show();
  await Promise.all(added.map(picture => picture.read));
  if (wrong.length) say(wrong.join(" · "));
  if (chosen.length) focus();
}

/* The question { text, images } once its pictures are read, and an empty composer; null: there is none, or it is too long. */
export async function take() {
  if (taking) return null;
  taking = true;
  await Promise.all(pending.map(picture => picture.read));
  taking = false;
  const text = $("#question").value.trim(),
    limits = actions.limits(),
    limit = pending.length ? limits.text_with_image : limits.text;
  if (!text && !pending.length) return null;
  if (length(text) > limit) {
    say(t("too_long", { n: limit }));
    return null;
  }
  const images = pending.map(picture => picture.src);
  clear();
  say("");
  return images.length ? { text, images } : { text };
}

export function clear() {
  pending = [];
  write("");
  show();
}

async function camera() {
  if (coarse()) {
    const input = h("input", { type: "file", accept: "image/*", capture: "environment" });
    input.addEventListener("change", () => attach([...input.files]));
    return input.click();
  }
  try {
    const file = await pictures.photograph();
    if (file) await attach([file]);
  } catch {
    say(t("no_camera"));
  }
}

/* What office programs copy is text that has a picture of itself: the text is meant. */
function paste(event) {
  const files = [...(event.clipboardData?.files ?? [])];
  if (!files.length || event.clipboardData.getData("text/plain").trim()) return;
  event.preventDefault();
  attach(files);
}

function wireDrop() {
  let depth = 0;
  const carries = event => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const over = on => {
    $("#drop").hidden = !on;
    if (!on) depth = 0;
  };
  document.addEventListener("dragenter", event => {
    if (!carries(event)) return;
    depth++;
    over(true);
  });
  document.addEventListener("dragleave", () => {
    if (depth && --depth === 0) over(false);
  });
  document.addEventListener("dragover", event => {
    if (carries(event)) event.preventDefault();
  });
  document.addEventListener("drop", event => {
    if (!carries(event)) return;
    event.preventDefault();
    over(false);
    attach([...event.dataTransfer.files]);
  });
}

export function wire(callers) {
  actions = callers;
  const area = $("#question");
  area.addEventListener("input", grow);
  addEventListener("resize", grow);
  area.addEventListener("keydown", event => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229) {
      event.preventDefault();
      actions.ask();
    }
  });
  $("#composer").addEventListener("submit", event => {
    event.preventDefault();
    actions.ask();
  });
  $("#attach").addEventListener("click", () => $("#files").click());
  $("#files").addEventListener("change", event => {
    const files = [...event.target.files];
    event.target.value = ""; /* so that the same file can be chosen again */
    attach(files);
  });
  $("#camera").addEventListener("click", camera);
  document.addEventListener("paste", paste);
  wireDrop();
}
