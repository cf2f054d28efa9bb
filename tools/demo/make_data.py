#!/usr/bin/env python3
"""Build the emoji picture set: every emoji in many drawing styles, and one line of facts per picture.

Needs Debian's librsvg2-bin and python3-pil, and the npm packages that fetch() lists, unpacked beside each other in one
folder (it does so itself).

usage: make_data.py NPM_DIR OUT_DIR [--size 112] [--limit N]
Writes OUT_DIR/STYLE/CODEPOINTS.png (a second drawing: CODEPOINTS.2.png; WebP where split is "train") and OUT_DIR/facts.jsonl:
  {"image", "style", "emoji", "name", "group", "keywords", "split": "train"|"test"|"hard"}
Splits are by drawing style: twemoji is "test", openmoji is "hard", the rest "train". Pictures that are there are kept.
Licences: noto, noto-v1, fxemoji Apache-2.0; fluent-emoji*, flag, flagpack, circle-flags MIT; twemoji, emojione*,
streamline CC-BY-4.0; openmoji CC-BY-SA-4.0. Names and keywords MIT. Credit the CC-BY sets where pictures or weights
are shipped.
"""
import argparse, glob, io, json, os, re, subprocess, sys, unicodedata
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations

STYLES = ["noto", "noto-v1", "fluent-emoji", "fluent-emoji-flat", "fluent-emoji-high-contrast", "emojione",
          "emojione-monotone", "fxemoji", "streamline-emojis", "flag", "flagpack", "circle-flags", "twemoji", "openmoji"]
SOLID = "fluent-emoji-3d"       # the one style that comes as pixels, by code points
SPLIT = {"twemoji": "test", "openmoji": "hard"}
ONE_COLOUR = {"fluent-emoji-high-contrast", "emojione-monotone"}
COUNTRIES = {"flag": "{}-4x3", "flagpack": "{}", "circle-flags": "{}"}
COLOURS = set("red orange yellow green blue purple brown black white pink grey light dark flag button keycap circle "
              "square heart apple book".split())
TONES = ("-medium-skin-tone", "-medium")
ACROSS = " facing right"        # where a style has only the thing that faces left, its mirror image


def fetch(folder):
    """the npm packages, unpacked in the folder unless they are there; the folder"""
    if os.path.exists(os.path.join(folder, "done")):
        return folder
    os.makedirs(folder, exist_ok=True)
    packages = ["unicode-emoji-json@0.9.0", "emojilib@4.0.3", "@lobehub/" + SOLID] + ["@iconify-json/" + s for s in STYLES]
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


def code_of(emoji):
    return "-".join(f"{ord(c):x}" for c in emoji)


def bare(code):
    return "-".join(c for c in code.lower().split("-") if c != "fe0f")


def says(thing):
    return set(thing["name"].lower().replace("-", " ").split())


def country(emoji):
    """the two letters of a country's flag, or of a part of one; None"""
    letters = [ord(c) for c in emoji]
    if len(letters) == 2 and all(0x1f1e6 <= c <= 0x1f1ff for c in letters):
        return "".join(chr(c - 0x1f1e6 + ord("a")) for c in letters)
    tag = "".join(chr(c - 0xe0000) for c in letters if 0xe0061 <= c <= 0xe007a)
    return tag[:2] + "-" + tag[2:] if tag else None


def names(emoji, fact, keywords):
    """what icon sets of several years may call it, the likeliest first"""
    one = slug(fact["name"])
    if one == "keycap":
        return ["keycap-asterisk"] if "*" in emoji else ["keycap-hashtag", "keycap-pound"]
    out = [one, one.replace("flag-", "flag-for-"), one.replace("-and-", "-"), fact["slug"].replace("_", "-")]
    if len(emoji.replace("\ufe0f", "")) == 1:
        out.append(slug(unicodedata.name(emoji[0], "")))
    out += [slug(w) for w in keywords[:1] if "_" in w]
    return [n for n in dict.fromkeys(out) if n]


class Icons:
    """One of Iconify's sets."""

    def __init__(self, folder, style):
        with open(os.path.join(folder, "icons.json"), encoding="utf-8") as f:
            self.set = json.load(f)
        self.style, self.by_char = style, {}
        if os.path.exists(os.path.join(folder, "chars.json")):
            with open(os.path.join(folder, "chars.json"), encoding="utf-8") as f:
                self.by_char = {bare(code): name for code, name in json.load(f).items()}
        have = [*self.set["icons"], *self.set.get("aliases", {})]
        self.have, self.joined = set(have), {n.replace("-", ""): n for n in have}

    def find(self, emoji, fact, keywords):
        """names of its drawings in the set; of people one with another skin too"""
        some = self.named(emoji, fact, keywords)
        if some and fact["group"] == "People & Body" and self.style not in SPLIT:
            some += [n for n in (some[0] + tone for tone in TONES) if n in self.have]
        return some

    def named(self, emoji, fact, keywords):
        if self.style in COUNTRIES:
            name = COUNTRIES[self.style].format(country(emoji))
            return [name] if country(emoji) and name in self.have else []
        if self.style in ONE_COLOUR and (fact["group"] == "Flags" or says(fact) & COLOURS):
            return []
        if (name := self.by_char.get(bare(code_of(emoji)))) in self.have:
            return [name]
        for name in names(emoji, fact, keywords):
            if name in self.have:
                return [name]
            if self.style == "streamline-emojis" and name + "-1" in self.have:
                return [n for n in (name + "-1", name + "-2") if n in self.have]
        if self.style == "fxemoji":     # words without anything between them, some in another order
            words = slug(fact["name"]).split("-")
            for some in permutations(words) if len(words) < 5 else [words]:
                if (name := self.joined.get("".join(some))):
                    return [name]
        name = slug(fact["name"]).replace("flag-", "")
        return [name] if fact["group"] == "Flags" and self.style == "streamline-emojis" and name in self.have else []

    def svg(self, name, mirrored):
        base = self.set.get("aliases", {}).get(name, {}).get("parent", name)
        icon = self.set["icons"].get(base)
        if icon is None:
            return None
        w, h = (icon.get(k, self.set.get(k, 16)) for k in ("width", "height"))
        left, top, side = icon.get("left", 0), icon.get("top", 0), max(w, h)
        body = f'<g transform="translate({2 * left + w} 0) scale(-1 1)">{icon["body"]}</g>' if mirrored else icon["body"]
        return (f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" color="black" '
                f'viewBox="{left - (side - w) / 2} {top - (side - h) / 2} {side} {side}" width="{side}" height="{side}">'
                f'{body}</svg>')


