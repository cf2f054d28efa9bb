#!/usr/bin/python3
"""Load on a running server: so many clients ask one streamed question after another while others hold connections open, on
which they ask for /health now and then: a server closes those that say nothing.

    tools/load.py [--url http://localhost:7860] [--clients 64] [--idle 1000] [--seconds 60] [--tokens 32]

Prints one JSON object: answers, errors, tokens/s, and the 50th, 95th and 99th percentile of the time to the first token and
between tokens, in milliseconds; the longest gap in a stream; the server's peak memory after 10 s and at the end."""
import argparse
import asyncio
import json
import resource
import time
import urllib.parse
import urllib.request


class Result:
    def __init__(self):
        self.first, self.gaps, self.answers, self.errors, self.pieces = [], [], 0, 0, 0


async def one(host, port, body, r):
    start = last = time.perf_counter()
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n")
    writer.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
    done = False
    while line := await reader.readline():
        if not line.startswith(b"data: "):
            continue
        done = line.startswith(b"data: [DONE]")
        now = time.perf_counter()
        if not done:
            (r.first if last == start else r.gaps).append(now - last)
            last, r.pieces = now, r.pieces + 1
    writer.close()
    r.answers, r.errors = r.answers + done, r.errors + (not done)


async def client(host, port, tokens, until, r, i):
    n = 0
    while time.perf_counter() < until:
        n += 1
        body = json.dumps({"prompt": f"USER: Tell me about {i} and {n}. ASSISTANT:", "max_tokens": tokens, "temperature": 1.5,
                           "stream": True}).encode()
        try:
            await one(host, port, body, r)
        except OSError:
            r.errors += 1


async def hold(host, port, until, r):
    reader, writer = await asyncio.open_connection(host, port)
    try:
        while (left := until - time.perf_counter()) > 0:
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
            await asyncio.sleep(min(45, left))
    except (OSError, EOFError):
        r.errors += 1
    writer.close()


def metric(url, name):
    for line in urllib.request.urlopen(url + "/metrics").read().decode().splitlines():
        if line.split(" ")[0] == name:
            return float(line.split(" ")[1])
    return 0.0


def percentiles(values):
    values = sorted(values) or [0.0]
    return {f"p{p}": round(1000 * values[min(len(values) - 1, len(values) * p // 100)], 1) for p in (50, 95, 99)}


async def load(arg):
    at = urllib.parse.urlparse(arg.url)
    host, port, r = at.hostname, at.port, Result()
    start, tokens = time.perf_counter(), metric(arg.url, "llava_tokens_total")
    until = start + arg.seconds
    clients = [asyncio.create_task(hold(host, port, until, r)) for _ in range(arg.idle)]
    clients += [asyncio.create_task(client(host, port, arg.tokens, until, r, i)) for i in range(arg.clients)]
    await asyncio.sleep(min(10, arg.seconds / 2))
    memory = await asyncio.to_thread(metric, arg.url, "process_resident_memory_max_bytes")
    await asyncio.gather(*clients)
    took = time.perf_counter() - start
    end = metric(arg.url, "process_resident_memory_max_bytes")
    print(json.dumps({"clients": arg.clients, "idle": arg.idle, "seconds": round(took, 1), "answers": r.answers,
                      "errors": r.errors, "tok_s": round((metric(arg.url, "llava_tokens_total") - tokens) / took, 1),
                      "first_ms": percentiles(r.first), "between_ms": percentiles(r.gaps),
                      "longest_gap_ms": round(1000 * max(r.gaps, default=0)), "peak_mb_10s": round(memory / 1e6),
                      "peak_mb": round(end / 1e6)}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://localhost:7860")
    for name, default in (("clients", 64), ("idle", 1000), ("seconds", 60), ("tokens", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(load(parser.parse_args()))


if __name__ == "__main__":
    main()
