"""What tests in Python share: TAP, running the program, safetensors files, copies of the fixture models.

The program is LLAVA_BUILD/llava (set by tests/run; build/main otherwise). A test ends with finish()."""
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
SANITIZED = os.path.basename(BUILD) == "san"  # ten times as slow: a place to leave out long repetitions
GOLDEN = os.path.join(ROOT, "tests/golden")
MODELS = os.path.join(GOLDEN, "models")
PICTURES = os.path.join(GOLDEN, "pictures")
PICTURE = os.path.join(PICTURES, "wide-37x23.png")
KINDS = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I64": "<i8", "I32": "<i4", "U8": "u1", "BF16": "<u2"}
ENV = {**os.environ, "LC_ALL": "C.UTF-8", "HF_HUB_OFFLINE": "1"}
count = failed = 0
scratch = tempfile.TemporaryDirectory(prefix="llava-test-")


def model(name):
    return os.path.join(MODELS, name)


def place(name):
    """A path in this test's own folder, which goes when the test ends."""
    return os.path.join(scratch.name, name)


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
    """The plan and the exit status. A test that tested nothing has failed."""
    print(f"1..{count}")
    sys.exit(failed > 0 or not count)


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


def run(*args, **more):
    """The program's exit status, and what it wrote to stdout and stderr."""
    r = llava(*args, **more)
    return r.code, r.out, r.err


def one_line(text):
    return text.startswith("llava: ") and text.count("\n") == 1


def config(path, name="config.json"):
    with open(os.path.join(path, name), encoding="utf-8") as f:
        return json.load(f)


def read_tensors(path):
    """{name: (type, array of raw numbers)} of a safetensors file, or of all of a folder."""
    out = {}
    if os.path.isdir(path):
        for name in sorted(n for n in os.listdir(path) if n.endswith(".safetensors")):
            out.update(read_tensors(os.path.join(path, name)))
        return out
    with open(path, "rb") as f:
        raw = f.read()
    size = struct.unpack("<Q", raw[:8])[0]
    head, body = json.loads(raw[8:8 + size]), raw[8 + size:]
    return {name: (t["dtype"], np.frombuffer(body[slice(*t["data_offsets"])], KINDS[t["dtype"]]).reshape(t["shape"]))
            for name, t in head.items() if name != "__metadata__"}


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


def read_safetensors(path):
    """The same without types: arrays by name; of BF16 the bits, as u2."""
    return {name: a for name, (_, a) in read_tensors(path).items()}


def write_safetensors(path, tensors):
    write_tensors(path, {name: (next(k for k, v in KINDS.items() if np.dtype(v) == a.dtype), a)
                         for name, a in tensors.items()})


def same(a, b):
    """Two of read_tensors, bit by bit: type, shape and numbers."""
    return a[0] == b[0] and a[1].shape == b[1].shape and a[1].tobytes() == b[1].tobytes()


def as_f32(t):
    kind, a = t
    return (a.astype(np.uint32) << 16).view(np.float32) if kind == "BF16" else a.astype(np.float32)


def forward(path, prompt, picture=None, *more):
    """Arrays of `llava forward` in f32, or None with the message."""
    out = place("forward.safetensors")
    args = ["forward", "--model-path", path, "--prompt", prompt, "--dtype", "f32", "--threads", "1", "--quiet", "--out", out]
    if picture:
        args += ["--image-file", os.path.join(PICTURES, picture)]
    rc, _, err = run(*args, *more)
    return (read_safetensors(out), "") if rc == 0 else (None, err)


def read_bytes(*path):
    with open(os.path.join(*path), "rb") as f:
        return f.read()


def history(out):
    """What a training's trainer_state.json has logged."""
    with open(os.path.join(out, "trainer_state.json"), encoding="utf-8") as f:
        return json.load(f)["log_history"]


def losses(out):
    return [line["loss"] for line in history(out) if "loss" in line]


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
