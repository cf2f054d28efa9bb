#!/usr/bin/python3
"""The order of training records against torch: its own DataLoader where a single process reads, and a restatement of
LLaVA's and transformers' LengthGroupedSampler and of accelerate's BatchSamplerShard on torch's randperm."""
import os
import random
import subprocess
import sys

import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import BUILD, finish, ok  # noqa: E402

PROGRAM = os.path.join(BUILD, "tests", "unit", "data_lines")


def ours(lengths, **o):
    p = subprocess.run([PROGRAM, "order", *(f"{k}={v}" for k, v in o.items())], capture_output=True, text=True,
                       input=" ".join(map(str, lengths)), timeout=100)
    if p.stdout.startswith("error") or p.returncode:
        return p.stdout + p.stderr
    return [[[int(x) for x in part.split()] for part in line.split("/")] for line in p.stdout.splitlines()]


class Numbers(torch.utils.data.Dataset):
    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return i


# ---- LLaVA's sampler, restated

def even_chunks(part, lengths, n):
    if len(part) % n:
        return [part[k::n] for k in range(n)]
    most, chunks, sums = len(part) // n, [[] for _ in range(n)], [0] * n
    for i in part:
        k = sums.index(min(sums))
        chunks[k].append(i)
        sums[k] = float("inf") if len(chunks[k]) == most else sums[k] + lengths[i]
    return chunks


def by_length(lengths, batch, world, generator):
    order = torch.randperm(len(lengths), generator=generator).tolist()
    out = []
    for i in range(0, len(order), batch * world):
        mega = sorted(order[i:i + batch * world], key=lambda k: lengths[k], reverse=True)
        for chunk in even_chunks(mega, lengths, world):
            out += chunk
    return out


def by_kind(lengths, batch, world, generator):
    assert all(lengths)
    if min(lengths) > 0 or max(lengths) < 0:
        return by_length(lengths, batch, world, generator)
    mega, whole, last = batch * world, [], []
    for sign in 1, -1:
        members = [i for i, n in enumerate(lengths) if n * sign > 0]
        order = [members[k] for k in by_length([lengths[i] * sign for i in members], batch, world, None)]
        cut = [order[i:i + mega] for i in range(0, len(order), mega)]
        whole, last = whole + cut[:-1], last + cut[-1]
    out = []
    for k in torch.randperm(len(whole), generator=generator).tolist():
        out += whole[k]
    return out + sorted(last)


class Grouped(Sampler):
    def __init__(self, lengths, batch, world):
        self.lengths, self.batch, self.world, self.generator = lengths, batch, world, None

    def __len__(self):
        return len(self.lengths)

    def __iter__(self):
        return iter(by_kind(self.lengths, self.batch, self.world, self.generator))


# ---- transformers' sampler, restated

