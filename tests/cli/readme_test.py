#!/usr/bin/python3
"""Runs what README.md (and its translations, ARCHITECTURE.md, CONTRIBUTING.md, MODEL.md, docs/) shows, from the root.

A code block is run when the line before it is a comment that says so:

    <!-- test -->                 each command must exit 0
    <!-- test: exit 1 -->         or with this status
    <!-- test: says a cat -->     the output of the block has this text somewhere

In a block with a line that begins with "$ " those lines are the commands and the others are output, which is not compared;
otherwise all of it is one script. It runs under `sh -e` with the build's `llava` first in PATH; `build/llava` is what it
is. Nothing is downloaded: HF_HUB_OFFLINE is set. A block that needs models/demo is skipped where there is none."""
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import BUILD, ENV, ROOT, Ran, finish, ok, skip  # noqa: E402

FILES = ("README.md", "README.zh-CN.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "MODEL.md",
         "docs/training.md", "docs/training.zh-CN.md")
BLOCK = re.compile(r"^<!-- test(?:: (exit \d+|says [^\n]+?))? -->\n+```\w*\n(.*?)^```", re.M | re.S)


def script(block):
    """The commands of a block; a line that ends with a backslash goes on in the next."""
    lines = block.splitlines()
    if not any(line.startswith("$ ") for line in lines):
        return block
    out, going_on = [], False
    for line in lines:
        if line.startswith("$ ") or going_on:
            out.append(line[2:] if line.startswith("$ ") else line)
            going_on = line.endswith("\\")
    return "\n".join(out)


def run(where, text, wanted):
    if "models/demo" in text and not os.path.exists(f"{ROOT}/models/demo/config.json"):
        return skip(where, "there is no models/demo")
    env = {k: v for k, v in ENV.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}
    r = Ran(["sh", "-ec", text], cwd=ROOT, env={**env, "PATH": BUILD + ":" + env["PATH"]})
    status = int(wanted[5:]) if wanted.startswith("exit ") else 0
    says = wanted[5:] if wanted.startswith("says ") else ""
    return ok(r.code == status and says in r.out + r.err, where, r.text)


def main():
    n = 0
    for name in FILES:
        path = os.path.join(ROOT, name)
        if not os.path.exists(path):
            continue
        with open(path, encoding="utf-8") as f:
            text = f.read()
        for m in BLOCK.finditer(text):
            run(f"{name}:{text[:m.start()].count(chr(10)) + 1}", script(m[2]), m[1] or "")
            n += 1
    if not n:
        skip("documents", "no code block is marked")
    finish()


main()
