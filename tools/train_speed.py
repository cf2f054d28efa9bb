#!/usr/bin/python3
"""A training step of models/demo against PyTorch's: the same records, parameters, maths and threads, in turns.

    tools/train_speed.py [--batch 8] [--steps 6] [--rounds 3] [--lora] [--threads N]

PyTorch runs the step as transformers and torch.optim.AdamW do: frozen tower without gradients, logits of every position, f32
on the CPU; adapters as peft. Ours is `llava train`. All records are one, so that the order does not matter: the losses of all
steps must agree to 1e-3. Prints both times a step (the median; pictures are decoded ahead in both) and their ratio.

The peer uses what its version has (F.scaled_dot_product_attention since 2.0).
Debian's PyTorch takes its products from libblas: with libopenblas0 it is ten times as fast as without, so install that.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
import torch.nn.functional as F

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tests/help"))
MODEL, PICTURES = os.path.join(ROOT, "models/demo"), os.path.join(ROOT, "models/demo/pictures")
LLAVA = os.path.join(ROOT, "build/llava")
H, L, VL, P, IMAGE = 4, 4, 8, 8, 1472
RANK = 16


def tensors():
    with open(os.path.join(MODEL, "model.safetensors"), "rb") as f:
        raw = f.read()
    n = int.from_bytes(raw[:8], "little")
    out = {}
    for name, t in json.loads(raw[8:8 + n]).items():
        if name != "__metadata__":
            a, b = t["data_offsets"]
            u = np.frombuffer(raw[8 + n + a:8 + n + b], "<u2").astype(np.uint32) << 16
            out[name] = torch.from_numpy(u.view(np.float32).copy()).reshape(t["shape"])
    return out


class Peer:
    def __init__(self, lora):
        w = tensors()
        pick = lambda *stems: {k.split(s, 1)[1]: v for k, v in w.items() for s in stems if k.startswith(s)}
        self.v = pick("vision_tower.vision_model.", "vision_tower.")
        self.t = pick("language_model.model.")
        self.t["head"] = w["language_model.lm_head.weight"]
        self.p = pick("multi_modal_projector.")
        self.lora = {}
        train = list(self.p.values())
        if lora:
            for k, v in list(self.t.items()):
                if "_proj." in k:
                    a = torch.empty(RANK, v.shape[1]).uniform_(-v.shape[1] ** -0.5, v.shape[1] ** -0.5)
                    self.lora[k] = a, torch.zeros(v.shape[0], RANK)
                    train += self.lora[k]
        else:
            train += list(self.t.values())
        for x in train:
            x.requires_grad_(True)
        self.opt = torch.optim.AdamW(train, lr=1e-4, weight_decay=0.0)

    def linear(self, x, name):
        y = F.linear(x, self.t[name])
        if name in self.lora:
            a, b = self.lora[name]
            y = y + F.linear(F.linear(x, a), b)
        return y

    @staticmethod
    def attend(q, k, v, mask):
        split = lambda x: x.unflatten(-1, (H, -1)).transpose(1, 2)
        q, k, v = split(q), split(k), split(v)
        if hasattr(F, "scaled_dot_product_attention"):  # since 2.0, and what transformers uses there
            return F.scaled_dot_product_attention(q, k, v, is_causal=mask is not None).transpose(1, 2).flatten(2)
        s = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        return ((s + mask if mask is not None else s).softmax(-1) @ v).transpose(1, 2).flatten(2)

    @torch.no_grad()
    def tower(self, px):
        v, n = self.v, len(px)
        x = F.conv2d(px, v["embeddings.patch_embedding.weight"], stride=P).flatten(2).transpose(1, 2)
        x = torch.cat([v["embeddings.class_embedding"].expand(n, 1, -1), x], 1) + v["embeddings.position_embedding.weight"]
        norm = lambda x, k: F.layer_norm(x, x.shape[-1:], v[k + ".weight"], v[k + ".bias"])
        lin = lambda x, k: F.linear(x, v[k + ".weight"], v[k + ".bias"])
        x = norm(x, "pre_layrnorm")
        for i in range(VL):
            s = f"encoder.layers.{i}."
            h = norm(x, s + "layer_norm1")
            h = self.attend(*(lin(h, s + f"self_attn.{c}_proj") for c in "qkv"), None)
            x = x + lin(h, s + "self_attn.out_proj")
            h = lin(norm(x, s + "layer_norm2"), s + "mlp.fc1")
            x = x + lin(h * torch.sigmoid(1.702 * h), s + "mlp.fc2")
        return x[:, 1:]

    def step(self, px, ids, labels):
        """ids [B,T] with IMAGE where rows of the picture go, right padded with 0; labels -100 where nothing is learned."""
        t = self.t
        f = F.linear(F.gelu(F.linear(self.tower(px), self.p["linear_1.weight"], self.p["linear_1.bias"])),
                     self.p["linear_2.weight"], self.p["linear_2.bias"])
        x = F.embedding(ids, t["embed_tokens.weight"])
        x = x.masked_scatter((ids == IMAGE)[..., None], f)
        T = ids.shape[1]
        mask = torch.full((T, T), float("-inf")).triu(1)
        angle = torch.arange(T)[:, None].float() * (10000.0 ** (-torch.arange(0, 64, 2).float() / 64)).repeat(2)
        cos, sin = angle.cos().repeat(1, H), angle.sin().repeat(1, H)

        def rope(x):
            a, b = x.unflatten(-1, (H, 2, -1)).unbind(-2)
            return x * cos + torch.stack([-b, a], -2).flatten(-3) * sin

        def norm(x, k):
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * t[k]

        for i in range(L):
            s = f"layers.{i}."
            h = norm(x, s + "input_layernorm.weight")
            q, k, v = (self.linear(h, s + f"self_attn.{c}_proj.weight") for c in "qkv")
            x = x + self.linear(self.attend(rope(q), rope(k), v, mask), s + "self_attn.o_proj.weight")
            h = norm(x, s + "post_attention_layernorm.weight")
            h = F.silu(self.linear(h, s + "mlp.gate_proj.weight")) * self.linear(h, s + "mlp.up_proj.weight")
            x = x + self.linear(h, s + "mlp.down_proj.weight")
        logits = F.linear(norm(x, "norm.weight"), t["head"])
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        loss.backward()
        self.opt.step()
        self.opt.zero_grad()
        return float(loss)


def records(folder, n):
    data = [{"id": str(i), "image": "red-apple.png", "conversations": [
        {"from": "human", "value": "<image>\nWhat is this, and what is it used for?"},
        {"from": "gpt", "value": "This is a thing of many uses, which are too many to be told here, and yet we try."}]}
        for i in range(n)]
    path = os.path.join(folder, "data.json")
    with open(path, "w", encoding="utf-8") as f:
        json.dump(data, f)
    return path, data


def prompt_parts(data):
    """What our own program reads: ids and pixels of each record's prompt and whole text, by `llava forward`."""
    system = ("A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
              "detailed, and polite answers to the user's questions.")
    for r in data:
        ask, say = (c["value"] for c in r["conversations"])
        yield r["image"], f"{system} USER: {ask} ASSISTANT:", f"{system} USER: {ask} ASSISTANT: {say}</s>"


