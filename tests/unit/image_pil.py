"""Compares src/image with Pillow and numpy, byte for byte, through tests/unit/image_dump of the build.

    image_pil.py [IMAGE_DUMP [FOLDER_OR_FILE...]]

Pictures are made here in every format and kind that is read; those of Debian's tuxpaint-stamps-default and
python3-skimage and of the folders given (or LLAVA_TEST_DATA) are added where they are found. Needs
python3-pil and python3-numpy. The last lines say how many pictures and how many bytes differed.
"""
import glob
import io
import json
import math
import os
import random
import struct
import subprocess
import sys
import tempfile
import warnings
import zlib

import numpy as np
from PIL import Image, PngImagePlugin

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import BUILD, finish, ok  # noqa: E402

warnings.simplefilter("ignore")
Image.MAX_IMAGE_PIXELS = None
SEED = 20240229
rnd = random.Random(SEED)
npr = np.random.default_rng(SEED)
total = {"pictures": 0, "bytes": 0, "differing": 0, "values": 0, "values differing": 0}


class Dump:
    """The C program under test."""

    def __init__(self, path):
        self.p = subprocess.Popen([path, "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, *fields):
        self.p.stdin.write(("\t".join(map(str, fields)) + "\n").encode())
        self.p.stdin.flush()
        head = self.p.stdout.readline().decode().rstrip("\n")
        if not head:
            raise SystemExit(f"Bail out! image_dump ended at {fields}")
        word = head.split(" ")
        if word[0] == "error":
            return head, None
        return tuple(map(int, word[1:4])), self.p.stdout.read(int(word[4]))


def pil_rgb(path):
    with Image.open(path) as im:
        return np.asarray(im.convert("RGB"))


def bytes_differ(ours, want):
    """Number of differing bytes between a reply and an array [h, w, 3]."""
    (size, data) = ours
    h, w = want.shape[:2]
    if data is None or size[:2] != (w, h):
        return want.size
    n = int((np.frombuffer(data, np.uint8).reshape(h, w, 3) != want).sum())
    total["bytes"] += want.size
    return n


# Pictures

def noise(w, h, n=3, smooth=True):
    """Smooth colours with noise, so that both codecs and filters have something to do."""
    y, x = np.mgrid[0:h, 0:w].astype(np.float64)
    a = np.stack([127 + 120 * np.sin(x / (3 + 5 * c) + y / (7 + 3 * c) + c) for c in range(n)], -1)
    a = a + npr.normal(0, 25 if smooth else 90, a.shape)
    return np.clip(a, 0, 255).astype(np.uint8)


def png_chunk(tag, body):
    return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))


def png_pack(samples, depth):
    """Rows [h, w * channels] of integers to packed bytes, each row with filter type 0."""
    out = b""
    for row in samples:
        if depth == 16:
            out += b"\0" + row.astype(">u2").tobytes()
        elif depth == 8:
            out += b"\0" + row.astype(np.uint8).tobytes()
        else:
            bits = ((row[:, None] >> np.arange(depth - 1, -1, -1)) & 1).astype(np.uint8).ravel()
            out += b"\0" + np.packbits(bits).tobytes()
    return out


ADAM7 = (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)


