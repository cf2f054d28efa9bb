#!/usr/bin/python3
"""The web server's interface for the page: with a model of its own, and in front of stand-ins for LLaVA's Python workers; what
it keeps; and the page itself in a browser on `llava serve`."""
import base64
import glob
import hashlib
import io
import json
import os
import re
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import finish, llava, ok  # noqa: E402
from serving import APPLE, DEMO, Server, StandIn, metric, post, python_worker, request, wait_for  # noqa: E402
from webdriver import Browser, available  # noqa: E402

with open(APPLE, "rb") as f:
    APPLE_BYTES = f.read()
DATA = "data:image/png;base64," + base64.b64encode(APPLE_BYTES).decode()
TEXT = "What is this?"


def chat(port, messages, model="demo", **more):
    """(status, events or the error)."""
    body = {"model": model, "messages": messages, "temperature": 0, "conversation": "0" * 32, **more}
    status, _, data = request(port, "POST", "/api/chat", body)
    if status != 200:
        return status, json.loads(data)
    return status, [json.loads(x[6:]) for x in data.decode().split("\n\n") if x.startswith("data: ")]


def user(text=TEXT, *images):
    return {"role": "user", "text": text, **({"images": list(images)} if images else {})}


def said(events):
    return "".join(e.get("text", "") for e in events)


def kept(folder):
    """Lines of the conversation log, once they are there."""
    def read():
        return [x for p in glob.glob(os.path.join(folder, "*-conv.json")) for x in open(p).read().splitlines()]
    return read


def png(w, h, mode="RGB"):
    b = io.BytesIO()
    Image.effect_noise((w, h), 50).convert(mode).save(b, "PNG")
    return b.getvalue()


def data_uri(b):
    return "data:image/png;base64," + base64.b64encode(b).decode()


def test_moderation():
    """--moderate, with a stand-in for OpenAI's service: what it flags is refused, what fails is let through, as in LLaVA; and
    nobody waits for a slow one but who asked."""
    release, asked = threading.Event(), []

    def judge(path, body):
        asked.append(body)
        if "slow" in body["input"]:
            release.wait(30)
        if "broken" in body["input"]:
            return 500, b"{}"
        if "nonsense" in body["input"]:
            return 200, b"<html>"
        return 200, json.dumps({"results": [{"flagged": "evil" in body["input"]}]}).encode()
    service = StandIn(judge)
    with Server("serve", "--model-path", DEMO, "--moderate", "--moderation-url", service.url + "/v1/moderations",
                env={"OPENAI_API_KEY": "sk-test"}) as s:
        status, events = chat(s.port, [user('say "hi"')], max_new_tokens=3)
        ok(status == 200 and asked == [{"input": 'say "hi"'}] and service.log[0][0] == "/v1/moderations" and
           service.log[0][2]["Authorization"] == "Bearer sk-test", "the service is asked, with the key", service.log)
        status, refused = chat(s.port, [user("evil")], max_new_tokens=3)
        ok(status == 400 and refused["error"]["message"] ==
           "YOUR INPUT VIOLATES OUR CONTENT MODERATION GUIDELINES. PLEASE TRY AGAIN.", "what it flags is refused", refused)
        for word in ("broken", "nonsense"):
            ok(chat(s.port, [user(word)], max_new_tokens=3)[0] == 200, f"a {word} verdict lets through")
        ok("no verdict" in s.text() and "violate moderation" in s.text(), "the log tells", s.text())
        slow = [threading.Thread(target=chat, args=(s.port, [user(f"slow {i}")]), kwargs={"max_new_tokens": 3})
                for i in range(20)]
        for t in slow:
            t.start()
        start = time.time()
        status = chat(s.port, [user("quick")], max_new_tokens=3)[0]
        ok(status == 200 and time.time() - start < 4, "a slow one holds up nobody else")
        release.set()
        for t in slow:
            t.join()
        ok(len(kept(s.folder.name)()) >= 23 or wait_for(lambda: len(kept(s.folder.name)()) == 24), "all were answered")
    service.stop()
    env = {k: v for k, v in os.environ.items() if k != "OPENAI_API_KEY"}
    r = llava("serve", "--model-path", DEMO, "--moderate", "--port", "0", env=env)
    ok(r.code == 1 and r.err.count("\n") == 1 and "OPENAI_API_KEY" in r.err, "--moderate without a key is refused", r.text)


