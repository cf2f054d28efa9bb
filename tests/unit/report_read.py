"""What train/report writes, read by other means: event files as TensorBoard reads them (TFRecord framing, CRC-32C bit by
bit, protobuf by field numbers of event.proto), and log.jsonl. The run is tests/unit/report.c's."""
import glob
import json
import os
import struct
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import BUILD, finish, ok  # noqa: E402


def crc32c(data):
    c = 0xffffffff
    for byte in data:
        c ^= byte
        for _ in range(8):
            c = c >> 1 ^ (0x82f63b78 if c & 1 else 0)
    return c ^ 0xffffffff


def masked(data):
    c = crc32c(data)
    return ((c >> 15 | c << 17) + 0xa282ead8) & 0xffffffff


def records(raw):
    at = 0
    while at < len(raw):
        n, = struct.unpack_from("<Q", raw, at)
        head, = struct.unpack_from("<I", raw, at + 8)
        assert head == masked(raw[at:at + 8]), "checksum of a length"
        data = raw[at + 12:at + 12 + n]
        tail, = struct.unpack_from("<I", raw, at + 12 + n)
        assert len(data) == n and tail == masked(data), "checksum of a record"
        yield data
        at += 16 + n


def varint(b, at):
    v = shift = 0
    while True:
        v |= (b[at] & 127) << shift
        shift += 7
        at += 1
        if b[at - 1] < 128:
            return v, at


def fields(b):
    """[(number, value)] of a protobuf message"""
    at, out = 0, []
    while at < len(b):
        key, at = varint(b, at)
        wire = key & 7
        if wire == 0:
            v, at = varint(b, at)
        elif wire == 1:
            v, at = struct.unpack_from("<d", b, at)[0], at + 8
        elif wire == 5:
            v, at = struct.unpack_from("<f", b, at)[0], at + 4
        else:
            assert wire == 2, f"wire type {wire}"
            n, at = varint(b, at)
            v, at = b[at:at + n], at + n
        out.append((key >> 3, v))
    return out


def event(data):
    """{"step", "wall_time", "version", "restart", "scalars": {tag: value}, "texts": {tag: text}}"""
    out = {"step": 0, "scalars": {}, "texts": {}}
    for number, v in fields(data):
        if number == 1:
            out["wall_time"] = v
        elif number == 2:
            out["step"] = v
        elif number == 3:
            out["version"] = v.decode()
        elif number == 7:
            out["restart"] = dict(fields(v)).get(1) == 1
        elif number == 5:
            for _, value in fields(v):
                f = dict(fields(value))
                if 2 in f:
                    out["scalars"][f[1].decode()] = f[2]
                else:
                    tensor, plugin = dict(fields(f[8])), dict(fields(dict(fields(f[9]))[1]))
                    assert tensor[1] == 7 and plugin[1] == b"text"
                    out["texts"][f[1].decode()] = tensor[8].decode()
    return out


def seen(files):
    """step -> scalars as TensorBoard shows them: a restart purges what is from its step on"""
    out = {}
    for path in files:
        with open(path, "rb") as f:
            for e in map(event, records(f.read())):
                if e.get("restart"):
                    out = {k: v for k, v in out.items() if k < e["step"]}
                if e["scalars"]:
                    out.setdefault(e["step"], {}).update(e["scalars"])
    return out


with tempfile.TemporaryDirectory() as tmp:
    run = subprocess.run([os.path.join(BUILD, "tests/unit/report"), tmp], stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, timeout=60)
    text = run.stderr.decode()
    ok(run.returncode == 0, "a run is written and resumed", text)
    dirs = glob.glob(os.path.join(tmp, "runs/*"))
    files = sorted(glob.glob(os.path.join(tmp, "runs/*/events.out.tfevents.*")))
    ok(len(dirs) == 1 and len(files) == 2, "both starts share a folder", files)
    ok("wandb sync --sync-tensorboard '" + (dirs + [""])[0] in text, "the line for wandb", text)
    first = [event(r) for r in records(open(files[0], "rb").read())]
    ok(first[0].get("version") == "brain.Event:2" and first[0]["wall_time"] > 1e9, "the file says its version first")
    ok('"learning_rate": 0.001' in first[1]["texts"]["args/text_summary"], "arguments as a text", first[1])
    ok([e["step"] for e in first[2:]] == [1, 2, 3, 3] and
       abs(first[2]["scalars"]["train/loss"] - 8) < 1e-6 and
       abs(first[4]["scalars"]["train/learning_rate"] - 1e-3 / 3) < 1e-9, "scalars by step", first)
    ok(first[5]["scalars"].get("eval/loss") == 0.25 and "eval/runtime" in first[5]["scalars"], "evaluation by its tag")
    after = seen(files)
    ok(sorted(after) == [1, 2, 3, 4, 5, 6] and "eval/loss" not in after[3] and "eval/loss" in after[6],
       "what came after the step that the run is resumed at is purged", after)
    lines = [json.loads(x) for x in open(os.path.join(tmp, "log.jsonl"))]
    ok([x["step"] for x in lines] == [1, 2, 3, 4, 5, 6, 6], "log.jsonl holds each step once", lines)
    ok(lines[0] == {"epoch": 0.1, "loss": 8.0, "learning_rate": 0.001, "step": 1}, "a line", lines[0])

    raw = open(files[0], "rb").read()
    broken = bytearray(raw)
    broken[20] ^= 1
    try:
        list(records(bytes(broken)))
        ok(False, "this reader sees a flipped bit")
    except AssertionError:
        ok(True, "this reader sees a flipped bit")
finish()
