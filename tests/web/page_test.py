#!/usr/bin/python3
"""The page as people meet it: headless Chromium against a stand-in for the server. Pictures of what was seen lie in build/web."""
import os
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "help"))
import page_server  # noqa: E402
from cli import BUILD, ROOT, finish, ok  # noqa: E402
from serving import DEMO, Server as Real  # noqa: E402
from webdriver import Browser, Gone, available  # noqa: E402
from webpage import END, READY, SEEN, ask, file_event, settled  # noqa: E402


def first_look(b, s):
    ok(b.console() == [], "the page loads without a complaint")
    lazy = ("/vendor/highlight", "/vendor/katex", "/vendor/fonts", "/examples")
    weight = sum(n for path, n in s.sent.items() if not path.startswith(lazy))
    ok(weight < 300000, f"it loads under 300 kB: {weight}")
    ok(
        not any(path.startswith(lazy[:3]) for path in s.sent),
        "highlighting and formulas are not loaded before they are needed",
    )
    ok(b.text("#model option") == ["llava-v1.5-13b", "llava-v1.5-7b"], "the models are listed")
    ok(len(b.text("#examples button")) == 2, "two examples")
    names = b.js(
        """return [...document.querySelectorAll('button, select, textarea, input:not([type=file])')].filter(n => n.offsetParent)
        .filter(n => !(n.innerText.trim() || n.getAttribute('aria-label') || n.closest('label'))).map(n => n.outerHTML)"""
    )
    ok(names == [], "everything that can be used has a name", names)
    b.picture(f"{SEEN}/welcome.png")


def conversation(b, s):
    b.click("#examples button")
    b.wait("document.querySelectorAll('#pictures img').length === 1")
    ok(
        b.js("return document.querySelector('#question').value") == "What is unusual about this image?",
        "an example fills the question",
    )
    b.press("Enter")
    settled(b)
    ok(
        b.text(".answer") == ["A man is ironing clothes."]
        and b.js("return !!document.querySelector('.answer strong')"),
        "the answer, with Markdown",
    )
    said = s.chats[-1]
    ok(said["messages"][0]["images"][0].startswith("data:image/jpeg;base64,"), "the picture went as it is")
    with open(os.path.join(ROOT, "src/serve/web/examples/extreme_ironing.jpg"), "rb") as f:
        import base64

        ok(base64.b64decode(said["messages"][0]["images"][0].split(",")[1]) == f.read(), "to the byte")
    ok(
        (said["temperature"], said["top_p"], said["max_new_tokens"], said["regenerate"]) == (0.2, 0.7, 512, False),
        "the reference's parameters",
    )
    ok("4 tokens" in b.text(".timing")[0] and "tok/s" in b.text(".timing")[0], "tokens and speed", b.text(".timing"))
    b.click(".tools [aria-label='Regenerate']")
    settled(b)
    ok(s.chats[-1]["regenerate"] and len(s.chats[-1]["messages"]) == 1, "regenerate asks the same again")
    b.click(".tools [aria-label='Good answer']")
    b.wait("document.querySelector('[aria-pressed=true]')")
    ok(s.votes[-1]["type"] == "upvote" and s.votes[-1]["messages"][-1]["role"] == "assistant", "a vote is sent")
    ok(b.js("return [...document.querySelectorAll('[aria-pressed]')].every(n => n.disabled)"), "once")
    ask(b, "And now?")
    b.wait("document.querySelectorAll('.timing').length === 2")
    settled(b)
    ok(
        [m["role"] for m in s.chats[-1]["messages"]] == ["user", "assistant", "user"],
        "a further question brings what was said",
    )
    b.click(".user .tools button")
    b.js("document.querySelector('.edit textarea').value = ''")
    b.type(".edit textarea", "Edited?")
    b.click(".edit .primary")
    b.wait("document.querySelectorAll('.user').length === 1")
    settled(b)
    ok(
        s.chats[-1]["messages"][0]["text"] == "Edited?" and len(s.chats[-1]["messages"][0]["images"]) == 1,
        "an edited question goes again, with its picture",
    )
    b.picture(f"{SEEN}/answer.png")
    b.open(s.url)
    b.wait(READY)
    ok(len(b.text("#list li")) == 1 and b.text(".user") == [], "after a reload the conversation is at the side")
    b.click("#list .open")
    b.wait("document.querySelector('.bubble')")
    ok(
        b.text(".bubble") == ["Edited?"] and b.js("return document.querySelectorAll('.thumbs img').length") == 1,
        "and opens whole",
    )
    exported = b.js(
        """const real = URL.createObjectURL; let blob; URL.createObjectURL = x => { blob = x; return real(x); };
        document.querySelector('[data-format=json]').click(); URL.createObjectURL = real; return blob.size"""
    )
    ok(exported > 80000, "it exports with its picture")


