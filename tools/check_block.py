#!/usr/bin/env python3
"""Gradients of a language model of one layer in real widths, as `llava train` makes them, beside PyTorch's.

    check_block.py [--llava build/cuda/llava] [--device cuda] [--size 7b|13b|tiny] [--turns 24]

Weights are random, the record is a conversation of text with the tokenizer of tests/golden. One step of everything that is
trained; the gradients are read from Adam's first moment. In f32 each tensor's gradient is within 1e-4 of PyTorch's; in bf16
at most twice as far from PyTorch's f32 as PyTorch's bf16 is. Needs PyTorch and sentencepiece; uses PyTorch's GPU if there is one.
One JSON object a precision; the last line is "ok" or "FAILED".
"""
import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import torch
import torch.nn.functional as F

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), "tests/help")]
from golden.text import SYSTEM, Tokenizer  # noqa: E402
from golden.training import v1_labels  # noqa: E402
from cli import read_safetensors, write_safetensors  # noqa: E402

BASE = os.path.join(os.path.dirname(HERE), "tests/golden/models/vicuna-base")
SIZES = {"tiny": (256, 688, 4), "7b": (4096, 11008, 32), "13b": (5120, 13824, 40)}   # width, feed-forward, heads
TURNS = [("What is in the picture?", "Two cups of tea."), ("Is it red?", "Yes, it is."),
         ("Is the sky blue?", "It is a photo of the sky.")]
BLOCK = "model.layers.0."


