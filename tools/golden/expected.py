"""Runs one model on its cases and gathers the tensors that the program must reproduce."""
import os

import numpy as np
import torch

from golden.common import MARGIN, STEPS, notes, opt, relative, write_safetensors
from golden.forward import Plain, Transformers, spatial_merge, splice
from golden.pictures import clip_normalise, open_rgb, preprocess


class Unclear(Exception):
    """this seed's greedy path is not usable"""


def greedy(engine, x, usable):
    ids = []
    for _ in range(STEPS):
        top = engine.logits(x)[-1].topk(2)
        best = int(top.indices[0])
        if float(top.values[0] - top.values[1]) <= MARGIN or best < 3 or best >= usable:
            raise Unclear
        ids.append(best)
        x = torch.cat((x, engine.embed([best])))
    return ids


class Model:
    """One fixture: its configs, weights in LLaVA's names, tokenizer and the engines over them."""

    def __init__(self, name, llm, w, tok, mm=None, clip=None, cw=None):
        self.name, self.llm, self.w, self.tok, self.mm, self.clip = name, llm, w, tok, mm or {}, clip
        self.plain = Plain(llm, w, clip, cw)
        self.fp32 = self.plain if opt.plain else Transformers(llm, w, clip, cw)
        self.bf16 = None if opt.plain else Transformers(llm, w, clip, cw, torch.bfloat16)
        self.worst = 0.0

    def pictures(self, names):
        """crops [n,s,s,3] and pixel values, picture after picture; (first, count, grid, size) of each"""
        crops, spans, at = [], [], 0
        for n in names:
            im = open_rgb(os.path.join(opt.out, "pictures", n))
            c, grid = preprocess(im, self.mm, self.clip["image_size"])
            crops.append(c)
            spans.append((at, len(c), grid, im.size))
            at += len(c)
        crops = np.concatenate(crops)
        return crops, torch.from_numpy(np.stack([clip_normalise(c) for c in crops])), spans

    def run(self, engine, ids, pixels, spans):
        """(features per picture, logits)"""
        rows = []
        if spans:
            f = engine.features(pixels)
            for at, n, grid, size in spans:
                newline = engine.w.get("model.image_newline")
                merge = self.mm.get("mm_patch_merge_type", "flat")
                rows.append(spatial_merge(f[at:at + n], grid, size, newline, merge) if grid else f[at])
        x = splice(engine, ids, rows)
        return rows, engine.logits(x), x

    def case(self, out, key, names, prompt, rows_kept):
        """rows_kept: how many of the last rows of the logits go into the file, 0 = all; more than one row
        means that the greedy continuation goes in as well"""
        full = rows_kept != 1
        ids = self.tok.encode_image(prompt)
        out[key + ".input_ids"] = torch.tensor(ids)
        crops, pixels, spans = self.pictures(names) if names else (None, None, [])
        rows, logits, x = self.run(self.fp32, ids, pixels, spans)
        check_rows, check, _ = self.run(self.plain, ids, pixels, spans)
        pairs = [(check, logits)] + list(zip(check_rows, rows))
        self.worst = max(self.worst, *[relative(a, b) for a, b in pairs], 0)
        if names:
            out[key + ".crop_u8"] = torch.from_numpy(np.ascontiguousarray(crops))
            if rows_kept == 0:
                out[key + ".pixel_values"] = pixels
            out[key + ".image_features"] = torch.cat(rows).float()
        keep = slice(-rows_kept, None)
        out[key + ".logits"] = logits[keep].clone()
        if self.bf16:
            rows, low, _ = self.run(self.bf16, ids, pixels, spans)
            out[key + ".logits_bf16"] = low[keep].bfloat16()
            if names:
                out[key + ".image_features_bf16"] = torch.cat(rows).bfloat16()
        if full:
            out[key + ".greedy"] = torch.tensor(greedy(self.fp32, x, 320))

    def expected(self, cases):
        out = {}
        with torch.no_grad():
            for n, (names, prompt, rows_kept) in enumerate(cases):
                self.case(out, f"c{n}", names, prompt, rows_kept)
        return out


Q1 = "USER: <image>\nWhat is in the picture? ASSISTANT:"
Q2 = "USER: <image>\nIs it red? ASSISTANT: Yes, it is.</s>USER: How many are there? ASSISTANT:"
T1 = "USER: Is the sky blue? ASSISTANT:"
T2 = "USER: Is the sky blue? ASSISTANT: Yes, it is.</s>USER: Why? ASSISTANT:"
WIDE, TALL, THIN, SQUARE = "wide-37x23.png", "tall-20x61.jpg", "thin-1x9.png", "square-50x50.png"
# (pictures, prompt, rows of the logits to keep: 0 all, 1 the last)
SEEING = [([WIDE], Q1, 8), ([TALL], Q2, 1)]
READING = [([], T1, 8), ([], T2, 1)]


def all_rows(cases):
    """the same cases with every row of the first one's logits"""
    return [(*cases[0][:2], 0)] + cases[1:]


def build(make, cases, first_seed):
    """tries seeds until every greedy step is clear; make(seed) gives a Model"""
    for seed in range(first_seed, first_seed + 40):
        model = make(seed)
        try:
            out = model.expected(cases)
        except Unclear:
            continue
        assert model.worst < 2e-6, f"transformers and the plain pass differ by {model.worst}"
        notes["seeds"][model.name] = seed
        notes["plain_vs_transformers_relative"][model.name] = model.worst
        return model, out
    raise SystemExit("no usable seed")


def record(model, out, cases, path=None, base=None):
    folder = os.path.join(opt.out, "expected")
    os.makedirs(folder, exist_ok=True)
    write_safetensors(os.path.join(folder, model.name + ".safetensors"), out)
    rows = [{"key": f"c{n}", "pictures": names, "prompt": prompt} for n,
            (names, prompt, _) in enumerate(cases)]
    notes["variants"].append({"name": model.name, "model": path or "models/" + model.name, "base": base,
                              "expected": f"expected/{model.name}.safetensors", "cases": rows})