def png_bytes(kind, depth, interlaced, w, h, colours=None, trns=None):
    """A PNG of any colour type and depth, random samples."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    top = min(1 << depth, colours or 1 << 16)
    s = npr.integers(0, top, (h, w, channels))
    if kind == 0 and depth == 16:
        s[: h // 2] = s[: h // 2] % 300  # both sides of the clip
    if interlaced:
        data = b""
        for x0, y0, dx, dy in ADAM7:
            part = s[y0::dy, x0::dx]
            if part.size:
                data += png_pack(part.reshape(part.shape[0], -1), depth)
    else:
        data = png_pack(s.reshape(h, -1), depth)
    head = struct.pack(">IIBBBBB", w, h, depth, kind, 0, 0, interlaced)
    out = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head)
    if kind == 3:
        out += png_chunk(b"PLTE", npr.integers(0, 256, 3 * (colours or 1 << depth), np.uint8).tobytes())
    else:  # neither may change anything
        out += png_chunk(b"gAMA", struct.pack(">I", 45455))
        out += png_chunk(b"bKGD", bytes({0: 2, 2: 6, 4: 2, 6: 6}[kind]))
    if trns:
        out += png_chunk(b"tRNS", trns)
    z = zlib.compress(data)
    half = len(z) // 2
    return out + png_chunk(b"IDAT", z[:half]) + png_chunk(b"IDAT", z[half:]) + png_chunk(b"IEND", b"")


def make_png(put):
    for kind, depths in ((0, (1, 2, 4, 8, 16)), (2, (8, 16)), (3, (1, 2, 4, 8)), (4, (8, 16)), (6, (8, 16))):
        for depth in depths:
            for interlaced in (0, 1):
                for w, h in ((33, 21), (1, 9), (5, 1), (8, 8)):
                    put("png", f"t{kind}d{depth}i{interlaced}", png_bytes(kind, depth, interlaced, w, h))
    put("png", "short-plte", png_bytes(3, 8, 0, 40, 30, colours=100))
    for i in range(2):  # indices beyond the palette
        b = png_bytes(3, 8, i, 40, 30, colours=256)
        at = b.index(b"PLTE")
        n = struct.unpack(">I", b[at - 4:at])[0]
        half = png_chunk(b"PLTE", b[at + 4: at + 4 + n // 2])
        put("png", "index-beyond", b[: at - 4] + half + b[at + 8 + n:])
    put("png", "trns3", png_bytes(3, 4, 0, 30, 30, trns=bytes(range(0, 160, 10))))
    put("png", "trns0", png_bytes(0, 8, 0, 30, 30, trns=b"\0\x40"))
    put("png", "trns2", png_bytes(2, 8, 1, 30, 30, trns=b"\0\x40\0\x10\0\x20"))
    put("png", "trns2-16", png_bytes(2, 16, 0, 30, 30, trns=b"\0\x40\0\x10\0\x20"))
    for mode, n in (("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4)):
        im = Image.fromarray(noise(77, 50, n).squeeze(), mode)
        for kw in ({}, {"optimize": True}, {"compress_level": 0}):
            b = io.BytesIO()
            im.save(b, "PNG", **kw)
            put("png", f"pil-{mode}", b.getvalue())
    b = io.BytesIO()
    Image.fromarray(noise(64, 48)).quantize(50).save(b, "PNG")
    put("png", "pil-P", b.getvalue())
    b = io.BytesIO()
    red = Image.new("RGB", (64, 48), "red")
    Image.fromarray(noise(64, 48)).save(b, "PNG", save_all=True, append_images=[red])
    put("png", "apng", b.getvalue())
    info = PngImagePlugin.PngInfo()
    info.add_text("x", "y" * 5000, zip=True)
    b = io.BytesIO()
    Image.fromarray(noise(20, 20)).save(b, "PNG", pnginfo=info, icc_profile=b"not a profile", dpi=(72, 72))
    put("png", "text-icc", b.getvalue())


def make_jpeg(put):
    sizes = [(1, 1), (1, 40), (40, 1), (7, 9), (8, 8), (16, 16), (17, 33), (64, 48), (201, 133), (133, 201)]
    for w, h in sizes:
        for sub in (0, 1, 2):
            for progressive in (False, True):
                b = io.BytesIO()
                quality, optimize = rnd.choice((10, 50, 75, 95, 100)), rnd.random() < 0.5
                Image.fromarray(noise(w, h)).save(b, "JPEG", quality=quality, subsampling=sub,
                                                  progressive=progressive, optimize=optimize)
                put("jpg", f"s{sub}p{int(progressive)}", b.getvalue())
        for mode, n in (("L", 1), ("CMYK", 4)):
            b = io.BytesIO()
            Image.fromarray(noise(w, h, n).squeeze(-1) if n == 1 else noise(w, h, n), mode).save(
                b, "JPEG", quality=80, progressive=w % 2 == 0)
            put("jpg", mode, b.getvalue())
            if n == 4:  # the same data declared as YCCK, and without saying
                at = b.getvalue().index(b"Adobe")
                put("jpg", "YCCK", b.getvalue()[: at + 11] + b"\2" + b.getvalue()[at + 12:])
                put("jpg", "CMYK-bare", b.getvalue()[: at - 4] + b.getvalue()[at + 12:])
    b = io.BytesIO()
    Image.fromarray(noise(60, 40)).save(b, "JPEG", subsampling=0)
    adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0"
    put("jpg", "stored-RGB", b.getvalue()[:2] + adobe + b.getvalue()[20:])
    for turn in (3, 6, 8):
        exif = Image.Exif()
        exif[0x112] = turn
        b = io.BytesIO()
        Image.fromarray(noise(60, 40)).save(b, "JPEG", exif=exif)
        put("jpg", f"exif{turn}", b.getvalue())
    put("jpg", "no-EOI", b.getvalue()[:-2])
    put("jpg", "junk-after", b.getvalue() + b"junk" * 100)


def make_webp(put):
    for w, h in ((1, 1), (3, 50), (50, 3), (64, 64), (201, 133)):
        for n, mode in ((3, "RGB"), (4, "RGBA")):
            im = Image.fromarray(noise(w, h, n), mode)
            for kw in ({"quality": 20}, {"quality": 90}, {"lossless": True},
                       {"lossless": True, "exact": True},
                       {"quality": 50, "exact": True, "alpha_quality": 30}):
                b = io.BytesIO()
                im.save(b, "WEBP", **kw)
                put("webp", mode, b.getvalue())
    b = io.BytesIO()
    Image.fromarray(noise(9, 7)).save(b, "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0" + bytes(60))
    put("webp", "exif", b.getvalue())
    for n, mode in ((3, "RGB"), (4, "RGBA")):
        frames = [Image.fromarray(noise(40, 30, n), mode) for _ in range(3)]
        for kw in ({"quality": 60}, {"lossless": True}):
            b = io.BytesIO()
            frames[0].save(b, "WEBP", save_all=True, append_images=frames[1:], **kw)
            put("webp", "animated", b.getvalue())


def make_gif_bmp(put):
    for w, h in ((1, 1), (1, 30), (30, 1), (13, 17), (100, 75), (300, 200)):
        for colours in (2, 5, 16, 200, 256):
            im = Image.fromarray(noise(w, h)).quantize(colours)
            for kw in ({"interlace": 0}, {"interlace": 1}, {"transparency": 1}):
                b = io.BytesIO()
                im.save(b, "GIF", **kw)
                put("gif", "P", b.getvalue())
        for mode in ("1", "L", "P", "RGB", "RGBA"):
            im = Image.fromarray(noise(w, h)).convert(mode)
            b = io.BytesIO()
            im.save(b, "BMP")
            put("bmp", mode, b.getvalue())
            if mode in ("1", "L"):
                b = io.BytesIO()
                im.save(b, "GIF")
                put("gif", mode, b.getvalue())
    b = io.BytesIO()
    frames = [Image.fromarray(noise(50, 40)).quantize(64) for _ in range(3)]
    frames[0].save(b, "GIF", save_all=True, append_images=frames[1:])
    put("gif", "animated", b.getvalue())
    g = b.getvalue()
    at = g.index(b",\0\0\0\0")
    for x, y in ((3, 2), (200, 1)):  # a frame beside the corner; the canvas grows
        put("gif", "offset", g[: at + 1] + struct.pack("<HH", x, y) + g[at + 5:])


def real_pictures(extra):
    """As many as are installed, 400 at most."""
    roots = ["/usr/share/tuxpaint/stamps", "/usr/lib/python3/dist-packages/skimage/data", *extra]
    found = []
    for r in roots:
        found += [r] if os.path.isfile(r) else sorted(glob.glob(r + "/**/*.*", recursive=True))
    found = [f for f in found if f.lower().rsplit(".", 1)[-1] in ("png", "jpg", "jpeg", "webp", "gif", "bmp")]
    found = [f for f in found if os.path.getsize(f) < 3 << 20]
    random.Random(SEED).shuffle(found)  # other draws must not depend on what is installed
    return found[:400]


# Tests

def test_decode(dump, name, files):
    bad = []
    for f in files:
        try:
            want = pil_rgb(f)
        except Exception as e:  # Pillow does not read it: neither may we
            if dump.ask("decode", f)[1] is not None:
                bad.append(f"{f}: read, but Pillow says {e}")
            continue
        reply = dump.ask("decode", f)
        n = bytes_differ(reply, want)
        total["pictures"] += 1
        total["differing"] += n
        if n:
            bad.append(f"{f}: {n} bytes differ {reply[0]} {want.shape}")
    ok(not bad, f"decode {name}: {len(files)} pictures", "\n".join(bad))


# The checksums of the pixels and of their chunk, and the end of a PNG: Pillow forgives their loss, libpng only that of
# the end.
STRICT = 20


def test_truncated(dump, files, folder):
    """A file cut anywhere: an error where Pillow has one, else Pillow's bytes (but see STRICT)."""
    bad, strict, n = [], 0, 0
    for f in files:
        with open(f, "rb") as fp:
            whole = fp.read()
        n_bytes = len(whole)
        cuts = {1, 5, n_bytes - 1, n_bytes - 3, n_bytes - 13, *(rnd.randrange(1, n_bytes) for _ in range(6))}
        for cut in sorted(c for c in cuts if 0 < c < n_bytes):
            path = f"{folder}/cut"
            with open(path, "wb") as fp:
                fp.write(whole[:cut])
            n += 1
            ours = dump.ask("decode", path)
            try:
                want = pil_rgb(path)
            except Exception:
                want = None
            if want is None and ours[1] is not None:
                bad.append(f"{f} cut at {cut} of {n_bytes}: read, but Pillow fails")
            elif want is not None and ours[1] is None:
                strict += 1
                if cut < n_bytes - STRICT:
                    bad.append(f"{f} cut at {cut} of {n_bytes}: {ours[0]}")
            elif want is not None and bytes_differ(ours, want):
                bad.append(f"{f} cut at {cut} of {n_bytes}: differs")
    ok(not bad, f"truncated files: {n}; {strict}, cut in their last {STRICT} bytes, are errors here only",
       "\n".join(bad))


