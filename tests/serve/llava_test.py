#!/usr/bin/python3
"""LLaVA's protocol: our controller with stand-ins for LLaVA's workers, our worker with a stand-in for LLaVA's
controller, and both with each other."""
import base64
import json
import os
import signal
import socket
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import finish, llava, ok  # noqa: E402
from serving import (APPLE, DEMO, ERROR_TEXT, Server, StandIn, chunks, free_port, generate, post,  # noqa: E402
                     python_controller, python_worker, request, wait_for)

PROMPT = "USER: <image>\nWhat is this? ASSISTANT:"
with open(APPLE, "rb") as f:
    PICTURE = base64.b64encode(f.read()).decode()


def register(port, w, **more):
    status = {"model_names": w.models, "speed": 1, "queue_length": 0, **more}
    return post(port, "/register_worker", {"worker_name": w.url, "check_heart_beat": True, "worker_status": status})


def test_controller():
    a, b = python_worker(["one", "both"], text="from a"), python_worker(["two", "both"], text="from b")
    with Server("controller") as c:
        ok(post(c.port, "/list_models") == (200, {"models": []}), "no models at first")
        ok(post(c.port, "/get_worker_address", {"model": "one"}) == (200, {"address": ""}), "no address is empty")
        ok(register(c.port, a) == (200, None) and register(c.port, b) == (200, None), "workers register")
        ok(sorted(post(c.port, "/list_models")[1]["models"]) == ["both", "one", "two"], "models are the union")
        ok(post(c.port, "/get_worker_address", {"model": "two"})[1]["address"] == b.url, "the worker that serves it")
        beat = {"worker_name": a.url, "queue_length": 5}
        ok(post(c.port, "/receive_heart_beat", beat)[1] == {"exist": True}, "a heartbeat of one that is known")
        beat["worker_name"] = "http://nobody"
        ok(post(c.port, "/receive_heart_beat", beat)[1] == {"exist": False}, "a heartbeat of one that is not")
        order = [post(c.port, "/get_worker_address", {"model": "both"})[1]["address"] for _ in range(7)]
        ok(order == [b.url] * 4 + [a.url, b.url, a.url] or order[:4] == [b.url] * 4, "the shortest queue is chosen", order)
        ok(post(c.port, "/worker_get_status")[1]["speed"] == 2, "the status of all is a sum")
        said = generate(c.port, {"model": "one", "prompt": "P: "})[1]
        ok([m["text"] for m in said] == ["P: from ", "P: from a "], "a stream passes through, message by message", said)
        none = generate(c.port, {"model": "none", "prompt": ""})
        ok(none[0] == 200 and len(none[1]) == 1 and none[1][0]["text"] == ERROR_TEXT and none[1][0]["error_code"] == 2 and
           "'none'" in none[1][0]["error"], "no worker: code 2, once, and the cause", none)
        ok(post(c.port, "/register_worker", {"worker_name": a.url, "check_heart_beat": False}) == (200, None) and
           a.seen("/worker_get_status"), "without a status the worker is asked")
        ok(post(c.port, "/register_worker", {"worker_name": "http://127.0.0.1:1", "check_heart_beat": False,
                                             "worker_status": None}) == (200, None), "who does not answer gets null too")
        for odd in ("http://h:1/\nllava_x 5", 'http://h:1/"', "http://h:1/ x", "ftp://h:1", "http://" + "h" * 600):
            post(c.port, "/register_worker", {"worker_name": odd, "check_heart_beat": True, "worker_status": {
                "model_names": ["odd"], "speed": 1, "queue_length": 0}})
        metrics = [x for x in request(c.port, "GET", "/metrics")[2].decode().splitlines() if x[:1] != "#"]
        ok("odd" not in post(c.port, "/list_models")[1]["models"] and all(len(x.split(" ")) == 2 for x in metrics),
           "what is no address is no worker", metrics)
        for speed in (-1e9, 1e300):
            register(c.port, python_worker(["wild"]), speed=speed)
        ok("wild" not in post(c.port, "/list_models")[1]["models"], "nor is a speed that is none taken")
        wrong = post(c.port, "/register_worker", {"worker_name": 5, "check_heart_beat": True})
        ok(wrong[0] == 400 and wrong[1]["error"]["param"] == "worker_name", "a wrong type names the field", wrong)
        ok(request(c.port, "GET", "/list_models")[0] == 405, "GET is not allowed")
        b.stop()
        ok(all(generate(c.port, {"model": "both", "prompt": ""})[1][-1]["error_code"] == 0 for _ in range(3)),
           "a dead worker is passed over", c.text())
        ok(generate(c.port, {"model": "two", "prompt": ""})[1][-1]["error_code"] == 3, "no other: code 3")
        ok(post(c.port, "/refresh_all_workers") == (200, None) and
           sorted(post(c.port, "/list_models")[1]["models"]) == ["both", "one"], "a refresh drops it")
        itself = {"worker_name": f"http://127.0.0.1:{c.port}", "check_heart_beat": False, "worker_status":
                  {"model_names": ["circle"], "speed": 1, "queue_length": 0}}
        post(c.port, "/register_worker", itself)
        said = generate(c.port, {"model": "circle", "prompt": ""})[1][-1]
        ok(said["error_code"] == 3 and "circle" in said["error"], "a controller that is its own worker", said)
        with open(os.path.join(c.folder.name, "controller.log")) as f:
            log = f.read()
        ok(" | INFO | controller | Register a new worker: " in log, "the log is in LLaVA's form", log[:300])
        ok(c.stop() == 0, "SIGTERM ends it", c.text())
    a.stop()


