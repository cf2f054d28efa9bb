#!/usr/bin/env python3
"""Choose the test pictures that live in the repository, and copy what the model says about them.

usage: samples.py EXPECTED.tsv PICTURES_DIR GOLDEN_DIR SHOWN_DIR
GOLDEN_DIR gets 64 twemoji pictures (CODEPOINTS.png) and answers.tsv, their lines of EXPECTED.tsv without near ties;
SHOWN_DIR gets a few that the model names right, under their names, for the demo.
"""
import os
import random
import sys

from PIL import Image

SHOWN = ["red apple", "dog", "rocket", "umbrella", "pizza", "bicycle"]


def save(folder, code, path):
    picture = Image.open(os.path.join(folder, "twemoji", code + ".png")).convert("RGB")
    picture.save(path, optimize=True)


def main():
    expected, folder, golden, shown = sys.argv[1:5]
    head, *lines = open(expected).read().splitlines()
    rows = [line.split("\t") for line in lines]
    names = {code: (answer, right) for code, kind, _, answer, right, _ in rows if kind == "n"}
    tied = {code for code, *_, lead in rows if lead}
    rng = random.Random(3)
    good = [c for c, (_, right) in names.items() if not right and c not in tied]
    bad = [c for c, (_, right) in names.items() if right and c not in tied]
    picked = sorted(rng.sample(good, 48) + rng.sample(bad, 16))
    os.makedirs(golden, exist_ok=True), os.makedirs(shown, exist_ok=True)
    for code in picked:
        save(folder, code, os.path.join(golden, code + ".png"))
    with open(os.path.join(golden, "answers.tsv"), "w") as f:
        f.write("\n".join([head] + ["\t".join(r) for r in rows if r[0] in picked]) + "\n")
    for code, (answer, right) in names.items():
        if answer in SHOWN and not right:
            save(folder, code, os.path.join(shown, answer.replace(" ", "-") + ".png"))


if __name__ == "__main__":
    main()
