#!/usr/bin/python3
"""Runs what README.md (and its translations, ARCHITECTURE.md, CONTRIBUTING.md, MODEL.md, docs/) shows, from the root.

A code block is run when the line before it is a comment that says so:

    <!-- test -->                 each command must exit 0
    <!-- test: exit 1 -->         or with this status
    <!-- test: says a cat -->     the output of the block has this text somewhere

In a block with a line that begins with "$ " those lines are the commands and the others are output, which is not compared;
otherwise all of it is one script. It runs under `sh -e` with the build's `llava` first in PATH; `build/llava` is what it
is. Nothing is downloaded: HF_HUB_OFFLINE is set. A block that needs models/demo is skipped where there is none.

And of every document that git tracks: its links lead to files that are there, and to headings that they have."""
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


def anchors(text):
    """What a document's headings are called in links, as GitHub has it."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.M)}


def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def links(name):
    """The document's links that lead nowhere."""
    bad = []
    for to in re.findall(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"", read(os.path.join(ROOT, name))):
        path, _, heading = (to[0] or to[1]).partition("#")
        if ":" in path:
            continue
        path = os.path.normpath(os.path.join(ROOT, os.path.dirname(name), path)) if path else os.path.join(ROOT, name)
        if not os.path.exists(path) or heading and heading not in anchors(read(path)):
            bad.append(to[0] or to[1])
    return bad


def main():
    n = 0
    documents = Ran(["git", "ls-files", "*.md"], cwd=ROOT).out.split()
    ok(all(not links(name) for name in documents), "links lead to what is there",
       "\n".join(f"{name}: {bad}" for name in documents for bad in links(name)))
    for name in FILES:
        path = os.path.join(ROOT, name)
        if not os.path.exists(path):
            continue
        text = read(path)
        for m in BLOCK.finditer(text):
            run(f"{name}:{text[:m.start()].count(chr(10)) + 1}", script(m[2]), m[1] or "")
            n += 1
    ok(n >= 4, f"{n} code blocks are marked")
    finish()


main()
