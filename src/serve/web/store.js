/* Conversations in the browser's IndexedDB (pictures are too large for localStorage), settings in localStorage. Where the
 * browser keeps nothing, both live as long as the page.
 *
 * conversation: { id, title, model, created, changed, messages: [message] }
 * message: { role: "user" | "assistant", text, images: [data URI], vote, done, error }                             */

const memory = new Map();
let database;

function open() {
  return new Promise(resolve => {
    let request;
    try {
      request = indexedDB.open("llava", 1);
    } catch {
      return resolve(null);
    }
    request.onupgradeneeded = () => request.result.createObjectStore("conversations", { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = request.onblocked = () => resolve(null);
  });
}

/* Runs one request; undefined when the database will not. */
function ask(mode, make) {
  return new Promise(resolve => {
    if (!database) return resolve(undefined);
    try {
      const request = make(database.transaction("conversations", mode).objectStore("conversations"));
      request.onsuccess = () => resolve(request.result ?? true);
      request.onerror = event => {
        event.preventDefault();
        resolve(undefined);
      };
    } catch {
      resolve(undefined);
    }
  });
}

/* All conversations, newest first; lasting says whether they will be here next time. */
export async function load() {
  database = await open();
  const all = await ask("readonly", s => s.getAll());
  for (const c of Array.isArray(all) ? all : []) memory.set(c.id, c);
  return { lasting: !!database, conversations: list() };
}

export const list = () => [...memory.values()].sort((a, b) => b.changed - a.changed);
export const get = id => memory.get(id);

export async function put(conversation) {
  conversation.changed = Date.now();
  memory.set(conversation.id, conversation);
  return (await ask("readwrite", s => s.put(conversation))) !== undefined || !database;
}

export function remove(id) {
  memory.delete(id);
  return ask("readwrite", s => s.delete(id));
}

/* The server's key: for this tab, or for as long as the browser keeps it. */
let held = null;
export function key(value, lasting) {
  try {
    if (value === undefined) return held ?? sessionStorage.getItem("llava.key") ?? localStorage.getItem("llava.key");
    held = value;
    sessionStorage.setItem("llava.key", value);
    if (lasting) localStorage.setItem("llava.key", value);
    else localStorage.removeItem("llava.key");
  } catch {
    /* a browser that keeps nothing: as long as the page */
  }
  return held;
}

export function setting(name, value) {
  try {
    if (value === undefined) return localStorage.getItem("llava." + name);
    localStorage.setItem("llava." + name, value);
  } catch {
    /* a browser that keeps nothing */
  }
  return value ?? null;
}
