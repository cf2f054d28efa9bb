#!/usr/bin/python3
"""What the page keeps: conversations over reloads, closed tabs, full disks, other tabs, other servers, and as files."""
import json
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "help"))
import page_server  # noqa: E402
from cli import BUILD, finish, ok  # noqa: E402
from webdriver import Browser, Gone, available  # noqa: E402
from webpage import READY, ask, settled  # noqa: E402

FULL = """const put = IDBObjectStore.prototype.put;
    IDBObjectStore.prototype.put = function(x) { const r = put.call(this, x);
        r.addEventListener('success', () => { try { this.transaction.abort(); } catch { } }); return r; };"""
NO_STORES = """indexedDB.open = () => { throw new DOMException('no'); };
    for (const s of ['getItem', 'setItem']) Storage.prototype[s] = () => { throw new DOMException('no'); };"""
CATCH = """const real = URL.createObjectURL;
    URL.createObjectURL = b => { if (b.type !== 'application/json') return real(b);
        b.text().then(x => window.saved = x); return real(b); };"""


def start(b, url):
    b.open("about:blank")
    b.open(url)
    b.wait(READY)


def titles(b):
    return b.text("#list .open")


def pick(b, name, text):
    """Drops a JSON file on the page."""
    b.js("""const d = new DataTransfer(); d.items.add(new File([arguments[1]], arguments[0], {type: 'application/json'}));
        document.dispatchEvent(new DragEvent('drop', {dataTransfer: d, bubbles: true, cancelable: true}))""", name, text)


def unfinished(b, s):
    start(b, s.url)
    ask(b, "slow, and reloaded")
    b.wait("document.querySelector('.streaming')")
    here = b.js("return location.href")
    start(b, s.url)
    ok(titles(b) == ["slow, and reloaded"], "a question outlives a tab that closes before its answer ends", titles(b))
    b.click("#list .open")
    b.wait("document.querySelector('.timing')")
    ok(b.text(".bubble") == ["slow, and reloaded"] and b.text(".timing") == ["stopped"], "it says that it was stopped",
       b.text(".timing"))
    b.click("[aria-label=Regenerate]")
    settled(b)
    ok("tokens" in b.text(".timing")[0], "and can be asked again", b.text(".timing"))
    start(b, here)
    ok(b.text(".bubble") == ["slow, and reloaded"], "the page's address leads back to the conversation")


def meanwhile(b, s):
    start(b, s.url)
    ask(b, "slow in the background")
    b.wait("document.querySelector('.streaming')")
    b.click("#new")
    ok(b.text(".bubble") == [] and b.js("return document.querySelector('#stop').hidden"), "another conversation can be opened")
    ask(b, "quick one")
    settled(b)
    ok(b.text(".answer") == ["A man is ironing clothes."], "and asked in, while the first is being answered")
    ok(b.js("return document.querySelectorAll('[data-answering]').length") == 1, "which its title shows")
    b.click("#list [data-answering] .open")
    ok(b.js("return !!document.querySelector('.streaming')"), "it is still at it when one comes back")
    settled(b)
    ok(b.text(".answer")[0].count("ironing") == 20 and "80 tokens" in b.text(".timing")[0], "and comes to its end")
    ask(b, "slow and removed")
    b.wait("document.querySelector('.streaming')")
    b.click("#clear")
    b.alert()
    b.wait("!document.querySelector('.bubble')")
    time.sleep(0.5)
    start(b, s.url)
    ok(titles(b) == ["quick one", "slow, and reloaded"], "deleted while it streams, a conversation does not come back", titles(b))


def tabs(b, s):
    start(b, s.url)
    first = b.here()
    second = b.tab()
    start(b, s.url)
    ask(b, "from the second tab")
    settled(b)
    b.switch(first)
    b.wait("document.querySelector('#list .open').innerText === 'from the second tab'", what="the other tab's conversation")
    ok(True, "what one tab asks stands at the side of the other")
    b.click("#list .open")
    b.wait("document.querySelectorAll('.timing').length === 1")
    ask(b, "from the first")
    b.wait("document.querySelectorAll('.timing').length === 2")
    b.switch(second)
    b.wait("document.querySelectorAll('.timing').length === 2", what="the first tab's answer")
    ask(b, "and back")
    b.wait("document.querySelectorAll('.timing').length === 3")
    ok(len(s.chats[-1]["messages"]) == 5, "both go on in the same conversation", s.chats[-1])
    b.click("#clear")
    b.alert()
    b.wait("!document.querySelector('.bubble')")
    b.switch(first)
    b.wait("!document.querySelector('.bubble') && document.querySelector('#list .open').innerText !== 'from the second tab'",
           what="the other tab's removal")
    ok(True, "what one removes is gone from both")
    b.switch(second)
    b.call("DELETE", "/window", None)
    b.switch(first)


