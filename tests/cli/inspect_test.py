#!/usr/bin/env python3
"""llava inspect: what is counted, what binds, what is missing, memory, --check, --tensors, --json."""
import json
import os
import shutil
import sys

import numpy as np
import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import LLAVA, MODELS, finish, model, ok, one_line, place, read_tensors, run, write_tensors

WHOLE = ["vicuna-base", "llama-tied", "llama-llama3", "llava-liuhaotian", "llava-self-trained", "llava-anyres",
         "llava-mistral",
         "llava-hf-old", "llava-transformers5"]


def report(*args):
    rc, out, err = run("inspect", *args, "--json")
    return rc, json.loads(out) if out else None, err


def tensors_of(path):
    """{name: (count, bytes)} over all files, by numpy and torch."""
    out = {}
    for d in [path] + [os.path.join(path, n) for n in ("clip",) if os.path.isdir(os.path.join(path, n))]:
        for n in sorted(os.listdir(d)):
            if n.endswith(".safetensors"):
                for k, (_, a) in read_tensors(os.path.join(d, n)).items():
                    out[k] = (a.size, a.nbytes)
            elif n.endswith(".bin"):
                for k, a in torch.load(os.path.join(d, n)).items():
                    out[k] = (a.numel(), a.numel() * a.element_size())
    return out


def whole_models():
    for name in WHOLE:
        rc, r, err = report(model(name), "--tensors")
        if not ok(rc == 0 and err == "" and r["missing"] == [] and r["unbound"] == [], f"{name}: all binds",
                  err or r):
            continue
        all_of = tensors_of(model(name))
        used = {t["name"]: t for t in r["tensors"] if t["kind"] == "bound"}
        parts = r["parts"].values()
        if name != "llava-anyres" and name != "llava-mistral":  # their tower lies in a folder beside
            ok(set(all_of) == {t["name"] for t in r["tensors"]} and set(all_of) - set(used) == set(r["ignored"]),
               f"{name}: every tensor of the files is bound or ignored")
            ok(sum(p["parameters"] for p in parts) == sum(all_of[k][0] for k in used) and
               sum(p["bytes"] for p in parts) == sum(all_of[k][1] for k in used), f"{name}: parameters and bytes")
        m, c = r["memory"], r["config"]["language"]
        ok(m["F32"]["cache_per_position"] == 2 * 4 * c["layers"] * c["kv_heads"] * c["head_size"] and
           m["F32"]["cache"] == c["context"] * m["F32"]["cache_per_position"] and m["BF16"]["cache"] * 2 ==
           m["F32"]["cache"] and
           all(v["total"] == v["weights_mapped"] + v["weights_converted"] + v["cache"] + v["activations"]
               for v in m.values()) and
           m["F32"]["weights_mapped"] == sum(p["bytes"] for p in parts), f"{name}: memory", m)
        rc, text, err = run("inspect", model(name), "--check")
        ok(rc == 0 and "are finite" in text and max(len(line) for line in text.splitlines()
                                                    if MODELS not in line) <= 100,
           f"{name}: the table is at most 100 wide")
    rc, r, _ = report(model("llava-liuhaotian"))
    v = r["config"]["vision_tower"]
    ok(not v["inside"] and v["folder"].endswith("clip") and v["patches"] == 4 and
       r["config"]["image_aspect_ratio"] == "pad" and
       r["config"]["layout"] == "llava" and r["format"] == "torch .bin" and
       all("inv_freq" in n or "position_ids" in n for n in r["ignored"]) and r["ignored"],
       "tower, layout, format, ignored")
    ok([report(model(n))[1]["config"]["layout"] for n in ("llava-hf-old", "llava-transformers5", "vicuna-base")] ==
       ["hf", "hf5", "llama"], "layouts")


def parts_of_models():
    rc, r, _ = report(model("llava-lora"))
    ok(rc == 0 and r["kind"] == "adapter" and "vicuna-base" in r["adapter"]["base"] and
       r["adapter"]["weights"] == 14,
       "an adapter alone says which base it wants")
    rc, text, _ = run("inspect", model("llava-lora"))
    ok("trained on 'vicuna-base'" in text and "rank 4, scale 2" in text, "in the table too")
    rc, r, _ = report(model("llava-lora"), "--model-base", model("vicuna-base"), "--vision-tower",
                      model("clip-tiny"))
    ok(rc == 0 and r["parts"]["projector"]["tensors"] == 4 and r["memory"]["F16"]["weights_converted"] > 0 and
       not r["missing"],
       "an adapter with its base", r["missing"])
    rc, r, _ = report(model("llava-projector-mlp"))
    ok(rc == 0 and r["kind"] == "projector", "a projector alone")
    rc, r, _ = report(model("llava-projector-mlp"), "--model-base", model("vicuna-base"), "--vision-tower",
                      model("clip-tiny"))
    ok(rc == 0 and r["parts"]["projector"]["tensors"] == 4 and "memory" in r, "a projector with its base")


def says(err, *words):
    """Is stderr the one line about the first finding?"""
    return one_line(err) and all(w in err for w in words)


def broken(name, change, source="llava-hf-old"):
    out = place(name)
    shutil.copytree(model(source), out)
    change(out)
    return out


