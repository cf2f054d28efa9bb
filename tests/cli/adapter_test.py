#!/usr/bin/python3
"""Adapters as PEFT may write them: patterns of ranks and scales, whole tensors among the matrices (modules_to_save), and
kinds whose sum is another one, which are refused."""
import json
import os
import re
import sys

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import PICTURE, Temp, finish, llava, model, ok, read_safetensors, write_safetensors  # noqa: E402

BASE, R, ALPHA = "vicuna-base", 4, 8
TOWER = ["--vision-tower", model("clip-tiny")]
FILE = "adapter_model.safetensors"


def change(folder, tensors=None, **config):
    path = os.path.join(folder, "adapter_config.json")
    with open(path, encoding="utf-8") as f:
        now = json.load(f)
    with open(path, "w", encoding="utf-8") as f:
        json.dump({**now, **config}, f)
    if tensors:
        path = os.path.join(folder, FILE)
        write_safetensors(path, {**read_safetensors(path), **tensors})
    return folder


def merge(tmp, folder):
    tmp.n += 1
    out = os.path.join(tmp.path, f"{tmp.n}-merged")
    ran = llava("merge", "--model-path", folder, "--model-base", model(BASE), "--save-model-path", out, "--dtype", "f32",
                "--quiet")
    return ran, read_safetensors(os.path.join(out, "model.safetensors")) if ran.code == 0 else None


