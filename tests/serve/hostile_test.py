#!/usr/bin/python3
"""What a client that means ill asks of `llava serve`: prompts far over the context, by every address, and what the process
keeps of them."""
import base64
import json
import os
import re
import socket
import struct
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import SANITIZED, finish, ok  # noqa: E402
from serving import DEMO, Server, generate, metric, post, request, wait_for  # noqa: E402

MB = 1 << 20


def memory(s):
    """Resident bytes of the process that serves, beneath the one that watches over it: now, and at most."""
    pid = open(f"/proc/{s.p.pid}/task/{s.p.pid}/children", encoding="ascii").read().split()[0]
    text = open(f"/proc/{pid}/status", encoding="ascii").read()
    return [1024 * int(re.search(rf"{name}:\s+(\d+)", text)[1]) for name in ("VmRSS", "VmHWM")]


def calm(s, now):
    """Is what the process holds, a moment after its answer, no more than `now` and 2 MB for each thread that takes requests?"""
    return SANITIZED or wait_for(lambda: memory(s)[0] < now + 8 * 2 * MB, 5)


def user(text):
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 2}


def too_long(r, param):
    e = (r[1] or {}).get("error", {})
    return r[0] == 400 and e.get("code") == "context_length_exceeded" and e.get("param") == param and "context" in e["message"]