def test_config(port):
    c = post_get(port, "/api/config")
    ok(c["models"] == ["demo"] and c["examples"] and c["limits"]["text"] == 1536 and c["embed"] is False, "config", c)
    status, headers, _ = request(port, "GET", c["examples"][0]["image"])
    ok(status == 200 and headers["content-type"] == "image/png", "an example's picture", headers)
    status, headers, data = request(port, "GET", "/", headers={"Accept-Encoding": "gzip"})
    policy = headers["content-security-policy"]
    ok(status == 200 and headers["content-encoding"] == "gzip" and "unsafe" not in policy and "frame-ancestors 'self'" in policy,
       "the page, compressed, with its policy", headers)
    again = request(port, "GET", "/", headers={"If-None-Match": headers["etag"]})
    ok(again[0] == 304 and not again[2], "unchanged, it is not sent again", again)


def post_get(port, path):
    return json.loads(request(port, "GET", path)[2])


def test_local():
    with Server("serve", "--model-path", DEMO) as s:
        test_config(s.port)
        status, events = chat(s.port, [user(TEXT, DATA)])
        done = events[-1].get("done", {})
        ok(status == 200 and said(events) == "red apple" and done["finish"] == "stop" and done["tokens"] > 0 and
           done["prompt_tokens"] > 200 and done["first_s"] > 0, "an answer to a picture", events)
        lines = wait_for(kept(s.folder.name))
        line = json.loads(lines[0])
        with Image.open(APPLE) as im:
            md5 = hashlib.md5(im.convert("RGB").tobytes()).hexdigest()
        ok(list(line) == ["tstamp", "type", "model", "start", "finish", "state", "images", "ip"] and line["type"] == "chat" and
           line["images"] == [md5] and line["ip"] == "127.0.0.1", "it is logged as LLaVA does", line)
        ok(list(line["state"]) == ["system", "roles", "messages", "offset", "sep", "sep2"] and
           line["state"]["messages"] == [["USER", TEXT + "\n<image>"], ["ASSISTANT", "red apple"]], "with its state", line)
        ok(lines[0] == json.dumps(line), "to the byte as Python writes it", lines[0])
        jpeg = os.path.join(s.folder.name, "serve_images", "*-*-*", md5 + ".jpg")
        ok(wait_for(lambda: glob.glob(jpeg)), "the picture is kept")
        two = [user(TEXT, DATA), {"role": "assistant", "text": "red apple"}, user("And \u4e2d\u6587?")]
        ok(chat(s.port, two)[0] == 200, "a second question")
        line = json.loads(wait_for(lambda: len(kept(s.folder.name)()) > 1 and kept(s.folder.name)())[1])
        ok(line["state"]["messages"][2] == ["USER", "And \u4e2d\u6587?"] and "\\u4e2d" in kept(s.folder.name)()[1],
           "in any script")
        ok(chat(s.port, [user(TEXT, DATA, DATA)])[0] == 200, "two pictures in one question")
        ok(chat(s.port, [user("first"), {"role": "assistant", "text": "x"}, user(TEXT, DATA)])[0] == 200, "a picture later on")
        for mode in ("Default", "Crop", "Resize", "Pad"):
            ok(chat(s.port, [user(TEXT, data_uri(png(300, 100)))], image_process_mode=mode)[0] == 200, f"mode {mode}")
        ok(chat(s.port, [user(TEXT, data_uri(png(2000, 500)))])[0] == 200, "a large picture")
        vote = {"type": "upvote", "model": "demo", "messages": [user(TEXT, DATA), {"role": "assistant", "text": "red apple"}]}
        ok(request(s.port, "POST", "/api/vote", vote)[0] == 204, "a vote")
        last = wait_for(lambda: [x for x in kept(s.folder.name)() if '"upvote"' in x])
        ok(list(json.loads(last[0])) == ["tstamp", "type", "model", "state", "ip"], "is logged", last)
        test_wrong(s.port)