class ByLength(Sampler):
    def __init__(self, lengths, batch):
        self.lengths, self.batch, self.generator = lengths, batch, None

    def __len__(self):
        return len(self.lengths)

    def __iter__(self):
        n = len(self.lengths)
        mult = min(n // (self.batch * 4), 50) or 1
        order = torch.randperm(n, generator=self.generator)
        size = mult * self.batch
        megas = [sorted(order[i:i + size].tolist(), key=lambda k: self.lengths[k], reverse=True) for i in range(0, n, size)]
        best = torch.argmax(torch.tensor([self.lengths[m[0]] for m in megas])).item()
        megas[0][0], megas[best][0] = megas[best][0], megas[0][0]
        return iter([i for m in megas for i in m])


# ---- accelerate 0.21's BatchSamplerShard, restated

def shard(batches, batch, world, rank):
    batches = [list(b) for b in batches]
    first = sum(batches[:world], [])
    while len(first) < world * batch:
        first = first + first
    flat, at = batches, 0
    if len(flat[-1]) < batch:
        need = batch - len(flat[-1])
        flat[-1] = flat[-1] + first[:need]
        at = need
    while len(flat) % world:
        flat.append(first[at:at + batch])
        at += batch
    return flat[rank::world]


def theirs(kind, lengths, seed, batch, accum, world, rank, epochs):
    torch.manual_seed(seed)
    data = Numbers(len(lengths))
    sampler = (RandomSampler(data) if kind == "random" else ByLength(lengths, batch * accum) if kind == "length" else
               Grouped(lengths, batch, world * accum))
    if world == 1:
        loader = DataLoader(data, batch_size=batch, sampler=sampler, collate_fn=list)
        return [[b for b in loader] for _ in range(epochs)]
    sampler.generator = torch.Generator()
    out = []
    for _ in range(epochs):
        torch.empty((), dtype=torch.int64).random_()  # a loader's _base_seed
        out.append(shard(BatchSampler(sampler, batch, False), batch, world, rank))
    return out


def compare(kind, lengths, seed, **o):
    got = ours(lengths, kind=kind, seed=seed, **o)
    want = theirs(kind, lengths, seed, **o)
    what = f"{kind}, seed {seed}, {len(lengths)} records, " + ", ".join(f"{k} {v}" for k, v in o.items())
    ok(got == want, what, f"got  {str(got)[:300]}\nwant {str(want)[:300]}")


def mixed(rng, n, share):
    return [rng.randint(1, 300) * (1 if rng.random() < share else -1) for _ in range(n)]


def main():
    rng = random.Random(3)
    for seed in 42, 0, 123456789012345:
        for n, batch, accum, world, rank in (100, 8, 1, 1, 0), (101, 4, 2, 1, 0), (5, 8, 2, 1, 0), (1, 1, 1, 1, 0), \
                (100, 4, 2, 2, 1), (37, 4, 1, 3, 2), (3, 4, 1, 2, 0), (1003, 16, 1, 8, 5), (24, 4, 1, 3, 1):
            shape = dict(batch=batch, accum=accum, world=world, rank=rank, epochs=3)
            compare("random", [1] * n, seed, **shape)
            compare("length", rng.sample(range(1, 10000), n), seed, **shape)
            lengths = mixed(rng, n, 0.7)
            if n > 1:
                lengths[0], lengths[-1] = 7, -7
            compare("grouped", lengths, seed, **shape)
            compare("grouped", [abs(x) for x in lengths], seed, **shape)
            compare("grouped", [-abs(x) for x in lengths], seed, **shape)
            compare("grouped", [x % 3 + 1 if x > 0 else -1 - x % 3 for x in lengths], seed, **shape)  # many equal
    lengths = mixed(rng, 20000, 0.94)
    compare("grouped", lengths, 42, batch=16, accum=1, world=8, rank=3, epochs=2)
    compare("grouped", lengths, 42, batch=16, accum=8, world=1, rank=0, epochs=2)
    compare("random", lengths, 42, batch=32, accum=8, world=1, rank=0, epochs=2)
    compare("length", rng.sample(range(1, 90000), 20000), 42, batch=16, accum=8, world=1, rank=0, epochs=2)
    compare("length", [x % 5 + 1 for x in range(2000)], 7, batch=4, accum=2, world=1, rank=0, epochs=2)
    a = ours(lengths[:500], kind="grouped", batch=4, accum=2, epochs=4)
    b = ours(lengths[:500], kind="grouped", batch=4, accum=2, epochs=4, back=3)
    ok(a == b and a[0] != a[1], "coming back from a later epoch gives the same lists, and epochs differ")
    got = ours([5, 0, 3], kind="grouped")
    ok("a record without a word (the 2th)" in str(got), "a length of zero is refused", got)
    got = ours([1] * 10, kind="sequential", batch=4, epochs=2)
    ok(got == [[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]] * 2, "sequential", got)
    got = ours([1] * 10, kind="sequential", batch=4, drop=1)
    ok(got == [[[0, 1, 2, 3], [4, 5, 6, 7]]], "the last one dropped", got)
    got = ours([1] * 10, kind="sequential", batch=4, world=3, drop=1)
    ok("cannot fill" in str(got), "dropping all is refused", got)
    finish()


main()
