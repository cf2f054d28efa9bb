#!/usr/bin/python3
"""Whom the page reaches: keyboards, screen readers, right-to-left text, the system's colours, small and enlarged screens, slow
networks; and pictures that come all at once."""
import base64
import os
import struct
import sys
import threading
import time
import zlib

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "help"))
import page_server  # noqa: E402
from cli import BUILD, finish, ok  # noqa: E402
from webdriver import Browser, Gone, available  # noqa: E402
from webpage import END, READY, SEEN, ask, settled  # noqa: E402

PASTE = """const paste = (files, text) => { const d = new DataTransfer(); for (const f of files) d.items.add(f);
    if (text) d.setData('text/plain', text);
    const e = new ClipboardEvent('paste', {clipboardData: d, bubbles: true, cancelable: true}); document.dispatchEvent(e);
    return e; };
    const gif = name => new File([Uint8Array.from(atob(
      'R0lGODlhAQABAIAAAP///wAAACH5BAAAAAAALAAAAAABAAEAAAICRAEAOw=='), c => c.charCodeAt(0))], name, {type: 'image/gif'});"""
FOCUS = "(n => n.id || n.getAttribute('aria-label') || n.className || n.tagName)(document.activeElement)"
STICKS = "document.documentElement.scrollWidth > innerWidth || document.documentElement.scrollHeight > innerHeight"
SHOWN = "document.querySelectorAll('#pictures img').length"


