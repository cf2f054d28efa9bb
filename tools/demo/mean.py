"""The mean of several weights of one model: what a run went through, between which nothing is worse (arXiv:1803.05407)."""
import json
import struct

import numpy as np


def read(path):
    """(the header's bytes, {name: its entry}, the data's bytes) of a safetensors file"""
    with open(path, "rb") as f:
        size = f.read(8)
        head = f.read(struct.unpack("<Q", size)[0])
        facts = json.loads(head)
        facts.pop("__metadata__", None)
        return size + head, facts, f.read()


def floats(data, fact):
    start, end = fact["data_offsets"]
    if fact["dtype"] == "F32":
        return np.frombuffer(data[start:end], np.float32)
    assert fact["dtype"] == "BF16", fact
    return (np.frombuffer(data[start:end], np.uint16).astype(np.uint32) << 16).view(np.float32)


def packed(x, kind):
    if kind == "F32":
        return x.tobytes()
    bits = x.view(np.uint32)
    return ((bits + 0x7fff + (bits >> 16 & 1)) >> 16).astype(np.uint16).tobytes()      # to the nearest, ties to even


def mean(paths, to):
    """writes the mean of these files of the same tensors, summed in double"""
    files = [read(p) for p in paths]
    head, facts, _ = files[0]
    out = bytearray(len(files[0][2]))
    for name, fact in facts.items():
        if any(f[1][name]["shape"] != fact["shape"] for f in files):
            raise ValueError(f"'{name}' has other shapes")
        total = sum(floats(data, own[name]).astype(np.float64) for _, own, data in files)
        start, end = fact["data_offsets"]
        out[start:end] = packed((total / len(files)).astype(np.float32), fact["dtype"])
    with open(to, "wb") as f:
        f.write(head + out)
