#!/usr/bin/python3
"""What may happen to servers: a worker killed in mid-stream, a device that fails, a controller that starts anew, a clock that
is set, a log's disk that is full. What was asked ends, with an answer or an error, and the rest goes on.

    fault_test.py [--long]        --long: past the time after which a controller forgets a worker; faults again and again"""
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPException

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import ROOT, finish, ok, skip  # noqa: E402
from serving import (DEMO, PATIENCE, Server, chunks, free_port, generate, metric, post, python_controller, request,  # noqa: E402
                     wait_for)

LONG = "--long" in sys.argv
ASKED = 24 if LONG else 12
scratch = tempfile.TemporaryDirectory(prefix="llava-fault-")
PRELOAD = os.path.join(scratch.name, "preload.so")
CLOCK = os.path.join(scratch.name, "clock")


def environment():
    """A server with tests/help/preload.c before it; sanitizers want to be asked."""
    asan = os.environ.get("ASAN_OPTIONS", "")
    return {"LD_PRELOAD": PRELOAD, "FAULT_CLOCK": CLOCK, "ASAN_OPTIONS": asan + ":verify_asan_link_order=0"}


def set_clock(seconds):
    with open(CLOCK, "w", encoding="ascii") as f:
        f.write(str(seconds))


def child(s):
    """The process that serves, beneath the one that watches over it."""
    return int(open(f"/proc/{s.p.pid}/task/{s.p.pid}/children", encoding="ascii").read().split()[0])


def hurt(s, sig, crowd):
    """The process that serves ends now; waits until another listens."""
    opened = sum(": open http" in x for x in s.lines)
    crowd.last = True
    os.kill(child(s), sig)
    return wait_for(lambda: sum(": open http" in x for x in s.lines) > opened)


class Crowd:
    """ASKED clients that ask again and again, for answers may be short, until `last`; ended: what each got last, an
    exception for a connection that broke off."""

    def __init__(self, ask):
        self.ended, self.last = [], False

        def run(i):
            while True:
                try:
                    got = ask(i)
                except (OSError, HTTPException) as e:
                    got = e
                if self.last or isinstance(got, Exception):
                    break
            self.ended.append(got)
        self.threads = [threading.Thread(target=run, args=(i,)) for i in range(ASKED)]
        for t in self.threads:
            t.start()

    def wait(self):
        for t in self.threads:
            t.join(PATIENCE)
        return not any(t.is_alive() for t in self.threads)


def completion(port, i=0, stream=True, n=2):
    body = {"prompt": "USER: Describe the picture. ASSISTANT: The", "max_tokens": 400, "temperature": 2, "stream": stream,
            "seed": i, "n": n}
    return request(port, "POST", "/v1/completions", body)


def ends_well(r):
    """A whole answer, an error, or a connection that broke off where the client can see it."""
    return isinstance(r, Exception) or r[0] in (429, 503) or r[0] == 200 and (b"[DONE]" in r[2] or b'"usage"' in r[2])


def test_device():
    """Of `serve` itself: clients see the end, another process goes on at the same port."""
    for name, sig, word in (("killed", signal.SIGKILL, "signal 9"), ("a fault of the device", signal.SIGUSR2, "status 70")):
        with Server("serve", "--model-path", DEMO, "--port", str(free_port()), env=environment()) as s:
            for turn in range(5 if LONG else 1):
                crowd = Crowd(lambda i: completion(s.port, i, i % 2 == 0))
                wait_for(lambda: metric(s.port, "llava_answers_running") or len(crowd.ended))
                ok(hurt(s, sig, crowd), f"{name}: it is started again", s.text())
                ok(crowd.wait() and all(ends_well(r) for r in crowd.ended) and len(crowd.ended) == ASKED,
                   "every request has ended", [r for r in crowd.ended if not ends_well(r)])
                ok(any(isinstance(r, Exception) for r in crowd.ended), "some by the fault")
                ok(wait_for(lambda: ends_well(completion(s.port)), 5), "it answers again")
                ok(word in s.text(), f"the reason is said: {word}", s.text())
            ok(s.stop() == 0, "and ends in order", s.text())
    with Server("serve", "--model-path", DEMO, "--no-restart", env=environment()) as s:
        s.p.send_signal(signal.SIGUSR2)
        ok(s.p.wait(PATIENCE) == 70, "--no-restart: the status is the fault's")


def events(data):
    return [json.loads(x[6:]) for x in data.decode().split("\n\n") if x.startswith("data: ")]