def test_wrong(port):
    wrong = {"no messages": ([], "messages"), "no user": ([{"role": "assistant", "text": "x"}], "messages[0].role"),
             "the assistant last": ([user(), {"role": "assistant", "text": "x"}], "messages"),
             "a number": ([{"role": "user", "text": 5}], "messages[0].text"),
             "no picture": ([user(TEXT, "data:image/png;base64,AAAA")], "messages[0].images[0]"),
             "no base64": ([user(TEXT, "!")], "messages[0].images[0]"),
             "pictures as text": ([{"role": "user", "text": "x", "images": "y"}], "messages[0].images"),
             "too many pictures": ([user(TEXT, *[DATA] * 33)], "messages[0].images"),
             "a mark": ([user("<image>")], "messages[0].text")}
    for name, (messages, param) in wrong.items():
        status, e = chat(port, messages)
        ok(status == 400 and e["error"]["param"] == param, f"wrong: {name}", e)
    ok(chat(port, [user()], model="other")[0] == 404, "another model")
    ok(chat(port, [user()], image_process_mode="Twist")[0] == 400, "another mode")
    status, e = chat(port, [user()], max_new_tokens=0)
    ok(status == 400 and "max token length" in e["error"]["message"], "no room", e)
    long = []
    for i in range(150):
        long += [user("word " * 300), {"role": "assistant", "text": "yes"}]
    status, e = chat(port, long + [user()])
    ok(status == 400 and "context" in e["error"]["message"], "a conversation over the context", e)
    bad = {"type": "like", "model": "demo", "messages": [user()]}
    ok(request(port, "POST", "/api/vote", bad)[0] == 400, "a vote that is none")


def controller(models, address):
    """LLaVA's Python controller, as far as its web server needs it."""
    def answer(path, body):
        if path == "/list_models":
            return 200, json.dumps({"models": models}).encode()
        if path == "/get_worker_address":
            return 200, json.dumps({"address": address if body["model"] in models else ""}).encode()
        if path == "/refresh_all_workers":
            return 200, b"null"
        return 500, b"Internal Server Error"
    return StandIn(answer)


def test_remote():
    w = python_worker(["llava-v1.5-13b"], text="A fine answer")
    c = controller(["zeta", "koala-13b", "llava-v1.5-13b", "vicuna-13b"], w.url)
    with Server("web", "--host", "localhost", "--controller", c.url, "--embed", "--no-client-ip") as s:
        config = post_get(s.port, "/api/config")
        ok(config["models"] == ["vicuna-13b", "koala-13b", "llava-v1.5-13b", "zeta"] and config["embed"],
           "models, ranked", config)
        status, events = chat(s.port, [user(TEXT, data_uri(png(60, 40)))], "llava-v1.5-13b", top_p=0.7, max_new_tokens=9999)
        ok(status == 200 and said(events) == "A fine answer" and events[-1]["done"]["finish"] == "stop",
           "a Python worker's answer", events)
        sent = w.seen("/worker_generate_stream")[0]
        ok(sent["prompt"].startswith("A chat between a curious human and an artificial intelligence assistant.") and
           sent["prompt"].endswith("USER: <image>\nWhat is this? ASSISTANT:"), "got LLaVA's prompt", sent["prompt"])
        ok((sent["model"], sent["temperature"], sent["top_p"], sent["max_new_tokens"], sent["stop"]) ==
           ("llava-v1.5-13b", 0, 0.7, 1536, "</s>") and len(sent["images"]) == 1, "and its parameters", list(sent.items())[2:])
        ok(Image.open(io.BytesIO(base64.b64decode(sent["images"][0]))).size == (60, 40), "and the picture")
        chat(s.port, [user(TEXT, data_uri(png(2000, 500)))], model="llava-v1.5-13b")
        size = Image.open(io.BytesIO(base64.b64decode(w.seen("/worker_generate_stream")[1]["images"][0]))).size
        ok(size == (1344, 336), "a large one shrunk", size)
        ok(dict(w.log[0][2])["User-Agent"] == "LLaVA Client", "as LLaVA's client")
        status, events = chat(s.port, [user()], model="none")
        ok(status == 200 and events[-1]["error"]["code"] == 2 and "'none'" in events[-1]["error"]["message"], "no worker: code 2",
           events)
        line = json.loads(wait_for(kept(s.folder.name))[0])
        ok(line["ip"] == "" and line["state"]["messages"][1] == ["ASSISTANT", "A fine answer"], "kept, without the address", line)
        ok("frame-ancestors *" in request(s.port, "GET", "/")[1]["content-security-policy"], "embedded, others may frame it")
        w.stop()
        status, events = chat(s.port, [user()], model="zeta")
        ok(events[-1]["error"]["code"] == 3, "a dead worker: code 3", events)
        c.stop()
        status, events = chat(s.port, [user()], model="zeta")
        ok(events[-1]["error"]["code"] == 3 and "controller" in events[-1]["error"]["message"],
           "a dead controller: code 3", events)
        ok(s.stop() == 0, "an orderly end", s.text())


