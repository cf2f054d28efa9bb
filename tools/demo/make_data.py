#!/usr/bin/env python3
"""Build the emoji picture set: every emoji in many drawing styles, and one line of facts per picture.

Needs Debian's librsvg2-bin and python3-pil, and the npm packages that fetch() lists, unpacked beside each other in one
folder (it does so itself).

usage: make_data.py NPM_DIR OUT_DIR [--size 112] [--limit N]
Writes OUT_DIR/STYLE/CODEPOINTS.webp (a second drawing: CODEPOINTS.2.webp; of test styles .png) and OUT_DIR/facts.jsonl:
  {"image", "style", "emoji", "name", "group", "keywords", "split": "train"|"test"|"hard", "varied": N}
and, of what is trained on and was drawn in colours, N more pictures of the same drawing varied (vary.py): CODEPOINTS.v1.webp.
Splits are by drawing style: twemoji is "test", openmoji is "hard", the rest "train". Pictures that are there are kept.
Licences: noto, noto-v1, noto-2018, noto-2020, fxemoji, mdi, icon-park Apache-2.0; fluent-emoji*, flag, flagpack,
circle-flags MIT; noto-lines OFL-1.1; lucide ISC; twemoji, emojione*, streamline, fa6-solid CC-BY-4.0; game-icons
CC-BY-3.0; openmoji CC-BY-SA-4.0. Names and keywords MIT. Credit the CC-BY sets where pictures or weights are shipped.
"""
import argparse, glob, io, json, os, re, subprocess, sys, unicodedata
from functools import partial
from itertools import permutations
from multiprocessing import Pool

import vary

STYLES = ["noto", "noto-v1", "fluent-emoji", "fluent-emoji-flat", "fluent-emoji-high-contrast", "emojione",
          "emojione-monotone", "fxemoji", "streamline-emojis", "flag", "flagpack", "circle-flags", "game-icons", "mdi",
          "fa6-solid", "icon-park", "lucide", "twemoji", "openmoji"]
SOLID = "fluent-emoji-3d"       # comes as pixels, by code points
LINES = "noto-lines"            # the one that comes as a font
FONT = "@expo-google-fonts/noto-emoji", "400Regular/NotoEmoji_400Regular.ttf"
OLDER = {"noto-2018": "4.0.4", "noto-2020": "6.0.1"}    # Noto as it was, 64 pixels wide: versions of this package
SHEETS = "emoji-datasource-google"
SPLIT = {"twemoji": "test", "openmoji": "hard"}
ICONS = {"game-icons", "mdi", "fa6-solid", "icon-park", "lucide"}      # not made as emoji: what has the very name
ONE_COLOUR = {"fluent-emoji-high-contrast", "emojione-monotone", LINES} | ICONS
PICTURED = {"Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects"}
OTHERWISE = set("mouse seal cricket seat label turkey chicken rock ram compass ring anchor radio satellite fly wheel "
                "pie".split())  # names that icons have for something else
