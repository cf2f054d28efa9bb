#!/usr/bin/env python3
"""Every kernel of a card under NVIDIA's compute-sanitizer: reads and writes outside of memory (memcheck), unordered accesses to
shared memory (racecheck), memory that is read before it is written (initcheck), barriers that not all reach (synccheck).

    sanitize.py [--build build/cuda] [--tool TOOL,...] [--types BF16,F32,...] [--only WORD,...] [--jobs 8] [--seconds N]
                [--logs DIR] [-- OPTIONS of compute-sanitizer]

Under each tool run, several at once: each row of tests/check/rows.h, in its own sizes and in each type; the unit tests that use
the card; an answer about a picture, also in 8 and 4 bits; four steps of training. `make GPU=cuda all tests` builds them.

Printed: a line for what has reports of ours, failed or was not over in time, the places that reports name, and a line a tool. A
report is ours if it names a line of source; the rest is of the driver and of libraries. Exit 1 if there is one of ours, or
if something was not run to its end. --seconds: what has not ended by then is given up.
"""
import argparse
import collections
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DEMO = os.path.join(ROOT, "models/demo")
PICTURE = os.path.join(DEMO, "pictures/red-apple.png")
TOOLS = ("racecheck", "memcheck", "initcheck", "synccheck")
TYPES = ("BF16", "Q8", "Q4", "F32", "F16")
LONG = ("matmul", "matmul_dx", "matmul_dw", "attn_fwd", "attn_fwd_paged", "attn_bwd", "norm_matmul", "norm_glu")
UNITS = ("choose", "code8", "gpu", "step")
OURS = re.compile(r"\bin \S+\.(cu|cuh|h):\d+")
OUT = "OUT"    # in a job's arguments: a folder of its own
PLACE = re.compile(r"\bat (?:0x[0-9a-f]+ in )?(?:void )?(\w+).*?(?:\bin (\S+:\d+))?$")
opt = argparse.Namespace()


def rows(kind):
    """the names of rows.h, in its order; those that have such a type"""
    with open(os.path.join(ROOT, "tests/check/rows.h"), encoding="utf-8") as f:
        text = f.read()
    text = text[text.index("static const struct row rows[]"):]
    found = re.findall(r'\{ (?:ROW\((\w+)\)|\.name = "(\w+)")(.*?)(?=\n    \{ (?:ROW|\.name)|\Z)', text, re.S)
    return [a or b for a, b, what in found if kind not in ("Q8", "Q4") or f".{kind.lower()} = true" in what]


def kernel_jobs():
    """what is long alone, the rest together"""
    program = os.path.join(opt.build, "tests/check/rows")
    for kind in opt.types.split(","):
        of_kind = [program, "--device", "cuda:0", "--type", kind]
        long, quick = ([r for r in rows(kind) if (r in LONG) == which] for which in (True, False))
        for row in long:
            yield f"{row} {kind}", [*of_kind, row]
        for i in range(0, len(quick), 8):
            yield f"{quick[i]} and {len(quick[i:i + 8]) - 1} more {kind}", [*of_kind, *quick[i:i + 8]]


def training(folder):
    """its arguments: six pictures and their names by heart"""
    data = os.path.join(folder, "data.json")
    names = sorted(os.listdir(os.path.join(DEMO, "pictures")))
    with open(data, "w", encoding="utf-8") as f:
        json.dump([{"id": n, "image": n, "conversations": [{"from": "human", "value": "<image>\nWhat is this?"},
                                                           {"from": "gpt", "value": n}]} for n in names], f)
    return [os.path.join(opt.build, "llava"), "train", "--model_name_or_path", DEMO, "--version", "v1", "--data_path", data,
            "--image_folder", os.path.join(DEMO, "pictures"), "--output_dir", OUT, "--device", "cuda",
            "--mm_vision_select_layer", "-2", "--mm_projector_type", "mlp2x_gelu", "--mm_use_im_patch_token", "False",
            "--model_max_length", "512", "--per_device_train_batch_size", "3", "--max_steps", "4", "--save_strategy", "no",
            "--logging_steps", "1", "--report_to", "none", "--bf16", "True"]


