#!/usr/bin/env python3
"""Train the demo model: a LLaVA of 11 M parameters that names emoji pictures. One GPU, under ten minutes.

usage: train.py PICTURES.npz TOKENIZER.model OUT_DIR [--look 200] [--talk 240]
PICTURES.npz comes from make_data.py --pack, TOKENIZER.model from train.py --tokenizer-only (words.py has its settings).

Stage "look" (seconds): the vision tower learns to tell the things apart, with a classifier on its mean feature.
Stage "talk": the whole model learns to answer, end to end; the classifier stays as a second loss.
Both run by the clock: the learning rate follows the share of the time that is over. What is saved is the moving
average of the weights, rounded to bf16.
"""
import argparse
import copy
import math
import os
import time
from multiprocessing import Pool

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import model as M
import pictures
import words
from muon import Muon

NAME_LEN, ANY_LEN, ANY_COUNT = 31, 50, 2       # branch lengths: one naming round and two of any kind
VOCAB = 1536                                   # the tokenizer's 1,472, <image>, and room up to a multiple of 64
LENGTHS = [NAME_LEN] + [ANY_LEN] * ANY_COUNT


def pad(branch, length):
    """Ids and labels (-100: not learned) of one branch, filled up to length; None when too long."""
    ids, learn = branch
    if len(ids) > length:
        return None
    fill = [0] * (length - len(ids))
    return ids + fill, [i if l else -100 for i, l in zip(ids, learn)] + [-100] * len(fill)


def branches_of(job):
    """(naming branches [forms, 2, NAME_LEN], others [count, 2, ANY_LEN]) of thing c."""
    things, model_file, c, count = job
    tokens, asker = words.Tokens(model_file), words.Asker(things, 1000 + c)
    names, others = [pad(tokens.branch([(q, things[c]["name"])]), NAME_LEN) for q in words.NAME], []
    while len(others) < count:
        one = pad(tokens.branch(asker.rounds(c)), ANY_LEN)
        if one:
            others.append(one)
    return np.array(names, np.int16), np.array(others, np.int16)


class Talk:
    """Every thing's ready-made branches on the device, and batches of them."""

    def __init__(self, things, model_file, count):
        with Pool() as pool:
            made = pool.map(branches_of, [(things, model_file, c, count) for c in range(len(things))], chunksize=16)
        self.names, self.others = (torch.from_numpy(np.stack(part)) for part in zip(*made))

    def to(self, device):
        self.names, self.others = self.names.to(device), self.others.to(device)
        return self

    def draw(self, y):
        """ids and labels [n, sum(LENGTHS)] for things y."""
        pick = lambda pool: pool[y, torch.randint(pool.shape[1], y.shape, device=y.device)]
        rows = torch.cat([pick(self.names)] + [pick(self.others) for _ in range(ANY_COUNT)], 2).long()
        return rows[:, 0], rows[:, 1]

    def plain(self, y):
        """The naming branch in its first wording: what the learning curve is read from."""
        rows = self.names[y, 0].long()
        return rows[:, 0], rows[:, 1]


