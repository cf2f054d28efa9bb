#!/usr/bin/env python3
"""Writes tests/golden: tiny random LLaVA models in every checkpoint layout we read, and what PyTorch,
transformers, peft and Pillow make of them.  The program must agree with these numbers (tests/golden/*).

    python3 tools/golden.py --out tests/golden          torch, transformers >= 5, peft, sentencepiece, Pillow
    python3 tools/golden.py --out tests/golden --runs   training runs only, over the models that are there
    python3 tools/golden.py --out DIR --plain           without transformers and peft: tries this script

Everything runs on the CPU on one thread with eager attention.  fp32 results are computed from the weights
as stored (f16, bf16 or f32); bf16 results by the same model converted to bf16.  Each fp32 result is also
computed by the short forward pass in `Plain` below; the largest difference goes into manifest.json.
A model whose greedy choice is not clear (top-1 minus top-2 <= 1e-3 in one of 64 steps) gets another seed.
"""
import argparse
import glob
import json
import os
import sys
import traceback

import numpy as np
import PIL
import sentencepiece
import torch

from golden.common import MARGIN, STEPS, attempt, notes, opt, sha256, write_json
from golden.runs import runs
from golden.pictures import clip_crop, clip_normalise, open_rgb, write_pictures, write_pixels
from golden.text import train_tokenizer
from golden.variants import (
    anyres, base_model, clip_tiny, liuhaotian, llama_tied, llava_hf_old, lora, mistral, projector_only,
    self_trained, transformers5)


def pixel_backends():
    """how far transformers' own image processors are from these pixels"""
    import transformers as tf
    names, view = ["CLIPImageProcessorPil", "CLIPImageProcessor", "CLIPImageProcessorFast"], {}
    for name in names:
        kind = getattr(tf, name, None)
        if kind is None:
            continue
        worst = 0.0
        for path in sorted(glob.glob(os.path.join(opt.out, "pictures", "*"))):
            im = open_rgb(path)
            if min(im.size) < 2:
                continue
            p = kind(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
            got = np.asarray(p(im, return_tensors="np")["pixel_values"][0])
            worst = max(worst, float(np.abs(got - clip_normalise(clip_crop(im, 28))).max()))
        view[name] = worst
    return view


def manifest():
    files = {}
    for path in sorted(glob.glob(os.path.join(opt.out, "**", "*"), recursive=True)):
        rel = os.path.relpath(path, opt.out)
        if os.path.isfile(path) and rel.split(os.sep)[0] in ("pictures", "pixels", "models", "expected",
                                                                      "training"):
            with open(path, "rb") as f:
                files[rel] = sha256(f.read())
    versions = {"python": sys.version.split()[0], "torch": torch.__version__, "numpy": np.__version__,
                "pillow": PIL.__version__, "sentencepiece": sentencepiece.__version__}
    for name in ("transformers", "peft", "safetensors", "tokenizers"):
        attempt(versions, name, lambda: __import__(name).__version__)
    variants = notes.pop("variants")
    write_json(os.path.join(opt.out, "manifest.json"),
               {"command": "python3 tools/golden.py --out tests/golden", "versions": versions,
                "device": "cpu, one thread",
                "attention": "eager", "bf16": "cpu, the whole model in bf16 (rotary frequencies fp32)",
                "greedy_steps": STEPS, "greedy_margin": MARGIN, "variants": variants, **notes,
                "sha256": files})


def settle():
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def main_runs():
    """--runs: the manifest keeps what else it says"""
    settle()
    runs()
    path = os.path.join(opt.out, "manifest.json")
    with open(path, encoding="utf-8") as f:
        before = json.load(f)
    kept = {k: before[k] for k in before if k not in ("command", "device", "attention", "bf16", "greedy_steps",
                                                      "greedy_margin", "sha256", "versions", "runs")}
    notes.update({**kept, **notes})
    manifest()
    return 0


def main():
    settle()
    notes.update(variants=[], seeds={}, plain_vs_transformers_relative={},
                 llava_for_conditional_generation={})
    os.makedirs(os.path.join(opt.out, "models"), exist_ok=True)
    write_pictures(opt.out)
    write_pixels(opt.out)
    spm = train_tokenizer()
    shared, failed = {}, []
    for variant in (clip_tiny, base_model, liuhaotian, llava_hf_old, transformers5, self_trained, lora,
                    projector_only,
                    anyres, mistral, llama_tied):
        try:
            variant(spm, shared)
            print("done", variant.__name__, flush=True)
        except Exception:
            traceback.print_exc()
            failed.append(variant.__name__)
    runs()
    if not opt.plain:
        attempt(notes, "pixel_values_max_difference", pixel_backends)
    print(json.dumps({k: v for k, v in notes.items() if k != "variants"}, indent=1))
    for path in glob.glob(os.path.join(opt.out, "**", "*"), recursive=True):
        os.chmod(path, 0o755 if os.path.isdir(path) else 0o644)
    manifest()
    return f"failed: {', '.join(failed)}" if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--runs", action="store_true")
    parser.parse_args(namespace=opt)
    sys.exit(main_runs() if opt.runs else main())