VARIED = {"noto", "noto-v1", "fluent-emoji-flat", "emojione", "fxemoji", "streamline-emojis"}
VARIANTS = 4
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
    packages = ["unicode-emoji-json@0.9.0", "emojilib@4.0.3", "@lobehub/" + SOLID, FONT[0]]
    packages += ["@iconify-json/" + s for s in STYLES] + [SHEETS + "@" + v for v in OLDER.values()]
    subprocess.run(["npm", "pack", "--silent", *packages], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    for name in [f for f in os.listdir(folder) if f.endswith(".tgz")]:
        into = os.path.join(folder, name[:-4])
        os.makedirs(into, exist_ok=True)
        subprocess.run(["tar", "xzf", os.path.join(folder, name), "-C", into], check=True)
    open(os.path.join(folder, "done"), "w").close()
    return folder


def package(npm, name, version="[0-9]*"):
    stem = name.replace("@", "").replace("/", "-")
    found = sorted(glob.glob(os.path.join(npm, "**", stem + "-" + version, "package"), recursive=True))
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


def colourless(fact):
    """may it be drawn in one colour?"""
    return fact["group"] != "Flags" and not says(fact) & COLOURS


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
        if self.style in ONE_COLOUR and not colourless(fact):
            return []
        if self.style in ICONS:
            name = slug(fact["name"])
            return [name] if name in self.have and fact["group"] in PICTURED and name not in OTHERWISE else []
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


def opened(path):
    from PIL import Image
    picture = Image.open(path).convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    ground.alpha_composite(picture)
    return ground.convert("RGB")


def solid(folder, emoji):
    """of the style that comes as pixels, the second one with another skin"""
    code = bare(code_of(emoji))
    first, *rest = code.split("-")
    paths = [os.path.join(folder, "assets", c + ".webp") for c in (code_of(emoji), code, "-".join([first, "1f3fd", *rest]))]
    there = [p for p in paths[:2] if os.path.exists(p)][:1] + [p for p in paths[2:] if os.path.exists(p)]
    return [partial(opened, p) for p in there]


def older(folder, emoji, fact, style):
    """of an older Noto; its flags once"""
    code = "-".join(f"{ord(c):04x}" for c in emoji)
    paths = [os.path.join(folder, "img/google/64", c + ".png") for c in (code, bare(code))]
    if fact["group"] == "Flags" and style != "noto-2020":
        return []
    return [partial(opened, p) for p in paths if os.path.exists(p)][:1]


class Lines:
    """The font: each emoji is one glyph. What several emoji share (a man and a woman who walk) is the first one's."""
    SIZE = 224

    def __init__(self, path):
        from PIL import ImageFont
        self.font = ImageFont.truetype(path, self.SIZE, layout_engine=ImageFont.Layout.RAQM)
        self.seen = {self.mask("\U0010ffff")}

    def mask(self, text):
        mask = self.font.getmask(text)
        return mask.size, bytes(mask)

    def find(self, emoji, fact):
        if not colourless(fact):
            return []
        mask = self.mask(emoji)
        new = mask not in self.seen and 0 < mask[0][0] < 1.5 * self.SIZE
        self.seen.add(mask)
        return [partial(self.draw, emoji)] if new else []

    def draw(self, emoji):
        from PIL import Image, ImageDraw
        left, top, right, bottom = self.font.getbbox(emoji)
        side = round(1.04 * max(right - left, bottom - top))
        picture = Image.new("RGB", (side, side), "white")
        place = (side - right + left) / 2 - left, (side - bottom + top) / 2 - top
        ImageDraw.Draw(picture).text(place, emoji, font=self.font, fill="black")
        return picture


def jobs(npm):
    """[(SVG or what makes a picture, mirrored, fact)] of every picture, emoji by emoji"""
    with open(os.path.join(package(npm, "unicode-emoji-json"), "data-by-emoji.json"), encoding="utf-8") as f:
        facts = json.load(f)
    with open(glob.glob(os.path.join(package(npm, "emojilib"), "**", "emoji-en-US.json"), recursive=True)[0]) as f:
        words = json.load(f)
    sets = {s: Icons(package(npm, "@iconify-json/" + s), s) for s in STYLES}
    pixels, lines = package(npm, "@lobehub/" + SOLID), Lines(os.path.join(package(npm, FONT[0]), FONT[1]))
    sheets = {s: package(npm, SHEETS, v) for s, v in OLDER.items()}
    by_name, out = {fact["name"]: emoji for emoji, fact in facts.items()}, []

    def sources(emoji, mirrored):
        for s in STYLES:
            yield s, [sets[s].svg(n, mirrored) for n in sets[s].find(emoji, facts[emoji], words.get(emoji, []))]
        yield SOLID, solid(pixels, emoji)
        yield LINES, lines.find(emoji, facts[emoji])
        for s, folder in sheets.items():
            yield s, older(folder, emoji, facts[emoji], s)
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
                varied = VARIANTS if style in VARIED and fact["group"] != "Flags" else 0
                out.append((source, mirrored, dict(image=image, style=style, emoji=emoji, name=fact["name"],
                                                   group=fact["group"], keywords=words.get(emoji, []), split=split,
                                                   varied=varied)))
    return out


def variant(image, k):
    """the name of the k-th variant, from 1"""
    return f"{os.path.splitext(image)[0]}.v{k}.webp"


def picture_of(source, mirrored, size):
    """the picture, RGB, of an SVG or of what makes one; None"""
    from PIL import Image, ImageOps
    if callable(source):
        picture = ImageOps.mirror(source()) if mirrored else source()
        return picture.resize((size, size), Image.LANCZOS)
    run = subprocess.run(["rsvg-convert", "-w", str(size), "-h", str(size), "-b", "white"], input=source.encode(),
                         capture_output=True)
    return Image.open(io.BytesIO(run.stdout)).convert("RGB") if not run.returncode else None


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


class Drawer:
    """draws jobs into a folder"""
    jobs = []       # where the processes that it forks find them: what makes a picture cannot be sent

    def __init__(self, some, out, size):
        Drawer.jobs, self.out, self.size = some, out, size
        for style in {fact["style"] for _, _, fact in some}:
            os.makedirs(os.path.join(out, style), exist_ok=True)

    def put(self, image, source, mirrored, fact):
        path = os.path.join(self.out, image)
        if os.path.exists(path) and os.path.getsize(path):
            return True
        picture = picture_of(source, mirrored, self.size)
        if picture and fact["split"] == "train":
            with open(path, "wb") as f:
                f.write(packed(picture, fact["style"]))
        elif picture:
            picture.save(path)
        return picture is not None

    def one(self, n):
        source, mirrored, fact = self.jobs[n]
        done = self.put(fact["image"], source, mirrored, fact)
        for k in range(1, fact["varied"] + 1 if done else 0):
            image = variant(fact["image"], k)
            done = self.put(image, vary.vary(source, image, colourless(fact)), mirrored, fact) and done
        return done

    def all(self):
        """which of them could be drawn"""
        with Pool() as pool:
            return pool.map(self.one, range(len(self.jobs)), chunksize=16)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("npm"); ap.add_argument("out")
    ap.add_argument("--size", type=int, default=112); ap.add_argument("--limit", type=int, default=0)
    a = ap.parse_args()
    some = jobs(a.npm)
    if a.limit:
        some = some[:a.limit]
    good = Drawer(some, a.out, a.size).all()
    with open(os.path.join(a.out, "facts.jsonl"), "w") as f:
        for job, ok in zip(some, good):
            if ok:
                f.write(json.dumps(job[2], ensure_ascii=False) + "\n")
    more = sum(job[2]["varied"] for job, ok in zip(some, good) if ok)
    print(f"{sum(good)} pictures, {more} variants; {len(good) - sum(good)} could not be drawn")


if __name__ == "__main__":
    main()
