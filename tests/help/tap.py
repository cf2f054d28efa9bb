"""What the tests of commands share: running the program, safetensors files, and TAP lines."""
import json
import os
import struct
import subprocess
import sys
import tempfile

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LLAVA = os.path.join(ROOT, os.environ.get("LLAVA_BUILD", "build"), "llava")
MODELS = os.path.join(ROOT, "tests", "golden", "models")
PICTURES = os.path.join(ROOT, "tests", "golden", "pictures")
KINDS = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I64": "<i8", "I32": "<i4", "U8": "u1", "BF16": "<u2"}
count, failed = 0, 0
scratch = tempfile.TemporaryDirectory(prefix="llava-cli-")


def ok(good, name, why=""):
    global count, failed
    count, failed = count + 1, failed + (not good)
    print(f"{'ok' if good else 'not ok'} {count} - {name}", flush=True)
    if not good and why:
        print("\n".join("# " + line for line in str(why).splitlines()), flush=True)
    return good


def done():
    print(f"1..{count}")
    sys.exit(1 if failed else 0)


def place(name):
    """A path in this test's own folder."""
    return os.path.join(scratch.name, name)


def run(*args, **options):
    """The program with these arguments: rc, stdout, stderr."""
    p = subprocess.run([LLAVA, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120, **options)
    return p.returncode, p.stdout.decode(), p.stderr.decode()


def one_line(text):
    return text.startswith("llava: ") and text.count("\n") == 1


def read_tensors(path):
    """{name: (type, array of raw numbers)} of a file, or of all safetensors files of a folder."""
    out = {}
    if os.path.isdir(path):
        for name in sorted(os.listdir(path)):
            if name.endswith(".safetensors"):
                out.update(read_tensors(os.path.join(path, name)))
        return out
    with open(path, "rb") as f:
        raw = f.read()
    size = struct.unpack("<Q", raw[:8])[0]
    body = raw[8 + size:]
    for name, t in json.loads(raw[8:8 + size]).items():
        if name != "__metadata__":
            out[name] = (t["dtype"], np.frombuffer(body[slice(*t["data_offsets"])],
                                                   KINDS[t["dtype"]]).reshape(t["shape"]))
    return out


def write_tensors(path, tensors):
    head, body = {}, b""
    for name, (kind, a) in tensors.items():
        data = np.ascontiguousarray(a).tobytes()
        head[name] = {"dtype": kind, "shape": list(a.shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + body)


def same(a, b):
    """Bit by bit: type, shape and numbers."""
    return a[0] == b[0] and a[1].shape == b[1].shape and a[1].tobytes() == b[1].tobytes()


def as_f32(t):
    kind, a = t
    return (a.astype(np.uint32) << 16).view(np.float32) if kind == "BF16" else a.astype(np.float32)


def config(path, name="config.json"):
    with open(os.path.join(path, name)) as f:
        return json.load(f)


def forward(path, prompt, picture=None, *more):
    """Arrays of `llava forward` in f32, or None with the message."""
    out = place("forward.safetensors")
    args = ["forward", "--model-path", path, "--prompt", prompt, "--dtype", "f32", "--threads", "1", "--quiet",
            "--out", out]
    if picture:
        args += ["--image-file", os.path.join(PICTURES, picture)]
    rc, _, err = run(*args, *more)
    return ({k: v[1] for k, v in read_tensors(out).items()}, "") if rc == 0 else (None, err)
