#!/usr/bin/python3
"""The openai package for JavaScript against `llava serve`: models, a chat with a picture, streams, errors, an abort. Where
OPENAI_NODE names a folder in which it is installed (`make check-web` sees to that); else it is skipped."""
import os
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import ROOT  # noqa: E402
from serving import APPLE, DEMO, Server, metric, wait_for  # noqa: E402

folder = os.environ.get("OPENAI_NODE", "")
if not shutil.which("node") or not os.path.isdir(os.path.join(folder, "node_modules", "openai")):
    print("ok 1 - the openai package # SKIP it is not installed: make check-web\n1..1")
    sys.exit(0)
with Server("serve", "--model-path", DEMO, env={"LLAVA_API_KEY": "sesame"}) as s:
    client = os.path.join(ROOT, "tests/help/openai_client.mjs")
    p = subprocess.run(["node", client, s.url + "/v1", APPLE, "red apple"], cwd=folder, capture_output=True, text=True,
                       timeout=120)
    lines = p.stdout.splitlines()
    key = {"headers": {"Authorization": "Bearer sesame"}}
    calm = wait_for(lambda: metric(s.port, "llava_answers_running", **key) == 0)
    n = sum(x.startswith(("ok", "not ok")) for x in lines)
    print("\n".join(x for x in lines if not x.startswith("1..")))
    print(f"{'ok' if p.returncode == 0 else 'not ok'} {n + 1} - the client ends well")
    print("".join(f"# {x}\n" for x in p.stderr.splitlines()[:20]), end="")
    print(f"{'ok' if calm else 'not ok'} {n + 2} - what was aborted is cancelled\n1..{n + 2}")
