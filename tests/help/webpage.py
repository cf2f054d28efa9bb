"""The page in a test's hands: what it shows when it is ready, asking, files that are pasted or dropped."""
import os

from cli import ROOT

SEEN = os.path.join(ROOT, "build", "web")  # pictures of what was seen
READY = "document.documentElement.dataset.ready"
END = "(s => s.scrollHeight - s.scrollTop - s.clientHeight < 5)(document.querySelector('#scroll'))"
IDLE = "document.querySelector('#stop').hidden && document.querySelector('.timing, .failure')"


def ask(b, text, key="Enter"):
    b.type("#question", text)
    b.press(key)


def settled(b):
    b.wait(IDLE, what="an answer that has ended")


def file_event(kind, name, mime, data="[137,80]"):
    """A paste or a drop of one file, as the browser would send it."""
    return f"""const d = new DataTransfer(); d.items.add(new File([new Uint8Array({data})], {name!r}, {{type: {mime!r}}}));
        document.dispatchEvent(new {'ClipboardEvent' if kind == 'paste' else 'DragEvent'}({kind!r},
            {{{'clipboardData' if kind == 'paste' else 'dataTransfer'}: d, bubbles: true, cancelable: true}}))"""
