#!/usr/bin/env python3
"""How far 8 and 4 bits take the logits of a large model, beside NF4 with double quantisation. The model is random, with what
makes trained ones hard to quantise.

    check_quant.py [--llava build/llava] [--size 7b|1b|tiny] [--device cuda] [--work DIR] [--positions 384] [--seed 1]

The language model of LLaVA in the size's shapes is written to DIR/model in bf16, then once more to DIR/nf4 with its linears
as NF4 leaves them (7b: 13.5 GB each); the tokenizer and the text are the demo model's. What is like in trained models:

  weights        tails heavier than normal ones', most so in q and k; rows and columns of different strength, a few columns
                 several times as strong; one weight in 100,000 eight times as large
  norms          gains that differ by channel and grow with depth; six channels, the same in every layer, of which four to
                 eight times as much reaches the linears (the outliers of arXiv:2208.07339)
  first token    one unit of the second layer puts 1,000 times the usual into two channels (arXiv:2402.17762)
  logits         so spread, and branches so weak, that NF4 diverges by a few tenths of a nat at most

Printed, one JSON object a way of computing: the mean divergence KL(f32 || it) over the positions, the greatest, and how often
the likeliest token is f32's. The reference and NF4 are computed in f32 on the processor. The last line is "ok" or "FAILED": 4
bits must diverge no more than NF4, 8 bits five times less than 4. Same seed, same weights. Needs NumPy.
"""
import argparse
import json
import os
import shutil
import struct
import subprocess
import sys
import time
from multiprocessing import Pool

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tests/help"))
from nf4 import nf4_dq  # noqa: E402

DEMO = os.path.join(ROOT, "models/demo")
SIZES = {"tiny": (256, 704, 4, 4), "1b": (2048, 5632, 22, 16), "7b": (4096, 11008, 32, 32)}  # C, F, L, H
VOCAB, FIRST = 32000, 1   # FIRST: <s>
BLOCK = 1 << 20           # elements drawn at a time
BRANCH = 0.08             # what a branch adds to the residual stream, of what is there
WIDTH0 = 0.3              # the stream's spread at the start
SPREAD = 2.5              # of the logits
TAIL = {"q_proj": 0.06, "k_proj": 0.06}   # z + TAIL z^3, z normal
ROWS = {"q_proj": 0.5, "k_proj": 0.5}     # spread of the rows' logarithms
LARGE, LARGE_CHANNELS, LARGE_UNIT = 1000, 2, 40
opt = argparse.Namespace()


def draw(*of):
    return np.random.default_rng([opt.seed, *of])


def bf16(x):
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((u + 0x7fff + (u >> 16 & 1)) >> 16).astype(np.uint16)


# ---- the model: what each tensor is

class Shape:
    """Channels that stand out, and how strong things are by layer."""

    def __init__(self, size):
        self.c, self.f, self.layers, self.heads = SIZES[size]
        g = draw(0)
        picked = g.choice(self.c, 6 + LARGE_CHANNELS, replace=False)
        self.outliers, self.large = picked[:6], picked[6:]
        self.times = g.uniform(4, 8, 6)
        self.unit = int(g.integers(self.f))
        self.first = g.standard_normal(self.c).astype(np.float32)   # direction of the first token

    def gain(self, layer, which):
        """of a norm; layer L is the last one"""
        g = draw(1, layer, which)
        v = (0.15 + 0.35 * layer / self.layers) * np.exp(0.25 * g.standard_normal(self.c))
        v[self.outliers] *= self.times * g.uniform(0.8, 1.25, 6)
        return v.astype(np.float32)

    def stream(self, layer):
        return WIDTH0 * (1 + 2 * BRANCH * BRANCH) ** (layer / 2)


