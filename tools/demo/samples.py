#!/usr/bin/env python3
"""Choose the test pictures that live in the repository, and copy what the model says about them.

usage: samples.py EXPECTED.tsv PICTURES_DIR GOLDEN_DIR SHOWN_DIR
GOLDEN_DIR gets 64 twemoji pictures (CODEPOINTS.png) that are what pictures.tsv beside EXPECTED.tsv says (processors differ in
how they draw a few) and answers.tsv, their lines of EXPECTED.tsv without near ties;
SHOWN_DIR gets a few that the model names right, under their names, for the demo.
"""
import hashlib
import os
import random
import sys

from PIL import Image

SHOWN = ["red apple", "dog", "umbrella", "pizza", "bicycle"]


def drawn_alike(expected, folder):
    """codes of the twemoji pictures that are the ones that were asked about"""
    with open(os.path.join(os.path.dirname(expected), "pictures.tsv"), encoding="utf-8") as f:
        for image, digest in (line.split() for line in f):
            if image.startswith("twemoji/"):
                picture = Image.open(os.path.join(folder, image)).convert("RGB")
                if hashlib.sha256(picture.tobytes()).hexdigest()[:16] == digest:
                    yield os.path.basename(image)[:-4]


def save(folder, code, path):
    picture = Image.open(os.path.join(folder, "twemoji", code + ".png")).convert("RGB")
    picture.save(path, optimize=True)


def main():
    expected, folder, golden, shown = sys.argv[1:5]
    head, *lines = open(expected).read().splitlines()
    rows = [line.split("\t") for line in lines]
    names = {code: (answer, right) for code, kind, _, answer, right, _ in rows if kind == "n"}
    tied = {code for code, *_, lead in rows if lead}
    rng, alike = random.Random(3), set(drawn_alike(expected, folder)) - tied
    good = [c for c, (_, right) in names.items() if not right and c in alike]
    bad = [c for c, (_, right) in names.items() if right and c in alike]
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
