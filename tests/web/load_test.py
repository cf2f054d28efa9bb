#!/usr/bin/python3
"""`llava serve` under tools/load.py: clients that ask one streamed question after another beside connections that only stay
open. A few for three seconds; with LOAD_S=60, as `make check-web` has it, 64 beside 1,000, and memory may no longer grow."""
import json
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import ROOT, finish, ok  # noqa: E402
from serving import DEMO, Server, metric, wait_for  # noqa: E402

FULL = int(os.environ.get("LOAD_S", "0"))
CLIENTS, IDLE, SECONDS = (64, 1000, FULL) if FULL else (6, 60, 3)

with Server("serve", "--model-path", DEMO) as s:
    p = subprocess.run([sys.executable, os.path.join(ROOT, "tools/load.py"), "--url", s.url, "--clients", str(CLIENTS), "--idle",
                        str(IDLE), "--seconds", str(SECONDS)], capture_output=True, text=True, timeout=SECONDS + 120)
    ok(p.returncode == 0, "the load comes to its end", p.stdout + p.stderr)
    said = json.loads(p.stdout) if p.returncode == 0 else {}
    print("# " + p.stdout.strip())
    ok(said.get("answers", 0) >= CLIENTS and said.get("errors") == 0, "every request is answered", said)
    if FULL:
        ok(said.get("longest_gap_ms", 1e9) < 2000, "no stream waits for two seconds", said)
        ok(said.get("peak_mb", 1e9) <= 1.05 * said.get("peak_mb_10s", 0), "memory stays as it was after ten seconds", said)
    ok(wait_for(lambda: metric(s.port, "llava_answers_running") == 0) and s.p.poll() is None, "the server is there, and idle")
    ok(s.stop() == 0, "and ends well", s.text())
finish()