def hostile(b, s):
    b.click("#new")
    ask(b, "hostile " + "<b onmouseover=x>")
    b.wait("document.querySelector('.katex') && document.querySelector('.hljs-keyword')", what="formulas and colours")
    ok(b.js("return document.title").startswith("hostile"), "nothing in an answer runs")
    ok(
        b.js("return document.querySelectorAll('.answer :is(script, img, svg:not(.katex svg), iframe)').length") == 0,
        "nor makes elements",
    )
    ok(
        b.js("return [...document.querySelectorAll('.answer a')].map(a => a.protocol)") == ["https:", "https:"],
        "links lead to the web only",
    )
    ok("$5 and $10" in b.text(".answer")[0], "money is no formula")
    ok(b.text(".timing")[0].startswith("1 token · first after"), "one token has no speed", b.text(".timing"))
    above = b.js(
        """const line = document.createRange(); line.selectNodeContents(document.querySelector('.answer pre code'));
        const copy = document.querySelector('.answer pre > button').getBoundingClientRect();
        return line.getClientRects()[0].top - copy.bottom"""
    )
    ok(above >= 0, "the button of a listing covers none of it", above)
    b.js(
        """Object.defineProperty(navigator, 'clipboard', {value: undefined, configurable: true});
        document.execCommand = what => { window.kept = what + ': ' + document.activeElement.value; return true; }"""
    )
    b.click(".answer pre > button")
    b.wait("window.kept")
    ok(
        b.js("return window.kept") == 'copy: def f(x):\n    return "<b>" + x  # bold'
        and b.text(".answer pre > button") == ["Copied"],
        "without a clipboard, as over plain http, copying goes the old way",
        b.js("return window.kept"),
    )
    ok(b.js("return document.querySelectorAll('.katex').length") == 2, "two formulas")
    ok("<b onmouseover=x>" in b.text(".bubble")[0], "a question is text")
    ok(b.console() == [], "no policy was offended", b.console())
    b.js("document.querySelector('#scroll').scrollTop = 0")
    b.picture(f"{SEEN}/markdown.png")
    ask(b, "slow hostile")
    b.wait("document.querySelector('.streaming .katex') && document.querySelector('.streaming .hljs-keyword')",
           what="formulas and colours while more comes")
    b.picture(f"{SEEN}/streaming.png")
    settled(b)
    ok(b.js("return document.querySelectorAll('.assistant:last-child .katex').length") == 6, "each of them once")


def troubles(b, s):
    b.click("#new")
    ask(b, "slow one")
    b.wait("document.querySelector('.streaming .cursor')")
    ok(b.js("return document.querySelector('.cursor').parentElement.tagName") == "P", "the cursor is behind the last word")
    b.click("#stop")
    settled(b)
    ok("stopped" in b.text(".timing")[0] and b.text(".answer")[0].startswith("A man"), "stop keeps what came")
    end = time.monotonic() + 5
    while not s.gone and time.monotonic() < end:
        time.sleep(0.05)
    ok(s.gone == 1, "and the server hears of it")
    ask(b, "slow two")
    b.wait("document.querySelector('.streaming')")
    b.press("Escape")
    settled(b)
    ok(len(b.text(".user")) == 2, "Escape stops too")
    for word, says in (
        ("worker", "No worker is serving"),
        ("context", "longer than the model can hold"),
        ("broken", "broke off"),
        ("busy", "Too many people"),
    ):
        b.click("#new")
        if word == "busy" and len(s.chats) % 2:
            s.chats.append(None)
        ask(b, word + " please")
        b.wait("document.querySelector('.failure')")
        ok(says in b.text(".failure")[0], f"{word}: a sentence that says what is wrong", b.text(".failure"))
    b.picture(f"{SEEN}/failure.png")
    b.click(".failure button")
    b.wait("document.querySelector('.timing')?.textContent && !document.querySelector('.failure')")
    ok(b.text(".answer") == ["A man is ironing clothes."], "trying again helps")
    b.click("#new")
    ask(b, "worker first")
    b.wait("document.querySelector('.failure')")
    ask(b, "then this")
    b.wait("document.querySelectorAll('.assistant').length === 2")
    settled(b)
    ok(
        [m["text"] for m in s.chats[-1]["messages"]] == ["then this"],
        "a question that got no answer is not told again",
    )
    served, s.models = s.models, []
    b.click("#new")
    b.wait("document.querySelector('#model').value === ''")
    ask(b, "nobody there?")
    b.wait("document.querySelector('.failure')")
    ok("No model is served" in b.text(".failure")[0], "without a worker the page says so", b.text(".failure"))
    s.models = served
    b.click(".failure button")
    settled(b)
    ok(b.text(".answer") == ["A man is ironing clothes."] and s.chats[-1]["model"] == served[0], "and asks one that has come")
    b.click("#new")
    ask(b, "queue please")
    ok(
        b.wait("document.querySelector('.waiting')?.textContent.includes('3 before you')"),
        "the place in the queue is shown",
    )
    ok(b.text(".assistant .tools button") == [], "an answer that is not there cannot be rated")
    settled(b)


