#!/usr/bin/env python3
"""8 and 4 bits: llava quantize and --load-8bit, --load-4bit give the same numbers; how far these are from 16 bits, beside
NF4 with double quantisation (arXiv:2305.14314) as bitsandbytes has it; answers of the demo model; and what fails.
LLAVA_TEST_DEVICE says where the logits are computed: cpu, cuda, hip."""
import fcntl
import json
import os
import re
import shutil
import sys

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from nf4 import nf4_dq
from cli import GOLDEN, ROOT, config, finish, model, ok, one_line, place, read_tensors, run, write_tensors

DEMO = os.path.join(ROOT, "models/demo")
DEVICE = os.environ.get("LLAVA_TEST_DEVICE", "cpu")
ASK = ["What is this?", "Is this an animal?", "What group does it belong to?"]


def pictures():
    names = sorted(os.listdir(os.path.join(DEMO, "pictures")))
    return [os.path.join(DEMO, "pictures", n) for n in names if n.endswith(".png")][:5]


def logits(path, picture, ask, *more):
    out = place("f.safetensors")
    rc, _, err = run("forward", "--model-path", path, "--image-file", picture, "--prompt",
                     f"USER: <image>\n{ask} ASSISTANT:", "--quiet", "--device", DEVICE, "--out", out, *more)
    return read_tensors(out)["logits"][1].astype(np.float64) if rc == 0 else err


def divergence(a, b):
    """Mean over positions of KL(softmax(a) || softmax(b))."""
    def log_softmax(x):
        x = x - x.max(1, keepdims=True)
        return x - np.log(np.exp(x).sum(1, keepdims=True))
    p, q = log_softmax(a), log_softmax(b)
    return float((np.exp(p) * (p - q)).sum(1).mean())


def nf4_model():
    """The demo with the language model's linears as NF4 has them, in f32."""
    out = place("nf4")
    shutil.copytree(DEMO, out, ignore=shutil.ignore_patterns("pictures*", "expected*"))
    path, tensors = os.path.join(out, "model.safetensors"), {}
    for name, (kind, a) in read_tensors(DEMO).items():
        if re.search(r"language_model.*layers.*_proj\.weight", name):
            kind, a = "F32", nf4_dq((a.astype(np.uint32) << 16).view(np.float32))
        tensors[name] = (kind, a)
    write_tensors(path, tensors)
    return out


def quantised(bits):
    out = place(f"q{bits}")
    rc, _, err = run("quantize", "--model-path", DEMO, "--bits", str(bits), "--output", out)
    said = config(out).get("quantization_config") if rc == 0 else None
    ok(rc == 0 and err == "" and said == {"quant_method": "llava.c", "bits": bits, "group_size": 64},
       f"quantize to {bits} bits", f"{rc} {err} {said}")
    return out


def test_numbers(folders):
    picture = pictures()[0]
    for bits, path in folders.items():
        for exact in ([], ["--dtype", "f32"]):
            a, b = logits(path, picture, ASK[0], *exact), logits(DEMO, picture, ASK[0], f"--load-{bits}bit", *exact)
            good = not isinstance(a, str) and not isinstance(b, str) and np.array_equal(a, b)
            ok(good, f"{bits} bits {exact[-1:]}: the folder and --load-{bits}bit give the same bits", f"{a} {b}")
    a, b = logits(folders[4], picture, ASK[0]), logits(folders[4], picture, ASK[0], "--threads", "1")
    ok(np.array_equal(a, b), "4 bits: the same with one thread")


def test_quality(folders):
    nf4 = nf4_model()
    kl = {"nf4": [], "4": [], "8": [], "kv": []}
    for picture in pictures():
        for ask in ASK:
            want = logits(DEMO, picture, ask, "--dtype", "f32")
            for name, got in (("nf4", logits(nf4, picture, ask, "--dtype", "f32")),
                              ("4", logits(folders[4], picture, ask)),
                              ("8", logits(folders[8], picture, ask)),
                              ("kv", logits(DEMO, picture, ask, "--kv-dtype", "q8"))):
                kl[name].append(divergence(want, got))
    mean = {k: float(np.mean(v)) for k, v in kl.items()}
    print("# KL to f32: " + ", ".join(f"{k} {v:.3g}" for k, v in mean.items()))
    ok(mean["4"] <= mean["nf4"], "4 bits diverge no more than NF4 with double quantisation", mean)
    ok(mean["8"] <= mean["4"] / 5, "8 bits diverge five times less than 4", mean)
    ok(0 < mean["kv"] <= mean["8"], "a cache in 8 bits diverges less than weights in 8", mean)


