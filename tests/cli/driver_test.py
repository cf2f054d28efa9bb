#!/usr/bin/python3
"""What a build for NVIDIA's GPUs says on a machine without a card, and with a driver that is too old (a stand-in for libcuda).
Skips without build/cuda/llava, and where there is a card."""
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import ENV, ROOT, Ran, Temp, finish, ok, skip  # noqa: E402

PROGRAM = os.path.join(ROOT, "build/cuda/llava")
ASK = ["run", "--model-path", os.path.join(ROOT, "models/demo"), "--query", "Describe the picture."]
OLD = """int cuInit(unsigned f) { (void)f; return 0; }
int cuDriverGetVersion(int *v) { *v = 9020; return 0; }
int cuGetProcAddress(const char *s, void **p, int v, unsigned long long f) { (void)s, (void)v, (void)f; *p = 0; return 500; }
"""


def refused(name, said, env, *more):
    r = Ran([PROGRAM, *ASK, *more], env=env)
    ok(r.code == 1 and said in r.err and r.err.count("\n") == 1 and not r.out, name, r.text)


def main():
    if not os.path.exists(PROGRAM) or os.path.exists("/dev/nvidia0"):
        skip("drivers", "no build/cuda/llava, or a card")
        finish()
    with Temp() as t:
        refused("no driver", "no driver for cuda on this machine", ENV, "--device", "cuda")
        r = Ran([PROGRAM, "env"])
        ok(r.code == 0 and "device        none: no driver for cuda on this machine\n" in r.out, "env says so too", r.text)
        refused("no driver for the tenth card", "no driver for cuda on this machine", ENV, "--device", "cuda:9")
        source = t.file("old.c", OLD.encode())
        subprocess.run(["cc", "-shared", "-fPIC", "-o", os.path.join(t.path, "libcuda.so.1"), source], check=True)
        refused("an old driver", "the driver for cuda is version 9.2, this build needs ", {**ENV, "LD_LIBRARY_PATH": t.path},
                "--device", "cuda")
        r = Ran([PROGRAM, *ASK])
        ok(r.code == 0 and r.out.strip(), "the processor answers by itself", r.text)
    finish()


if __name__ == "__main__":
    main()