def test_resize(dump, files):
    bad, n = [], 0
    for f in files:
        im = Image.open(f).convert("RGB")
        w, h = im.size
        sizes = [(336, 336), (w, 50), (50, h), (w, h), (1, 1), (1, 37), (37, 1), (2 * w + 1, h),
                 (rnd.randint(1, 500), rnd.randint(1, 500)), (rnd.randint(1, 40), rnd.randint(1, 900))]
        for size in sizes:
            d = bytes_differ(dump.ask("resize", f, *size), np.asarray(im.resize(size, Image.BICUBIC)))
            n += 1
            total["differing"] += d
            if d:
                bad.append(f"{f} {im.size} to {size}: {d} bytes differ")
    ok(not bad, f"resize: {n}", "\n".join(bad))


class Clip:
    """CLIPImageProcessor of transformers 4.37 in numpy and Pillow."""

    def __init__(self, cfg):
        size = cfg.get("size", {"shortest_edge": 336})
        self.size = {"shortest_edge": size} if isinstance(size, int) else size
        crop = cfg.get("crop_size", 336)
        self.crop = (crop, crop) if isinstance(crop, int) else (crop["height"], crop["width"])
        self.on = {k: cfg.get("do_" + k, True) for k in ("resize", "center_crop", "rescale", "normalize")}
        self.mean = cfg.get("image_mean", [0.48145466, 0.4578275, 0.40821073])
        self.std = cfg.get("image_std", [0.26862954, 0.26130258, 0.27577711])
        self.scale = cfg.get("rescale_factor", 1 / 255)

    def target(self, w, h):
        if "shortest_edge" not in self.size:
            return self.size["width"], self.size["height"]
        n = self.size["shortest_edge"]
        return (n, int(n * h / w)) if w <= h else (int(n * w / h), n)

    def __call__(self, im):
        if self.on["resize"]:
            im = im.resize(self.target(*im.size), Image.BICUBIC)
        a = np.asarray(im)
        if self.on["center_crop"]:
            ch, cw = self.crop
            h, w = a.shape[:2]
            big = np.zeros((max(h, ch), max(w, cw), 3), np.uint8)
            y, x = math.ceil((big.shape[0] - h) / 2), math.ceil((big.shape[1] - w) / 2)
            big[y:y + h, x:x + w] = a
            y, x = (h - ch) // 2 + y, (w - cw) // 2 + x
            a = big[y:y + ch, x:x + cw]
        if self.on["rescale"]:
            a = (a.astype(np.float64) * self.scale).astype(np.float32)
        if self.on["normalize"]:
            a = a.astype(np.float32)
            a = (a - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(a.astype(np.float32).transpose(2, 0, 1))

    def square(self, im):
        return self(im)[None]

    def pad(self, im):
        w, h = im.size
        side = max(w, h)
        out = Image.new("RGB", (side, side), tuple(int(x * 255) for x in self.mean))
        out.paste(im, ((side - w) // 2, (side - h) // 2))
        return self(out)[None]

    def anyres(self, im, pinpoints):
        W, H = best_resolution(im.size, pinpoints)
        w, h = im.size
        sw, sh = W / w, H / h
        size = (W, min(math.ceil(h * sw), H)) if sw < sh else (min(math.ceil(w * sh), W), H)
        fitted = Image.new("RGB", (W, H))
        fitted.paste(im.resize(size), ((W - size[0]) // 2, (H - size[1]) // 2))
        n = self.crop[0]
        tiles = [im.resize((self.size["shortest_edge"],) * 2)]
        tiles += [fitted.crop((x, y, x + n, y + n)) for y in range(0, H, n) for x in range(0, W, n)]
        return np.stack([self(t) for t in tiles])


def best_resolution(size, pinpoints):
    w, h = size

    def merit(p):
        s = min(p[0] / w, p[1] / h)
        kept = min(int(w * s) * int(h * s), w * h)
        return -kept, p[0] * p[1] - kept
    return min(pinpoints, key=merit)  # the first among equals


GRID = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]


def compare_pixels(dump, bad, f, want, *fields):
    size, data = dump.ask("pixels", f, *fields)
    total["values"] += want.size
    if data is None or size != (want.shape[0], *want.shape[2:]):
        bad.append(f"{f} {fields}: {size}, want {want.shape}")
        return
    n = int((np.frombuffer(data, np.uint32) != want.view(np.uint32).ravel()).sum())
    total["values differing"] += n
    if n:
        bad.append(f"{f} {fields}: {n} of {want.size} values differ")


def test_pixels(dump, files, folder):
    configs = [
        {}, {"size": 224, "crop_size": 224},
        {"size": {"shortest_edge": 100}, "crop_size": {"height": 141, "width": 90}},
        {"size": {"height": 120, "width": 77}, "do_center_crop": False},
        {"do_resize": False, "crop_size": 65}, {"do_normalize": False}, {"do_rescale": False},
        {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.25, 0.1], "rescale_factor": 0.00392156862745098},
    ]
    for i, cfg in enumerate(configs):
        path, clip, bad = f"{folder}/config{i}.json", Clip(cfg), []
        with open(path, "w") as fp:
            json.dump({"image_processor": cfg} if i == 7 else cfg, fp)
        chosen = files if i == 0 else files[:12]
        for f in chosen:
            im = Image.open(f).convert("RGB")
            compare_pixels(dump, bad, f, clip.square(im), "square", "-", path)
            compare_pixels(dump, bad, f, clip.pad(im), "pad", "-", path)
            if i == 0:
                compare_pixels(dump, bad, f, clip.anyres(im, GRID), "anyres", str(GRID), path)
        ok(not bad, f"pixel values of {len(chosen)} pictures, processor {json.dumps(cfg)}", "\n".join(bad))


def merge_reference(kind, size, grid, side):
    """Row numbers moved about as the features would be."""
    gw, gh = grid
    rows = np.arange((1 + gw * gh) * side * side)
    base, rest = rows[: side * side], rows[side * side:]
    if kind == "flat":
        return rows
    rest = rest.reshape(gh, gw, side, side).transpose(0, 2, 1, 3).reshape(gh * side, gw * side)
    if kind == "spatial":
        return np.concatenate([base, rest.ravel()])
    H, W = rest.shape
    w, h = size
    if w / h > W / H:
        cut = (H - int(h * (W / w))) // 2
        rest = rest[cut:H - cut]
    else:
        cut = (W - int(w * (H / h))) // 2
        rest = rest[:, cut:W - cut]
    rest = np.concatenate([rest, np.full((rest.shape[0], 1), -1)], 1)
    return np.concatenate([base, rest.ravel()])


def test_merge(dump):
    bad, n = [], 0
    for i in range(400):
        size = rnd.randint(1, 3000 if i % 4 else 9), rnd.randint(1, 3000)
        made = [(336 * rnd.randint(1, 6), 336 * rnd.randint(1, 6)) for _ in range(rnd.randint(1, 9))]
        pins = GRID if i % 3 else made
        text = str(pins) if i % 2 else json.dumps(pins)
        W, H = best_resolution(size, pins)
        for kind in ("flat", "spatial", "spatial_unpad"):
            got, data = dump.ask("merge", kind, *size, text, 336, 24)
            want = merge_reference(kind, size, (W // 336, H // 336), 24)
            n += 1
            same = data is not None and np.array_equal(np.frombuffer(data, np.int32), want)
            if not same or got[1:] != (W // 336, H // 336):
                bad.append(f"{kind} {size} {pins}: {got}, want {len(want)} of grid {W // 336}x{H // 336}")
    ok(not bad, f"merge order: {n}", "\n".join(bad))


def web_reference(im, mode):
    if mode == "Pad":
        side = max(im.size)
        out = Image.new("RGB", (side, side), (122, 116, 104))
        out.paste(im, ((side - im.size[0]) // 2, (side - im.size[1]) // 2))
        im = out
    if mode == "Resize":
        im = im.resize((336, 336))
    w, h = im.size
    if max(w, h) > 1344:
        ratio = max(w, h) / min(w, h)
        short = int(min(1344 / ratio, 672, min(w, h)))
        long = int(short * ratio)
        im = im.resize((short, long) if h > w else (long, short))
    return np.asarray(im)


def test_web(dump, files, folder):
    bad = []
    extra = []
    for i, (w, h) in enumerate(((1345, 1200), (900, 2000), (3000, 300), (1344, 1344), (1400, 1400))):
        Image.fromarray(noise(w, h)).save(f"{folder}/web{i}.bmp")
        extra.append(f"{folder}/web{i}.bmp")
    for f in files[:10] + extra:
        im = Image.open(f).convert("RGB")
        for mode in ("Pad", "Resize", "Crop", "Default"):
            d = bytes_differ(dump.ask("web", f, mode), web_reference(im, mode))
            total["differing"] += d
            if d:
                bad.append(f"{f} {im.size} {mode}: {d} bytes differ")
    ok(not bad, "pictures as the web page sends them", "\n".join(bad))
    ok("USAGE" in dump.ask("web", files[0], "Stretch")[0], "an unknown mode of the web page is an error")


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else f"{BUILD}/tests/unit/image_dump"
    print("# seed", SEED)
    extra = sys.argv[2:]
    if "LLAVA_TEST_DATA" in os.environ:
        extra.append(os.environ["LLAVA_TEST_DATA"] + "/images")
    with tempfile.TemporaryDirectory() as folder:
        made = {}

        def put(ext, name, data):
            f = f"{folder}/{ext}{len(made.setdefault(ext, []))}-{name}.{ext}"
            with open(f, "wb") as fp:
                fp.write(data)
            made[ext].append(f)

        for make in (make_png, make_jpeg, make_webp, make_gif_bmp):
            make(put)
        real = real_pictures(extra)
        dump = Dump(path)
        for ext, files in made.items():
            test_decode(dump, ext, files)
        test_decode(dump, "real", real)
        test_truncated(dump, [f for files in made.values() for f in rnd.sample(files, 8)], folder)
        mixed = [rnd.choice(files) for files in made.values() for _ in range(5)]
        mixed = [f for f in mixed if "no-EOI" not in f and not f.endswith(".gif")] + real[:15]
        test_resize(dump, mixed)
        shapes = []
        sizes = ((1, 1), (2, 700), (700, 2), (336, 336), (337, 336), (335, 900), (1500, 200), (1000, 667))
        for i, (w, h) in enumerate(sizes):
            Image.fromarray(noise(w, h)).save(f"{folder}/shape{i}.bmp")
            shapes.append(f"{folder}/shape{i}.bmp")
        test_pixels(dump, shapes + real[:10] + mixed[:10], folder)
        test_merge(dump)
        test_web(dump, shapes + real[:4], folder)
        dump.p.stdin.close()
        ok(dump.p.wait() == 0, "image_dump ends well")
        ok(total["pictures"] >= 300, "at least 300 pictures")
    print("#", ", ".join(f"{v:,} {k}" for k, v in total.items()))
    finish()


main()
