"""The same drawing as somebody else might have made it: an SVG with other paints, lines and places of its parts."""
import colorsys
import math
import random
import re
import xml.etree.ElementTree as ET

SVG, HREF = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
SHAPES = {SVG + n for n in ("path", "circle", "ellipse", "rect", "polygon")}
UNSEEN = {SVG + n for n in ("defs", "clipPath", "mask", "filter", "linearGradient", "radialGradient", "symbol", "marker")}
NAMED = {"gray": (128, 128, 128), "silver": (192, 192, 192), "red": (255, 0, 0), "gold": (255, 215, 0), "white": (255, 255, 255),
         "black": (0, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255), "navy": (0, 0, 128)}
ET.register_namespace("", SVG[1:-1])
ET.register_namespace("xlink", HREF[1:-5])


def rgb_of(text):
    """(red, green, blue) from 0 to 1; None of what is no plain colour"""
    if text in NAMED:
        return tuple(v / 255 for v in NAMED[text])
    if re.fullmatch("#[0-9a-fA-F]{3}", text):
        return tuple(int(c, 16) / 15 for c in text[1:])
    if re.fullmatch("#[0-9a-fA-F]{6}", text):
        return tuple(int(text[i:i + 2], 16) / 255 for i in (1, 3, 5))
    return None


def text_of(rgb):
    return "#" + "".join(f"{round(255 * min(1, max(0, v))):02x}" for v in rgb)


class Palette:
    """Where each colour goes; near ones go the same way."""

    def __init__(self, rng, free):
        """free: colours do not say what the thing is"""
        self.rng, self.own = rng, {}
        self.hue, self.light, self.pure = (0.03, 0.06, 0.3) if free else (0.006, 0.03, 0.15)
        self.turn = rng.uniform(-0.5, 0.5) if free and rng.random() < 0.15 else 0
        self.gain, self.clean = rng.gauss(0, self.light), math.exp(rng.gauss(0, self.pure / 2))
        self.steps = rng.choice((4, 6, 8)) if rng.random() < 0.35 else 0

    def move(self, rgb):
        key = tuple(round(5 * v) for v in rgb)
        if key not in self.own:
            self.own[key] = [self.rng.gauss(0, s) for s in (self.hue, self.light, self.pure / 2)]
        dh, dl, ds = self.own[key]
        h, l, s = colorsys.rgb_to_hls(*rgb)
        if self.steps:
            h, l, s = round(24 * h) / 24, round(self.steps * l) / self.steps, round(4 * s) / 4
        inner = min(1, 4 * l, 4 * (1 - l))      # black and white stay nearly that
        l = min(1, max(0, l + (dl + self.gain) * inner))
        return colorsys.hls_to_rgb((h + dh + self.turn) % 1, l, min(1, s * self.clean * math.exp(ds)))

    def __call__(self, text):
        rgb = rgb_of(text)
        return text_of(self.move(rgb)) if rgb else text


def number(text, other=1.0):
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except (AttributeError, ValueError):
        return other