def program_jobs(folder):
    for unit in UNITS:
        yield f"tests/unit/{unit}", [os.path.join(opt.build, "tests/unit", unit)]
    ask = [os.path.join(opt.build, "llava"), "run", "--model-path", DEMO, "--image-file", PICTURE, "--query", "What is this?",
           "--device", "cuda", "--max-new-tokens", "8", "--quiet"]
    for name, more in (("bf16", ["--dtype", "bf16"]), ("8 bits", ["--load-8bit"]), ("4 bits", ["--load-4bit"])):
        yield f"llava run, {name}", [*ask, *more]
    yield "llava train", training(folder)
    yield "llava train, an adapter", [*training(folder), "--lora_enable", "True"]


def reports(text):
    """the tool's reports, each as its lines"""
    found = []
    for line in text.splitlines():
        if not line.startswith("========="):
            continue
        body = line[9:]
        if body.startswith("   ") and found:
            found[-1].append(body.strip())
        elif body.strip() and not re.match(r" (COMPUTE-SANITIZER|\w+ SUMMARY|LEAK SUMMARY)", body):
            found.append([body.strip()])
    return found


def places(report):
    """which kernels and lines it names"""
    named = [m for m in map(PLACE.search, report) if m]
    return " / ".join(sorted({m[1] + (" " + m[2] if m[2] else "") for m in named})) or report[0][:110]


Ran = collections.namedtuple("Ran", "tool name code s ours others")


def run(job):
    tool, name, argv = job
    start, left = time.time(), opt.end - time.time()
    if left <= 1:
        return Ran(tool, name, "not begun", 0, [], [])
    command = ["compute-sanitizer", "--tool", tool, "--show-backtrace", "no", "--print-limit", "2000", *opt.more]
    if tool in ("racecheck", "synccheck"):
        command += ["--num-cuda-barriers", "256"]
    with tempfile.TemporaryDirectory() as folder:
        argv = [os.path.join(folder, "out") if a == OUT else a for a in argv]
        try:
            p = subprocess.run([*command, *argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=left, check=False)
            code, text = p.returncode, p.stdout
        except subprocess.TimeoutExpired as e:
            code, text = "not over", e.stdout or b""
    text = text.decode(errors="replace")
    if opt.logs:
        log = tool + "-" + re.sub(r"\W+", "-", name) + ".log"
        with open(os.path.join(opt.logs, log), "w", encoding="utf-8") as f:
            f.write(text)
    found = reports(text)
    ours = [r for r in found if any(map(OURS.search, r))]
    return Ran(tool, name, code, time.time() - start, ours, [r for r in found if r not in ours])


def show(done):
    for r in done:
        if r.ours or r.code:
            print(f"  {r.tool:10} {r.name:40} {len(r.ours):5} ours, {r.s:4.0f} s, exit {r.code}")
    for which in ("ours", "others"):
        count = collections.Counter((r.tool, places(x)) for r in done for x in getattr(r, which))
        for (tool, what), n in count.most_common(40):
            print(f"  {which}: {tool}: {n} x {what}")
    for tool in opt.tool.split(","):
        mine = [r for r in done if r.tool == tool]
        print(f"{tool}: {len(mine)} runs, {sum(r.code == 0 for r in mine)} to their end with exit 0, "
              f"{sum(len(r.ours) for r in mine)} reports of ours, {sum(len(r.others) for r in mine)} of others, "
              f"{sum(r.s for r in mine):.0f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default=os.path.join(ROOT, "build/cuda"))
    parser.add_argument("--tool", default=",".join(TOOLS))
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("--only", default="", help="jobs whose name has one of these words")
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--logs", help="a folder for what each run printed")
    parser.add_argument("more", nargs="*")
    parser.parse_args(namespace=opt)
    opt.end = time.time() + opt.seconds
    if opt.logs:
        os.makedirs(opt.logs, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        jobs = [*program_jobs(folder), *kernel_jobs()]
        jobs = [j for j in jobs if not opt.only or any(w in j[0] for w in opt.only.split(","))]
        with ThreadPoolExecutor(opt.jobs) as pool:
            done = list(pool.map(run, [(tool, *job) for job in jobs for tool in opt.tool.split(",")]))
    show(done)
    sys.exit(any(r.ours or r.code for r in done) or not done)


if __name__ == "__main__":
    main()