def test_lottery():
    a, b = python_worker(["m"]), python_worker(["m"])
    with Server("controller", "--dispatch-method", "lottery") as c:
        register(c.port, a, speed=1)
        register(c.port, b, speed=0)
        names = {post(c.port, "/get_worker_address", {"model": "m"})[1]["address"] for _ in range(40)}
        ok(names == {a.url}, "the lottery draws by speed", names)
        register(c.port, b, speed=1)
        names = {post(c.port, "/get_worker_address", {"model": "m"})[1]["address"] for _ in range(60)}
        ok(names == {a.url, b.url}, "all may win", names)
        register(c.port, a, speed=0), register(c.port, b, speed=0)
        ok(post(c.port, "/get_worker_address", {"model": "m"})[1]["address"] == "", "no speed, no worker")
    a.stop(), b.stop()


def test_broken_worker():
    """A worker that dies in mid-answer: what came, then code 3."""
    w = python_worker(["m"], text="one two three four", cut=2)
    with Server("controller") as c:
        register(c.port, w)
        said = generate(c.port, {"model": "m", "prompt": ""})[1]
        ok([m["error_code"] for m in said] == [0, 0, 3] and said[-1]["text"] == ERROR_TEXT, "a worker that breaks off", said)
    w.stop()


def silence(heard):
    """A worker that is silent for 17 s: LLaVA's web server, which waits for 10, hears something meanwhile."""
    def late(path, body):
        time.sleep(17 if path == "/worker_generate_stream" else 0)
        return 200, json.dumps({"text": "late", "error_code": 0}).encode() + b"\0"

    w = StandIn(late)
    with Server("controller") as c:
        w.models = ["m"]
        register(c.port, w)
        s = socket.create_connection(("127.0.0.1", c.port), timeout=10)
        body = json.dumps({"model": "m", "prompt": ""}).encode()
        s.sendall(b"POST /worker_generate_stream HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        try:
            while piece := s.recv(65536):
                heard.append(piece)
        except socket.timeout:
            pass
    w.stop()


def ask(port, **more):
    body = {"model": "demo", "prompt": PROMPT, "images": [PICTURE], "temperature": 0, "max_new_tokens": 24, "stop": "</s>",
            **more}
    return generate(port, body)


def test_worker():
    c = python_controller()
    with Server("worker", "--controller", c.url, "--worker", "http://w:1", "--model-path", DEMO, "--stream-interval", "1") as w:
        seen = wait_for(lambda: c.seen("/register_worker"))
        ok(seen and seen[0] == {"worker_name": "http://w:1", "check_heart_beat": True, "worker_status":
                                {"model_names": ["demo"], "speed": 1, "queue_length": 0}}, "it registers", seen)
        ok(post(w.port, "/worker_get_status") == (200, {"model_names": ["demo"], "speed": 1, "queue_length": 0}), "status")
        status, said = ask(w.port)
        cli = llava("run", "--quiet", "--model-path", DEMO, "--prompt", PROMPT, "--image-file", APPLE, "--temperature", "0",
                    "--max-new-tokens", "24").out
        ok(status == 200 and said[-1]["text"] == PROMPT + cli.strip() or said[-1]["text"].strip() == PROMPT + cli.strip(),
           "the answer is the command line's", (said, cli))
        ok(all(m["error_code"] == 0 and m["text"].startswith(PROMPT) for m in said) and
           all(b["text"].startswith(a["text"]) for a, b in zip(said, said[1:])), "chunks are cumulative", said)
        ok(ask(w.port, stop=None)[1][-1]["text"] == said[-1]["text"], "stop may be null")
        ok(" " in cli.strip() and ask(w.port, stop=" ")[1][-1]["text"] == said[-1]["text"],
           "a blank, which test_message sends, ends nothing", cli)
        for how in ({"max_new_tokens": 24.0}, {"max_new_tokens": "24"}, {"max_new_tokens": " 24\n"}, {"max_new_tokens": 24.9},
                    {"temperature": "0"}, {"temperature": False}, {"top_p": "0.5"}, {"temperature": "1e-4"}):
            ok(ask(w.port, **how)[1][-1]["text"] == said[-1]["text"], f"a number as Python's int() and float() take it: {how}")
        word = cli.split()[0]
        ok(ask(w.port, stop=word)[1][-1]["text"].strip() == PROMPT, "a stop string ends the answer", ask(w.port, stop=word))
        for name, how, cause in (("too few pictures", {"images": []}, "Number of images does not match"),
                                 ("no base64", {"images": ["%%%"]}, "'images[0]' is not base64"),
                                 ("no picture", {"images": ["AAAA"]}, "'images[0]' is no picture"),
                                 ("no text", {"prompt": 7}, "'prompt' is a number"),
                                 ("too many", {"images": ["AAAA"] * 1000}, "1000 pictures"),
                                 ("tokens in part", {"max_new_tokens": "24.0"}, "'max_new_tokens' is a string"),
                                 ("tokens in hexadecimal", {"max_new_tokens": "0x18"}, "'max_new_tokens' is a string"),
                                 ("no heat", {"temperature": ""}, "'temperature' is a string"),
                                 ("wrong heat", {"temperature": "hot"}, "'temperature' is a string")):
            status, said = ask(w.port, **how)
            ok(status == 200 and len(said) == 1 and said[0]["text"] == ERROR_TEXT and said[0]["error_code"] == 1 and
               cause in said[0]["error"], f"{name}: code 1 and the cause", said)
        long = generate(w.port, {"prompt": "a " * 20000, "temperature": 0})[1]
        ok(len(long) == 1 and long[0]["error_code"] == 0 and
           long[0]["text"].endswith("Exceeds max token length. Please start a new conversation, thanks."), "too long")
        ok(ask(w.port, max_new_tokens=0)[1][0]["text"].endswith("new conversation, thanks."), "no room for a token")
        ok(request(w.port, "POST", "/worker_generate_stream", b"[1]")[0] == 400, "a body that is no object")
        ok(wait_for(lambda: c.seen("/receive_heart_beat")), "heartbeats come with requests")
        c.workers.clear()
        ask(w.port)
        ok(wait_for(lambda: "http://w:1" in c.workers), "forgotten, it registers again")
        ok(w.stop() == 0, "SIGTERM ends it", w.text())
        names = [n for n in os.listdir(w.folder.name) if n.startswith("model_worker_")]
        ok(len(names) == 1 and len(names[0]) == len("model_worker_123456.log"), "its log has a name of its own", names)
    c.stop()


def test_both():
    with Server("controller") as c:
        port = free_port()
        with Server("worker", "--controller", c.url, "--worker-address", f"http://localhost:{port}", "--port", str(port),
                    "--model-path", DEMO) as w:
            ok(wait_for(lambda: post(c.port, "/list_models")[1]["models"] == ["demo"]), "our worker with our controller")
            ok(ask(c.port)[1] and ask(c.port)[1][-1]["error_code"] == 0, "an answer through both")
            before = w.p.pid
            child = int(open(f"/proc/{before}/task/{before}/children").read().split()[0])
            os.kill(child, signal.SIGKILL)
            ok(wait_for(lambda: len([x for x in w.lines if ": open http" in x]) == 2), "a killed worker is started again",
               w.text())
            ok(wait_for(lambda: ask(c.port)[1][-1]["error_code"] == 0), "and answers", w.text())
            ok(w.stop() == 0, "the supervisor ends with its worker", w.text())


def test_serve():
    """The controller within `llava serve` takes no workers but its own, unless it is told to."""
    w = python_worker(["other", "demo"])
    ask_itself = {"worker_name": w.url, "check_heart_beat": False, "worker_status": None}
    with Server("serve", "--model-path", DEMO) as s:
        for body in (ask_itself, {"worker_name": w.url, "check_heart_beat": True, "worker_status": {
                "model_names": ["demo"], "speed": 100, "queue_length": 0}}, {}):
            r = post(s.port, "/register_worker", body)
            ok(r[0] == 403 and r[1]["error"]["type"] == "permission_error" and "--allow-workers" in r[1]["error"]["message"],
               "a stranger is refused", r)
        ok(not w.log and post(s.port, "/receive_heart_beat", {"worker_name": w.url, "queue_length": 0})[1] == {"exist": False},
           "nobody was asked, nobody is known", w.log)
        own = post(s.port, "/get_worker_address", {"model": "demo"})[1]["address"]
        ok(own == s.url and post(s.port, "/list_models")[1]["models"] == ["demo"], "its own worker is there", own)
        ok(post(s.port, "/refresh_all_workers") == (200, None) and post(s.port, "/list_models")[1]["models"] == ["demo"],
           "and stays")
    with Server("serve", "--model-path", DEMO, "--allow-workers") as s:
        ok(post(s.port, "/register_worker", ask_itself) == (200, None) and w.seen("/worker_get_status"), "allowed, it registers")
        ok(sorted(post(s.port, "/list_models")[1]["models"]) == ["demo", "other"] and
           post(s.port, "/get_worker_address", {"model": "other"})[1]["address"] == w.url, "and is used")
        post(s.port, "/register_worker", {"worker_name": s.url, "check_heart_beat": True, "worker_status": {
            "model_names": ["stolen"], "speed": 0, "queue_length": 0}})
        ok(sorted(post(s.port, "/list_models")[1]["models"]) == ["demo", "other"], "nobody speaks for the server's own worker")
    w.stop()


pieces = []
waits = threading.Thread(target=silence, args=(pieces,))
waits.start()
test_controller()
test_serve()
test_lottery()
test_broken_worker()
test_worker()
test_both()
waits.join()
whole = b"".join(pieces).split(b"\r\n\r\n", 1)[-1]
ok(whole.startswith(b"\n\n{") and chunks(whole)[-1]["text"] == "late", "silence is broken by blanks, which JSON skips", pieces)
finish()