def batches(folder, data, batch):
    from cli import read_safetensors
    out, cache = [], {}
    for image, head, whole in prompt_parts(data):
        if (image, whole) not in cache:
            t = []
            for text in (head, whole):
                path = os.path.join(folder, "f.safetensors")
                subprocess.run([LLAVA, "forward", "--quiet", "--model-path", MODEL, "--image-file", os.path.join(PICTURES, image),
                                "--prompt", text, "--out", path], check=True)
                t.append(read_safetensors(path))
            cache[image, whole] = t
        head_t, whole_t = cache[image, whole]
        ids = []
        for i in whole_t["input_ids"].flatten().tolist():
            ids += [IMAGE] * 196 if i == -200 else [i]
        asked = sum(196 if i == -200 else 1 for i in head_t["input_ids"].flatten().tolist())
        out.append((torch.from_numpy(whole_t["pixel_values"].reshape(3, 112, 112).copy()), ids, asked))
    for i in range(0, len(out), batch):
        part = out[i:i + batch]
        T = max(len(ids) for _, ids, _ in part)
        x, y = torch.zeros(len(part), T, dtype=torch.long), torch.full((len(part), T), -100)
        for k, (_, ids, asked) in enumerate(part):
            x[k, :len(ids)] = torch.tensor(ids)
            y[k, asked:len(ids)] = torch.tensor(ids[asked:])
        yield torch.stack([p for p, _, _ in part]), x, y


def ours(folder, path, a, out):
    args = [LLAVA, "train", "--model_name_or_path", MODEL, "--version", "v1", "--data_path", path, "--image_folder", PICTURES,
            "--output_dir", out, "--overwrite_output_dir", "--num_train_epochs", "1", "--per_device_train_batch_size",
            str(a.batch), "--learning_rate", "1e-4", "--lr_scheduler_type", "constant", "--max_grad_norm", "0",
            "--model_max_length", "512", "--mm_use_im_patch_token", "False", "--logging_steps", "1", "--save_strategy", "no",
            "--report_to", "none", "--threads", str(a.threads), "--dataloader_num_workers", "1"]
    if a.lora:
        args += ["--lora_enable", "--lora_r", str(RANK), "--lora_alpha", str(RANK), "--lora_dropout", "0"]
    subprocess.run(args, stderr=subprocess.PIPE, check=True)
    with open(os.path.join(out, "trainer_state.json"), encoding="utf-8") as f:
        log = json.load(f)["log_history"]
    return [h["loss"] for h in log if "loss" in h], log[-1]["train_runtime"] / a.steps


def main():
    p = argparse.ArgumentParser()
    for name, value in (("batch", 8), ("steps", 6), ("rounds", 3), ("threads", os.cpu_count())):
        p.add_argument("--" + name, type=int, default=value)
    p.add_argument("--lora", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path, data = records(folder, a.batch * a.steps)
        peer_batches = list(batches(folder, data, a.batch))
        times = {"PyTorch": [], "llava": []}
        first = {}
        for n in range(a.rounds):
            peer, losses = Peer(a.lora), []
            peer.step(*peer_batches[0])  # warm up
            peer = Peer(a.lora)
            start = time.perf_counter()
            for b in peer_batches:
                losses.append(peer.step(*b))
            times["PyTorch"].append((time.perf_counter() - start) / a.steps)
            first["PyTorch"] = losses
            first["llava"], s = ours(folder, path, a, os.path.join(folder, "out"))
            times["llava"].append(s)
            assert np.allclose(first["llava"], losses, rtol=1e-3), f"other losses: {losses} {first['llava']}"
        for name in times:
            print(f"{name:8} {np.median(times[name]):.3f} s a step, losses", " ".join(f"{x:.4f}" for x in first[name]))
        print(f"ratio    {np.median(times['PyTorch']) / np.median(times['llava']):.2f} times as fast; batch {a.batch}, "
              f"{a.threads} threads, {'adapters of rank 16' if a.lora else 'full'}, torch {torch.__version__}")


main()
