#!/usr/bin/python3
"""What clients may do to a server: trickle, flood, break off, half-close, lie about lengths, read slowly; and a machine:
full disks, few processes, signals. Others' answers go on, and every request that was taken ends.

    http_test.py [--long]        --long: 10,000 cancelled requests, a minute of load"""
import gzip
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import LLAVA, finish, ok  # noqa: E402
from serving import DEMO, PATIENCE, Server, metric, post, raw, request, wait_for  # noqa: E402

scratch = tempfile.TemporaryDirectory(prefix="llava-http-")
LONG = "--long" in sys.argv
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


def head(length=None, path="/v1/completions", extra=b""):
    size = b"" if length is None else b"Content-Length: %d\r\n" % length
    return b"POST %s HTTP/1.1\r\nHost: x\r\n%s%s\r\n" % (path.encode(), size, extra)


def completion(tokens=40, **more):
    """A request whose answer is as long as it says, more or less: hot enough not to end by itself."""
    return json.dumps({"prompt": "USER: Hi ASSISTANT:", "max_tokens": tokens, "temperature": 2, **more}).encode()


def status(reply):
    words = reply.split(b"\r\n")[0].split(b" ")
    return int(words[1]) if len(words) > 1 else 0


def alive(port):
    return request(port, "GET", "/health")[0] == 200


