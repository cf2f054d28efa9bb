"""The pictures, and their way to pixel values as LLaVA and CLIPImageProcessor (4.37) do it with Pillow."""
import math
import os

import numpy as np
import PIL
from PIL import Image, ImageDraw

from golden.common import MEAN, PAD_COLOUR, STD, fresh, sha256, write_json


def open_rgb(path):
    return Image.open(path).convert("RGB")


def expand_square(im, colour):
    """LLaVA's expand2square: centred on a square canvas."""
    w, h = im.size
    side = max(w, h)
    canvas = Image.new(im.mode, (side, side), colour)
    canvas.paste(im, ((side - w) // 2, (side - h) // 2))
    return canvas


def clip_crop(im, size):
    """CLIPImageProcessor up to the centre crop: uint8 [size, size, 3]"""
    w, h = im.size
    short, long = min(w, h), max(w, h)
    other = int(size * long / short)
    w, h = (size, other) if w <= h else (other, size)
    pixels = np.asarray(im.resize((w, h), resample=Image.BICUBIC, reducing_gap=None))
    top, left = (h - size) // 2, (w - size) // 2
    return pixels[top:top + size, left:left + size]


def clip_normalise(crop):
    """x * (1/255) in double, rounded to float32; then (x - mean) / std in float32; [3, size, size]"""
    x = (crop.astype(np.float64) * (1 / 255)).astype(np.float32)
    x = (x - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return np.ascontiguousarray(x.transpose(2, 0, 1))


def best_resolution(size, pinpoints):
    best, most, least = None, -1, math.inf
    for w, h in pinpoints:
        scale = min(w / size[0], h / size[1])
        used = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        if used > most or (used == most and w * h - used < least):
            best, most, least = (w, h), used, w * h - used
    return best


def anyres_tiles(im, pinpoints, size):
    """the whole picture squeezed into one tile, then the tiles of the padded picture row by row"""
    tw, th = best_resolution(im.size, pinpoints)
    sw, sh = tw / im.size[0], th / im.size[1]
    if sw < sh:
        w, h = tw, min(math.ceil(im.size[1] * sw), th)
    else:
        w, h = min(math.ceil(im.size[0] * sh), tw), th
    canvas = Image.new("RGB", (tw, th), (0, 0, 0))
    canvas.paste(im.resize((w, h)), ((tw - w) // 2, (th - h) // 2))
    tiles = [canvas.crop((x, y, x + size, y + size)) for y in range(0, th, size) for x in range(0, tw, size)]
    return [im.resize((size, size))] + tiles, (tw // size, th // size)


def preprocess(im, cfg, size):
    """crops uint8 [n, size, size, 3] of one picture by image_aspect_ratio, and the anyres grid or None"""
    aspect = cfg.get("image_aspect_ratio")
    grid = None
    if aspect == "anyres":
        tiles, grid = anyres_tiles(im, cfg["image_grid_pinpoints"], size)
    else:
        tiles = [expand_square(im, PAD_COLOUR) if aspect == "pad" else im]
    return np.stack([clip_crop(t, size) for t in tiles]), grid


def drawing(w, h, seed):
    """A smooth random ground with hard shapes on it: every frequency occurs."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    im = Image.fromarray(ground).resize((w, h), Image.BICUBIC)
    d = ImageDraw.Draw(im)
    for _ in range(4):
        x, y, r = int(rng.integers(0, w)), int(rng.integers(0, h)), int(rng.integers(1,
                                                                                     max(2, min(w, h) // 2)))
        d.ellipse((x - r, y - r, x + r, y + r), fill=tuple(int(c) for c in rng.integers(0, 256, 3)))
    return im


def write_pictures(out):
    folder = fresh(out, "pictures")
    drawing(37, 23, 1).save(os.path.join(folder, "wide-37x23.png"))
    drawing(20, 61, 2).save(os.path.join(folder, "tall-20x61.jpg"), quality=90)
    drawing(1, 9, 3).save(os.path.join(folder, "thin-1x9.png"))
    drawing(50, 50, 4).save(os.path.join(folder, "square-50x50.png"))


def alpha_of(im, seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, im.size[::-1], dtype=np.uint8))


def write_pixels(out):
    """Pictures of every kind a user may bring, and what Pillow reads in them."""
    folder = fresh(out, "pixels")
    rgb = lambda w, h, s: drawing(w, h, s)
    rgba = rgb(33, 47, 13)
    rgba.putalpha(alpha_of(rgba, 99))
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = rgb(40, 31, 16).quantize(17)
    files = {
        "rgb-61x43.png": (rgb(61, 43, 10), {}),
        "gray-19x88.png": (rgb(19, 88, 11).convert("L"), {}),
        "gray-alpha-29x17.png": (rgba.convert("LA").crop((0, 0, 29, 17)), {}),
        "rgba-33x47.png": (rgba, {}),
        "palette-40x31.png": (palette, {}),
        "palette-transparent-40x31.png": (palette, {"transparency": 3}),
        "bits-23x14.png": (rgb(23, 14, 17).convert("1"), {}),
        "gray16-21x13.png": (Image.fromarray((np.arange(21 * 13, dtype=np.uint16) * 3).reshape(13, 21)), {}),
        "baseline-420-67x45.jpg": (rgb(67, 45, 18), {"quality": 85, "subsampling": 2}),
        "progressive-444-45x67.jpg": (rgb(45, 67, 19), {"quality": 92, "subsampling": 0,
                                                        "progressive": True}),
        "subsampled-422-35x51.jpg": (rgb(35, 51, 24), {"quality": 75, "subsampling": 1}),
        "gray-31x22.jpg": (rgb(31, 22, 20).convert("L"), {"quality": 80}),
        "cmyk-26x30.jpg": (rgb(26, 30, 21).convert("CMYK"), {"quality": 90}),
        "exif-rotated-30x20.jpg": (rgb(30, 20, 22), {"quality": 90, "exif": exif}),
        "lossy-53x38.webp": (rgb(53, 38, 23), {"quality": 80}),
        "lossless-alpha-33x47.webp": (rgba, {"lossless": True, "exact": True}),
        "one-pixel.png": (rgb(1, 1, 25), {}),
        "line-300x2.png": (rgb(300, 2, 26), {}),
    }
    rows = []
    for name, (im, options) in files.items():
        path = os.path.join(folder, name)
        im.save(path, **options)
        try:
            rows.append({"file": name, **pixel_row(path)})
        except Exception as e:
            print("left out", name, repr(e))
            os.remove(path)
    write_json(os.path.join(folder, "expected.json"), {"pillow": PIL.__version__, "size": 336,
                                                       "pictures": rows})


def pixel_row(path):
    im = open_rgb(path)
    row = {"mode": Image.open(path).mode, "width": im.size[0], "height": im.size[1],
           "rgb_sha256": sha256(im.tobytes())}
    for name, version in (("pad", expand_square(im, PAD_COLOUR)), ("square", im)):
        crop = np.ascontiguousarray(clip_crop(version, 336))
        row[name] = {"crop_u8_sha256": sha256(crop.tobytes()),
                     "pixel_values_f32_sha256": sha256(clip_normalise(crop).tobytes())}
    return row