def pictures(b, s):
    b.click("#new")
    b.js(file_event("paste", "notes.png", "image/png", "[1,2,3]"))
    b.wait("!document.querySelector('#notice').hidden")
    ok("notes.png" in b.text("#notice")[0], "what is no picture is refused by name")
    gif = (
        "[71,73,70,56,57,97,1,0,1,0,128,0,0,255,255,255,0,0,0,33,249,4,0,0,0,0,0,44,0,0,0,0,1,0,1,0,0,2,2,68,1,0,59]"
    )
    b.js(file_event("paste", "a.gif", "image/gif", gif))
    b.wait("document.querySelectorAll('#pictures img').length === 1")
    b.js(file_event("drop", "b.gif", "image/gif", gif))
    b.wait("document.querySelectorAll('#pictures img').length === 2")
    ok(True, "pasted and dropped")
    b.click("#camera")
    b.wait("document.querySelector('#shutter').open && document.querySelector('#shutter video').videoWidth > 0")
    b.click("#shoot")
    b.wait("document.querySelectorAll('#pictures img').length === 3")
    ok(True, "photographed")
    b.js(file_event("paste", "d.gif", "image/gif", gif))
    b.wait("document.querySelector('#notice').textContent.includes('3 pictures')")
    ok(True, "a fourth is too many")
    ask(b, "What are these?")
    settled(b)
    ok(len(s.chats[-1]["messages"][0]["images"]) == 3, "three pictures in one question")
    with tempfile.NamedTemporaryFile(suffix=".svg") as f:
        f.write(
            b'<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30"><rect width="40" height="30" fill="red"/></svg>'
        )
        f.flush()
        b.type("#files", f.name)
        b.wait("document.querySelectorAll('#pictures img').length === 1")
    ok(
        b.js("return document.querySelector('#pictures img').src").startswith("data:image/png"),
        "what the server cannot read is drawn again",
    )
    b.js(
        """document.querySelector('#question').value = '你'; document.querySelector('#question').dispatchEvent(
        new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true, cancelable: true}))"""
    )
    ok(b.js("return document.querySelectorAll('.user').length") == 1, "Enter that ends a composition does not send")
    b.js("document.querySelector('#question').value = 'x'.repeat(1300)")
    b.press("Enter")
    ok(b.wait("document.querySelector('#notice').textContent.includes('1200')"), "a question that is too long stays")
    b.js("document.querySelector('#question').value = ''")
    for word in ("slow one", "slow two"):
        ask(b, word)
        b.wait("document.querySelector('.streaming')")
        settled(b)
    b.js(file_event("paste", "e.gif", "image/gif", gif))
    b.wait("document.querySelectorAll('#pictures img').length === 1")
    ok(b.js("return (s => s.scrollHeight > s.clientHeight)(document.querySelector('#scroll'))"), "more than fits")
    b.wait(END, what="the end in sight beside pictures that wait")
    before = len(b.text("#list li"))
    b.click("#clear")
    b.alert()
    b.wait(f"document.querySelectorAll('#list li').length === {before - 1}")
    ok(b.text(".user") == [], "clear deletes the conversation")


CONTRAST = """
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number)
    .map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126*r + .7152*g + .0722*b; };
  const ground = n => { for (; n; n = n.parentElement) { const c = getComputedStyle(n).backgroundColor;
    if (!/, 0\\)|transparent/.test(c)) return c; } return 'rgb(255,255,255)'; };
  return [...document.querySelectorAll('button, p, li, h1, h2, label, summary, .answer *, option')]
    .filter(n => n.offsetParent && !n.disabled && n.innerText?.trim())
    .map(n => { const a = light(getComputedStyle(n).color), b = light(ground(n));
      return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), n.outerHTML.slice(0, 90)]; }).filter(x => x[0] < 4.5)"""


