#!/usr/bin/python3
"""The program on an emulated GPU: `forward` against PyTorch's fixtures, and what `run` answers against the processor: greedily
and by chance, with a picture, for a folder, and with an adapter; and a few steps of training against PyTorch's.

Needs a build of its own (`make GPU=emu build/emu32/llava`) and skips without one. LLAVA_TEST_DEVICE says another device, which
then is of the build under test: cuda, hip."""
import os
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../help"))
from cli import LLAVA, PICTURE, ROOT, Ran, finish, model, ok, skip  # noqa: E402

DEVICE = os.environ.get("LLAVA_TEST_DEVICE", "emu")
PROGRAM = LLAVA if DEVICE != "emu" else os.path.join(ROOT, "build/emu32/llava")
TINY = model("llava-liuhaotian")


def forward(variant, dtype):
    """forward_test.py judges; one variant, one type."""
    p = subprocess.run([sys.executable, os.path.join(HERE, "forward_test.py"), "--llava", PROGRAM, "--device", DEVICE, "--only",
                        variant, "--dtype", dtype], stdout=subprocess.PIPE, text=True, check=False)
    bad = [line for line in p.stdout.splitlines() if not line.startswith("ok")]
    ok(p.returncode == 0, f"forward of {variant} in {dtype} is PyTorch's", "\n".join(bad))


def answers(*more, path=TINY):
    """The same question to the processor and to the device, in f32."""
    args = ["run", "--quiet", "--model-path", path, "--dtype", "f32", "--max-new-tokens", "12", *more]
    return Ran([PROGRAM, *args, "--device", "cpu"]), Ran([PROGRAM, *args, "--device", DEVICE])


def same(name, *more, path=TINY):
    host, card = answers(*more, path=path)
    ok(host.code == 0 and card.code == 0 and host.out == card.out and host.out.strip(), name, host.text + card.text)


def folder():
    """Pictures of a folder are captioned as on the processor, several at once."""
    with tempfile.TemporaryDirectory() as tmp:
        said = []
        for device in ("cpu", DEVICE):
            out = os.path.join(tmp, device)
            r = Ran([PROGRAM, "run", "--quiet", "--model-path", TINY, "--dtype", "f32", "--max-new-tokens", "6", "--query",
                     "What?", "--temperature", "0", "--image-folder", os.path.join(HERE, "pictures"), "--output", out,
                     "--device", device])
            lines = []
            if os.path.exists(out):
                with open(out, encoding="utf-8") as f:
                    lines = sorted(f.read().splitlines())
            said.append((r.code, lines, r.text))
        ok(said[0][:2] == said[1][:2] and said[0][1], "a folder of pictures", said[0][2] + said[1][2])


def training():
    """train_test.py judges; the projector, in both precisions."""
    env = {**os.environ, "LLAVA_TEST_DEVICE": DEVICE, "LLAVA_BUILD": os.path.relpath(os.path.dirname(PROGRAM), ROOT)}
    p = subprocess.run([sys.executable, os.path.join(HERE, "train_test.py"), "projector"], stdout=subprocess.PIPE, text=True,
                       check=False, env=env)
    bad = [line for line in p.stdout.splitlines() if not line.startswith("ok")]
    ok(p.returncode == 0 and "ok 8" in p.stdout, "training the projector is PyTorch's", "\n".join(bad))


def main():
    if not os.path.exists(PROGRAM):
        skip("the engine on an emulated GPU", "no build/emu32/llava")
        finish()
    for variant, dtype in (("llava-liuhaotian", "f32"), ("llava-anyres", "bf16")):
        forward(variant, dtype)
    picture = ["--image-file", PICTURE, "--query", "What is this?"]
    same("a greedy answer", *picture, "--temperature", "0")
    same("an answer by chance", *picture, "--temperature", "1.5", "--top-p", "0.9", "--seed", "5")
    same("an adapter's answer", *picture, "--temperature", "0", "--model-base", model("vicuna-base"), path=model("llava-lora"))
    folder()
    training()
    finish()


if __name__ == "__main__":
    main()