def cut_mix(x, y):
    """A third of the batch: a rectangle from, or a blend with, another row. (pictures, other things, share of the first)."""
    n = len(x)
    other = x.roll(1, 0)
    share = torch.ones(n, device=x.device)
    s = slice(0, n // 6)
    hole = pictures.box(x[s], 0.25, 0.75)
    share[s] = 1 - hole.float().mean((1, 2, 3))
    t = slice(n // 6, n // 3)
    share[t] = torch.distributions.Beta(0.4, 0.4).sample((t.stop - t.start,)).to(x.device)
    a = share[t].view(-1, 1, 1, 1)
    x = torch.cat([torch.where(hole, other[s], x[s]), x[t] * a + other[t] * (1 - a), x[t.stop:]])
    return x, y.roll(1, 0), share


class Trainer:
    def __init__(self, a, things, bank, talk, heads):
        self.a, self.bank, self.talk, self.device = a, bank, talk, a.device
        self.net = M.Llava(VOCAB).to(a.device)
        self.net.classify = nn.Sequential(nn.LayerNorm(M.WIDTH), nn.Linear(M.WIDTH, len(things))).to(a.device)
        self.mean = copy.deepcopy(self.net).eval()
        self.heads = torch.tensor(heads, device=a.device)
        self.places, self.mask = M.layout(self.heads.shape[1], LENGTHS, a.device)
        self.checks = {}

    def cast(self):
        return torch.autocast(self.device, torch.bfloat16)

    def look_loss(self, x, y, other, share, keep):
        with self.cast():
            seen = self.net.vision_tower(x, keep).float().mean(1)
            guess = self.net.classify(seen).float()
        loss = lambda t: F.cross_entropy(guess, t, label_smoothing=0.1, reduction="none")
        return (share * loss(y) + (1 - share) * loss(other)).mean()

    def talk_loss(self, x, y, head, ids, labels):
        with self.cast():
            features = self.net.vision_tower(x)
            guess = self.net.classify(features.float().mean(1)).float()
            out = self.net.logits(features, head, ids, self.places, self.mask.to(torch.bfloat16)[None, None])
        tell = F.cross_entropy(out[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        return tell + 0.5 * F.cross_entropy(guess, y, label_smoothing=0.1)

    def look_step(self, loss):
        x, y = self.bank.draw(self.a.look_batch)
        keep = torch.randperm(M.TOKENS, device=self.device)[:M.TOKENS * 11 // 20]
        return loss(*((cut := cut_mix(x, y))[0], y, *cut[1:]), keep)

    def talk_step(self, loss):
        x, y = self.bank.draw(self.a.talk_batch)
        head = self.heads[torch.randint(len(self.heads), y.shape, device=self.device)]
        return loss(x, y, head, *self.talk.draw(y))

    def stage(self, name, seconds, step, loss, lr, parts):
        """Train the parameters whose names begin with parts for so many seconds."""
        net, mean = self.net, self.mean
        net.train()
        unused = f"layers.{M.VISION_LAYERS - 1}.", "post_layernorm"         # select layer -2 never reaches these
        named = {n: p for n, p in net.named_parameters()
                 if n.startswith(parts) and not (n.startswith("vision") and any(u in n for u in unused))}
        matrix = lambda n, p: p.dim() == 2 and ("layers." in n or "projector" in n)
        params, mean = list(named.values()), [dict(mean.named_parameters())[n] for n in named]
        opt = Muon([p for n, p in named.items() if matrix(n, p)], [p for n, p in named.items() if not matrix(n, p)], lr)
        run = torch.compile(loss) if self.a.compile else loss
        start, n, shown, total = None, 0, 0, 0.0
        while True:
            spent = 0 if start is None else (time.time() - start) / seconds
            if spent >= 1 or (self.a.steps and n >= self.a.steps):
                break
            value = step(run)
            value.backward()
            nn.utils.clip_grad_norm_(params, 1.0)
            opt.step(lr * min(1, n / 150, 1e-3 + 0.5 * (1 + math.cos(math.pi * spent))))
            net.zero_grad(set_to_none=True)
            with torch.no_grad():
                keep = 1 - min(0.998, (1 + n) / (10 + n))
                torch._foreach_lerp_(mean, params, keep)
            n += 1
            if n % 20 == 0 or n == 3:
                total = value.item()                # waits for the device: keeps the clock honest
                if start is None:
                    start = time.time()            # compiling is over
                elif spent > shown / 6:
                    shown += 1
                    self.report(name, n, time.time() - start, total)
        self.report(name, n, seconds, total)
        net.load_state_dict(self.mean.state_dict())

    @torch.no_grad()
    def report(self, name, n, spent, loss):
        """One line of the learning curve: classifier and naming accuracy of the averaged weights."""
        line = f"{name} step {n:5d} {spent:5.0f} s loss {loss:.3f}"
        places, mask = M.layout(self.heads.shape[1], [NAME_LEN], self.device)
        for split, (x, y) in self.checks.items():
            hit = named = 0
            for px, py in zip(x.split(512), y.split(512)):
                with self.cast():
                    f = self.mean.vision_tower(pictures.normalise(px.float() / 255))
                    hit += (self.mean.classify(f.float().mean(1)).argmax(1) == py).sum().item()
                    if name == "talk":
                        ids, labels = self.talk.plain(py)
                        out = self.mean.logits(f, self.heads[1:].expand(len(py), -1), ids, places,
                                               mask.to(torch.bfloat16)[None, None]).argmax(2)
                        want = labels[:, 1:]
                        named += ((out[:, :-1] == want) | (want < 0)).all(1).sum().item()
            line += f"  {split}: class {hit / len(y):.3f}" + (f" name {named / len(y):.3f}" if name == "talk" else "")
        print(line, flush=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("pictures"); ap.add_argument("tokenizer"); ap.add_argument("out")
    ap.add_argument("--look", type=float, default=200, help="seconds of the first stage")
    ap.add_argument("--talk", type=float, default=240, help="seconds of the second stage")
    ap.add_argument("--look-batch", type=int, default=1024); ap.add_argument("--talk-batch", type=int, default=512)
    ap.add_argument("--look-lr", type=float, default=2e-3); ap.add_argument("--talk-lr", type=float, default=1.5e-3)
    ap.add_argument("--branches", type=int, default=160, help="ready-made question branches of each thing")
    ap.add_argument("--steps", type=int, default=0, help="stop each stage after this many steps (0: by the clock)")
    ap.add_argument("--limit", type=int, default=0, help="only so many pictures, for a trial")
    ap.add_argument("--device", default="cuda"); ap.add_argument("--compile", type=int, default=1)
    ap.add_argument("--tokenizer-only", action="store_true", help="train TOKENIZER.model from the texts and stop")
    a = ap.parse_args()
    began = time.time()
    facts, pixels = pictures.load(a.pictures)
    things, labels = words.load_things(facts)
    if a.tokenizer_only:
        return words.train_tokenizer(things, a.tokenizer.removesuffix(".model"))
    talk = Talk(things, a.tokenizer, a.branches).to(a.device)
    torch.manual_seed(7)
    split = lambda s: [i for i, f in enumerate(facts) if f["split"] == s][:a.limit or None]
    rows = split("train")
    tokens = words.Tokens(a.tokenizer)
    bank = pictures.Bank(pixels[rows], [labels[i] for i in rows], things, a.device)
    t = Trainer(a, things, bank, talk, [tokens.head(s) for s in words.SYSTEMS])
    for s in ("test", "hard"):
        rows = split(s)
        t.checks[s] = pixels[rows].to(a.device), torch.tensor([labels[i] for i in rows], device=a.device)
    print(f"{sum(p.numel() for n, p in t.net.named_parameters() if 'classify' not in n):,} parameters, "
          f"{len(bank.y)} pictures, ready after {time.time() - began:.0f} s", flush=True)
    t.stage("look", a.look, t.look_step, t.look_loss, a.look_lr, ("vision_tower", "classify"))
    t.stage("talk", a.talk, t.talk_step, t.talk_loss, a.talk_lr, ("",))
    os.makedirs(a.out, exist_ok=True)
    torch.save({n: p.detach().cpu().to(torch.bfloat16) for n, p in t.mean.named_parameters() if "classify" not in n},
               os.path.join(a.out, "weights.pt"))
    print(f"trained, {time.time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