def little_room(b, s):
    start(b, s.url)
    b.js(FULL)
    ask(b, "no room")
    b.wait("document.querySelector('#notice').innerText.includes('keeps no conversations')")
    settled(b)
    ok(b.text(".answer") == ["A man is ironing clothes."], "with a full disk the page works, and says that it keeps nothing")
    b.click("#new")
    b.click("#list .open")
    b.wait("document.querySelector('.bubble')")
    ok(b.text(".bubble") == ["no room"], "as long as it lasts, the conversation can be opened")
    one = b.devtools("Page.addScriptToEvaluateOnNewDocument", source=NO_STORES)["identifier"]
    start(b, s.url)
    b.wait("document.querySelector('#notice').innerText.includes('keeps no conversations')")
    ask(b, "nothing kept")
    settled(b)
    b.click("#new")
    b.click("#list .open")
    b.wait("document.querySelector('.bubble')")
    said = b.console()
    ok(b.text(".bubble") == ["nothing kept"] and said == [], "without storage too", said)
    b.devtools("Page.removeScriptToEvaluateOnNewDocument", identifier=one)


def older(b, s):
    """A browser that has been here before titles were stored apart."""
    b.open(s.url + "icon.svg")
    b.call("POST", "/execute/async", {"args": [], "script": """const done = arguments[0];
        indexedDB.deleteDatabase('llava').onsuccess = () => { const r = indexedDB.open('llava', 1);
          r.onupgradeneeded = () => r.result.createObjectStore('conversations', {keyPath: 'id'});
          r.onsuccess = () => { const t = r.result.transaction('conversations', 'readwrite');
            t.objectStore('conversations').put({id: '0'.repeat(32), title: 'An old one', model: 'x', created: 1, changed: 1,
              messages: [{role: 'user', text: 'Old?', images: []}]});
            t.oncomplete = () => { r.result.close(); done(); }; }; };"""})
    start(b, s.url)
    ok(titles(b) == ["An old one"], "conversations of an earlier version are there", titles(b))
    b.click("#list .open")
    b.wait("document.querySelector('.bubble')")
    ok(b.text(".bubble") == ["Old?"], "and whole")
    b.console()  # a drawing opened alone lacks a favicon


def exported(b, which):
    b.js("delete window.saved; document.querySelector(arguments[0]).click()", f"[data-format={which}]")
    return json.loads(b.wait("window.saved"))


