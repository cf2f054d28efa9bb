/* Conversations in the browser's IndexedDB (pictures are too large for localStorage), settings in localStorage. Where the
 * browser keeps nothing, or has no room left, both live as long as the page. Only titles are in memory all the time. What
 * one tab changes the others hear of.
 *
 * conversation: { id, title, model, created, changed, messages: [message] }
 * message: { role: "user" | "assistant", text, images: [data URI], vote, done, stopped, error }                     */

const titles = new Map(), // id: { id, title, changed }
  held = new Map(); // id: a conversation that the database did not take
let database = null,
  channel = null;

const summary = ({ id, title, changed }) => ({ id, title, changed });

/* Version 1 had no titles. */
function upgrade(request, from) {
  const all = from < 1 && request.result.createObjectStore("conversations", { keyPath: "id" }),
    brief = request.result.createObjectStore("titles", { keyPath: "id" });
  if (all) return;
  request.transaction.objectStore("conversations").openCursor().onsuccess = event => {
    const at = event.target.result;
    if (!at) return;
    brief.put(summary(at.value));
    at.continue();
  };
}

function open() {
  return new Promise(resolve => {
    let request;
    try {
      request = indexedDB.open("llava", 2);
    } catch {
      return resolve(null);
    }
    request.onupgradeneeded = event => upgrade(request, event.oldVersion);
    request.onsuccess = () => {
      request.result.onversionchange = () => request.result.close();
      request.result.onclose = async () => {
        database = await open(); /* a browser that is short of memory closes it */
      };
      resolve(request.result);
    };
    request.onerror = request.onblocked = () => resolve(null);
  });
}

/* Runs work in one transaction: { value } of the request that it returns once all is kept; null when the database will not. */
function transact(mode, work) {
  return new Promise(resolve => {
    if (!database) return resolve(null);
    try {
      const t = database.transaction(["conversations", "titles"], mode),
        request = work(t.objectStore("conversations"), t.objectStore("titles"));
      t.oncomplete = () => resolve({ value: request.result });
      t.onabort = t.onerror = () => resolve(null); /* a full disk shows only here */
    } catch {
      resolve(null);
    }
  });
}

/* Reads the titles; false: nothing will be here next time. */
export async function load() {
  database = await open();
  const all = await transact("readonly", (_, brief) => brief.getAll());
  for (const c of all?.value ?? []) titles.set(c.id, c);
  return !!all;
}

/* Titles, newest first. */
export const list = () => [...titles.values()].sort((a, b) => b.changed - a.changed);
export const title = id => titles.get(id);
export const get = async id => held.get(id) ?? (await transact("readonly", all => all.get(id)))?.value;

/* False: there was no room for it, so it goes with the page. */
export async function put(conversation) {
  const brief = summary(conversation);
  titles.set(brief.id, brief);
  held.set(brief.id, conversation);
  const kept = await transact("readwrite", (all, briefs) => {
    briefs.put(brief);
    return all.put(conversation);
  });
  if (kept) {
    held.delete(brief.id);
    channel?.postMessage({ put: brief });
  }
  return !!kept || !database;
}

export async function remove(id) {
  titles.delete(id);
  held.delete(id);
  await transact("readwrite", (all, briefs) => {
    briefs.delete(id);
    return all.delete(id);
  });
  channel?.postMessage({ removed: id });
}

/* changed(id) when another tab has stored or removed a conversation. */
export function watch(changed) {
  if (!globalThis.BroadcastChannel) return;
  channel = new BroadcastChannel("llava");
  channel.onmessage = ({ data: { put: brief, removed } }) => {
    if (brief) titles.set(brief.id, brief);
    else titles.delete(removed);
    changed(brief ? brief.id : removed);
  };
}

/* The server's key: for this tab, or for as long as the browser keeps it. */
let key_held = null;
export function key(value, lasting) {
  try {
    if (value === undefined)
      return key_held ?? sessionStorage.getItem("llava.key") ?? localStorage.getItem("llava.key");
    key_held = value;
    sessionStorage.setItem("llava.key", value);
    if (lasting) localStorage.setItem("llava.key", value);
    else localStorage.removeItem("llava.key");
  } catch {
    /* a browser that keeps nothing: as long as the page */
  }
  return key_held;
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