def test_framing(port):
    body = completion(2)
    ok(status(raw(port, head(len(body), extra=b"Connection: close\r\n") + body)) == 200, "a plain request")
    chunked = b"Transfer-Encoding: chunked\r\nConnection: close\r\n"
    pieces = b"".join(b"1\r\n%c\r\n" % c for c in body) + b"0\r\n\r\n"
    ok(status(raw(port, head(extra=chunked) + pieces)) == 200, "a body in chunks of one byte")
    both = head(len(body), extra=chunked) + b"0\r\n\r\nGET /secret HTTP/1.1\r\nHost: x\r\n\r\n"
    ok(status(raw(port, both, timeout=2)) == 400, "a length and chunks are too much")
    ok(status(raw(port, head(5, extra=b"Content-Length: 6\r\n") + b"{}   ", timeout=2)) == 400, "two lengths")
    for odd in (b" ", b"\t"):
        reply = raw(port, head(extra=b"Content-Length%s: %d\r\n" % (odd, len(body))) + body, timeout=2)
        ok(status(reply) == 400 and b"bad_framing" in reply and reply.count(b"HTTP/1.1") == 1,
           "a length whose name has a blank: what follows is no request of its own", reply)
    ok(status(raw(port, head(len(body), extra=b"Host: other\r\nConnection: close\r\n") + body)) == 400, "two hosts")
    ok(status(raw(port, head(extra=b"Transfer-Encoding: gzip\r\n"), timeout=2)) in (400, 501), "a coding that is not known")
    for name, data in (("a length that is none", b"-1"), ("a huge one", b"99999999999999999999")):
        data = b"Content-Length: " + data + b"\r\n"
        ok(status(raw(port, head(extra=data), timeout=2)) in (0, 400, 413), name)
    for name, data in (("a chunk's size that is none", b"xyz\r\n"), ("a huge one", b"ffffffffffffffffffff\r\n"),
                       ("a negative one", b"-1\r\n")):
        ok(status(raw(port, head(extra=chunked) + data + b"abc\r\n", half_close=True, timeout=3)) in (0, 400, 413), name)
    packed = gzip.compress(body)
    reply = raw(port, head(len(packed), extra=b"Content-Encoding: gzip\r\nConnection: close\r\n") + packed)
    ok(status(reply) == 415 and b"Content-Encoding" in reply, "a packed body is refused by what it is", reply)
    reply = raw(port, head(len(body), extra=b"Content-Encoding: identity\r\nConnection: close\r\n") + body)
    ok(status(reply) == 200, "one that is not packed but says so", reply)
    reply = raw(port, b"GET http://x/v1/models?a=b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    ok(status(reply) == 200 and b'"list"' in reply, "an address with its host, as proxies get it", reply)
    for method, path, may in (("OPTIONS", "/v1/completions", "POST"), ("DELETE", "/v1/models/demo", "GET, HEAD"),
                              ("GET", "/v1/completions", "POST")):
        got = request(port, method, path)
        ok(got[0] == 405 and got[1].get("allow") == may, f"{method} {path}: what it takes is said", got)
    ok(status(raw(port, head(1 << 40))) == 413, "a terabyte is refused before it comes")
    ok(status(raw(port, head(80 << 20, extra=b"Expect: 100-continue\r\n"), timeout=3)) == 413, "also when it asks first")
    big = b"x" * (65 << 20)
    reply = raw(port, head(len(big), extra=b"Connection: close\r\n") + big)
    ok(status(reply) == 413, "a body over the limit, sent: the answer can be read")
    ok(status(raw(port, HEALTH[:-2] + b"X: " + b"y" * 100000 + b"\r\n\r\n", timeout=3)) in (400, 413, 431), "long headers")
    long = b"GET /" + b"a" * 100000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"
    ok(status(raw(port, long, timeout=3)) in (400, 413, 414, 431), "a long address")
    for junk in (b"\x16\x03\x01\x02\x00", b"\0" * 100, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\r\n" * 50):
        raw(port, junk, half_close=True, timeout=3)
    for path in ("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/examples/../../../etc/passwd", "/..%2f..%2fetc/passwd",
                 "//etc/passwd", "/%00", "/examples/%00x", "/serve_images/", "/serve.log"):
        reply = raw(port, b"GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path.encode(), timeout=5)
        ok(status(reply) in (400, 404) or (path == "/%00" and status(reply) == 200) and b"root:" not in reply,
           f"no way out: {path}", reply[:200])
    ok(status(raw(port, b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")) == 200, "HEAD")
    old = raw(port, b"POST /v1/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    ok(status(old) == 200 and b"chunked" not in old, "HTTP/1.0")
    ok(alive(port), "after all that it lives")


def test_half_closed(s):
    """A client that closes its side for writing behind its request gets its answer, also when the server sees both at
    once."""
    child = int(open(f"/proc/{s.p.pid}/task/{s.p.pid}/children").read().split()[0])
    for held in (False, True):
        for stream in (False, True):
            body, clients, bad = completion(30, n=2, stream=stream), [], []
            chunked = head(extra=b"Transfer-Encoding: chunked\r\n") + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
            if held:
                os.kill(child, signal.SIGSTOP)
            for i in range(12):
                c = socket.create_connection(("127.0.0.1", s.port), timeout=PATIENCE)
                c.sendall(chunked if i % 3 == 0 else head(len(body)) + body)
                c.shutdown(socket.SHUT_WR)
                clients.append(c)
            os.kill(child, signal.SIGCONT)
            for c in clients:
                with c:
                    last = b"".join(iter(lambda: c.recv(65536), b"")).split(b"HTTP/1.1 ")[-1]
                if not (last.startswith(b"200") and last.rstrip().endswith(b"0" if stream else b"}")):
                    bad.append(last)
            ok(not bad, f"half-closed clients get {'streams' if stream else 'answers'}{', seen at once' if held else ''}", bad)
    ok(wait_for(lambda: calm(s.port)), "and leave nothing behind")


def leave(port, n, wait=0.0):
    """n clients that ask and go."""
    for _ in range(n):
        s = socket.create_connection(("127.0.0.1", port))
        body = completion(500, stream=True)
        s.sendall(head(len(body)) + body)
        if wait:
            time.sleep(wait)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        s.close()


def calm(port):
    return metric(port, "llava_answers_running") == 0 and metric(port, "llava_requests_waiting") == 0 and \
        metric(port, "llava_http_requests_active") == 1


def test_cancel(s):
    n = 10000 if LONG else 500
    leave(s.port, 3, wait=0.3)
    threads = [threading.Thread(target=leave, args=(s.port, n // 4)) for _ in range(4)]
    [t.start() for t in threads]
    good = [request(s.port, "POST", "/v1/completions", completion(5))[0] for _ in range(5)]
    [t.join() for t in threads]
    ok(all(g in (200, 429) for g in good), f"among {n} that leave one is answered, or told to come again", good)
    ok(wait_for(lambda: calm(s.port)), "all that left are forgotten", request(s.port, "GET", "/metrics")[2].decode())
    ok(metric(s.port, "llava_answers_cancelled_total") > 0, "they were cancelled")
    for path, ask in (("/worker_generate_stream", {"model": "demo", "prompt": "USER: Hi ASSISTANT:", "max_new_tokens": 1000}),
                      ("/api/chat", {"model": "demo", "messages": [{"role": "user", "text": "Hi"}], "max_new_tokens": 1000})):
        body = json.dumps({**ask, "temperature": 2}).encode()
        for _ in range(40):
            with socket.create_connection(("127.0.0.1", s.port)) as c:
                c.sendall(head(len(body), path) + body)
    ok(wait_for(lambda: calm(s.port)) and " | ERROR | " not in s.text(), "who leaves is no error of the server's",
       s.text()[-500:])
    gone = socket.create_connection(("127.0.0.1", s.port))
    body = completion(2000, n=8)
    gone.sendall(head(len(body)) + body)
    time.sleep(0.3)
    gone.close()
    ok(wait_for(lambda: calm(s.port), 30), "who waits for a whole answer and leaves is noticed as well")
    for cut in (len(head(len(body))) - 3, len(head(len(body))) + len(body) - 1):
        for _ in range(100):
            with socket.create_connection(("127.0.0.1", s.port)) as c:
                c.sendall((head(len(body)) + body)[:cut])
        ok(wait_for(lambda: calm(s.port) and metric(s.port, "llava_http_connections") == 1, 10),
           f"who breaks off after {cut} bytes of a request is not waited for", metric(s.port, "llava_http_connections"))


def test_many(s):
    """A thousand open connections, with few threads."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    conns = [socket.create_connection(("127.0.0.1", s.port)) for _ in range(1000)]
    half = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Le"
    [c.sendall(half) for c in conns[:500]]
    ok(alive(s.port) and request(s.port, "POST", "/v1/completions", completion(5))[0] == 200, "1,000 open connections")
    pid = int(open(f"/proc/{s.p.pid}/task/{s.p.pid}/children").read().split()[0])
    ok(len(os.listdir(f"/proc/{pid}/task")) < 40, "few threads", os.listdir(f"/proc/{pid}/task"))
    replies = []
    for c in conns[500:600]:
        c.sendall(HEALTH)
    for c in conns[500:600]:
        replies.append(c.recv(4096))
    ok(all(status(r) == 200 for r in replies), "each can be used")
    [c.close() for c in conns]


def test_slow():
    with Server("serve", "--model-path", DEMO, "--header-timeout", "1", "--body-timeout", "2", "--idle-timeout", "2",
                "--connections", "60") as s:
        def trickle(first, rest, step=0.1):
            c = socket.create_connection(("127.0.0.1", s.port))
            c.settimeout(0.01)
            c.sendall(first)
            start = time.time()
            while time.time() - start < 20:
                try:
                    c.sendall(rest)
                    if c.recv(100) == b"":
                        break
                except socket.timeout:
                    pass
                except OSError:
                    break
                time.sleep(step)
            return time.time() - start
        took = trickle(b"GET / HTTP/1.1\r\n", b"X: y\r\n")
        ok(0.5 < took < 10, "headers that trickle are cut off", took)
        took = trickle(head(1000), b"x")
        ok(1 < took < 12, "bodies that trickle too", took)
        took = trickle(b"", b"")
        ok(0.5 < took < 10, "and who says nothing", took)
        flood = []
        for _ in range(100):
            try:
                flood.append(socket.create_connection(("127.0.0.1", s.port), timeout=2))
            except OSError:
                break
        ok(wait_for(lambda: alive(s.port)), "a flood of connections passes")
        [c.close() for c in flood]
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        slow.connect(("127.0.0.1", s.port))
        body = completion(1500, stream=True, n=8)
        slow.sendall(head(len(body)) + body)
        ok(all(request(s.port, "POST", "/v1/completions", completion(5))[0] == 200 for _ in range(5)),
           "a reader who does not read holds nobody up")
        ok(wait_for(lambda: calm(s.port), 2 * PATIENCE), "and is cut off in the end",
           request(s.port, "GET", "/metrics")[2].decode()[-600:])
        slow.close()


def test_stop():
    """SIGTERM: what is under way ends as it should, new ones are refused."""
    with Server("serve", "--model-path", DEMO) as s:
        got = {}
        body = completion(400, stream=True, n=16)
        t = threading.Thread(target=lambda: got.update(r=request(s.port, "POST", "/v1/completions", body)))
        t.start()
        wait_for(lambda: metric(s.port, "llava_answers_running") > 0 or not t.is_alive())
        ok(s.stop() == 0, "it ends with 0", s.text())
        t.join()
        ok(b"[DONE]" in got["r"][2], "after the answer under way", got)
    with Server("serve", "--model-path", DEMO, "--grace", "0") as s:
        got = {}
        body = completion(1900, n=8)
        t = threading.Thread(target=lambda: got.update(r=request(s.port, "POST", "/v1/completions", body)))
        t.start()
        wait_for(lambda: metric(s.port, "llava_answers_running") > 0 or not t.is_alive())
        ok(s.stop() == 0, "without grace it ends at once", s.text())
        t.join()
        ok(got["r"][0] in (200, 503), "and says so", got)


def test_disk():
    with Server("serve", "--model-path", DEMO, "--access-log", "/dev/full") as s:
        os.symlink("/dev/full", os.path.join(s.folder.name, time.strftime("%Y-%m-%d-conv.json")))
        r = request(s.port, "POST", "/api/chat", {"model": "demo", "messages": [{"role": "user", "text": "Hi"}]})
        ok(r[0] == 200 and b'"done"' in r[2], "full disks for logs hold nobody up", r)
        ok(wait_for(lambda: metric(s.port, "llava_log_errors_total") > 0), "lost lines are counted")


def test_few_processes():
    """RLIMIT_NPROC as low as on some clusters."""
    def reach():
        """Somebody else's eyes: the program and the model may lie where only root can see them."""
        return os.getuid() == 0 and subprocess.run(["test", "-x", LLAVA, "-a", "-r", os.path.join(DEMO, "config.json")],
                                                   user=54321, check=False).returncode == 0
    if not reach():
        ok(True, "few processes # SKIP needs root, and a folder that all may read")
        return

    def low():
        resource.setrlimit(resource.RLIMIT_NPROC, (24, 24))
        os.setgid(54321)
        os.setuid(54321)
    os.chmod(scratch.name, 0o777)
    p = subprocess.Popen([LLAVA, "serve", "--model-path", DEMO, "--port", "0", "--log-dir", scratch.name, "--no-restart"],
                         stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                         preexec_fn=low)
    port, said = 0, []
    for line in p.stderr:
        said.append(line)
        if " open http" in line:
            port = int(line.rsplit(":", 1)[1])
            break
    ok(port and request(port, "POST", "/v1/completions", completion(5))[0] == 200, "24 processes are enough", said)
    p.send_signal(signal.SIGTERM)
    ok(p.wait(PATIENCE) == 0, "and it ends in order")
    p.stderr.close()


def test_refusals():
    cases = {"a port in use": (["--port", "PORT"], "cannot listen"), "no such host": (["--host", "no.invalid"], "no.invalid"),
             "no such key file": (["--api-key-file", "/none"], "/none"),
             "an empty key file": (["--api-key-file", "/dev/null"], "no API key"),
             "no such certificate": (["--tls-cert", "/none", "--tls-key", "/none"], "/none"),
             "a certificate that is none": (["--tls-cert", __file__, "--tls-key", __file__], "certificate")}
    before_a_model_is_opened = ["serve", "--no-restart", "--model-path", "/nowhere"]
    for name, (args, word) in cases.items():
        for command in (["controller"], before_a_model_is_opened)[:1 if word == "certificate" else 2]:
            with socket.create_server(("127.0.0.1", 0)) as taken:
                given = [a.replace("PORT", str(taken.getsockname()[1])) for a in args]
                p = subprocess.run([LLAVA, *command, "--log-dir", scratch.name, *given], capture_output=True, text=True,
                                   timeout=PATIENCE)
                ok(p.returncode == 1 and word in p.stderr and p.stderr.startswith("llava: "), f"{command[0]} refused: {name}",
                   p.stderr)
    p = subprocess.run([LLAVA, "web", "--share"], capture_output=True, text=True)
    ok(p.returncode == 2 and "--share is not supported" in p.stderr, "--share", p.stderr)


with Server("serve", "--model-path", DEMO) as server:
    test_framing(server.port)
    test_half_closed(server)
    test_cancel(server)
    test_many(server)
    ok(post(server.port, "/v1/completions", json.loads(completion(3)))[0] == 200, "it still answers")
    ok(server.stop() == 0, "an orderly end", server.text())
test_slow()
test_stop()
test_disk()
test_few_processes()
test_refusals()
finish()
