#!/usr/bin/env python3
"""Checks the fixtures against manifest.json: every listed file has its sha256, nothing else
lies there, and all of it stays under 3 MB.  `verify.py DIR` checks another copy."""
import hashlib
import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../help"))
from cli import finish, ok  # noqa: E402

LIMIT = 3 * 1000 * 1000
FOLDERS = ("expected", "models", "pictures", "pixels", "training")


def found(root):
    for folder in FOLDERS:
        for path, _, names in os.walk(os.path.join(root, folder)):
            for name in names:
                yield os.path.relpath(os.path.join(path, name), root)


def digest(path):
    try:
        with open(path, "rb") as f:
            return hashlib.sha256(f.read()).hexdigest()
    except OSError as e:
        return str(e)


def main(root):
    with open(os.path.join(root, "manifest.json"), encoding="utf-8") as f:
        listed = json.load(f)["sha256"]
    present = sorted(found(root))
    for name, want in sorted(listed.items()):
        ok(digest(os.path.join(root, name)) == want, name)
    extra = [name for name in present if name not in listed]
    ok(not extra, "no file beside the listed ones", extra)
    total = sum(os.path.getsize(os.path.join(root, name)) for name in present)
    ok(total <= LIMIT, f"{total} bytes, at most {LIMIT}")
    finish()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else HERE)
