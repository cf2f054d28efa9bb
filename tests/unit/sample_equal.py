#!/usr/bin/python3
"""Training samples and batches against the reference restated (tests/help/reference.py), from a JSON file to what the
model reads: ids and labels of every --version on 500 generated conversations, positions, targets, order and packing.
"""
import json
import os
import random
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
import reference  # noqa: E402
from cli import BUILD, PICTURES, ROOT, finish, ok, place  # noqa: E402
from reference import IGNORE, IMAGE  # noqa: E402

PROGRAM = os.path.join(BUILD, "tests", "unit", "data_lines")
SMALL = os.path.join(ROOT, "tests", "data", "tok512.model")
DATA = os.environ.get("LLAVA_TEST_DATA")
SEED, N, ROWS = 20240512, 500, 5
NAMES = sorted(x for x in os.listdir(PICTURES) if x.endswith((".png", ".jpg")))
WORDS = ["cat", "the", "what is it", "A", "7", "déjà", "你好", "Привет", "😀", "👩‍👩‍👧‍👦", "🦙🦙", "1.5", "don't", "USER:", "###",
         "Human:", "[INST]", "<im_end>", "<|im_end", "e\u0301", "\u3000", "\u00a0", "x" * 40, "=====", "\\n", '"', "{}", "\ufeff"]
GAPS = [" ", " ", " ", "  ", "\n", "\n\n", "\t", "   ", ""]


def keeps(path):
    """The same model, but one that keeps spaces as they are, as LLaMA's does: the reference counts on the last space of
    'ASSISTANT: '."""
    out = place(os.path.basename(path))
    with open(path, "rb") as a, open(out, "wb") as b:
        b.write(a.read() + b"\x1a\x02\x20\x00")
    return out


def program(what, *args, **options):
    p = subprocess.run([PROGRAM, what, *args, *(f"{k}={v}" for k, v in options.items())], capture_output=True, text=True,
                       timeout=300, cwd=ROOT)
    return p.stdout.splitlines(), p.stderr


def numbers(text):
    return [int(x) for x in text.split()]


# ---- conversations

def text(rng):
    kind = rng.random()
    if kind < 0.04:
        return rng.choice(["", " ", "\n", "  \n "])
    out = "".join(rng.choice(WORDS) + rng.choice(GAPS) for _ in range(rng.randint(1, 14)))
    return rng.choice(["", "", " ", "\n"]) + out if kind < 0.5 else out.strip() or "x"