def black(side):
    """A square PNG of one bit a pixel."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)) + chunk(b"IDAT", rows)
            + chunk(b"IEND", b""))


def start(b, url):
    b.open("about:blank")
    b.open(url)
    b.wait(READY)


def lit(b, **features):
    b.devtools("Emulation.setEmulatedMedia", features=[{"name": k.replace("_", "-"), "value": v} for k, v in features.items()])


def size(b, width, height, phone=False):
    b.devtools("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)


def screen_reader(b, s):
    start(b, s.url)
    for text in ("one", "two"):
        ask(b, text)
        settled(b)
    ok(b.js("return document.querySelectorAll('li').length > 3 && [...document.querySelectorAll('li')].every(n => "
            "n.parentElement.matches('ul:not([role]), ol:not([role])'))"), "items stand in lists")
    b.js("window.kept = [...document.querySelectorAll('#log *')]; window.added = 0;"
         "new MutationObserver(all => { for (const m of all) for (const n of m.addedNodes)"
         "added += !n.closest?.('[aria-live=off]'); }).observe("
         "document.querySelector('[role=log]'), {childList: true, subtree: true})")
    b.click(".assistant:last-child [data-vote=upvote]")
    b.wait("document.querySelector('[aria-pressed=true]')")
    ok(b.js("return kept.every(n => n.isConnected) && added === 0"), "a vote makes nothing be read again")
    b.wait(f"{FOCUS} === 'Copy'", what="the focus behind the votes")
    ok(b.js("return document.querySelector('#notice').innerText") == "Noted, thank you", "a vote is answered")
    ask(b, "three")
    b.wait("document.querySelectorAll('.timing').length === 3")
    ok(b.js("return kept.filter(n => !n.isConnected).length") == 0, "nor does a further answer")
    b.click("#list .open")
    ok(b.js("return kept.every(n => n.isConnected)"), "nor the same conversation again")


def keyboard(b, s):
    start(b, s.url)
    order, wanted = [], ["skip", "new", "model", "question", "send"]
    for _ in range(20):
        b.press("Tab")
        order.append(b.js("return " + FOCUS))
    round_trip = order[order.index("skip"):] if "skip" in order else []
    ok([x for x in round_trip if x in wanted][:5] == wanted, "Tab goes through the page in order", order)
    b.js("document.querySelector('#question').focus()")
    ask(b, "slow at keys")
    b.wait("document.querySelector('.streaming')")
    ok(b.js("return " + FOCUS) == "question", "who writes stays where they write")
    b.press("Escape")
    settled(b)
    b.js("document.querySelector('[aria-label=Regenerate]').focus()")
    b.press("Enter")
    b.wait(f"{FOCUS} === 'stop'", what="the focus on the button that stops")
    b.press("Enter")
    b.wait(f"{FOCUS} === 'question'", what="the focus on the question")
    settled(b)
    ok(b.text(".timing") == ["stopped"], "regenerated and stopped by keys alone")
    b.js("document.querySelector('#export summary').focus()")
    b.press("Enter")
    b.wait("document.querySelector('#export').open")
    b.press("Escape")
    ok(b.js("return " + FOCUS + " === 'SUMMARY' && !document.querySelector('#export').open"), "a menu closes by Escape")
    ring = b.js("""const box = document.querySelector('.box'), at = () => getComputedStyle(box).borderColor, before = at();
        document.querySelector('#question').focus(); return [before, at()]""")
    ok(ring[0] != ring[1], "the question shows that it has the focus", ring)


def directions(b, s):
    start(b, s.url)
    ask(b, "arabic ما هذا؟")
    b.wait("document.querySelector('.timing') && document.querySelector('.answer code')")
    style = "(n, what) => getComputedStyle(document.querySelector('.answer ' + n))[what]"
    runs = [b.js(f"return ({style})('pre code', '{what}')") for what in ("direction", "textAlign")]
    ok(runs == ["ltr", "left"], "code runs left to right in an Arabic answer")
    ok(b.js(f"return ({style})('blockquote', 'borderRightWidth')") == "3px", "a quotation has its bar where it begins")
    sides = b.js("""return [...document.querySelectorAll('.answer > p')].map(p => { const line = document.createRange();
        line.selectNodeContents(p); const [a, b] = [line.getBoundingClientRect(), p.getBoundingClientRect()];
        return a.left - b.left < b.right - a.right ? 'left' : 'right'; })""")
    ok(sides == ["right", "left"], "each paragraph begins on its own side", sides)
    b.picture(f"{SEEN}/arabic.png")


def colours(b, s):
    start(b, s.url)
    ask(b, "hostile")
    settled(b)
    lit(b, forced_colors="active")
    ok(b.js("return ['.bubble', '#send'].every(n => getComputedStyle(document.querySelector(n)).borderTopWidth === '1px')")
       and b.js("return getComputedStyle(document.querySelector('#list li[aria-current]')).outlineStyle") == "solid",
       "in the system's colours things keep their shapes")
    b.picture(f"{SEEN}/forced-colors.png")
    lit(b, prefers_reduced_motion="reduce")
    ask(b, "slow and still")
    b.wait("document.querySelector('.streaming .cursor')")
    ok(b.js("return document.getAnimations().length") == 0, "nothing moves for who wants that")
    b.press("Escape")
    settled(b)
    lit(b)


def sizes(b, s):
    for width, height, what in ((320, 568, "a small phone"), (844, 390, "a phone on its side"), (640, 400, "200 %")):
        size(b, width, height, phone=True)
        start(b, s.url)
        ok(not b.js("return " + STICKS), f"{what}: all of the page is there")
        ask(b, "hostile")
        b.wait("document.querySelector('.timing') && document.querySelector('.katex')")
        room = b.js("return document.querySelector('#scroll').clientHeight")
        ok(not b.js("return " + STICKS) and room > 150, f"{what}: and has room for an answer", room)
        b.picture(f"{SEEN}/size-{width}.png")
    size(b, 390, 844, phone=True)
    b.js("window.dispatchEvent(new Event('resize'))")
    b.click("#menu")
    b.wait(f"{FOCUS} === 'new'")
    ok(b.js("return document.querySelector('#main').inert"), "behind the open drawer nothing can be reached")
    time.sleep(0.3)
    b.js("document.querySelector('#parameters').open = true")
    b.picture(f"{SEEN}/drawer.png")
    b.js("document.elementFromPoint(380, 400).click()")
    ok(not b.js("return document.querySelector('#main').inert"), "a touch beside it closes it")
    ok(b.js("return document.querySelector('h1').checkVisibility()"), "the page has its heading there too")
    size(b, 1280, 860)


def many(b, s):
    b.js("""return import('/store.js').then(async m => { for (let i = 0; i < 40; i++) await m.put({id: 'many' + i, title:
        'What can be seen in picture number ' + i + '?', model: '', created: i, changed: i,
        messages: [{role: 'user', text: 'x'}]}); })""")
    start(b, s.url)
    n = b.js("return document.querySelectorAll('#list li').length")
    ok(n > 40 and not b.js("return " + STICKS), "forty conversations scroll", n)
    ok(b.js("return (n => n.clientWidth > .9 * n.parentElement.clientWidth)(document.querySelector('#list .open'))"),
       "a title has the whole width")
    b.js("document.querySelector('#parameters').open = true")
    n = b.js("return document.querySelector('nav').clientHeight")
    ok(n >= 90 and not b.js("return " + STICKS), "also beside the parameters", n)
    b.picture(f"{SEEN}/many.png")
    low = b.js("return document.querySelector('[name=max_new_tokens]').min")
    ok(int(low) > 0, "no number of tokens is offered that is always refused", low)
    b.js("""const n = document.querySelector('[name=temperature]'); n.value = 1; n.dispatchEvent(new Event('input'))""")
    b.click("#defaults")
    now = b.js("return [document.querySelector('[name=temperature]').value, localStorage.getItem('llava.temperature')]")
    ok(now == ["0.2", "0.2"], "the parameters go back to what they were")
    b.js("localStorage.setItem('llava.image_process_mode', 'None of them')")
    start(b, s.url)
    now = b.js("return document.querySelector('[name=image_process_mode]').value")
    ok(now == "Default", "a choice that there is no more is none", now)


def long_ones(b, s):
    start(b, s.url)
    ask(b, "😀" * 1000)
    settled(b)
    ok(len(s.chats[-1]["messages"][-1]["text"]) == 1000, "characters are counted as the server does")
    ok(b.js("return document.title.isWellFormed()"), "no title ends in half of one")
    ask(b, "worker first")
    b.wait("document.querySelector('.failure button:not([hidden])')")
    ask(b, "then another")
    b.wait("document.querySelectorAll('.assistant').length === 3")
    settled(b)
    ok(b.js("return document.querySelector('.failure button').hidden"), "what was said later is not lost by trying again")
    asked = len(s.chats)
    b.click(".user:last-of-type .tools button, .user:nth-last-child(2) .tools button")
    b.js("document.querySelector('.edit textarea').value = 'x'.repeat(1600)")
    b.click(".edit .primary")
    b.wait("document.querySelector('#notice').innerText.includes('1536')")
    ok(len(s.chats) == asked, "a changed question may not be longer than another")
    b.click(".edit .quiet")
    ask(b, "slow hostile")
    b.wait("document.querySelectorAll('.streaming pre').length === 1 && document.querySelector('.streaming table')")
    b.js("const range = document.createRange(); window.pre = document.querySelector('.streaming pre');"
         "range.selectNodeContents(pre.firstChild); getSelection().removeAllRanges(); getSelection().addRange(range)")
    ok(b.text(".streaming pre > button") == ["Copy"], "a listing that is whole can be copied while more comes")
    b.wait("document.querySelectorAll('.streaming pre').length === 3")
    settled(b)
    ok(b.js("return pre.isConnected && getSelection().toString().startsWith('def f')"), "nor does what is marked in it get lost")
    ok(b.js("return document.querySelectorAll('.assistant:last-child pre > button').length") == 3, "each listing has one button")
    b.js("document.querySelector('#scroll').scrollTop = 0")
    b.wait("!document.querySelector('#down').hidden")
    b.click("#down")
    b.wait("document.querySelector('#down').hidden")
    ok(b.js("return " + END), "a button leads to the end")


def pictures(b, s):
    start(b, s.url)
    b.js(PASTE + """paste([gif('a.gif')]); document.querySelector('#question').value = 'Quickly?';
        document.querySelector('#question').dispatchEvent(
          new KeyboardEvent('keydown', {key: 'Enter', bubbles: true, cancelable: true}))""")
    b.wait("document.querySelector('.timing')")
    ok(len(s.chats[-1]["messages"][0].get("images", [])) == 1, "a question waits for its picture")
    b.js(PASTE + "paste([gif('a.gif'), gif('b.gif')]); paste([gif('c.gif'), gif('d.gif')])")
    b.wait("document.querySelector('#notice').innerText.includes('3 pictures')")
    b.wait(SHOWN + " === 3")
    ok(True, "no more pictures than there may be, however they come")
    b.click("#pictures button")
    ok(b.js("return " + SHOWN) == 2, "of equal pictures one can be removed")
    b.click("#pictures button")
    b.js(PASTE + "paste([new File(['x'], 'one.png', {type: 'image/png'}), new File(['%PDF'], 'two.pdf', "
         "{type: 'application/pdf'})])")
    b.wait("(x => x.includes('one.png') && x.includes('two.pdf'))(document.querySelector('#notice').innerText)")
    ok(b.js("return " + SHOWN) == 1, "each file that is no picture is named")
    taken = b.js(PASTE + "return paste([gif('cells.gif')], '1\\t2').defaultPrevented")
    ok(not taken and b.js("return document.querySelectorAll('#pictures li').length") == 1,
       "text that brings a picture of itself is text")
    ok(b.js("""const c = document.createElement('canvas'); c.width = c.height = 6000;
        return new Promise(done => c.toBlob(done)).then(x => { const d = new DataTransfer(); d.items.add(new File([x,
        new Uint8Array(2 << 20)], 'huge.png', {type: 'image/png'}));
        document.dispatchEvent(new DragEvent('drop', {dataTransfer: d,
        bubbles: true, cancelable: true})); return !!document.querySelector('#pictures .reading'); })"""),
       "a large one has its place at once")
    b.wait(SHOWN + " === 2", 60)
    ok(b.js("return document.querySelectorAll('#pictures img')[1].src").startswith("data:image/jpeg"), "and is made smaller")
    b.js(PASTE + "paste([new File([Uint8Array.from(atob(arguments[0]), c => c.charCodeAt(0))], 'wide.png', "
         "{type: 'image/png'})])", base64.b64encode(black(14000)).decode())
    b.wait(SHOWN + " === 3", 60)
    size = b.js("return (i => [i.naturalWidth, i.naturalHeight])(document.querySelectorAll('#pictures img')[2])")
    ok(size == [2048, 2048], "so is one of more pixels than the server takes", size)


def slow_network(b, s):
    lit(b, prefers_color_scheme="dark")
    s.held["/app.js"] = threading.Event()
    b.open(s.url)
    b.wait("document.querySelector('#terms')")
    early = b.js("return [document.documentElement.dataset.theme, document.querySelector('#theme').textContent]")
    ok(early == ["dark", ""], "who likes it dark sees no light page first", early)
    s.held["/app.js"].set()
    b.wait(READY)
    ask(b, "kept")
    settled(b)
    s.held["/vendor/marked.js"] = threading.Event()
    b.open("about:blank")
    b.wait("location.href === 'about:blank'")
    b.open(s.url)
    b.wait("document.querySelector('#list li') && document.querySelector('#model').value", what="titles and models")
    ok(not b.js("return " + READY), "titles and models do not wait for Markdown")
    ask(b, "early?")
    b.wait("document.querySelector('.timing')")
    ok(b.text(".answer") == ["A man is **ironing** clothes."], "nor does an answer")
    s.held["/vendor/marked.js"].set()
    b.wait("document.querySelector('.answer strong')", what="Markdown")
    ok(b.text(".answer") == ["A man is ironing clothes."], "which is dressed when Markdown has come")
    loads = b.js("return [...document.querySelectorAll('link[rel=modulepreload]')].map(n => new URL(n.href).pathname).sort()")
    names = b.js("return performance.getEntriesByType('resource').map(r => new URL(r.name).pathname)")
    used = sorted({n for n in names if n.endswith(".js") and "/vendor/" not in n} - {"/app.js", "/theme.js"})
    ok(loads == used, "all modules are asked for at once", (loads, used))


def main():
    if not available():
        print("ok 1 - the page # SKIP no chromium and chromedriver\n1..1")
        return
    os.makedirs(SEEN, exist_ok=True)
    s = page_server.Server(os.path.join(BUILD, "assets.files"))
    try:
        with Browser(1280, 860) as b:
            for part in (screen_reader, keyboard, directions, colours, sizes, many, long_ones, pictures):
                part(b, s)
        with Browser(1280, 860, patient=False) as b:
            slow_network(b, s)
    except (AssertionError, Gone) as e:
        ok(False, "the walk came to its end", e)
    s.close()
    finish()


if __name__ == "__main__":
    main()
