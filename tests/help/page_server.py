"""A stand-in for the server behind the page: the files of a build, and answers that the question itself asks for.

A word in the last question chooses what happens: "slow" (50 ms a word or line), "hostile", "arabic", "busy", "worker",
"context", "broken" (the stream ends without a word), "queue"; otherwise a short answer. What came is kept in .chats, .votes,
.gone, .sent. A path in .held is answered once its event is set.
"""
import http.server
import json
import os
import threading
import time

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
    ".woff2": "font/woff2",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
    "connect-src 'self'; media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
SHORT = ["A ", "man ", "is **ironing** ", "clothes."]
HOSTILE = r"""Text <img src=x onerror="document.title='hacked'"> and [a link](javascript:document.title='hacked')
and ![a picture](https://example.org/x.png) and [fine](https://example.org/).

<script>document.title='hacked'</script>
<svg onload="document.title='hacked'"></svg>
<a href="https://example.org" onclick="document.title='hacked'">x</a>

It costs $5 and $10, but \(a^2+b^2\) and

$$\int_0^1 x\,dx$$

are formulas, and \href{javascript:alert(1)}{this} is not.

```python
def f(x):
    return "<b>" + x  # bold
```

| a | b |
|---|---|
| 1 | <i>2</i> |
"""


ARABIC = """مرحبا بكم في **LLaVA**: هذه صورة.

> اقتباس

```python
print("x")
```

| أ | ب |
|---|---|
| 1 | 2 |

This is English.
"""


class Server:
    def __init__(self, folder, port=0):
        self.folder, self.chats, self.votes, self.sent, self.gone, self.held = folder, [], [], {}, 0, {}
        self.models = ["llava-v1.5-13b", "llava-v1.5-7b"]
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", port), self.handler())
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    def config(self):
        return {
            "version": "0",
            "title": "LLaVA",
            "embed": False,
            "models": self.models,
            "examples": [
                {"image": "/examples/extreme_ironing.jpg", "text": "What is unusual about this image?"},
                {"image": "/examples/waterview.jpg", "text": "What should I be cautious about here?"},
            ],
            "limits": {"text": 1536, "text_with_image": 1200, "image_bytes": 1 << 20, "images": 3},
        }

    def answer(self, question, event):
        if "queue" in question:
            event({"queue": 3})
            time.sleep(0.5)
        if "worker" in question:
            return event({"error": {"message": "no answer", "code": 2, "cause": "no worker serves 'llava-v1.5-13b'"}})
        if "context" in question:
            return event({"error": {"message": "the prompt has 5000 positions, the context is 4096", "code": 1}})
        words = SHORT * (20 if "slow" in question else 1)
        if "hostile" in question:
            words = (HOSTILE * 3).splitlines(True) if "slow" in question else [HOSTILE]
        if "arabic" in question:
            words = [ARABIC]
        for word in words:
            event({"text": word})
            time.sleep(0.05 if "slow" in question else 0.01)
            if "broken" in question:
                return
        event(
            {"done": {"finish": "stop", "tokens": len(words), "prompt_tokens": 640, "first_s": 0.1, "seconds": 0.5}}
        )

    def handler(self):
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def reply(self, code, kind, body):
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Security-Policy", POLICY)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                path = self.path.split("?")[0]
                if path in outer.held:
                    outer.held[path].wait(60)
                if path == "/api/config":
                    return self.reply(200, "application/json", json.dumps(outer.config()).encode())
                file = outer.folder + ("/index.html" if path == "/" else path)
                if not os.path.isfile(file):
                    return self.reply(404, "text/plain", b"not here")
                with open(file, "rb") as f:
                    body = f.read()
                outer.sent[path] = len(body)
                return self.reply(200, TYPES[os.path.splitext(file)[1]], body)

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path == "/api/vote":
                    outer.votes.append(body)
                    return self.reply(204, "text/plain", b"")
                outer.chats.append(body)
                question = body["messages"][-1]["text"]
                if "busy" in question and len(outer.chats) % 2:
                    return self.reply(
                        503, "application/json", b'{"error":{"message":"the queue of 64 requests is full"}}'
                    )
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()

                def event(value):
                    self.wfile.write(b": ping\n\ndata: " + json.dumps(value).encode() + b"\n\n")
                    self.wfile.flush()

                try:
                    return outer.answer(question, event)
                except (BrokenPipeError, ConnectionResetError):
                    outer.gone += 1

        return Handler