def solid(folder, emoji):
    """the picture files of the style that comes as pixels, the second one with another skin"""
    code = bare(code_of(emoji))
    first, *rest = code.split("-")
    paths = [os.path.join(folder, "assets", c + ".webp") for c in (code_of(emoji), code, "-".join([first, "1f3fd", *rest]))]
    return [p for p in paths[:2] if os.path.exists(p)][:1] + [p for p in paths[2:] if os.path.exists(p)]


def jobs(npm):
    """[(SVG or path of pixels, mirrored, fact)] of every picture, emoji by emoji"""
    with open(os.path.join(package(npm, "unicode-emoji-json"), "data-by-emoji.json"), encoding="utf-8") as f:
        facts = json.load(f)
    with open(glob.glob(os.path.join(package(npm, "emojilib"), "**", "emoji-en-US.json"), recursive=True)[0]) as f:
        words = json.load(f)
    sets = {s: Icons(package(npm, "@iconify-json/" + s), s) for s in STYLES}
    pixels = package(npm, "@lobehub/" + SOLID)
    by_name, out = {fact["name"]: emoji for emoji, fact in facts.items()}, []

    def sources(emoji, mirrored):
        for s in STYLES:
            yield s, [sets[s].svg(n, mirrored) for n in sets[s].find(emoji, facts[emoji], words.get(emoji, []))]
        yield SOLID, solid(pixels, emoji)
    for emoji, fact in facts.items():
        if fact["group"] == "Component":
            continue
        other = by_name.get(fact["name"].removesuffix(ACROSS)) if fact["name"].endswith(ACROSS) else None
        turned = dict(sources(other, True)) if other else {}
        for style, some in sources(emoji, False):
            split, mirrored = SPLIT.get(style, "train"), False
            if not some and split == "train":
                some, mirrored = turned.get(style, []), True
            for k, source in enumerate(s for s in some if s):
                kind = "webp" if split == "train" else "png"
                image = f"{style}/{code_of(emoji)}{f'.{k + 1}' if k else ''}.{kind}"
                out.append((source, mirrored, dict(image=image, style=style, emoji=emoji, name=fact["name"],
                                                   group=fact["group"], keywords=words.get(emoji, []), split=split)))
    return out


def picture_of(source, mirrored, fact, size):
    """RGB; None where librsvg cannot draw it"""
    from PIL import Image, ImageOps
    if fact["style"] == SOLID:
        picture = Image.open(source).convert("RGBA")
        picture = ImageOps.mirror(picture) if mirrored else picture
        ground = Image.new("RGBA", picture.size, "white")
        ground.alpha_composite(picture)
        return ground.convert("RGB").resize((size, size), Image.LANCZOS)
    run = subprocess.run(["rsvg-convert", "-w", str(size), "-h", str(size), "-b", "white"], input=source.encode(),
                         capture_output=True)
    return None if run.returncode else Image.open(io.BytesIO(run.stdout)).convert("RGB")


def grey(value):
    """one of eight, or white"""
    return round(value / 255 * 7) * 36 + 3 if value < 250 else 255


def packed(picture, style):
    """a fifth of a PNG: one colour is few greys, and what is smaller without loss has none"""
    def webp(p, **how):
        file = io.BytesIO()
        p.save(file, "WEBP", **how)
        return file.getvalue()
    if style in ONE_COLOUR:
        picture = picture.convert("L").point([grey(v) for v in range(256)]).convert("RGB")
        return webp(picture, lossless=True, method=2, quality=60)
    return min(webp(picture, quality=55, method=3), webp(picture, lossless=True, method=1, quality=40), key=len)


def draw(some, out, size):
    """draws these jobs into the folder; which of them could be drawn"""
    for s in [*STYLES, SOLID]:
        os.makedirs(os.path.join(out, s), exist_ok=True)

    def one(job):
        source, mirrored, fact = job
        path = os.path.join(out, fact["image"])
        if os.path.exists(path) and os.path.getsize(path):
            return True
        picture = picture_of(source, mirrored, fact, size)
        if picture and fact["split"] == "train":
            with open(path, "wb") as f:
                f.write(packed(picture, fact["style"]))
        elif picture:
            picture.save(path)
        return picture is not None
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(one, some))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("npm"); ap.add_argument("out")
    ap.add_argument("--size", type=int, default=112); ap.add_argument("--limit", type=int, default=0)
    a = ap.parse_args()
    some = jobs(a.npm)
    if a.limit:
        some = some[:a.limit]
    good = draw(some, a.out, a.size)
    with open(os.path.join(a.out, "facts.jsonl"), "w") as f:
        for job, ok in zip(some, good):
            if ok:
                f.write(json.dumps(job[2], ensure_ascii=False) + "\n")
    print(f"{sum(good)} pictures, {len(good) - sum(good)} could not be drawn")


if __name__ == "__main__":
    main()