def base_model(folder, size):
    """config.json, tokenizer and weights; returns the config"""
    with open(os.path.join(BASE, "config.json"), encoding="utf-8") as f:
        config = json.load(f)
    width, wide, heads = SIZES[size]
    config.update(hidden_size=width, intermediate_size=wide, num_attention_heads=heads, num_key_value_heads=heads,
                  head_dim=width // heads, num_hidden_layers=1, max_position_embeddings=8192)
    for name in os.listdir(BASE):
        if "token" in name:
            shutil.copy(os.path.join(BASE, name), folder)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as f:
        json.dump(config, f)
    shapes = {BLOCK + "self_attn.%s_proj.weight" % k: (width, width) for k in "qkvo"}
    shapes |= {BLOCK + f"mlp.{k}_proj.weight": (wide, width) for k in ("gate", "up")}
    shapes |= {BLOCK + "mlp.down_proj.weight": (width, wide), "model.embed_tokens.weight": (config["vocab_size"], width),
               "lm_head.weight": (config["vocab_size"], width)}
    g = np.random.default_rng(3)
    # values of bf16, so that both precisions start from the same numbers
    w = {k: g.standard_normal(s, np.float32).view(np.uint32) & np.uint32(0xffff0000) for k, s in shapes.items()}
    w = {k: (v.view(np.float32) * np.float32(2 ** -6)) for k, v in w.items()}
    for k in (BLOCK + "input_layernorm.weight", BLOCK + "post_attention_layernorm.weight", "model.norm.weight"):
        w[k] = np.ones(width, np.float32)
    write_safetensors(os.path.join(folder, "model.safetensors"), w)
    return config, w


def record(turns):
    """the record as LLaVA has it, and its ids and labels"""
    said = [TURNS[i % len(TURNS)] for i in range(turns)]
    text = SYSTEM + "".join(f" USER: {q} ASSISTANT: {a}</s>" if i == 0 else f"USER: {q} ASSISTANT: {a}</s>"
                            for i, (q, a) in enumerate(said))
    with open(os.path.join(BASE, "tokenizer.model"), "rb") as f:
        ids, labels = v1_labels(Tokenizer(f.read(), True), text)
    talk = [{"from": who, "value": t} for pair in said for who, t in zip(("human", "gpt"), pair)]
    return {"id": "0", "conversations": talk}, ids, labels


def rotate(x, theta):
    t, d = x.shape[-2:]
    a = torch.outer(torch.arange(t, device=x.device).float(),
                    theta ** -(torch.arange(0, d, 2, device=x.device).float() / d)).repeat(1, 2)
    half = torch.cat((-x[..., d // 2:], x[..., :d // 2]), -1)
    return x * a.cos().to(x.dtype) + half * a.sin().to(x.dtype)


def norm(x, w, eps):
    y = x.float()
    return w * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def gradients(config, weights, ids, labels, dtype):
    """the loss and the gradient of each tensor, on the processor in f32"""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = False
    w = {k: torch.from_numpy(v).to(device, dtype).requires_grad_() for k, v in weights.items()}
    eps, heads, t = config["rms_norm_eps"], config["num_attention_heads"], len(ids)
    theta = config.get("rope_theta", 10000.0)
    x = F.embedding(torch.tensor(ids, device=device), w["model.embed_tokens.weight"])
    h = norm(x, w[BLOCK + "input_layernorm.weight"], eps)
    q, k, v = ((h @ w[BLOCK + f"self_attn.{n}_proj.weight"].T).view(t, heads, -1).transpose(0, 1) for n in "qkv")
    seen = torch.ones(t, t, dtype=torch.bool, device=device).tril()
    y = rotate(q, theta) @ rotate(k, theta).transpose(1, 2) / math.sqrt(q.shape[-1])
    y = y.masked_fill(~seen, -math.inf).float().softmax(-1).to(dtype) @ v
    x = x + y.transpose(0, 1).reshape(t, -1) @ w[BLOCK + "self_attn.o_proj.weight"].T
    h = norm(x, w[BLOCK + "post_attention_layernorm.weight"], eps)
    h = F.silu(h @ w[BLOCK + "mlp.gate_proj.weight"].T) * (h @ w[BLOCK + "mlp.up_proj.weight"].T)
    x = norm(x + h @ w[BLOCK + "mlp.down_proj.weight"].T, w["model.norm.weight"], eps)
    loss = F.cross_entropy((x @ w["lm_head.weight"].T)[:-1].float(), torch.tensor(labels[1:], device=device))
    loss.backward()
    return float(loss), {k: v.grad.float().cpu().numpy() for k, v in w.items()}


def ours(args, folder, data, name, *more):
    """the loss and gradients of `llava train`'s first step, whose learning rate is 0"""
    out = os.path.join(folder, name)
    command = [args.llava, "train", "--model_name_or_path", os.path.join(folder, "base"), "--version", "v1",
               "--data_path", data, "--output_dir", out, "--device", args.device, "--model_max_length", "8192",
               "--per_device_train_batch_size", "1", "--max_steps", "1", "--warmup_steps", "2", "--max_grad_norm", "0",
               "--learning_rate", "1e-3", "--logging_steps", "1", "--save_steps", "1", "--save_strategy", "steps",
               "--gradient_checkpointing", "True", "--report_to", "none", "--mm_use_im_patch_token", "False", *more]
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if ran.returncode:
        sys.exit(f"{' '.join(command)}\n{ran.stdout}")
    with open(os.path.join(out, "trainer_state.json"), encoding="utf-8") as f:
        loss = next(x["loss"] for x in json.load(f)["log_history"] if "loss" in x)
    state = read_safetensors(os.path.join(out, "checkpoint-1/resume.safetensors"))
    got = {k[len("moment1/"):]: 10 * v for k, v in state.items() if k.startswith("moment1/")}
    shutil.rmtree(out)
    return loss, got


def distance(a, b):
    return float(np.linalg.norm((a - b).ravel()) / max(np.linalg.norm(b.ravel()), 1e-30))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--llava", default="build/cuda/llava")
    p.add_argument("--device", default="cuda")
    p.add_argument("--size", default="7b", choices=SIZES)
    p.add_argument("--turns", type=int, default=24)
    args, good = p.parse_args(), True
    with tempfile.TemporaryDirectory() as folder:
        os.mkdir(os.path.join(folder, "base"))
        config, weights = base_model(os.path.join(folder, "base"), args.size)
        one, ids, labels = record(args.turns)
        data = os.path.join(folder, "data.json")
        with open(data, "w", encoding="utf-8") as f:
            json.dump([one], f)
        loss, exact = gradients(config, weights, ids, labels, torch.float32)
        low_loss, low = gradients(config, weights, ids, labels, torch.bfloat16)
        for name, more in (("f32", ()), ("bf16", ("--bf16", "True"))):
            my_loss, mine = ours(args, folder, data, name, *more)
            by = {k: distance(mine[k], exact[k]) for k in exact}
            bound = {k: 1e-4 if name == "f32" else 2 * distance(low[k], exact[k]) for k in exact}
            worst = max(by, key=lambda k: by[k] / bound[k])
            fits = set(mine) == set(exact) and by[worst] <= bound[worst]
            good = good and fits
            print(json.dumps({"precision": name, "size": args.size, "device": args.device, "positions": len(ids),
                              "loss": my_loss, "pytorch": loss if name == "f32" else low_loss, "tensors": len(by),
                              "worst": worst, "distance": by[worst], "bound": bound[worst], "ok": fits}), flush=True)
    print("ok" if good else "FAILED")
    return not good


if __name__ == "__main__":
    sys.exit(main())