class Drawing:
    def __init__(self, svg, key, free):
        self.root, self.rng, self.free = ET.fromstring(svg), random.Random(key), free
        self.side = float(self.root.get("viewBox").split()[2])
        left, top = map(float, self.root.get("viewBox").split()[:2])
        self.middle = left + self.side / 2, top + self.side / 2
        self.palette = Palette(self.rng, free)

    def seen(self, node=None):
        """the elements that are drawn, in that order"""
        for child in node if node is not None else self.root:
            if child.tag not in UNSEEN:
                yield child
                yield from self.seen(child)

    def means(self):
        """{gradient's id: (its mean colour, its mean opacity)}"""
        nodes, out = {n.get("id"): n for n in self.root.iter() if n.tag in (SVG + "linearGradient", SVG + "radialGradient")}, {}
        for name, node in nodes.items():
            for _ in range(4):
                ref = node.get("href") or node.get(HREF)
                if len(node) or not ref or ref[1:] not in nodes:
                    break
                node = nodes[ref[1:]]
            stops = [(rgb_of(s.get("stop-color", "black")) or (0, 0, 0), number(s.get("stop-opacity"))) for s in node]
            weight = sum(o for _, o in stops)
            if weight:
                out[name] = text_of([sum(c[k] * o for c, o in stops) / weight for k in range(3)]), weight / len(stops)
        return out

    def flatten(self):
        """one colour for each gradient; light shades that lie on top go"""
        means = self.means()
        for node in self.seen():
            for paint in ("fill", "stroke"):
                found = re.fullmatch(r"url\(#(.*)\)", node.get(paint, ""))
                if found and found[1] in means:
                    colour, seen = means[found[1]]
                    node.set(paint, colour)
                    if seen < 0.99:
                        node.set(paint + "-opacity", f"{seen * number(node.get(paint + '-opacity')):.2f}")
        for parent in list(self.root.iter()):
            for node in [n for n in parent if n.tag in SHAPES]:
                if number(node.get("opacity")) * number(node.get("fill-opacity")) < 0.45 and self.rng.random() < 0.7:
                    parent.remove(node)

    def recolour(self):
        for node in self.root.iter():
            for paint in ("fill", "stroke", "stop-color"):
                if node.get(paint):
                    node.set(paint, self.palette(node.get(paint)))

    def outline(self):
        """a line around every shape"""
        rng = self.rng
        bare, own = self.free and rng.random() < 0.25, rng.random() < 0.4
        width, dark = self.side * rng.uniform(0.006, 0.024), text_of([rng.uniform(0, 0.25)] * 3)
        for node in self.seen():
            rgb = rgb_of(node.get("fill", "black"))
            if node.tag not in SHAPES or not rgb or number(node.get("opacity")) * number(node.get("fill-opacity")) < 0.6:
                continue
            if node.get("stroke", "none") == "none":
                line = text_of([0.45 * v for v in rgb]) if own and not bare else dark
                for name, value in (("stroke", line), ("stroke-width", f"{width:.3g}"), ("stroke-linejoin", "round")):
                    node.set(name, value)
            if bare and sum(rgb) > 0.75:        # what is dark stays: eyes, mouths
                node.set("fill", "#ffffff")

    def lines(self):
        times = math.exp(self.rng.gauss(0, 0.3))
        for node in self.seen():
            if node.get("stroke-width"):
                node.set("stroke-width", f"{number(node.get('stroke-width')) * times:.3g}")

    def shift(self):
        """each part a little elsewhere"""
        node, rng, (x, y) = self.root, self.rng, self.middle
        while len(shown := [n for n in node if n.tag not in UNSEEN]) == 1 and shown[0].tag == SVG + "g":
            node = shown[0]     # all of it is one group
        much = rng.uniform(0, 1) ** 2
        for child in shown if len(shown) > 1 else []:
            dx, dy = (rng.gauss(0, 0.022 * much * self.side) for _ in range(2))
            grow = math.exp(rng.gauss(0, 0.06 * much))
            child.set("transform", f"translate({x + dx:.4g} {y + dy:.4g}) rotate({rng.gauss(0, 5 * much):.3g}) "
                                   f"scale({grow:.3f}) translate({-x:.4g} {-y:.4g}) {child.get('transform', '')}")

    def thin(self):
        """some of many parts are missing"""
        parts = [(p, n) for p in self.root.iter() if p.tag not in UNSEEN for n in p if n.tag in SHAPES]
        for parent, node in parts[1:] if len(parts) > 8 else []:
            if self.rng.random() < 0.06:
                parent.remove(node)


def vary(svg, key, free):
    """free: colours do not say what the thing is. The same for the same key."""
    d = Drawing(svg, key, free)
    if d.rng.random() < 0.75:
        d.flatten()
    d.recolour()
    if d.rng.random() < 0.35:
        d.outline()
    d.lines()
    if d.rng.random() < 0.7:
        d.shift()
    if d.rng.random() < 0.25:
        d.thin()
    return ET.tostring(d.root, encoding="unicode")
