#!/usr/bin/env python3
"""Checks the fixtures against manifest.json: every listed file has its sha256, nothing else
lies there, and all of it stays under 3 MB.  Prints TAP.  `verify.py DIR` checks another copy."""
import hashlib
import json
import os
import sys

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
    results = [(name, digest(os.path.join(root, name)) == want) for name, want in sorted(listed.items())]
    extra = [name for name in present if name not in listed]
    total = sum(os.path.getsize(os.path.join(root, name)) for name in present)
    results.append((f"no file beside the listed ones {extra or ''}".strip(), not extra))
    results.append((f"{total} bytes, at most {LIMIT}", total <= LIMIT))
    print(f"1..{len(results)}")
    for n, (name, good) in enumerate(results, 1):
        print(f"{'ok' if good else 'not ok'} {n} - {name}")
    return 0 if all(good for _, good in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))))
