#!/usr/bin/python3
"""JavaScript packages that speak OpenAI's API against `llava serve`: openai, and those of others (tests/help/*_client.mjs say
which). Where OPENAI_NODE names a folder in which they are installed (`make check-web` sees to that); else it is skipped."""
import os
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import ROOT, finish, ok  # noqa: E402
from serving import APPLE, DEMO, Server, metric, wait_for  # noqa: E402

folder = os.environ.get("OPENAI_NODE", "")


def talk(s, client):
    p = subprocess.run(["node", os.path.join(ROOT, "tests/help", client), s.url + "/v1", APPLE, "red apple"], cwd=folder,
                       capture_output=True, text=True, timeout=200)
    lines = p.stdout.splitlines()
    for i, line in enumerate(lines):
        if line.startswith(("ok", "not ok")):
            ok(line.startswith("ok"), line.split(" - ", 1)[1], lines[i + 1] if lines[i + 1:] else "")
    ok(p.returncode == 0 and lines and lines[-1].startswith("1.."), f"{client} ends well", p.stderr[:2000])


if not shutil.which("node") or not os.path.isdir(os.path.join(folder, "node_modules", "openai")):
    print("ok 1 - the openai package # SKIP it is not installed: make check-web\n1..1")
    sys.exit(0)
with Server("serve", "--model-path", DEMO, env={"LLAVA_API_KEY": "sesame"}) as server:
    key = {"headers": {"Authorization": "Bearer sesame"}}
    talk(server, "openai_client.mjs")
    if os.path.isdir(os.path.join(folder, "node_modules", "ai")):
        talk(server, "sdk_client.mjs")
    ok(wait_for(lambda: metric(server.port, "llava_answers_running", **key) == 0), "what was aborted is cancelled")
finish()
