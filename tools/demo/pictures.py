"""The packed picture set in memory, and the augmentation that makes seven drawing styles stand for all.

Everything works on whole batches where the pictures are, GPU or CPU. Pictures are [B,3,H,W], 0..1, white background.
"""
import io
import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F

MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]
YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
RGB = torch.linalg.inv(YIQ)
COLOURS = ("red orange yellow green blue purple brown black white pink grey light dark flag button keycap circle "
           "square heart apple book").split()
SIDED = "left right anticlockwise clockwise counterclockwise".split()
MIRROR = {"Animals & Nature", "Food & Drink", "People & Body", "Activities"}


def load_facts(path):
    return [json.loads(line) for line in np.load(path)["facts"].tobytes().decode().splitlines()]


def load(path):
    """(facts, uint8 [N,3,H,W]) from make_data.py --pack."""
    from PIL import Image
    z = np.load(path)
    data, end = z["data"], z["end"]
    start = np.concatenate([[0], end[:-1]])

    def decode(i):
        return np.asarray(Image.open(io.BytesIO(data[start[i]:end[i]].tobytes())).convert("RGB"))
    with ThreadPoolExecutor() as pool:
        pixels = np.stack(list(pool.map(decode, range(len(end)))))
    return load_facts(path), torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def background(pixels):
    """Bool [N,1,H,W]: white that is joined to the border."""
    white = (pixels.amin(1, keepdim=True) >= 250)
    seen = torch.zeros_like(white)
    for edge in (seen[..., 0, :], seen[..., -1, :], seen[..., :, 0], seen[..., :, -1]):
        edge.fill_(True)
    seen &= white
    for _ in range(3 * pixels.shape[-1] // 2):
        seen = (F.max_pool2d(seen.half() if seen.is_cuda else seen.float(), 3, 1, 1) > 0) & white
    return seen


def normalise(x):
    mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (x - mean) / std


class Bank:
    """The training pictures, which picture is of which thing, and batches drawn from them."""

    def __init__(self, pixels, labels, things, device):
        self.x, self.y = pixels.to(device), torch.tensor(labels, device=device)
        self.ground = torch.cat([background(part) for part in self.x.split(512)])
        order = torch.argsort(self.y)
        count = torch.bincount(self.y, minlength=len(things))
        self.order, self.first, self.count = order, count.cumsum(0) - count, count
        words = [t["name"].lower().replace("-", " ").split() for t in things]
        self.mirror = torch.tensor([t["group"] in MIRROR and not set(w) & set(SIDED)
                                    for t, w in zip(things, words)], device=device)
        self.recolour = torch.tensor([t["group"] != "Flags" and not set(w) & set(COLOURS)
                                      for t, w in zip(things, words)], device=device)

    def draw(self, n):
        """(augmented pictures normalised for CLIP, things)."""
        at = torch.randint(len(self.y), (n,), device=self.x.device)
        y = self.y[at]
        twin = self.order[self.first[y] + (torch.rand(n, device=y.device) * self.count[y]).long()]
        return normalise(self.augment(at, twin, y)), y

    def augment(self, at, twin, y):
        n, dev = len(at), self.x.device
        rand = lambda lo, hi, *shape: torch.rand(*(shape or (n, 1, 1, 1)), device=dev) * (hi - lo) + lo
        x, ground = self.x[at].float() / 255, self.ground[at].float()

        # Another drawing of the same thing, blended over or pasted in: the label stays.
        s = part(n, 0.12)
        a = rand(0.3, 0.7)[s]
        x[s] = x[s] * a + self.x[twin[s]].float() / 255 * (1 - a)
        ground[s] *= self.ground[twin[s]]
        s = part(n, 0.15)
        hole = box(x[s], 0.3, 0.7)
        x[s] = torch.where(hole, self.x[twin[s]].float() / 255, x[s])
        ground[s] = torch.where(hole, self.ground[twin[s]].float(), ground[s])

        # Coloured background, then bend: what is outside is background.
        back = torch.ones(n, 3, 1, 1, device=dev)
        s = part(n, 0.15)
        back[s] = torch.rand_like(back[s]) ** 0.5
        x[s] = x[s] * (1 - ground[s]) + back[s] * ground[s]
        x = F.grid_sample(x - back, self.bend(n, y, x.shape[-1]), padding_mode="zeros", align_corners=False) + back

        # Colour.
        x = torch.einsum("nij,njhw->nihw", self.colour(n, y), x).clamp(0, 1)
        s = part(n, 0.5)
        x[s] = x[s].clamp_min(1e-4) ** torch.exp(rand(-0.35, 0.35)[s])
        s = part(n, 0.3)
        ramp = torch.linspace(-1, 1, x.shape[-1], device=dev)
        angle = rand(0, 2 * math.pi)[s]
        x[s] = x[s] * (1 + rand(0, 0.35)[s] * (angle.cos() * ramp.view(1, 1, 1, -1) + angle.sin() * ramp.view(1, 1, -1, 1)))

        # Line style: outlines, thicker or thinner strokes, a pure sketch.
        s = part(n, 0.15)
        x[s] = x[s] * (1 - (edges(x[s], 3) * rand(0.5, 2.5)[s]).clamp(0, 1))
        s = part(n, 0.05)
        sketch = 1 - (edges(x[s], 3) * 2.5).clamp(0, 1).expand(-1, 3, -1, -1)
        x[s] = torch.where(self.recolour[y[s]].view(-1, 1, 1, 1), sketch, x[s])
        s = part(n, 0.06)
        x[s] = F.max_pool2d(x[s], 3, 1, 1)
        s = part(n, 0.06)
        x[s] = -F.max_pool2d(-x[s], 3, 1, 1)

        # Sharpness and grain.
        s = part(n, 0.15)
        x[s] = F.avg_pool2d(x[s], 3, 1, 1, count_include_pad=False)
        s = part(n, 0.08)
        x[s] = F.avg_pool2d(x[s], 5, 1, 2, count_include_pad=False)
        s, size = part(n, 0.2), int(torch.randint(32, 100, ()))
        small = F.interpolate(x[s], size=(size, size), mode="bilinear", antialias=True)
        x[s] = F.interpolate(small, size=x.shape[-2:], mode="bilinear")
        s, levels = part(n, 0.12), int(torch.randint(3, 9, ()))
        x[s] = (x[s] * levels).round() / levels
        s = part(n, 0.1)
        x[s] = x[s] + torch.randn_like(x[s]) * rand(0, 0.08)[s]

        # Holes.
        s = part(n, 0.35)
        x[s] = torch.where(box(x[s], 0.15, 0.45), torch.rand_like(back[s]), x[s])
        return x.clamp(0, 1)

    def bend(self, n, y, side):
        """Sampling grid: scale, turn, shear, shift, mirror where that keeps the meaning, and a smooth random warp."""
        dev = self.x.device
        rand = lambda lo, hi: torch.rand(n, device=dev) * (hi - lo) + lo
        turn, shear = rand(-1, 1) ** 3 * 0.4, rand(-0.2, 0.2)
        zoom = torch.exp(rand(-0.2, 0.28))
        sx, sy = zoom * torch.exp(rand(-0.12, 0.12)), zoom * torch.exp(rand(-0.12, 0.12))
        sx = torch.where(self.mirror[y] & (rand(0, 1) < 0.3), -sx, sx)
        c, s = turn.cos(), turn.sin()
        theta = torch.stack([sx * c, sx * (shear - s), rand(-0.12, 0.12),
                             sy * s, sy * c, rand(-0.12, 0.12)], 1).view(n, 2, 3)
        grid = F.affine_grid(theta, (n, 3, side, side), align_corners=False)
        warp = torch.randn(n, 2, 5, 5, device=dev) * (rand(0, 1) ** 2 * 0.09).view(n, 1, 1, 1)
        return grid + F.interpolate(warp, size=(side, side), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)

    def colour(self, n, y):
        """[n,3,3]: saturation, hue and brightness in one matrix; strong only where colour doesn't name the thing."""
        dev = self.x.device
        rand = lambda lo, hi: torch.rand(n, device=dev) * (hi - lo) + lo
        wild = self.recolour[y] & (rand(0, 1) < 0.2)
        hue = torch.where(wild, rand(-1, 1), rand(-0.12, 0.12))
        sat = torch.where(wild, rand(0, 1.4), rand(0.65, 1.35))
        c, s = sat * hue.cos(), sat * hue.sin()
        o, one = torch.zeros_like(c), torch.ones_like(c)
        mid = torch.stack([one, o, o, o, c, -s, o, s, c], 1).view(n, 3, 3)
        gain = rand(0.75, 1.2).view(n, 1, 1) * (1 + 0.1 * (torch.rand(n, 3, 1, device=dev) - 0.5))
        return gain * (RGB.to(dev) @ mid @ YIQ.to(dev))


def part(n, share):
    """A slice of the batch at a random place: rows are drawn at random, so it stands for a coin a row."""
    k = max(1, round(n * share))
    at = int(torch.randint(n - k + 1, ()))
    return slice(at, at + k)


def box(x, lo, hi):
    """Bool [n,1,H,W]: one random rectangle a row, sides lo..hi of the picture."""
    n, side, dev = len(x), x.shape[-1], x.device
    line = (torch.arange(side, device=dev) + 0.5) / side
    inside = []
    for _ in range(2):
        length = torch.rand(n, 1, device=dev) * (hi - lo) + lo
        start = torch.rand(n, 1, device=dev) * (1 - length)
        inside.append((line >= start) & (line < start + length))
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]


def edges(x, k):
    """[n,1,H,W]: how much a k x k neighbourhood varies."""
    return (F.max_pool2d(x, k, 1, k // 2) + F.max_pool2d(-x, k, 1, k // 2)).amax(1, keepdim=True)