def languages(b):
    for wanted, got in ((["en-US", "zh-CN"], "en"), (["fr", "zh-TW", "en"], "zh"), (["fr"], "en")):
        b.js("Object.defineProperty(navigator, 'languages', {value: arguments[0], configurable: true})", wanted)
        ok(b.js("return import('/i18n.js').then(m => m.preferred())") == got, f"who reads {wanted} is spoken to in {got}")


def looks(b):
    for choice in ("light", "dark"):
        while b.js("return document.querySelector('#theme').dataset.choice") != choice:
            b.click("#theme")
        ok(b.js("return document.documentElement.dataset.theme") == choice, f"{choice} by choice")
        ok(b.js(CONTRAST) == [], f"{choice}: every text stands out 4.5 to 1", b.js(CONTRAST))
    b.picture(f"{SEEN}/dark.png")
    b.click("#language")
    ok(b.js("return document.documentElement.lang") == "zh-CN" and "新对话" in b.text("#new")[0], "Chinese")
    b.picture(f"{SEEN}/zh.png")
    missing = b.js(
        """return fetch('/i18n.js').then(async got => { const source = await got.text();
        const keys = [...source.matchAll(/(\\w+):\\s+"/g)].map(x => x[1]);
        return keys.filter(k => keys.filter(x => x === k).length !== 2); })"""
    )
    ok(missing == [], "both languages say the same things", missing)


def phone(b, s):
    b.open(s.url)
    b.wait(READY)
    ok(b.js("return document.documentElement.lang") == "zh-CN", "a Chinese browser is spoken to in Chinese")
    ok(b.js("return document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out at 390 px")
    b.picture(f"{SEEN}/phone.png")
    b.click("#examples button")
    b.wait("document.querySelectorAll('#pictures img').length === 1")
    b.js("document.querySelector('#question').value = 'hostile'")
    b.click("#send")
    b.wait("document.querySelector('.katex') && document.querySelector('.hljs-keyword')")
    b.wait(END, what="the end in sight")
    ok(b.js("return document.documentElement.scrollWidth <= innerWidth"), "nor with an answer")
    b.picture(f"{SEEN}/phone-answer.png")
    b.click("#menu")
    ok(b.js("return document.querySelector('#menu').getAttribute('aria-expanded')") == "true", "the drawer opens")
    b.press("Escape")
    ok(b.js("return document.activeElement.id") == "menu", "and closes")


def behind_a_key():
    """The page of a server that wants a key, which is asked for once; examples and answers come with it."""
    with Real("serve", "--model-path", DEMO, env={"LLAVA_API_KEY": "sesame"}) as s, Browser(900, 700) as b:
        b.open(s.url + "/")
        b.wait("document.querySelector('#lock').open", what="a question for the key")
        b.picture(f"{SEEN}/key.png")
        ok(b.js("return document.querySelector('#wrong').hidden"), "a key is asked for")
        b.type("#lock [name=key]", "open")
        b.press("Enter")
        b.wait("document.querySelector('#lock').open && !document.querySelector('#wrong').hidden")
        ok(b.text("#model option") == ["No model"], "a wrong one opens nothing", b.text("#model option"))
        b.type("#lock [name=key]", "sesame")
        b.press("Enter")
        b.wait("!document.querySelector('#lock').open && document.querySelectorAll('#examples img').length")
        b.wait("[...document.querySelectorAll('#examples img')].every(i => i.naturalWidth)", what="the examples' pictures")
        ok(b.text("#model option") == ["demo"], "the right one does", b.text("#model option"))
        b.click("#examples button")
        b.wait("document.querySelectorAll('#pictures img').length === 1")
        b.press("Enter")
        settled(b)
        ok(b.text(".answer") != [] and b.text(".failure") == [], "and answers come", b.text(".failure"))
        b.open(s.url + "/")
        b.wait(READY)
        ok(not b.js("return document.querySelector('#lock').open") and b.text("#model option") == ["demo"],
           "it is asked for once in a tab")
        ok(b.js("return localStorage.getItem('llava.key')") is None, "and not kept unless that is wanted")


def main():
    if not available():
        print("ok 1 - the page # SKIP no chromium and chromedriver\n1..1")
        return
    os.makedirs(SEEN, exist_ok=True)
    s = page_server.Server(os.path.join(BUILD, "assets.files"))
    try:
        with Browser(1280, 860) as b:
            b.open(s.url)
            b.wait(READY)
            for part in (first_look, conversation, hostile, troubles, pictures):
                part(b, s)
            looks(b)
            languages(b)
        with Browser(390, 800, touch=True, language="zh-CN") as b:
            phone(b, s)
        behind_a_key()
    except (AssertionError, Gone) as e:
        ok(False, "the walk came to its end", e)
    s.close()
    finish()


if __name__ == "__main__":
    main()
