#!/usr/bin/python3
"""What a client that means ill asks of `llava serve`: prompts far over the context, by every address, and what the process
keeps of them."""
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import SANITIZED, finish, ok  # noqa: E402
from serving import DEMO, Server, generate, metric, post, wait_for  # noqa: E402

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
    r = post(s.port, "/v1/chat/completions", {**user("Hi"), "metadata": [[] for _ in range(MB)]})
    ok(r[0] == 200 and calm(s, now), "nor of a million small things", memory(s))
    ok(metric(s.port, "llava_requests_submitted_total") == 2, "none of them was taken for a question")


def main():
    with Server("serve", "--model-path", DEMO) as s:
        test_long_prompts(s)
    finish()


main()