def edit(key, value):
    def change(path):
        c = json.load(open(os.path.join(path, "config.json")))
        (c["text_config"] if "text_config" in c else c)[key] = value
        json.dump(c, open(os.path.join(path, "config.json"), "w"))
    return change


def missing():
    def drop(file):
        return lambda path: os.remove(os.path.join(path, file))

    rc, r, err = report(broken("no-config", drop("config.json")))
    ok(rc == 1 and says(err, "config.json") and any("config.json" in m for m in r["missing"]) and
       len(r["unbound"]) > 50,
       "no config.json: the tensors are still listed", err)
    rc, r, err = report(broken("no-shard", drop("model-00002-of-00002.safetensors")))
    ok(rc == 1 and r["config"]["language"]["layers"] == 2 and any(m.startswith("missing:") and "00002" in m
                                                                  for m in r["missing"]),
       "a shard is gone: the sizes are still there", r)
    rc, r, err = report(broken("no-tok", drop("tokenizer.model")))
    ok(rc == 1 and any("tokenizer" in m for m in r["missing"]) and "memory" in r, "no tokenizer")
    rc, r, err = report(broken("no-tower", lambda p: shutil.rmtree(os.path.join(p, "clip")), "llava-liuhaotian"))
    ok(rc == 1 and any("tower" in m for m in r["missing"]) and r["parts"]["language"]["tensors"] == 21,
       "no tower", r)
    rc, r, err = report(broken("more-layers", edit("num_hidden_layers", 3)))
    ok(rc == 1 and any("layers.2" in m for m in r["missing"]) and "memory" not in r,
       "a layer more than the files have")
    rc, r, err = report(broken("less-layers", edit("num_hidden_layers", 1)))
    ok(rc == 0 and len(r["unbound"]) == 9 and all("layers.1." in n for n in r["unbound"]),
       "a layer less: bound to nothing")
    rc, text, err = run("inspect", place("less-layers"))
    ok("bound to nothing" in text and "layers.1.mlp.up_proj.weight" in text, "and named in the table")
    rc, r, err = report(broken("wrong-shape", edit("intermediate_size", 63)))
    ok(rc == 1 and any(m.startswith("wrong:") and "model wants" in m for m in r["missing"]),
       "a shape that does not fit")
    rc, r, err = report(broken("bad-json", lambda p: open(os.path.join(p, "config.json"), "w").write("{")))
    ok(rc == 1 and any("config.json" in m for m in r["missing"]), "config.json is no JSON")
    rc, out, err = run("inspect", place("nowhere"))
    ok(rc == 1 and one_line(err) and out == "", "no such folder", err)
    os.mkdir(place("void"))
    rc, out, err = run("inspect", place("void"))
    ok(rc == 1 and out.count("missing:") == 3 and says(err, "llava: missing: ", "config.json"), "an empty folder",
       out + err)
    first = [("more-layers", "llava: missing: tensor 'model.layers.2."), ("wrong-shape", "llava: wrong: cannot bind '"),
             ("no-tower", "llava: missing: no vision tower '"), ("no-tok", "llava: missing: "),
             ("bad-json", "llava: wrong: ")]
    for name, line in first:
        rc, out, err = run("inspect", place(name))
        ok(rc == 1 and one_line(err) and err.startswith(line) and err[len("llava: "):] in out and "parts" in out,
           f"{name}: the table, and its first finding on stderr", out + err)
    for args in ([], ["--frob"], ["a", "b"]):
        ok(run("inspect", *args)[0] == 2, f"usage: {args}")
    rc, text, _ = run("inspect", "--help")
    ok(rc == 0 and "Examples:" in text and "Exit status" in text, "--help")


def check():
    source = read_tensors(model("llava-transformers5"))
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    for kind, bits, at in (("nan", 0x7fc1, 7), ("inf", 0xff80, 100)):
        t = {k: (v[0], v[1].copy()) for k, v in source.items()}
        t[name][1].reshape(-1)[at] = bits
        t[name][1].reshape(-1)[at + 5] = bits
        path = broken(f"with-{kind}", lambda p: write_tensors(os.path.join(p, "model.safetensors"), t),
                      "llava-transformers5")
        rc, r, err = report(path, "--check")
        f = r["not_finite"]
        ok(says(err, "llava: not finite: '" + name, f"at element {at}"), f"--check: {kind} on stderr", err)
        ok(rc == 1 and len(f) == 1 and (f[0]["name"], f[0]["value"], f[0]["element"]) == (name, kind, at),
           f"--check: {kind}", f)
        rc, text, _ = run("inspect", path, "--check")
        ok(rc == 1 and f"'{name}'" in text and f"element {at}" in text, f"--check: {kind} in the table",
           text[-300:])
        ok(run("inspect", path)[0] == 0, "which only --check sees")
    for kind, values in (("F16", np.array([1, np.inf], "<f2")), ("F32", np.array([np.nan, 1], "<f4")),
                         ("F64", np.array([1, -np.inf]))):
        path = place("few-" + kind)
        os.mkdir(path)
        write_tensors(os.path.join(path, "model.safetensors"), {"x": (kind, values)})
        rc, r, _ = report(path, "--check")
        ok([f["name"] for f in r["not_finite"]] == ["x"], f"--check: {kind}")


if not os.path.exists(LLAVA):
    print("1..0 # SKIP no program at", LLAVA)
else:
    whole_models()
    parts_of_models()
    missing()
    check()
    finish()