def tensors(s):
    """{name: (shape, spread)}; a norm's spread is its (layer, which)"""
    out = {"model.embed_tokens.weight": ((VOCAB, s.c), WIDTH0)}
    for n in range(s.layers):
        at, read = f"model.layers.{n}.", [np.linalg.norm(s.gain(n, k)) for k in (0, 1)]
        attention, stream = at + "self_attn.", BRANCH * s.stream(n)
        out |= {at + "input_layernorm.weight": ((s.c,), (n, 0)), at + "post_attention_layernorm.weight": ((s.c,), (n, 1)),
                attention + "q_proj.weight": ((s.c, s.c), 1.4 / read[0]),
                attention + "k_proj.weight": ((s.c, s.c), 1.4 / read[0]),
                attention + "v_proj.weight": ((s.c, s.c), 0.5 / read[0]),
                # attention averages over a dozen keys or so; silu(gate) up is 0.33 for these spreads
                attention + "o_proj.weight": ((s.c, s.c), stream / (0.5 * 0.35 * s.c ** 0.5)),
                at + "mlp.gate_proj.weight": ((s.f, s.c), 0.8 / read[1]),
                at + "mlp.up_proj.weight": ((s.f, s.c), 0.7 / read[1]),
                at + "mlp.down_proj.weight": ((s.c, s.f), stream / (0.33 * s.f ** 0.5))}
    out["model.norm.weight"] = ((s.c,), (s.layers, 0))
    out["lm_head.weight"] = ((VOCAB, s.c), SPREAD / np.linalg.norm(s.gain(s.layers, 0)))
    return out


