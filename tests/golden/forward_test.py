#!/usr/bin/env python3
"""Runs `llava forward` on every golden model and compares with what PyTorch computed.

    forward_test.py [--llava build/llava] [--only NAME] [--dtype f32|bf16] [--device emu]

The program's file holds input_ids, pixel_values, image_features and logits.  Demanded:
  ids and pixel values   equal
  fp32                   features and logits: ||a - b|| / ||b|| and max|a - b| / max|b| <= 1e-5
  bf16                   the norm-wise error against PyTorch's fp32, over all cases of a model, is at most
                         twice that of PyTorch's own bf16
Shapes may differ in leading dimensions of 1 or in how pictures are grouped; the rows and their order may not.
The expected logits are the last rows of all, as many as the fixture keeps.  Prints TAP with the figures."""
import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../help"))
from cli import LLAVA, as_f32, finish, ok, read_tensors  # noqa: E402

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
FP32_LIMIT = 1e-5
BF16_FACTOR = 2.0


def arrays(path):
    return {name: as_f32(t) for name, t in read_tensors(path).items()}


def errors(a, b):
    """norm-wise and largest relative error of a against b; both must be finite and of one size"""
    if a.size != b.size or not np.isfinite(a).all():
        return np.inf, np.inf
    d = a.astype(np.float64).ravel() - b.astype(np.float64).ravel()
    scale = np.abs(b).max() if b.size else 1.0
    return np.linalg.norm(d) / max(np.linalg.norm(b.astype(np.float64)),
                                   1e-30), np.abs(d).max(initial=0.0) / max(scale, 1e-30)


def forward(llava, device, variant, case, dtype, out):
    command = [llava, "forward", "--model-path", os.path.join(HERE, variant["model"])]
    if variant["base"]:
        command += ["--model-base", os.path.join(HERE, variant["base"])]
    if case["pictures"]:
        command += ["--image-file", ",".join(os.path.join(HERE, "pictures", p) for p in case["pictures"])]
    command += ["--prompt", case["prompt"], "--dtype", dtype, "--out", out, "--device", device]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120)
    return done.returncode, done.stderr.decode(errors="replace").strip().splitlines()[-3:]


def want_pixels(crops):
    x = (crops.astype(np.float64) * (1 / 255)).astype(np.float32)
    return ((x - MEAN) / STD).transpose(0, 3, 1, 2)


def last_rows(a, rows, width):
    return a.reshape(-1, width)[-rows:] if a.size and a.size % width == 0 else a


def compare(label, got, want, dtype, pool):
    """one case: got from the program, want from the fixture; bf16 rows are put into pool"""
    ids = want["input_ids"]
    ok(np.array_equal(got["input_ids"].ravel(), ids), f"{label}: {ids.size} ids")
    if "crop_u8" in want:
        pixels = want_pixels(want["crop_u8"])
        ours = got["pixel_values"].astype(np.float32)
        worst = np.abs(ours.ravel() - pixels.ravel()).max() if ours.size == pixels.size else np.inf
        ok(worst == 0 if dtype == "f32" else worst < 0.02,
           f"{label}: pixel values, largest difference {worst:.3g}")
    for name in ("image_features", "logits"):
        if name not in want:
            continue
        exact = want[name]
        ours = last_rows(got[name].astype(np.float32), exact.shape[0], exact.shape[1])
        if dtype == "bf16":
            pool.setdefault(name, []).append((ours, want[name + "_bf16"], exact))
            continue
        norm, peak = errors(ours, exact)
        ok(norm <= FP32_LIMIT and peak <= FP32_LIMIT,
           f"{label}: {name} {exact.shape} norm {norm:.2e} peak {peak:.2e}")


def compare_pool(label, pool):
    """bf16: all rows of a model's cases together, for one row alone says little"""
    for name, triples in pool.items():
        ours, theirs, exact = (np.concatenate([t[k].ravel() for t in triples]) for k in range(3))
        (mine, _), (torch, _) = errors(ours, exact), errors(theirs, exact)
        ok(mine <= BF16_FACTOR * torch, f"{label}: {name} norm {mine:.2e}, PyTorch's {torch:.2e}")


def run_case(llava, device, variant, case, expected, dtype, folder, pool):
    label = f"{variant['name']} {case['key']} {dtype}"
    out = os.path.join(folder, "out.safetensors")
    if os.path.exists(out):
        os.remove(out)
    try:
        code, message = forward(llava, device, variant, case, dtype, out)
        if code:
            ok(False, f"{label}: exit {code}: {' / '.join(message)}")
            return
        want = {k[len(case["key"]) + 1:]: t for k, t in expected.items() if k.startswith(case["key"] + ".")}
        compare(label, arrays(out), want, dtype, pool)
    except (OSError, KeyError, ValueError, struct.error, subprocess.TimeoutExpired) as e:
        ok(False, f"{label}: {type(e).__name__}: {e}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--llava", default=LLAVA)
    parser.add_argument("--only", help="one variant's name")
    parser.add_argument("--dtype", choices=["f32", "bf16"], help="one of the types")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    with open(os.path.join(HERE, "manifest.json"), encoding="utf-8") as f:
        variants = json.load(f)["variants"]
    with tempfile.TemporaryDirectory() as folder:
        for variant in variants:
            if args.only and variant["name"] != args.only:
                continue
            expected = arrays(os.path.join(HERE, variant["expected"]))
            for dtype in [args.dtype] if args.dtype else ["f32", "bf16"]:
                pool = {}
                for case in variant["cases"]:
                    run_case(args.llava, args.device, variant, case, expected, dtype, folder, pool)
                compare_pool(f"{variant['name']} {dtype}", pool)
    finish()


if __name__ == "__main__":
    main()