def test_long_prompts(s):
    text = ("words and words " * (MB // 16), "a" * MB, "\u65e5\u672c" * (MB // 6), "\u2581" * (MB // 3), " " * MB, "\n" * MB)
    post(s.port, "/v1/chat/completions", user("Hi"))
    now = memory(s)[0]

    def ask(i):
        t = text[i % len(text)]
        if i % 4 == 1:
            return too_long(post(s.port, "/v1/completions", {"prompt": t, "max_tokens": 2, "stream": i % 8 == 1}), "prompt")
        if i % 4 == 2:
            last = generate(s.port, {"model": "demo", "prompt": t, "max_new_tokens": 2})[1][-1]
            return last["error_code"] == 0 and "Exceeds max token length" in last["text"]
        if i % 4 == 3:  # the page cuts questions, as LLaVA's does, but not answers that it is told were given
            return too_long(post(s.port, "/api/chat", {"model": "demo", "messages": [
                {"role": "user", "text": "Hi"}, {"role": "assistant", "text": t}, {"role": "user", "text": "And?"}]}), None)
        return too_long(post(s.port, "/v1/chat/completions", {**user(t), "stream": i % 8 == 0}), "messages")
    with ThreadPoolExecutor(8) as crowd:
        got = list(crowd.map(ask, range(50)))
    ok(all(got), "50 prompts of a megabyte, eight at a time: too long, by every address", [i for i, r in enumerate(got) if not r])
    # The demo's pieces have 15 bytes at most and its context 1024 positions: no prompt of more than 15 kB needs to be encoded.
    ok(calm(s, now), "nothing of them is kept", memory(s))
    ok(SANITIZED or memory(s)[1] < now + 8 * 10 * MB, "and at no time more than ten times what eight of them are", memory(s))
    ok(too_long(post(s.port, "/v1/chat/completions", user("ab" * (15 * MB // 2))), "messages"), "15 MB")
    ok(calm(s, now) and (SANITIZED or memory(s)[1] < now + 10 * 15 * MB), "nothing of that either", memory(s))
    r = post(s.port, "/v1/chat/completions", {**user("Hi"), "metadata": [[] for _ in range(MB // 5)]})
    ok(r[0] == 200 and calm(s, now), "nor of two hundred thousand small things", memory(s))
    before = memory(s)[1]
    with ThreadPoolExecutor(8) as crowd:
        many = json.dumps({**user("Hi"), "metadata": [[]] * (4 * MB)}).encode()
        got = list(crowd.map(lambda i: post(s.port, "/v1/chat/completions", many), range(8)))
    ok(all(r[0] == 400 and "262144 values" in r[1]["error"]["message"] for r in got), "millions of them are refused", got[0])
    ok(SANITIZED or memory(s)[1] < max(before, now + 8 * 4 * 16 * MB), "before memory is taken for them", (before, memory(s)))
    ok(metric(s.port, "llava_requests_submitted_total") == 2, "none of them was taken for a question")


def png(side):
    """A black square, which unfolds a thousandfold."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(1 + 3 * side)) for _ in range(side)) + packer.flush()
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)) + chunk(b"IDAT", rows) +
            chunk(b"IEND", b""))


def test_bombs():
    """Pictures that take a while to unfold hold up nobody who sent none, and others' pictures for one or two of them."""
    bomb, small = (base64.b64encode(png(side)).decode() for side in (1000 if SANITIZED else 4000, 8))
    with Server("serve", "--model-path", DEMO, "--trust-forwarded") as s:
        def ask(who, picture, how):
            start = time.time()
            if how == "worker" and picture:
                body = {"model": "demo", "prompt": "<image>\nHi", "images": [picture], "max_new_tokens": 2}
                r = request(s.port, "POST", "/worker_generate_stream", body, headers={"X-Forwarded-For": who})
            elif how == "page" and picture:
                body = {"model": "demo", "messages": [{"role": "user", "text": "Hi", "images": [picture]}], "max_new_tokens": 2}
                r = request(s.port, "POST", "/api/chat", body, headers={"X-Forwarded-For": who})
            else:
                parts = [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + picture}}] if picture else []
                r = request(s.port, "POST", "/v1/chat/completions", user(parts + [{"type": "text", "text": "Hi"}]),
                            headers={"X-Forwarded-For": who})
            return r[0] == 200, time.time() - start
        one = ask("10.0.0.1", bomb, "chat")
        with ThreadPoolExecutor(18) as crowd:
            bombs = [crowd.submit(ask, "10.0.0.1", bomb, ("chat", "worker", "page")[i % 3]) for i in range(9)]
            wait_for(lambda: metric(s.port, "llava_http_requests_active") >= 9)
            text, picture = crowd.submit(ask, "10.0.0.2", None, "chat"), crowd.submit(ask, "10.0.0.2", small, "chat")
            own = crowd.submit(ask, "10.0.0.1", None, "chat")
            text, own, picture = text.result(), own.result(), picture.result()
            bombs = [b.result() for b in bombs]
        longest = max(b[1] for b in bombs)
        ok(one[0] and all(b[0] for b in bombs), "pictures that unfold to 50 MB are answered", (one, bombs))
        ok(text[0] and own[0] and (SANITIZED or max(text[1], own[1]) < longest / 4), "words do not wait for them",
           (text, own, longest))
        ok(picture[0] and (SANITIZED or picture[1] < longest / 2),
           "nor does another's picture for all of them", (picture, longest))
        ok(SANITIZED or memory(s)[1] < 40 * MB + 4 * 4000 * 4000 * 3, "they are unfolded one at a time", memory(s))


def test_held():
    """Pictures that requests hold are counted, and given back however a request ends."""
    good, bad = (base64.b64encode(b).decode() for b in (png(8), b"no picture"))

    def ask(s, *pictures):
        parts = [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + p}} for p in pictures]
        return post(s.port, "/v1/chat/completions", user(parts + [{"type": "text", "text": "Hi"}]))
    with Server("serve", "--model-path", DEMO, "--pictures", "2") as s:
        r = ask(s, good, good, good)
        ok(r[0] == 429 and "2 pictures already" in r[1]["error"]["message"], "a picture too many", r)
        r = generate(s.port, {"model": "demo", "prompt": "<image>" * 3, "images": [good] * 3, "max_new_tokens": 2})
        ok(r[1][-1]["error_code"] == 1 and "2 pictures already" in r[1][-1]["error"], "in LLaVA's protocol too", r)
        r = post(s.port, "/api/chat", {"model": "demo", "messages": [{"role": "user", "text": "Hi", "images": [good] * 3}]})
        ok(r[0] == 429, "and from the page", r)
        ok(ask(s, good, bad)[0] == 400 and ask(s, good, good)[0] == 200 and ask(s, good, good)[0] == 200, "none of them stays")
        ok(wait_for(lambda: metric(s.port, "llava_pictures_held") == 0) and metric(s.port, "llava_pictures_limit") == 2,
           "as the metrics say")
    with Server("serve", "--model-path", DEMO, "--pictures", "16") as s:
        got = [ask(s, *[good] * n)[0] for n in (14, 15, 14)]
        ok(got == [400, 429, 400], "one client holds no more than its share; 14 are only too long", got)


def test_queue():
    """A request of several prompts for which the queue has no room is refused as a whole, with the reason."""
    with Server("serve", "--model-path", DEMO, "--queue", "2", "--limit-model-concurrency", "1") as s:
        for stream in (False, True):
            body = {"prompt": ["USER: Hi ASSISTANT:"] * 16, "max_tokens": 200, "temperature": 2, "stream": stream}
            status, headers, data = request(s.port, "POST", "/v1/completions", body)
            told = stream and status == 200 and b"queue_full" in data  # the first answer may have begun
            ok(told or (status == 429 and json.loads(data)["error"]["code"] == "queue_full" and headers["retry-after"] == "1"),
               "a queue without room for all", (status, headers, data))
        ok(post(s.port, "/v1/chat/completions", user("Hi"))[0] == 200, "and is free again")


def test_parsed():
    """What a body was made into counts as the body did, while it waits for its picture's turn."""
    bomb = base64.b64encode(png(4000)).decode()
    parts = [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + bomb}}]
    body = json.dumps({**user(parts), "user": "x" * (4 * MB)}).encode()
    with Server("serve", "--model-path", DEMO) as s, ThreadPoolExecutor(5) as crowd:
        def waiting():
            """How many wait, and bytes held, at a moment at which all others but the one in front have been answered."""
            text = request(s.port, "GET", "/metrics")[2].decode()
            active, jobs, held = (float(re.search(rf"^llava_http_{name} (\S+)", text, re.M)[1]) for name in
                                  ("requests_active", "jobs_waiting", "body_bytes"))
            return (jobs, held) if jobs > 1 and active == jobs + 2 else None
        asked = [crowd.submit(request, s.port, "POST", "/v1/chat/completions", body) for _ in range(5)]
        seen = wait_for(waiting, 20)
        ok(seen and seen[1] >= seen[0] * 4 * MB, "what waits for its picture's turn is counted", seen)
        ok([a.result()[0] for a in asked] == [200] * 5 and metric(s.port, "llava_http_body_bytes") == 0, "until it is answered")


def test_shares():
    """One address cannot take all that there is: places in the queue, room for bodies. The address is the last that stands in
    the last line of X-Forwarded-For, where HAProxy and nginx put it."""
    with Server("serve", "--model-path", DEMO, "--trust-forwarded", "--queue", "16", "--limit-model-concurrency", "2",
                "--access-log", "-") as s:
        long = json.dumps({"prompt": "USER: Hi ASSISTANT:", "max_tokens": 900, "logit_bias": {"2": -100}, "n": 2}).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: %s\r\nX-Forwarded-For: 10.0.0.1\r\n"
        crowd = []
        for i in range(40):  # each says that it is somebody else
            crowd.append(socket.create_connection(("127.0.0.1", s.port)))
            crowd[-1].sendall(head % b"10.1.0.%d" % i + b"Content-Length: %d\r\n\r\n" % len(long) + long)
        ok(wait_for(lambda: metric(s.port, "llava_requests_refused_total") >= 20), "an address that asks 40 times at once")
        waiting = metric(s.port, "llava_requests_waiting")
        short = {"prompt": "USER: Hi ASSISTANT:", "max_tokens": 2}
        got = [request(s.port, "POST", "/v1/completions", short, headers={"X-Forwarded-For": f"10.0.0.1, 10.0.0.{i}"})[0]
               for i in (2, 3)]
        ok(12 <= waiting <= 14 and got == [200, 200], "gets most places of the queue, but not those of others", (waiting, got))
        for c in crowd:
            c.close()
        wait_for(lambda: metric(s.port, "llava_requests_waiting") == 0)
        crowd = []
        for i in range(9):
            crowd.append(socket.create_connection(("127.0.0.1", s.port)))
            crowd[-1].sendall(head % b"10.1.0.%d" % i + b"Content-Length: %d\r\n\r\n" % (60 * MB))
            crowd[-1].sendall(b" " * (33 * MB))
        ok(wait_for(lambda: metric(s.port, "llava_http_body_bytes") >= 300 * MB), "bodies that are begun and not ended")
        got = [request(s.port, "POST", "/v1/completions", {**short, "user": "x" * MB}, headers={"X-Forwarded-For": "10.0.0.2"})[0]
               for _ in range(3)]
        ok(got == [200] * 3, "leave room for others'", got)
        for c in crowd:
            c.close()


def schema(s, how, **more):
    held = {"type": "json_schema", "json_schema": {"name": "x", "schema": how}}
    start = time.time()
    return *post(s.port, "/v1/chat/completions", {**user("Hi"), "response_format": held, **more}), time.time() - start


def test_schemas(s):
    """Schemas that are meant to take long: each is answered or refused in its own words, soon."""
    again = {"$ref": "#"}
    masks = [{"type": "string", "pattern": "^(.{0,30}%s){0,30}$" % c} for c in "abcdefghijklmnopqrstuvwxyz" * 2]
    for name, how, want in (
            ("that goes on in ever more ways", {"anyOf": masks}, 400),
            ("that may be many things in many depths",
             {"anyOf": [{"type": "object", "properties": {"a": again, f"b{i}": {}}, "required": ["a"]} for i in range(200)]},
             400),
            ("with more that is required than there is",
             {"type": "object", "properties": {f"p{i}": {} for i in range(4000)}, "required": ["p1"] * 100000}, 200),
            ("with counts of counts", {"type": "array", "minItems": 4096, "items": {"type": "string", "minLength": 4096}}, 200),
            ("with lists of counts", {"anyOf": [{"type": "array", "minItems": i, "items": {"type": "integer"}}
                                                for i in range(400)]}, 200)):
        status, r, seconds = schema(s, how, max_tokens=30, temperature=1.5, seed=1)
        message = r.get("error", {}).get("message", "schema")
        ok(status == want and "schema" in message and seconds < (200 if SANITIZED else 6), f"a schema {name}", (r, seconds))


def main():
    with Server("serve", "--model-path", DEMO) as s:
        test_long_prompts(s)
        test_schemas(s)
    test_bombs()
    test_held()
    test_queue()
    test_shares()
    test_parsed()
    finish()


main()
