"""What every part of tools/golden.py needs: constants, the options, files and comparisons."""
import argparse
import hashlib
import json
import os
import shutil
import struct
import traceback

import torch

IMAGE = -200
IGNORE = -100
MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]
PAD_COLOUR = tuple(int(x * 255) for x in MEAN)
STEPS = 64
MARGIN = 1e-3
opt = argparse.Namespace()      # out: the folder to write; plain: without transformers
notes = {}          # what the manifest says beside the file list


def write_safetensors(path, tensors, meta=None):
    """The format itself, so that the fixture files do not depend on a package's version."""
    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
             torch.uint8: "U8"}
    head, blobs, at = {"__metadata__": meta or {"format": "pt"}}, [], 0
    for name, t in tensors.items():
        t = t.detach().contiguous()
        raw = t.view(torch.int16).numpy().tobytes() if t.dtype == torch.bfloat16 else t.numpy().tobytes()
        head[name] = {"dtype": names[t.dtype], "shape": list(t.shape), "data_offsets": [at, at + len(raw)]}
        blobs.append(raw)
        at += len(raw)
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2, ensure_ascii=False)
        f.write("\n")


def fresh(*parts):
    path = os.path.join(*parts)
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    return path


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def relative(a, b):
    a, b = a.float(), b.float()
    return float((a - b).norm() / b.norm()) if b.numel() else 0.0


def attempt(note, key, f):
    """something that is good to know but not needed"""
    try:
        note[key] = f()
    except Exception as e:
        traceback.print_exc()
        note[key] = "failed: " + repr(e)[:300]