def test_worker_killed():
    """Behind a controller and a web server: who was being answered is told, with code 3."""
    with Server("controller") as c:
        port = free_port()
        with Server("worker", "--controller", c.url, "--worker-address", f"http://localhost:{port}", "--port", str(port),
                    "--model-path", DEMO) as w, Server("web", "--controller", c.url, "--model-list-mode", "reload") as web:
            ok(wait_for(lambda: post(c.port, "/list_models")[1]["models"] == ["demo"]), "a worker is there")
            page = {"model": "demo", "temperature": 1.9, "max_new_tokens": 1000, "messages": [{"role": "user", "text": "Hi"}]}
            plain = {"model": "demo", "prompt": "USER: Hi ASSISTANT:", "temperature": 2, "max_new_tokens": 1000, "stop": None}
            crowd = Crowd(lambda i: ("page", request(web.port, "POST", "/api/chat", page)) if i % 2
                          else ("controller", request(c.port, "POST", "/worker_generate_stream", plain)))
            wait_for(lambda: metric(w.port, "llava_answers_running"))
            ok(hurt(w, signal.SIGKILL, crowd), "it is killed, and started again", w.text())
            whole = crowd.wait()
            codes = []
            for kind, (status, _, data) in crowd.ended:
                last = (events(data) if kind == "page" else chunks(data))[-1] if status == 200 else {}
                codes.append((kind, last.get("error", {}).get("code", 0) if kind == "page" and "error" in last
                              else 0 if kind == "page" and "done" in last else last.get("error_code", status)))
            ok(whole and len(codes) == ASKED and {code for _, code in codes} <= {0, 3}, "every request has ended", codes)
            ok(("page", 3) in codes or ("controller", 3) in codes, "some with code 3", codes)
            ok(wait_for(lambda: generate(c.port, {**plain, "max_new_tokens": 3})[1][-1]["error_code"] == 0),
               "and others are answered", w.text())


def test_worker_hung():
    """A process that is there and does nothing (a machine that swaps, a device that hangs) looks like one that is slow, but for
    what it says when it is asked how it is."""
    with Server("controller") as c, ExitStack() as held:
        ports = free_port(), free_port()
        workers = [held.enter_context(Server("worker", "--controller", c.url, "--worker-address", f"http://localhost:{p}",
                                             "--port", str(p), "--model-path", DEMO)) for p in ports]
        web = held.enter_context(Server("web", "--controller", c.url, "--model-list-mode", "reload"))
        ok(wait_for(lambda: metric(c.port, "llava_controller_workers") == 2), "two workers")
        plain = {"model": "demo", "prompt": "USER: Hi ASSISTANT:", "temperature": 0, "max_new_tokens": 5}
        page = {"model": "demo", "messages": [{"role": "user", "text": "Hi"}], "temperature": 0, "max_new_tokens": 5}
        os.kill(child(workers[0]), signal.SIGSTOP)
        try:
            start = time.time()
            with ThreadPoolExecutor(8) as crowd:
                asked = [crowd.submit(generate, c.port, plain) for _ in range(4)]
                shown = [crowd.submit(request, web.port, "POST", "/api/chat", page) for _ in range(4)]
                good = [a.result()[1][-1]["error_code"] == 0 for a in asked] + [b'"done"' in s.result()[2] for s in shown]
            taken = time.time() - start
            ok(good == [True] * 8 and 4 < taken < 40, f"one hangs: the other answers, after {taken:.1f} s", good)
            os.kill(child(workers[1]), signal.SIGSTOP)
            with ThreadPoolExecutor(2) as crowd:
                start = time.time()
                refreshed = crowd.submit(post, c.port, "/refresh_all_workers")
                summed = crowd.submit(post, c.port, "/worker_get_status")
                got, total, taken = refreshed.result(), summed.result(), time.time() - start
            ok(got == (200, None) and total[1]["speed"] == 0 and taken < 9 and post(c.port, "/list_models")[1]["models"] == [],
               f"both hang: they are asked at once, and forgotten after {taken:.1f} s", (got, total))
        finally:
            for w in workers:
                os.kill(child(w), signal.SIGCONT)