def columns(name, n, index):
    """strength of a matrix' columns, mean square 1"""
    g = draw(2, index)
    v = np.exp((0.3 if "embed" in name else 0.15) * g.standard_normal(n))
    if "_proj" in name:
        v[g.choice(n, max(1, n // 1000), replace=False)] *= g.uniform(3, 6, max(1, n // 1000))
    return (v / np.sqrt((v * v).mean())).astype(np.float32)


def rows(name, shape, spread, index, at, end):
    """rows [at, end) of a matrix, f32"""
    g, kind = draw(3, index, at), name.split(".")[-2]
    tail, wide = TAIL.get(kind, 0.02), ROWS.get(kind, 0.2)
    x = g.standard_normal((end - at, shape[1]), np.float32)
    x *= 1 + tail * x * x
    strength = np.exp(wide * g.standard_normal(end - at) - wide * wide) * spread / (1 + 6 * tail + 15 * tail * tail) ** 0.5
    x *= strength.astype(np.float32)[:, None]
    x *= columns(name, shape[1], index)
    if "_proj" in name:
        flat = x.reshape(-1)
        flat[g.integers(flat.size, size=flat.size // 100000)] *= 8
    return x


def first_token(s, name, x, at):
    """one unit of layer 1 answers to the first token alone"""
    def mine(row):
        return at <= row < at + len(x)
    if name == "model.embed_tokens.weight" and mine(FIRST):
        x[FIRST - at] = s.first * WIDTH0
    if name in ("model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight") and mine(s.unit):
        x[s.unit - at] = s.first * (LARGE_UNIT / (s.first * s.first * s.gain(1, 1)).sum())
    if name == "model.layers.1.mlp.down_proj.weight":
        for k, channel in enumerate(s.large):
            if mine(channel):
                x[channel - at, s.unit] = (-1) ** k * LARGE * s.stream(1) / LARGE_UNIT ** 2


# ---- files

def config(s):
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": s.c, "intermediate_size": s.f,
            "num_hidden_layers": s.layers, "num_attention_heads": s.heads, "num_key_value_heads": s.heads,
            "vocab_size": VOCAB, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "silu",
            "torch_dtype": "bfloat16", "bos_token_id": FIRST, "eos_token_id": 2, "tie_word_embeddings": False}


def folder(name, s):
    """an empty model; where each tensor's bytes begin in its file"""
    path = os.path.join(opt.work, name)
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    for f in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(os.path.join(DEMO, f), path)
    with open(os.path.join(path, "config.json"), "w", encoding="utf-8") as f:
        json.dump(config(s), f)
    head, starts, end = {}, {}, 0
    for tensor, (shape, _) in tensors(s).items():
        starts[tensor], end = end, end + 2 * int(np.prod(shape))
        head[tensor] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [starts[tensor], end]}
    text = json.dumps(head).encode()
    text += b" " * (-(len(text) + 8) % 64)
    with open(os.path.join(path, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        f.truncate(8 + len(text) + end)
    return {k: 8 + len(text) + v for k, v in starts.items()}


def put(name, start, data):
    with open(os.path.join(opt.work, name, "model.safetensors"), "r+b") as f:
        f.seek(start)
        f.write(data.tobytes())


def make_part(job):
    name, shape, spread, index, at, end, start = job
    s = Shape(opt.size)
    if len(shape) == 1:
        return put("model", start, bf16(s.gain(*spread)))
    x = rows(name, shape, spread, index, at, end)
    first_token(s, name, x, at)
    return put("model", start + 2 * at * shape[1], bf16(x))


def make(pool, s):
    starts, jobs = folder("model", s), []
    for index, (name, (shape, spread)) in enumerate(tensors(s).items()):
        step = max(1, BLOCK // shape[-1]) if len(shape) == 2 else 1
        for at in range(0, shape[0] if len(shape) == 2 else 1, step):
            jobs.append((name, shape, spread, index, at, min(at + step, shape[0]), starts[name]))
    pool.map(make_part, jobs, chunksize=1)


def nf4_part(job):
    name, shape, start = job
    w = np.fromfile(os.path.join(opt.work, "model/model.safetensors"), np.uint16, int(np.prod(shape)), offset=start)
    if "_proj" in name:
        w = bf16(nf4_dq((w.astype(np.uint32) << 16).view(np.float32)))
    put("nf4", start, w)


def make_nf4(pool, s):
    starts = folder("nf4", s)
    pool.map(nf4_part, [(name, shape, starts[name]) for name, (shape, _) in tensors(s).items()], chunksize=1)


# ---- the comparison

def text():
    """questions and answers about pictures, as long as is needed; a position a word at least"""
    with open(os.path.join(DEMO, "expected.tsv"), encoding="utf-8") as f:
        said = [line.split("\t") for line in f][1:]
    said = [said[i] for i in draw(4).permutation(len(said))]
    words = " ".join(f"USER: {line[2]} ASSISTANT: {line[3]}" for line in said).split(" ")
    return " ".join(words[:opt.positions * 2 // 3])


def logits(folder_name, device, *more):
    out = os.path.join(opt.work, "logits.safetensors")
    subprocess.run([opt.llava, "forward", "--model-path", os.path.join(opt.work, folder_name), "--prompt", text(), "--quiet",
                    "--device", device, "--out", out, *more], check=True)
    with open(out, "rb") as f:
        size = struct.unpack("<Q", f.read(8))[0]
        entry = json.loads(f.read(size))["logits"]
    x = np.fromfile(out, np.float32, int(np.prod(entry["shape"])), offset=8 + size + entry["data_offsets"][0])
    os.remove(out)
    return x.reshape(entry["shape"])[:opt.positions]


def log_softmax(x):
    x = x.astype(np.float64)
    x -= x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def compare(want, name, device, how, folder_name="model"):
    """one line; the mean divergence"""
    start = time.time()
    p, q = log_softmax(want), log_softmax(logits(folder_name, device, *how))
    kl = (np.exp(p) * (p - q)).sum(1)
    print(json.dumps({"size": opt.size, "ours": name, "device": device, "positions": len(kl), "kl": round(kl.mean(), 7),
                      "most": round(kl.max(), 6), "same_token": round(float((p.argmax(1) == q.argmax(1)).mean()), 4),
                      "entropy": round(float(-(np.exp(p) * p).sum(1).mean()), 2), "seconds": round(time.time() - start, 1)}),
          flush=True)
    return kl.mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llava", default=os.path.join(ROOT, "build/llava"))
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", default=os.path.join(ROOT, "build/check_quant"))
    parser.add_argument("--positions", type=int, default=384)
    parser.add_argument("--seed", type=int, default=1)
    parser.parse_args(namespace=opt)
    s, start = Shape(opt.size), time.time()
    with Pool() as pool:
        make(pool, s)
        made = time.time()
        make_nf4(pool, s)
    print(f"weights {made - start:.0f} s, NF4 {time.time() - made:.0f} s", flush=True)
    want = logits("model", "cpu", "--dtype", "f32")
    nf4 = compare(want, "nf4", "cpu", ["--dtype", "f32"], "nf4")
    kl = {}
    for device in dict.fromkeys(("cpu", opt.device)):
        for bits in "48":
            kl[device, bits] = compare(want, f"{bits} bits", device, [f"--load-{bits}bit"])
        compare(want, "bf16", device, ["--dtype", "bf16"])
    compare(want, "4 bits, products in f32", "cpu", ["--load-4bit", "--dtype", "f32"])
    good = all(kl[d, "4"] <= nf4 and kl[d, "8"] <= kl[d, "4"] / 5 for d, _ in kl)
    print("ok" if good else "FAILED")
    return not good


if __name__ == "__main__":
    sys.exit(main())