def as_files(b, s):
    start(b, s.url)
    b.js(CATCH)
    b.click("#examples button")
    b.wait("document.querySelector('#pictures img')")
    b.press("Enter")
    settled(b)
    b.click(".tools [aria-label='Bad answer']")
    b.wait("document.querySelector('[aria-pressed=true]')")
    ask(b, "hostile")
    b.wait("document.querySelectorAll('.timing').length === 2 && document.querySelector('.answer table')")
    one = exported(b, "json")
    everything = exported(b, "all")
    ok(one in everything and len(everything) == 2, "one conversation, or all of them", len(everything))
    shown = b.text("#log .bubble, #log .answer, #log .timing")
    pick(b, "one.json", json.dumps(one))
    b.wait("document.querySelector('#notice').innerText.endsWith(': 1')")
    ok(len(titles(b)) == 2, "a conversation that is here is not imported twice", titles(b))
    b.click("#clear")
    b.alert()
    b.wait("document.querySelectorAll('#list li').length === 1")
    pick(b, "all.json", json.dumps(everything))
    b.wait("document.querySelectorAll('#list li').length === 2")
    b.click("#list .open")
    b.wait("document.querySelectorAll('.timing').length === 2")
    ok(b.text("#log .bubble, #log .answer, #log .timing") == shown, "what was exported comes back as it was")
    ok(b.js("return document.querySelectorAll('.thumbs img').length") == 1
       and b.js("return document.querySelector('[data-vote=downvote]').getAttribute('aria-pressed')") == "true",
       "with its picture and its vote")
    again = exported(b, "json")
    ok(again == one, "and exports the same", [k for k in one if again.get(k) != one[k]])
    one["changed"] += 1
    pick(b, "one.json", json.dumps(one))
    b.wait("document.querySelectorAll('#list li').length === 3")
    ok(True, "one that has gone on elsewhere comes beside it")
    bad = [
        "", "{", "[]x", "null", "7", '"x"', "{}", '{"messages": []}', '{"messages": [1]}', '{"messages": [null]}',
        '{"messages": [{"role": "system", "text": "x"}]}', '{"messages": [{"role": "user", "text": 1}]}',
        '{"messages": [{"role": "user", "text": "x", "images": ["https://example.org/x.png"]}]}',
        '{"messages": [{"role": "user", "text": "x", "images": "data:image/png,"}]}',
    ]
    wrong = []
    for i, text in enumerate(bad):
        pick(b, f"bad{i}.json", text)
        try:
            b.wait(f"document.querySelector('#notice').innerText.includes('“bad{i}.json”')", 3)
        except AssertionError:
            wrong.append(text)
    ok(wrong == [] and len(titles(b)) == 3, "what is no conversation is refused by the file's name", wrong)
    pick(b, "odd.json", json.dumps({
        "id": "../x", "title": {"a": 1}, "created": 1e300, "changed": "now", "model": 5, "more": "<b>",
        "messages": [{"role": "user", "text": "<img src=x onerror=document.title='hacked'>"},
                     {"role": "assistant", "text": "odd", "vote": "yes",
                      "done": {"tokens": "9", "first_s": {}, "seconds": "1"}}]}))
    b.wait("document.querySelectorAll('#list li').length === 4 && document.querySelector('.answer')?.innerText === 'odd'")
    ok(b.js("return document.title") == "Picture – LLaVA" and b.text(".timing") == [""]
       and not b.js("return document.querySelector('[aria-pressed=true]')"), "what is odd in one is left out", b.text(".timing"))
    start(b, s.url)
    said = b.console()
    ok(len(titles(b)) == 4 and said == [], "what was imported is kept", (titles(b), said))


def other_server(b, s):
    """The server goes, and another comes in its place."""
    port = s.http.server_address[1]
    start(b, s.url)
    ask(b, "Before?")
    settled(b)
    b.click("#new")
    s.close()
    b.click("#examples button")
    b.wait("document.querySelector('#notice').innerText.includes('cannot be reached')")
    ok(True, "an example that cannot be fetched says why")
    b.click("#list li:not([aria-current]) .open")
    b.wait("document.querySelector('.bubble')?.innerText === 'Before?'")
    ask(b, "gone?")
    b.wait("document.querySelector('.failure')")
    ok("cannot be reached" in b.text(".failure")[0], "so does a question", b.text(".failure"))
    s = page_server.Server(os.path.join(BUILD, "assets.files"), port)
    s.models = ["another"]
    b.wait("document.querySelector('#model').value === 'another'", 30, "the new server's models")
    b.click(".failure button")
    settled(b)
    ok(s.chats[-1]["model"] == "another", "what is asked again goes to a model that there is", s.chats[-1]["model"])
    ok(b.js("return [...document.querySelectorAll('.assistant')].length") == 2, "the rest of the conversation is as it was")
    s.models = []
    b.open(s.url)
    b.wait("document.querySelector('#model').selectedOptions[0]?.text === 'No model'")
    s.models = ["late"]
    b.wait("document.querySelector('#model').value === 'late'", 30, "a worker's model")
    ok(True, "a model that comes late is listed by itself")
    s.close()


def main():
    if not available():
        print("ok 1 - the page # SKIP no chromium and chromedriver\n1..1")
        return
    s = page_server.Server(os.path.join(BUILD, "assets.files"))
    try:
        with Browser(1280, 860) as b:
            for part in (unfinished, meanwhile, tabs, little_room, older, as_files, other_server):
                part(b, s)
    except (AssertionError, Gone) as e:
        ok(False, "the walk came to its end", e)
    finish()


if __name__ == "__main__":
    main()