def test_failover():
    """A worker that has died since its last heartbeat: the controller's proxy finds another one."""
    a, b = python_worker(["m"], text="from a"), python_worker(["m"], text="from b")
    with Server("controller") as c:
        for w in (a, b):
            post(c.port, "/register_worker", {"worker_name": w.url, "check_heart_beat": True, "worker_status":
                                              {"model_names": ["m"], "speed": 1, "queue_length": 0}})
        with Server("web", "--host", "localhost", "--controller", c.url, "--model-list-mode", "reload") as s:
            ok(post_get(s.port, "/api/config")["models"] == ["m"], "models of our controller")
            a.stop()
            got = [said(chat(s.port, [user()], model="m")[1]) for _ in range(4)]
            ok(got == ["from b"] * 4, "a dead worker is not noticed by people", got)
        broken = python_worker(["x"], text="one two three", cut=1)
        post(c.port, "/register_worker", {"worker_name": broken.url, "check_heart_beat": False, "worker_status": None})
        with Server("web", "--host", "localhost", "--controller", c.url) as s:
            events = chat(s.port, [user()], model="x")[1]
            ok(said(events) == "one" and events[-1]["error"]["code"] == 3, "one that breaks off: what came, and code 3", events)
        broken.stop()
    b.stop()


def test_turns():
    """In front of workers that take their time: who waits has turns by client, who leaves is not waited for, and what waits is
    counted, pictures and all."""
    release, order = threading.Semaphore(0), []

    def answer(path, body):
        if path == "/worker_generate_stream":
            order.append(body["prompt"].split("USER: ")[1].split()[0])
            release.acquire(timeout=60)
            return 200, [json.dumps({"text": body["prompt"] + "yes", "error_code": 0}).encode() + b"\0"]
        return 200, json.dumps({"model_names": ["m"], "speed": 1, "queue_length": 0}).encode()
    w = StandIn(answer)
    c = controller(["m"], w.url)
    with Server("web", "--host", "localhost", "--controller", c.url, "--concurrency-count", "2", "--trust-forwarded") as s:
        def ask(who, word, *images):
            body = {"model": "m", "messages": [user(word, *images)], "temperature": 0}
            return request(s.port, "POST", "/api/chat", body, headers={"X-Forwarded-For": who})[2]

        def waits(n):
            return wait_for(lambda: metric(s.port, "llava_http_requests_active") == n + 1)
        leaving = []
        with ThreadPoolExecutor(10) as crowd:
            asked = []
            for i in range(6):
                asked.append(crowd.submit(ask, "10.0.0.1", f"hog{i}", data_uri(png(300, 300))))
                waits(len(asked))
            for i in range(5):  # they leave while they wait
                leaving.append(socket.create_connection(("127.0.0.1", s.port)))
                body = json.dumps({"model": "m", "messages": [user(f"gone{i}")]}).encode()
                leaving[-1].sendall(b"POST /api/chat HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 10.0.0.3\r\n"
                                    b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
            waits(11)
            asked.append(crowd.submit(ask, "10.0.0.2", "other"))
            there = waits(12)
            held = metric(s.port, "llava_http_body_bytes")
            for one in leaving:
                one.close()
            ok(there and waits(7), "who waits and leaves is forgotten at once", metric(s.port, "llava_http_requests_active"))
            for _ in range(7):
                release.release()
            good = [b'"done"' in a.result() for a in asked]
        ok(good == [True] * 7 and order.index("other") in (2, 3) and not [x for x in order if "gone" in x],
           "who waits has turns by client", order)
        ok(held > 6 * 300 * 300 and wait_for(lambda: metric(s.port, "llava_http_body_bytes") == 0),
           "what they hold is counted while they do", held)
        ok(s.stop() == 0, "an orderly end", s.text())
    w.stop(), c.stop()


def test_browser():
    if not available():
        ok(True, "the page on a model # SKIP no chromium and chromedriver")
        return
    with Server("serve", "--model-path", DEMO) as s:
        with Browser(1280, 860) as b:
            b.open(s.url)
            b.wait("document.documentElement.dataset.ready")
            b.click("#examples button")
            b.wait("document.querySelectorAll('#pictures img').length === 1")
            b.press("Enter")
            b.wait("document.querySelector('#stop').hidden && document.querySelector('.timing, .failure')", what="an answer")
            ok(b.text(".answer") == ["red apple"], "the page, asked about an example's picture", b.text(".answer"))
            ok(re.search(r"\d tokens", b.text(".timing")[0]), "and says how fast", b.text(".timing"))
            b.click(".tools [aria-label='Good answer']")
            ok(wait_for(lambda: [x for x in kept(s.folder.name)() if '"upvote"' in x]), "a vote is kept")
            ok(b.console() == [], "nothing to complain", b.console())


test_local()
test_remote()
test_failover()
test_moderation()
test_turns()
test_browser()
finish()