def conversation(rng, i, plain, answer_first=True):
    """A record: pictures in half of them, in any turn and at any place of it; answers that begin a conversation."""
    turns = [text(rng) for _ in range(2 if plain else 2 * rng.randint(1, 4))]
    r = {"id": f"r{i}"}
    if plain or i % 2:
        r["image"] = rng.choice(NAMES)
        where = 0 if plain else 2 * rng.randrange(len(turns) // 2)
        mark = rng.choice(["<image>", "<image>\n", "\n<image>", " <image> ", "<image><image>"])
        turns[where] = rng.choice([mark + turns[where], turns[where] + mark, turns[where][:3] + mark + turns[where][3:]])
    turns = [{"from": "gpt" if k % 2 else "human", "value": t} for k, t in enumerate(turns)]
    if answer_first and not plain and rng.random() < 0.05:
        turns.insert(0, {"from": "gpt", "value": "left out"})
    return {**r, "conversations": turns}


def texts(r):
    turns = r["conversations"]
    return [t["value"] for t in turns[turns[0]["from"] == "gpt":]]


def file_of(records):
    path = place("data.json")
    with open(path, "w", encoding="utf-8") as f:
        json.dump(records, f, ensure_ascii=len(records) % 2 == 0)
    return path


# ---- labels

def want_of(slow, version, r, limit, im):
    ids, labels = reference.preprocess(slow, version, texts(r), "image" in r, limit, im)
    row, pictures = reference.positions(ids, labels or [IGNORE] * len(ids), limit, ROWS)
    kept = [(i, k) for i, k in list(zip(ids, labels or ids))[:limit] if i != 0]
    targets = sum(label != IGNORE for _, label in row[1:])
    return [i for i, _ in kept], labels and [IGNORE if i == IMAGE else k for i, k in kept], len(row), targets, pictures


def test_labels(name, path, version, mode, rng, im=False):
    style = reference.TEMPLATES[version][0]
    records = [conversation(rng, i, style == "plain", style != "signals") for i in range(N)]
    slow = reference.Slow(path, mode)
    if im:
        n = slow.sp.get_piece_size()
        slow = reference.Slow(path, mode, [("<im_start>", n, True, False), ("<im_end>", n + 1, True, False)])
    dropped, bad = 0, []
    for limit, part in ((2048, records[:400]), (100, records[400:])):
        got, _ = program("samples", file=file_of(part), model=path, mode=mode, version=version, max=limit, rows=ROWS,
                         folder=PICTURES, im=int(im))
        for r, line in zip(part, got, strict=True):
            if style == "llama_2" and not texts(r)[0]:  # the reference stops at it
                bad += [] if "must start with a question" in line else [(r, line)]
                continue
            ids, labels, *want = want_of(slow, version, r, limit, im)
            dropped += labels is None
            a, b, c = (numbers(x) for x in line.split(" / ")) if " / " in line else ([], [line], [0] * 6)
            b = [IGNORE if i == IMAGE else k for i, k in zip(a, b)]
            # With a BOS preprocess_mpt's sums come out by chance alone.
            same = style == "mpt" or labels is None or (b == labels and c[1] == want[1])
            if a != ids or [c[0], c[2]] != [want[0], want[2]] or not same:
                bad.append((r, (a, b, c), (ids, labels, want)))
    name = f"{name}: {version}, {mode}{', im_start_end' if im else ''}: {N} conversations"
    ok(not bad, f"{name}, the reference drops {dropped}", bad and f"{len(bad)} differ, first {str(bad[0])[:3000]}")
    return N - dropped


def all_labels(name, path, rng):
    kept = {}
    for version in reference.TEMPLATES:
        for mode in "new", "legacy", "431":
            if mode != "431" or version == "v1":
                kept[version] = min(kept.get(version, N), test_labels(name, path, version, mode, rng))
    test_labels(name, path, "v1", "new", rng, True)
    test_labels(name, path, "plain", "new", rng, True)
    few = {v: n for v, n in kept.items() if n < N // 5 and v != "chatml_direct"}
    ok(not few, f"{name}: the reference keeps most samples", f"kept {kept}")


# ---- batches

def batches(path, **o):
    got, err = program("batches", file=path, folder=PICTURES, rows=ROWS, max=300, version="v1", **o)
    out = []
    for line in got[2:-1] if got and not got[0].startswith("error") and not got[-1].startswith("error") else got[2:]:
        if line.startswith("error"):
            out.append(line)
            continue
        part = line.split("/")
        where = numbers(part[0])
        out.append({"epoch": where[0], "micro": where[1], "update": where[2], "images": where[3], "targets": where[4],
                    "skipped": where[5], "record": numbers(part[1]), "from": numbers(part[2]), "token": numbers(part[3]),
                    "feature": numbers(part[4]), "target": numbers(part[5]), "pos": numbers(part[6]),
                    "range": numbers(part[7]), "weight": [float(x) for x in part[8].split()], "pixels": part[9].strip()})
    return got, out, err


def check_layout(b, rows, window):
    """A batch is the rows of its records, one after another: ids, features in turn, shifted labels, causal ranges."""
    at = feature = 0
    for k, r in enumerate(b["record"]):
        row, pictures = rows[r]
        picture = -1
        for i, (token, _) in enumerate(row):
            t = at + i
            picture += token is None and (i == 0 or row[i - 1][0] is not None)
            following = row[i + 1][1] if i + 1 < len(row) else IGNORE
            low = at + max(0, i - window + 1) if window else at
            if b["token"][t] != (-1 if token is None else token) or b["pos"][t] != i or \
                    b["target"][t] != (-1 if following == IGNORE else following) or \
                    b["range"][2 * t:2 * t + 2] != [low, t + 1] or (b["feature"][t] >= 0) != (token is None):
                return f"record {r}, position {i}"
        own = [x for x in b["feature"][at:at + len(row)] if x >= 0]
        if own != list(range(feature, feature + len(own))):
            return f"record {r}: features {own[:20]}"
        if b["from"][k] != at:
            return f"record {r}: from"
        at, feature = at + len(row), feature + ROWS * pictures
    return "" if b["from"][-1] == at == len(b["token"]) and feature == ROWS * b["images"] else "sizes"


def losses(out):
    """{(epoch, update): {(record, position in it): weight}} of what is learned; a stand-in for the loss of each step."""
    steps, step = [], {}
    for b in out:
        for k, r in enumerate(b["record"]):
            for t in range(b["from"][k], b["from"][k + 1]):
                if b["target"][t] >= 0:
                    key = (r, b["pos"][t], b["target"][t], len(step) if (r, b["pos"][t], b["target"][t]) in step else 0)
                    step[key] = b["weight"][t]
        if b["update"]:
            steps.append(step)
            step = {}
    return steps + [step]


def test_batches(path, model, records):
    slow = reference.Slow(model, "new")
    rows = []
    for r in records:
        ids, labels = reference.preprocess(slow, "v1", texts(r), "image" in r, 300)
        rows.append(reference.positions(ids, labels, 300, ROWS))
    for window in 0, 7:
        _, out, _ = batches(path, model=model, kind="grouped", batch=4, accum=3, epochs=2, threads=3, window=window)
        wrong = [w for b in out if (w := check_layout(b, rows, window))]
        ok(out and not wrong, f"{len(out)} batches are laid out as their records say, window {window}", wrong[:3])
    want = [b["record"] for b in out]
    lengths = [sum(len(t["value"].split()) for t in r["conversations"]) * (1 if "image" in r else -1) for r in records]
    p = subprocess.run([PROGRAM, "order", "kind=grouped", "batch=4", "accum=3", "epochs=2"], input=" ".join(map(str, lengths)),
                       capture_output=True, text=True)
    ok(want == [numbers(x) for line in p.stdout.splitlines() for x in line.split(" /")], "they come in the order's order")
    updates = [i + 1 for i, b in enumerate(out) if b["update"]]
    ok(updates == list(range(3, len(out) + 1, 3)), "an update after every 3, across epochs", updates)
    sums = [(sum(b["weight"]), b["targets"]) for b in out]
    ok(all(abs(s - 1 / 3) < 1e-6 and n for s, n in sums), "the weights of a micro-batch add up to 1/3", sums[:5])
    one = batches(path, model=model, kind="grouped", batch=4, accum=3, epochs=2, threads=0, window=window)[0]
    for threads in 1, 2, 9:
        more = batches(path, model=model, kind="grouped", batch=4, accum=3, epochs=2, threads=threads, window=window)[0]
        ok(one == more, f"{threads} threads give what none gives, bit by bit")
    return out


def any_order(path, most, packing=0, **shape):
    """The limits of more epochs than anybody goes through: no smaller than the real ones, no larger than a batch can be"""
    started = time.monotonic()
    got = batches(path, packing=packing, stop=0, **{**shape, "epochs": 10 ** 9})[0]
    limits, room = numbers(got[1]), max(packing, 300) if packing else 300 * shape["batch"]
    return all(a >= b for a, b in zip(limits, most)) and limits[1] <= room and limits[3] < limits[1] and \
        limits[0] <= shape["batch"] * (shape["accum"] if packing else 1) and time.monotonic() - started < 20


def test_packing(path, model):
    for accum, batch in (8, 1), (3, 4), (1, 4):
        shape = dict(model=model, kind="random", batch=batch, accum=accum, epochs=2, threads=2)
        got, plain, _ = batches(path, **shape)
        for packing in 300 * batch, 1, 100000:
            more, packed, _ = batches(path, packing=packing, **shape)
            a, b = losses(plain), losses(packed)
            what = f"{accum} x {batch}, packed into {packing}"
            ok(a == b, f"{what}: every token of every update weighs what it does unpacked")
            most = numbers(more[1])
            real = [max(x) for x in zip(*[(len(p["record"]), len(p["token"]), p["images"], p["targets"]) for p in packed])]
            ok(most == real, f"{what}: the limits are what the largest batches have", (most, real))
            ok(any_order(path, most, packing=packing, **shape), f"{what}: those of any order are no smaller")
            ok(max(len(p["token"]) for p in packed) <= max(packing, 300) and
               (packing == 1 or len(packed) <= len(plain)), f"{len(plain)} passes become {len(packed)}")
        most = numbers(got[1])
        real = [max(x) for x in zip(*[(len(p["record"]), len(p["token"]), p["images"], p["targets"]) for p in plain])]
        ok(most == real, f"{accum} x {batch}: so are those of unpacked ones", (most, real))
        ok(any_order(path, most, **shape), f"{accum} x {batch}: those of any order are no smaller")


def test_resume(path, model, out):
    for k in 1, 5, len(out) // 2, len(out) - 2:
        last = out[k - 1]
        got, rest, _ = batches(path, model=model, kind="grouped", batch=4, accum=3, epochs=2, threads=2, window=7,
                               epoch=last["epoch"], micro=last["micro"])
        ok(rest == out[k:], f"from batch {k} on, a new loader gives what the first one gave")


def test_bad(model, records):
    """Bad records, found before and in the middle of an epoch."""
    victim = place("victim.png")
    some = [dict(r) for r in records[:30]]
    some[7] = {**some[7], "image": "nowhere.png", "id": "lost"}
    some[11] = {**some[11], "conversations": [{"from": "human", "value": "a"}, {"from": "user", "value": "b"}], "id": "roles"}
    some[12] = {"id": "marks", "image": NAMES[0], "conversations": [
        {"from": "human", "value": "<image>a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "<image>c"},
        {"from": "gpt", "value": "d"}]}
    some[13] = {"id": "none", "conversations": []}
    some[14] = {"id": "blank", "conversations": [{"from": "human", "value": " "}, {"from": "gpt", "value": "\n"}]}
    some[15] = {"id": "nopicture", "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "b"}]}
    path = file_of(some)
    got, _, err = batches(path, model=model, batch=4, threads=2)
    ok("error: FORMAT: 6 of 30 records of" in got[0] and "--on_bad_record skip" in got[0], "bad records are an error", got)
    for word in ("record 'lost' (number 8): cannot open", "record 'roles' (number 12): turn 1 is from 'user', not from 'gpt'",
                 "record 'marks' (number 13): 2 \"<image>\" in the turns and 1 picture",
                 "record 'none' (number 14): a conversation without a turn", "record 'blank' (number 15): all turns are empty",
                 "record 'nopicture' (number 16): \"<image>\" in turn 0 and no picture"):
        ok(word in err, word, err)
    got, out, err = batches(path, model=model, batch=4, threads=2, skip=1)
    seen = [r for b in out for r in b["record"]]
    ok(seen == [i for i in range(30) if i not in (7, 11, 12, 13, 14, 15)] and got[-1] == "0" and
       "6 of 30 records are left out" in err, "or left out", (seen, err[-300:]))
    with open(os.path.join(PICTURES, NAMES[0]), "rb") as f:
        data = f.read()
    some = [dict(r) for r in records[:30]]
    some[9] = {**some[9], "image": victim, "id": "broken"}
    path = file_of(some)
    for skip in 0, 1:
        with open(victim, "wb") as f:
            f.write(data[:len(data) // 2])
        got, out, err = batches(path, model=model, batch=4, accum=2, threads=2, skip=skip)
        if skip:
            seen = [len(b["record"]) for b in out]
            ok(seen == [4, 4, 3, 4, 4, 4, 4, 2] and got[-1] == "1" and out[2]["skipped"] == 1 and
               abs(sum(out[2]["weight"]) - 0.5) < 1e-6 and "record 'broken' (number 10):" in err, "left out", (seen, err))
        else:
            ok(len(out) == 3 and "record 'broken' (number 10): " in out[-1] and victim in out[-1],
               "a broken picture in mid-epoch is an error that names it", out[-1:])
    for skip in 0, 1:
        with open(victim, "wb") as f:
            f.write(data)
        got, out, err = batches(path, model=model, batch=1, threads=3, skip=skip, remove=1, victim=victim)
        last = out[-1] if isinstance(out[-1], str) else ""
        if skip:
            ok(len(out) == 30 and not out[9]["record"] and not out[9]["token"] and got[-1] == "1",
               "a batch of one picture that has gone is empty", err[-300:])
        else:
            ok("record 'broken' (number 10): cannot open" in last and len(out) == 10, "gone since the check", last)
    got, out, _ = batches(path, model=model, batch=1, threads=3, skip=1, stop=5)
    ok(len(out) >= 4, "a loader may be closed early")


def test_several(model):
    """Several pictures a record, where the reference knows one; text with "<image>" in it; cuts."""
    turns = lambda q, a="yes": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]
    rows = [({"image": NAMES[:2], "conversations": turns("is <image> like <image>?")}, (2, 0, 0)),
            ({"image": NAMES[:1], "conversations": turns("is <image> like <image>?")}, (1, 0, 0)),
            ({"image": NAMES[:3], "conversations": turns("<image><image>")}, (2, 1, 0)),
            ({"image": NAMES[0], "conversations": turns("what?")}, (0, 1, 0)),
            ({"conversations": turns("how does <image> work in SVG?")}, (0, 0, 1)),
            ({"image": NAMES[0], "conversations": turns("a <image>", "see <image>")}, None),
            ({"image": NAMES[:2], "conversations": turns("<image><image><image>")}, None)]
    path = file_of([r for r, _ in rows])
    got, _ = program("samples", file=path, model=model, folder=PICTURES, rows=ROWS)
    for (r, want), line in zip(rows, got, strict=True):
        what = f"{r.get('image', 'no picture')}: {r['conversations'][0]['value']}"
        if want is None:
            ok(line.startswith("error: FORMAT") and '"<image>" in the turns and' in line, what, line)
        else:
            n = numbers(line.split(" / ")[2])
            ids = numbers(line.split(" / ")[0])
            ok((n[2], n[4], n[5]) == want and ids.count(IMAGE) == want[0], what, line)
    between = numbers(got[0].split(" / ")[0])
    at = [i for i, x in enumerate(between) if x == IMAGE]
    ok(len(at) == 2 and at[1] - at[0] > 3, "each stays where it is", between)
    got, _ = program("samples", file=path, model=model, folder=PICTURES, rows=ROWS, vision=0)
    ok(all(numbers(x.split(" / ")[2])[2] == 0 for x in got), "a model without eyes reads text alone", got)
    got, _ = program("check", file=path, model=model, folder=PICTURES, rows=300, max=300)
    ok(got[0].startswith("error: USAGE: model_max_length 300 is no more than the 300 positions of one picture"), got[0])
    long = [{"id": "long", "conversations": turns("why?", "because " * 1300000)},
            {"id": "mute", "conversations": turns("w " * 900)}]
    got, err = program("check", file=file_of(long), model=model, max=256, folder=PICTURES)
    note = numbers(got[0].split(" / ")[2])
    ok(note == [2, 1, 0, 0] and "2 records with answers cut by model_max_length; the first is record 'long'" in err and
       "1 record of which nothing is learned" in err, "an answer of 10 MB is cut", (got, err[-500:]))


def main():
    if not os.path.exists(PROGRAM):
        print(f"1..0 # SKIP no {PROGRAM}")
        return
    rng = random.Random(SEED)
    print(f"# seed {SEED}")
    small = keeps(SMALL)
    all_labels("small", small, rng)
    if DATA:
        all_labels("llama", os.path.join(DATA, "tokenizer", "llama.model"), rng)
    records = []
    while len(records) < 61:  # what the reference keeps whole
        r = conversation(rng, len(records), False)
        if reference.preprocess(reference.Slow(small, "new"), "v1", texts(r), "image" in r, 300)[1]:
            records.append(r)
    path = file_of(records)
    out = test_batches(path, small, records)
    test_packing(path, small)
    test_resume(path, small, out)
    test_bad(small, records)
    test_several(small)
    finish()


main()