def expected(patterns, module):
    """as peft's get_pattern_key chooses"""
    return next((v for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", module)), ALPHA)


PATTERNS = [
    {"q_proj": 32},
    {"layers.0.mlp.up_proj": 2, "up_proj": 64},
    {"roj": 64},
    {r"layers\.[01]\.mlp\..*_proj": 2, "q_proj": 64},
    {r"^model\.layers\.\d+\.self_attn\.(k|v)_proj": 32},
    {r".*self_attn.*": 2, "q_proj": 64},
    {r"(?:q|k)_proj": 32},
    {r"layers\.\d{1,2}\.self_attn\.[\w]+": 32},
    {r"layers\.[\d]\.(self_attn|mlp)\.(?:up|o)_proj": 2},
    {r"model.*": 2},
    {r"layers\.\d+?\.(self_attn\.)+[qk]_proj": 32},
]


def scales(lora, plain, got):
    """{module: by what B A was multiplied before it was added}"""
    out = {}
    for stem in sorted(k[:-len(".lora_A.weight")] for k in lora if k.endswith(".lora_A.weight")):
        name = stem[len("base_model.model."):]
        product = lora[stem + ".lora_B.weight"].astype(np.float64) @ lora[stem + ".lora_A.weight"].astype(np.float64)
        delta = got[name + ".weight"].astype(np.float64) - plain[name + ".weight"]
        out[name] = (delta * product).sum() / (product * product).sum()
    return out


def patterns(tmp):
    _, plain = merge(tmp, change(tmp.copy("llava-lora"), lora_alpha=0))
    lora = read_safetensors(os.path.join(model("llava-lora"), FILE))
    ran, got = merge(tmp, change(tmp.copy("llava-lora"), use_rslora=True))
    ok(got is not None and all(abs(s / (ALPHA / R ** 0.5) - 1) < 1e-3 for s in scales(lora, plain, got).values()),
       "rank-stabilised: alpha / sqrt(r)", ran.text)
    for one in PATTERNS:
        ran, got = merge(tmp, change(tmp.copy("llava-lora"), alpha_pattern=one))
        if not ok(got is not None, f"{one}: is understood", ran.text):
            continue
        worst, seen = 0, set()
        for name, scale in scales(lora, plain, got).items():
            want = expected(one, name) / R
            seen.add(want)
            worst = max(worst, abs(scale - want) / want)
        ok(worst < 1e-3 and (len(seen) > 1 or one in ({"roj": 64}, {"model.*": 2})), f"{one}: as Python reads it", (worst, seen))
    wide = {k: np.concatenate([v, v], int("lora_B" in k)) for k, v in lora.items() if "q_proj" in k}
    ran, got = merge(tmp, change(tmp.copy("llava-lora"), wide, rank_pattern={r"layers\.\d\.self_attn\.q_proj": 2 * R},
                                 lora_alpha=8))
    ok(got is not None, "a pattern of ranks", ran.text)
    for bad in (r"(?!k)._proj", r"\bq_proj", "(q_proj", "((a{9}){9}){9}", "a{99}", "q" * 300 + "+", r"(q)_proj\1", "[q",
                "q+++", "l" + "+" * 90, "(" * 60 + "q" + ")+" * 60, "*q", "(|+q)", "q{2"):
        ran, _ = merge(tmp, change(tmp.copy("llava-lora"), alpha_pattern={bad: 2}))
        ok(ran.code == 1 and "is not understood" in ran.err and ran.err.count("\n") == 1, f"'{bad[:20]}' is refused", ran.text)
    ran, _ = merge(tmp, change(tmp.copy("llava-lora"), alpha_pattern={"q_proj": "two"}))
    ok(ran.code == 1 and "no number" in ran.err, "a pattern without a number", ran.text)


def whole_tensors(tmp):
    _, want = merge(tmp, model("llava-lora"))
    hf = {"model.mm_projector.0.": "multi_modal_projector.linear_1.", "model.mm_projector.2.": "multi_modal_projector.linear_2."}
    projector = {k: v for k, v in want.items() if "mm_projector" in k}
    ok(len(projector) == 4, "the fixture's projector lies beside its adapter", list(projector))
    for name, rename in (("LLaVA's", lambda k: k), ("transformers'", lambda k: hf[k[:21]] + k[21:])):
        folder = tmp.copy("llava-lora")
        os.remove(os.path.join(folder, "non_lora_trainables.bin"))
        change(folder, {"base_model.model." + rename(k): v for k, v in projector.items()}, modules_to_save=["projector"])
        ran, got = merge(tmp, folder)
        ok(got is not None and got.keys() == want.keys() and all((got[k] == want[k]).all() for k in want),
           f"a projector among the matrices, by {name} names", ran.text)
        a, b = (llava("run", "--quiet", "--model-path", f, "--model-base", model(BASE), "--image-file", PICTURE, *TOWER,
                      "--query", "What?", "--temperature", "0", "--max-new-tokens", "8", "--dtype", "f32")
                for f in (folder, model("llava-lora")))
        ok(a.code == 0 and a.raw == b.raw, "and answers as beside them", a.text + b.text)
        seen = llava("inspect", folder, "--model-base", model(BASE), *TOWER)
        ok(seen.code == 0, "inspect finds nothing wrong", seen.text)
    head = (want["lm_head.weight"] * 2).astype(np.float32)
    ran, got = merge(tmp, change(tmp.copy("llava-lora"), {"base_model.model.lm_head.weight": head}, modules_to_save=["lm_head"]))
    ok(got is not None and (got["lm_head.weight"] == head).all(), "another lm_head", ran.text)
    for name, tensor, word in (("a tensor that the base has not", "score.weight", "'base_model.model.score.weight'"),
                               ("a magnitude of DoRA", "model.layers.0.self_attn.q_proj.lora_magnitude_vector", "not a LoRA"),
                               ("rows of tokens", "model.embed_tokens.trainable_tokens_delta", "not a LoRA matrix")):
        ran, _ = merge(tmp, change(tmp.copy("llava-lora"), {"base_model.model." + tensor: head}))
        ok(ran.code == 1 and word in ran.err and ran.err.count("\n") == 1, f"{name} is refused", ran.text)
    ran, _ = merge(tmp, change(tmp.copy("llava-lora"), {"base_model.model.lm_head.weight": head[:, :-1].copy()}))
    ok(ran.code == 1 and "lm_head" in ran.err and "wants" in ran.err, "one of another size is refused", ran.text)


def other_kinds(tmp):
    for config in ({"use_dora": True}, {"fan_in_fan_out": True}, {"alora_invocation_tokens": [5, 6]}, {"use_qalora": True},
                   {"init_lora_weights": "pissa"}, {"init_lora_weights": "pissa_niter_16"}, {"init_lora_weights": "olora"},
                   {"peft_type": "LOHA"}):
        ran, _ = merge(tmp, change(tmp.copy("llava-lora"), **config))
        word = [*config.values()][0] if "init" in [*config][0] or "type" in [*config][0] else [*config][0]
        ok(ran.code == 1 and word in ran.err and ran.err.count("\n") == 1, f"{config} is refused", ran.text)
    for config in ({"init_lora_weights": "gaussian"}, {"init_lora_weights": False}, {"target_modules": "all-linear"},
                   {"target_modules": r".*\.(q|v)_proj"}, {"layers_to_transform": [0]}):
        ran, _ = merge(tmp, change(tmp.copy("llava-lora"), **config))
        ok(ran.code == 0, f"{config} changes nothing", ran.text)


with Temp() as temp:
    patterns(temp)
    whole_tensors(temp)
    other_kinds(temp)
finish()
