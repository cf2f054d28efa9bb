#!/usr/bin/env python3
"""Build the emoji picture set: one PNG per (emoji, drawing style) and one line of facts per picture.

Needs Debian's librsvg2-bin, and the npm packages fetched beside each other in one folder:
  npm pack unicode-emoji-json@0.9.0 emojilib@4.0.3 \
      @iconify-json/{noto,noto-v1,twemoji,openmoji,fluent-emoji,fluent-emoji-flat,emojione,fxemoji,streamline-emojis}
  for f in *.tgz; do mkdir -p "${f%.tgz}" && tar xzf "$f" -C "${f%.tgz}"; done

usage: make_data.py NPM_DIR OUT_DIR [--size 112] [--limit N] [--pack FILE.npz]
--pack also writes every picture, lossless WebP, with the facts, into one file: what train.py reads.
Writes OUT_DIR/STYLE/CODEPOINTS.png and OUT_DIR/facts.jsonl:
  {"image", "style", "emoji", "name", "group", "keywords", "split": "train"|"test"|"hard"}
Splits are by drawing style: twemoji is "test", openmoji is "hard", the rest "train".
Licences: noto, noto-v1, fxemoji Apache-2.0; fluent-emoji* MIT; twemoji, emojione, streamline CC-BY-4.0;
openmoji CC-BY-SA-4.0. Names and keywords MIT. Credit the CC-BY sets where pictures or weights are shipped.
"""
import argparse, glob, io, json, os, re, subprocess, sys, unicodedata
from concurrent.futures import ThreadPoolExecutor

STYLES = ["noto", "noto-v1", "fluent-emoji", "fluent-emoji-flat", "emojione", "fxemoji",
          "streamline-emojis", "twemoji", "openmoji"]
SPLIT = {"twemoji": "test", "openmoji": "hard"}


def fetch(folder):
    """the npm packages, unpacked in the folder unless they are there; the folder"""
    if os.path.exists(os.path.join(folder, "done")):
        return folder
    os.makedirs(folder, exist_ok=True)
    packages = ["unicode-emoji-json@0.9.0", "emojilib@4.0.3"] + ["@iconify-json/" + s for s in STYLES]
    subprocess.run(["npm", "pack", "--silent", *packages], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    for name in [f for f in os.listdir(folder) if f.endswith(".tgz")]:
        into = os.path.join(folder, name[:-4])
        os.makedirs(into, exist_ok=True)
        subprocess.run(["tar", "xzf", os.path.join(folder, name), "-C", into], check=True)
    open(os.path.join(folder, "done"), "w").close()
    return folder


def package(npm, name):
    stem = name.replace("@", "").replace("/", "-")
    found = sorted(glob.glob(os.path.join(npm, "**", stem + "-[0-9]*", "package"), recursive=True))
    if not found:
        sys.exit(f"make_data: '{name}' is not under {npm} (npm pack it and unpack it there)")
    return found[-1]


def slug(name):
    s = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    s = s.replace("&", "and")
    s = re.sub(r"['.!\"]", "", s)
    return re.sub(r"[^a-z0-9]+", "-", s).strip("-")


def svg_text(icons, name):
    base = icons.get("aliases", {}).get(name, {}).get("parent", name)
    icon = icons["icons"].get(base)
    if icon is None:
        return None
    w, h = (icon.get(k, icons.get(k, 16)) for k in ("width", "height"))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {w} {h}" width="{w}" height="{h}">{icon["body"]}</svg>')


def pack(out, path):
    """One .npz: "facts" (the lines as bytes), "data" (lossless WebP, one after another), "end" (where each ends)."""
    import numpy as np
    from PIL import Image
    lines, blobs = open(os.path.join(out, "facts.jsonl"), "rb").read(), []
    for line in lines.splitlines():
        b = io.BytesIO()
        Image.open(os.path.join(out, json.loads(line)["image"])).convert("RGB").save(b, "WEBP", lossless=True, method=2)
        blobs.append(b.getvalue())
    np.savez(path, facts=np.frombuffer(lines, np.uint8), data=np.frombuffer(b"".join(blobs), np.uint8),
             end=np.cumsum([len(b) for b in blobs]))


def jobs(npm):
    """[(SVG, fact)] of every picture, emoji by emoji"""
    facts = json.load(open(os.path.join(package(npm, "unicode-emoji-json"), "data-by-emoji.json")))
    words = json.load(open(glob.glob(os.path.join(package(npm, "emojilib"), "**", "emoji-en-US.json"), recursive=True)[0]))
    sets = {s: json.load(open(os.path.join(package(npm, "@iconify-json/" + s), "icons.json"))) for s in STYLES}
    out = []
    for emoji, fact in facts.items():
        if fact["group"] == "Component":
            continue
        one = slug(fact["name"])
        names = {one, one.replace("flag-", "flag-for-"), one.replace("-and-", "-"), fact["slug"].replace("_", "-")}
        code = "-".join(f"{ord(c):x}" for c in emoji)
        for s in STYLES:
            have = [n for n in names if n in sets[s]["icons"] or n in sets[s].get("aliases", {})]
            if have and (text := svg_text(sets[s], sorted(have)[0])):
                out.append((text, dict(image=f"{s}/{code}.png", style=s, emoji=emoji, name=fact["name"], group=fact["group"],
                                       keywords=words.get(emoji, []), split=SPLIT.get(s, "train"))))
    return out


def draw(some, out, size):
    """draws these jobs into the folder; which of them could be drawn"""
    for s in STYLES:
        os.makedirs(os.path.join(out, s), exist_ok=True)

    def one(job):
        path = os.path.join(out, job[1]["image"])
        run = subprocess.run(["rsvg-convert", "-w", str(size), "-h", str(size), "-b", "white", "-o", path],
                             input=job[0].encode(), capture_output=True)
        return run.returncode == 0 and os.path.getsize(path) > 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(one, some))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("npm"); ap.add_argument("out")
    ap.add_argument("--size", type=int, default=112); ap.add_argument("--limit", type=int, default=0)
    ap.add_argument("--pack")
    a = ap.parse_args()
    some = jobs(a.npm)
    if a.limit:
        some = some[:a.limit]
    good = draw(some, a.out, a.size)
    with open(os.path.join(a.out, "facts.jsonl"), "w") as f:
        for job, ok in zip(some, good):
            if ok:
                f.write(json.dumps(job[1], ensure_ascii=False) + "\n")
    if a.pack:
        pack(a.out, a.pack)
    print(f"{sum(good)} pictures, {len(good) - sum(good)} could not be drawn")


if __name__ == "__main__":
    main()
