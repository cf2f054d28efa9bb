"""What the tests of the command line share: TAP, running the program, safetensors, copies of the fixture models.

The program is LLAVA_BUILD/llava (set by tests/run; build/main otherwise)."""
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.join(ROOT, os.environ.get("LLAVA_BUILD", "build/main"))
LLAVA = os.path.join(BUILD, "llava")
GOLDEN = os.path.join(ROOT, "tests/golden")
PICTURE = os.path.join(GOLDEN, "pictures/wide-37x23.png")
KINDS = {"F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "u1", "BF16": "<u2"}
ENV = {**os.environ, "LC_ALL": "C.UTF-8", "HF_HUB_OFFLINE": "1"}
count = failed = 0


def model(name):
    return os.path.join(GOLDEN, "models", name)


def ok(good, name, why=""):
    """One line of TAP; `why` is shown when it is not good."""
    global count, failed
    count, failed = count + 1, failed + (not good)
    print(f"{'ok' if good else 'not ok'} {count} - {name}", flush=True)
    if not good:
        print("".join(f"# {line}\n" for line in str(why).splitlines()[:20]), end="", flush=True)
    return good


def skip(name, why):
    global count
    count += 1
    print(f"ok {count} - {name} # SKIP {why}", flush=True)


def finish():
    print(f"1..{count}")
    sys.exit(failed > 0)


class Ran:
    def __init__(self, args, **more):
        how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 300, "env": ENV, **more}
        if "input" not in more:
            how["stdin"] = subprocess.DEVNULL
        p = subprocess.run(args, **how)
        self.code, self.raw = p.returncode, p.stdout or b""
        self.out, self.err = self.raw.decode(errors="replace"), p.stderr.decode(errors="replace")
        self.text = f"$ {' '.join(map(repr, args))}\nexit {self.code}\n{self.out}\n{self.err}"


def llava(*args, **more):
    return Ran([LLAVA, *args], **more)


def read_safetensors(path):
    with open(path, "rb") as f:
        raw = f.read()
    size = struct.unpack("<Q", raw[:8])[0]
    head, body = json.loads(raw[8:8 + size]), raw[8 + size:]
    return {name: np.frombuffer(body[slice(*t["data_offsets"])], KINDS[t["dtype"]]).reshape(t["shape"])
            for name, t in head.items() if name != "__metadata__"}


def write_safetensors(path, tensors):
    """arrays of numpy's types by name; u2 is bf16"""
    head, body = {}, b""
    for name, a in tensors.items():
        kind = next(k for k, v in KINDS.items() if np.dtype(v) == a.dtype)
        data = np.ascontiguousarray(a).tobytes()
        head[name] = {"dtype": kind, "shape": list(a.shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + body)


class Temp:
    """A folder for the length of a test: copies of fixture models, and files."""

    def __enter__(self):
        self.path = tempfile.mkdtemp(prefix="llava-test-")
        self.n = 0
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.path, ignore_errors=True)

    def copy(self, name):
        self.n += 1
        return shutil.copytree(model(name), os.path.join(self.path, f"{self.n}-{name}"))

    def file(self, name, data):
        path = os.path.join(self.path, name)
        with open(path, "wb") as f:
            f.write(data)
        return path