def test_faults(folders):
    def fails(name, *args, code=1):
        rc, out, err = run(*args)
        ok(rc == code and (code == 2 or one_line(err)), name, f"{rc} {err}")
        return err
    ask = ["--query", "hi", "--max-new-tokens", "1", "--device", "cpu"]
    fails("both", "run", "--model-path", DEMO, "--load-8bit", "--load-4bit", *ask)
    fails("8 of 4", "run", "--model-path", folders[4], "--load-8bit", *ask)
    fails("quantize twice", "quantize", "--model-path", folders[4], "--bits", "4", "--output", place("x"))
    fails("convert", "convert", "--model-path", folders[8], "--to", "llava", "--output", place("x"))
    fails("bits", "quantize", "--model-path", DEMO, "--bits", "5", "--output", place("x"), code=2)
    fails("no bits", "quantize", "--model-path", DEMO, "--output", place("x"), code=2)
    os.mkdir(place("x.writing"))
    fd = os.open(place("x.writing"), os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    err = fails("two runs write one folder", "quantize", "--model-path", DEMO, "--bits", "4", "--output", place("x"))
    ok("another run is writing" in err and os.path.exists(place("x.writing")), "the first goes on", err)
    os.close(fd)
    os.rmdir(place("x.writing"))
    fails("not empty", "quantize", "--model-path", DEMO, "--bits", "4", "--output", folders[4])
    ok(not os.path.exists(place("x")), "nothing was written")
    bad = place("bad")
    shutil.copytree(folders[4], bad)
    text = open(os.path.join(bad, "config.json")).read()
    for was, now in (('"group_size": 64', '"group_size": 128'), ('"bits": 4', '"bits": 3'), ('"bits": 4', '"bits": 4294967300'),
                     ("llava.c", "bitsandbytes")):
        with open(os.path.join(bad, "config.json"), "w") as f:
            f.write(text.replace(was, now))
        err = fails(f"config {now}", "run", "--model-path", bad, *ask)
        ok("config.json" in err, "names the file", err)
    tensors = read_tensors(folders[4])
    name = next(n for n in tensors if re.search(r"language_model.*q_proj.weight", n))
    with open(os.path.join(bad, "config.json"), "w") as f:
        f.write(text.replace('"bits": 4', '"bits": 8'))
    for args in (["run", "--model-path", bad, *ask], ["inspect", bad]):
        err = fails("other bits than config.json says", *args)
        ok(name in err and "in 4 bits already, not 8" in err, f"{args[0]} says which", err)
    with open(os.path.join(bad, "config.json"), "w") as f:
        f.write(text)
    path = os.path.join(bad, "model.safetensors")
    write_tensors(path, {**tensors, name: ("U8", tensors[name][1][:, :-32])})
    err = fails("rows too short", "run", "--model-path", bad, *ask)
    ok(name in err and "in groups of 64" in err, "names the tensor", err)
    rc, out, err = run("inspect", bad)
    ok(rc == 1 and name in err, "inspect finds it too", err)
    scales = tensors[name][1].copy()
    scales[3, 128:136] = 255  # NaN in f16
    write_tensors(path, {**tensors, name: ("U8", scales)})
    err = fails("a scale that is NaN", "run", "--model-path", bad, *ask)
    ok("NaN" in err, "says so", err)
    rc, out, err = run("inspect", bad, "--check")
    ok(rc == 1 and one_line(err) and f"'{name}'" in err and f"NaN at element {3 * 256}" in err, "inspect --check finds it", err)
    write_tensors(path, {**tensors, name: read_tensors(DEMO)[name]})
    err = fails("a linear that is not quantised", "run", "--model-path", bad, *ask)
    ok(name in err and "is BF16, but its config.json says" in err, "says so", err)
    nan = place("nan")
    shutil.copytree(DEMO, nan, ignore=shutil.ignore_patterns("pictures*", "expected*"))
    tensors = read_tensors(DEMO)
    a = tensors[name][1].copy()
    a[5, 5] = 0x7fc0
    write_tensors(os.path.join(nan, "model.safetensors"), {**tensors, name: ("BF16", a)})
    err = fails("a weight that is NaN", "quantize", "--model-path", nan, "--bits", "4", "--output", place("y"))
    ok(name in err and not os.path.exists(place("y")) and not os.path.exists(place("y.writing")), "nothing is left", err)
    for bits in "84":
        err = fails(f"a weight that becomes one of {bits} bits", "run", "--model-path", nan, f"--load-{bits}bit", *ask)
        ok("holds NaN at element" in err and name.split(".layers")[1] in err, "says where", err)


def test_adapters():
    """What an adapter's config.json says of the base that it was trained over is nothing about the base that it gets."""
    base, tower, four = model("vicuna-base"), model("clip-tiny"), place("base4")
    rc, _, err = run("quantize", "--model-path", base, "--bits", "4", "--output", four)
    ok(rc == 0, "quantize a language model", err)
    rc, _, err = run("train", "--model_name_or_path", four, "--output_dir", place("llava-lora"), "--lora_enable", "True",
                     "--lora_r", "4", "--mm_use_im_patch_token", "False", "--vision_tower", tower,
                     "--mm_projector_type", "mlp2x_gelu", "--max_steps", "1",
                     "--image_folder", os.path.join(GOLDEN, "pictures"), "--report_to", "none", "--version", "v1",
                     "--data_path", os.path.join(GOLDEN, "training/full.json"))
    kept = config(place("llava-lora")) if rc == 0 else {}
    ok(rc == 0 and kept and "quantization_config" not in kept, "adapters over 4 bits say nothing of them", f"{err} {kept}")
    for said in ({"quant_method": "llava.c", "bits": 4, "group_size": 64}, {"quant_method": "bitsandbytes"}):
        with open(os.path.join(place("llava-lora"), "config.json"), "w") as f:
            json.dump({**kept, "quantization_config": said}, f)
        out = place(f"merged {said['quant_method']}")
        rc, _, err = run("merge", "--model-path", place("llava-lora"), "--model-base", base, "--save-model-path", out)
        ok(rc == 0 and "quantization_config" not in config(out), f"{said['quant_method']}: merged into other weights", err)
        with open(os.path.join(out, "config.json")) as f:
            said = {**json.load(f), "quantization_config": said}
    with open(os.path.join(out, "config.json"), "w") as f:  # as LLaVA's merge_lora_weights.py leaves it
        json.dump(said, f)
    rc, text, err = run("run", "--model-path", out, "--query", "hi", "--max-new-tokens", "1", "--device", "cpu", "--quiet")
    ok(rc == 0 and one_line(err) and "says that the weights are quantised; they are F16" in err, "what they left is read", err)
    rc, out, err = run("inspect", place("llava-lora"), "--model-base", base, "--json")
    ok(rc == 0 and not one_line(err), "and inspected over them", err)
    rc, _, err = run("merge", "--model-path", place("llava-lora"), "--model-base", four, "--save-model-path", place("z"))
    ok(rc == 1 and one_line(err) and f"'{four}' is quantised" in err, "which base is quantised is said", err)


def main():
    folders = {bits: quantised(bits) for bits in (8, 4)}
    rc, out, _ = run("inspect", folders[4])
    ok(rc == 0 and "Q8 Q4" in out, "inspect says the types", out)
    c = config(folders[4])
    c = c.get("text_config", c)
    heads = c.get("num_key_value_heads", c["num_attention_heads"])
    row = heads * (c["hidden_size"] // c["num_attention_heads"])
    want = 2 * c["num_hidden_layers"] * -(-(row + 2 * -(-row // 64)) // 32) * 32
    rc, out, _ = run("inspect", folders[4], "--json")
    kinds = {k: m["cache_per_position"] for k, m in json.loads(out)["memory"].items()} if rc == 0 else {}
    ok(kinds.get("BF16") == want and kinds.get("F32") == 2 * c["num_hidden_layers"] * row * 4,
       "inspect counts the cache in 8 bits, but in f32 where that is asked for", f"{kinds} {want}")
    rc, out, err = run("inspect", DEMO, "--json")
    plan = json.loads(out)["memory"] if rc == 0 else {}
    for bits, path in folders.items():
        parts = json.loads(run("inspect", path, "--json")[1])["parts"]
        m = plan.get(f"Q{bits}", {})
        ok(m and m["weights_mapped"] + m["weights_converted"] == sum(p["bytes"] for p in parts.values()) and
           m["cache_per_position"] == want, f"inspect says what {bits} bits would take", f"{err} {m} {parts}")
    ok("Q4" not in kinds, "but not of a folder that is in 4 already", kinds)
    test_numbers(folders)
    test_quality(folders)
    test_faults(folders)
    test_adapters()
    finish()


main()