def test_controller_restarted():
    port = free_port()
    c = Server("controller", "--port", str(port))
    at = free_port()
    with Server("worker", "--controller", c.url, "--worker-address", f"http://localhost:{at}", "--port", str(at),
                "--model-path", DEMO) as w:
        ok(wait_for(lambda: post(port, "/list_models")[1]["models"] == ["demo"]), "a worker is known")
        ok(c.stop() == 0, "the controller ends")
        c.folder.cleanup()
        body = {"prompt": "USER: Hi ASSISTANT:", "max_new_tokens": 4, "temperature": 0}
        ok(generate(w.port, body)[1][-1]["error_code"] == 0, "the worker answers without it")
        with Server("controller", "--port", str(port)) as c:
            if not LONG:
                generate(w.port, body)  # a change of the queue is told at once
            known = wait_for(lambda: post(port, "/list_models")[1]["models"] == ["demo"], 40)
            ok(known, "a new controller learns of it", w.text())
            ok(generate(port, {**body, "model": "demo"})[1][-1]["error_code"] == 0, "and sends it questions")


def test_clock():
    """Nothing waits by the clock on the wall."""
    set_clock(0)
    told = python_controller()
    with Server("controller", env=environment()) as c:
        port = free_port()
        args = ("--model-path", DEMO, "--port", str(port), "--worker-address", f"http://localhost:{port}")
        with Server("worker", "--controller", c.url, *args, env=environment()) as w, \
             Server("worker", "--controller", told.url, "--model-path", DEMO, env=environment()) as other:
            wait_for(lambda: post(c.port, "/list_models")[1]["models"] == ["demo"] and told.workers)
            body = {"model": "demo", "prompt": "USER: Hi ASSISTANT:", "max_new_tokens": 4, "temperature": 0}
            for step in (-86400, 400 * 86400, 0):
                crowd = Crowd(lambda i: completion(w.port, i, n=1))
                set_clock(step)
                crowd.last = True
                ok(crowd.wait() and all(ends_well(r) for r in crowd.ended), f"the clock steps to {step:+} s: all are answered")
                beats = len(told.seen("/receive_heart_beat"))
                ok(generate(other.port, body)[1][-1]["error_code"] == 0 and
                   wait_for(lambda: len(told.seen("/receive_heart_beat")) > beats, 10), "heartbeats go on")
                time.sleep(35 if LONG else 1.5)
                ok(post(c.port, "/list_models")[1]["models"] == ["demo"] and
                   generate(c.port, body)[1][-1]["error_code"] == 0, "no worker is forgotten", c.text())
            ok(w.stop() == 0 and other.stop() == 0, "and all end in order")
    told.stop()


def test_disk():
    """A small disk for logs that fills up, and has room again."""
    disk = os.path.join(scratch.name, "disk")
    os.mkdir(disk)
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", disk], capture_output=True).returncode:
        skip("a full disk", "no right to mount a small one")
        return
    try:
        with Server("serve", "--model-path", DEMO, "--access-log", os.path.join(disk, "access"), "--log-dir", disk) as s:
            ask = {"model": "demo", "max_new_tokens": 3, "messages": [{"role": "user", "text": "Hi"}]}

            def lines():
                name = os.path.join(disk, time.strftime("%Y-%m-%d-conv.json"))
                if not os.path.exists(name):
                    return []
                with open(name, encoding="utf-8") as f:
                    return [json.loads(x) for x in f.read().split("\n") if x.strip().startswith("{") and x.endswith("}")]
            ok(request(s.port, "POST", "/api/chat", ask)[0] == 200 and wait_for(lambda: len(lines()) == 1), "a line is kept")
            with open(os.path.join(disk, "filler"), "wb", buffering=0) as f:
                try:
                    while True:
                        f.write(b"x" * 4096)
                except OSError:
                    pass
            good = [request(s.port, "POST", "/api/chat", ask)[0] for _ in range(30)]
            ok(good == [200] * 30, "the disk is full: all are answered", good)
            ok(wait_for(lambda: metric(s.port, "llava_log_errors_total")), "lost lines are counted")
            os.unlink(os.path.join(disk, "filler"))
            before = len(lines())
            ok(request(s.port, "POST", "/api/chat", ask)[0] == 200 and wait_for(lambda: len(lines()) > before),
               "there is room again: lines are kept", lines()[-1:])
            ok(s.stop() == 0 and s.text().count("cannot keep what people ask") == 1 and
               "answers or pictures are not in" in s.text(), "an orderly end, and the loss is said", s.text())
    finally:
        subprocess.run(["umount", "-l", disk], check=False)


def main():
    source = os.path.join(ROOT, "tests/help/preload.c")
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", PRELOAD, source, "-ldl"], check=True)
    set_clock(0)
    test_device()
    test_worker_killed()
    test_worker_hung()
    test_controller_restarted()
    test_clock()
    test_disk()
    finish()


if __name__ == "__main__":
    main()
