#!/usr/bin/python3
"""What the optimiser keeps, in 32 and in 8 bits, with masters and without, and where: the same bytes wherever it is, and
after a stop; a run in 8 bits learns what one in 32 bits learns; limits that nothing fits in are refused with what would.

LLAVA_TEST_DEVICE=cuda: on a device that the build has."""
import json
import os
import random
import re
import shutil
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import GOLDEN, SANITIZED, Temp, finish, llava, losses, model, ok, read_bytes, read_safetensors  # noqa: E402

COMMON = ["train", "--model_name_or_path", model("vicuna-base"), "--image_folder", os.path.join(GOLDEN, "pictures"),
          "--vision_tower", model("clip-tiny"), "--mm_projector_type", "mlp2x_gelu", "--mm_vision_select_layer", "-2",
          "--mm_use_im_patch_token", "False", "--model_max_length", "512", "--per_device_train_batch_size", "2",
          "--gradient_accumulation_steps", "2",
          "--device", os.environ.get("LLAVA_TEST_DEVICE", "cpu"), "--logging_steps", "1", "--version", "v1",
          "--report_to", "none",
          "--data_path", os.path.join(GOLDEN, "training/full.json")]
EIGHT = ["--optim", "adamw_8bit"]
KINDS = {"32 bits": [], "8 bits": EIGHT, "8 bits without masters": [*EIGHT, "--master_weights", "False"]}


def train(out, *more):
    return llava(*COMMON, "--output_dir", out, *more)


def one_line(ran, *parts):
    last = (ran.err.strip().splitlines() or [""])[-1]
    return last.startswith("llava") and all(p in last for p in parts)


def same_bytes(tmp, name, more):
    """wherever states are, and after a stop with the other place of them"""
    more = [*more, "--bf16", "True", "--learning_rate", "1e-2", "--max_steps", "4"]
    keep = os.path.join(tmp.path, "keep")
    ran = train(keep, *more, "--save_steps", "2", "--offload", "none")
    want = read_bytes(keep, "checkpoint-4", "resume.safetensors") if ran.code == 0 else b""
    ok(len(want) > 1000, f"{name}: four steps", ran.text)
    for offload in ("gradients", "moments", "both"):
        out = os.path.join(tmp.path, offload)
        ran = train(out, *more, "--save_steps", "4", "--offload", offload)
        ok(ran.code == 0 and read_bytes(out, "checkpoint-4", "resume.safetensors") == want and
           read_bytes(out, "model.safetensors") == read_bytes(keep, "model.safetensors"),
           f"{name}: {offload} away, the same bytes", ran.text)
    out = os.path.join(tmp.path, "activations")
    ran = train(out, *more, "--save_steps", "4", "--offload", "activations", "--gradient_checkpointing", "True")
    ok(ran.code == 0 and read_bytes(out, "checkpoint-4", "resume.safetensors") == want,
       f"{name}: activations away, the same bytes", ran.text)
    for offload in ("none", "both"):
        out = os.path.join(tmp.path, "again-" + offload)
        os.mkdir(out)
        shutil.copytree(os.path.join(keep, "checkpoint-2"), os.path.join(out, "checkpoint-2"))
        ran = train(out, *more, "--save_steps", "4", "--offload", offload)
        ok("step 2 of 4" in ran.err and read_bytes(out, "checkpoint-4", "resume.safetensors") == want,
           f"{name}: goes on with {offload} away, the same bytes", ran.text)
    kept = read_safetensors(os.path.join(keep, "checkpoint-4/resume.safetensors"))
    types = {n.split("/")[0]: t.dtype.name for n, t in kept.items() if n.endswith("layers.0.mlp.up_proj.weight")}
    ok(types["moment1"] == ("float32" if name == "32 bits" else "uint8") and ("scale1" in types) == (name != "32 bits"),
       f"{name}: what is kept", types)
    return keep


def stays_the_same_kind(tmp, keep):
    for name, more, says in (("32 bits", [], "optim of 8 bits"), ("with masters", EIGHT, "master_weights")):
        ran = train(keep, *more, "--bf16", "True", "--learning_rate", "1e-2", "--max_steps", "6")
        ok(ran.code == 1 and one_line(ran, says), f"8 bits do not go on with {name}", ran.text)
    ran = train(os.path.join(tmp.path, "no"), "--optim", "adamw_8bit", "--master_weights", "False")
    ok(ran.code == 2 and "--bf16 True" in ran.err, "no masters of f32 weights", ran.text)


def write_records(path):
    """Answers that cannot be known, from words that are not equally likely: the loss ends at what is not to be learned."""
    rng = random.Random(5)
    words = ["red", "blue", "green", "grey", "brown", "white", "black"]
    records = [{"id": str(i), "conversations": [
        {"from": "human", "value": f"What is the colour of {rng.choice(words)} {rng.randrange(1000)}?"},
        {"from": "gpt", "value": "It is " + " and ".join(words[min(int(rng.expovariate(0.5)), 6)] for _ in range(4)) + "."}]}
        for i in range(1200)]
    with open(path, "w", encoding="utf-8") as f:
        json.dump(records, f)


def learns(tmp):
    """300 steps, each over records that were not seen before; the last 40 are compared"""
    data = os.path.join(tmp.path, "records.json")
    write_records(data)
    last = {}
    for name, more in KINDS.items():
        out = os.path.join(tmp.path, "learn " + name)
        ran = train(out, *more, "--data_path", data, "--bf16", "True", "--learning_rate", "1e-3", "--lr_scheduler_type",
                    "cosine", "--warmup_ratio", "0.03", "--max_steps", "300", "--save_strategy", "no", "--disable_tqdm",
                    "True")
        curve = losses(out) if ran.code == 0 else [0] * 300
        last[name] = sum(curve[-40:]) / 40
        ok(len(curve) == 300 and 0.1 < last[name] < 0.3 * curve[0], f"{name}: 300 steps learn",
           [curve[0], last[name], ran.text[-300:]])
    print("# the last 40 losses:", {k: round(v, 4) for k, v in last.items()})
    for name in ("8 bits", "8 bits without masters"):
        ok(abs(last[name] - last["32 bits"]) < 0.01 * last["32 bits"], f"{name} end where 32 bits end", last)


def limits(tmp):
    out = os.path.join(tmp.path, "limit")
    ran = train(out, "--bf16", "True", "--memory_limit", "1M")
    ok(ran.code == 1 and one_line(ran, "--memory_limit is 1.0 MB", "this run needs"), "a limit that nothing fits in", ran.text)
    ok(not os.path.exists(out), "is refused before anything is written", "")
    dry = train(out, "--bf16", "True", "--dry_run", "True").out
    need = float((re.findall(r"^  together +([\d.]+) MB$", dry, re.M) or ["0"])[0])
    tight = ["--bf16", "True", "--offload", "none", "--memory_limit"]
    low, high = need * 0.9, need * 1.1  # the plan is printed in three digits; of a device most is not to be had otherwise
    while high - low > 0.02:
        middle = (low + high) / 2
        fits = train(out, *tight, f"{middle:.3f}M", "--dry_run", "True").code == 0
        low, high = (low, middle) if fits else (middle, high)
    ran = train(out, *tight, f"{low:.3f}M")
    ok(need and ran.code == 1 and one_line(ran, "with --gradient_checkpointing True it takes"),
       "the refusal says what would fit", [need, low, ran.text])
    for more in (["--offload", "all"], ["--optim", "adamw_4bit"], ["--host_memory_limit", "much"],
                 ["--offload", "activations"]):
        ran = train(out, *more)
        ok(ran.code in (1, 2) and more[0] in ran.err, "refused: " + " ".join(more), ran.text)


def write_13b(path):
    """a folder of Vicuna-13B's shapes whose numbers are a hole in a file"""
    C, F, L, V = 5120, 13824, 40, 32000
    shutil.copytree(model("vicuna-base"), path,
                    ignore=lambda d, names: [n for n in names if n.endswith((".safetensors", ".bin", "config.json")) and
                                             n != "tokenizer_config.json"])
    with open(os.path.join(model("vicuna-base"), "config.json"), encoding="utf-8") as f:
        config = json.load(f)
    config.update(hidden_size=C, intermediate_size=F, num_hidden_layers=L, num_attention_heads=40, vocab_size=V,
                  num_key_value_heads=40, torch_dtype="bfloat16", max_position_embeddings=4096)
    with open(os.path.join(path, "config.json"), "w", encoding="utf-8") as f:
        json.dump(config, f)
    shapes = {"model.embed_tokens.weight": [V, C], "model.norm.weight": [C], "lm_head.weight": [V, C]}
    for i in range(L):
        layer = f"model.layers.{i}."
        shapes |= {f"{layer}self_attn.{n}_proj.weight": [C, C] for n in "qkvo"}
        shapes |= {f"{layer}mlp.{n}_proj.weight": [C, F] if n == "down" else [F, C] for n in ("gate", "up", "down")}
        shapes |= {f"{layer}{n}_layernorm.weight": [C] for n in ("input", "post_attention")}
    at, head = 0, {}
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        head[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(path, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        f.truncate(8 + len(text) + at)


def rows_of(plan):
    """name -> GB of a printed plan"""
    unit = {"B": 1e-9, "kB": 1e-6, "MB": 1e-3, "GB": 1}
    return {n: float(v) * unit[u] for n, v, u in re.findall(r"^  (\S[^\n]*?)  +([\d.]+) ([kMG]?B)$", plan, re.M)}


def a_card_that_is_not_here(tmp):
    """13B in 64 GB: what each thing takes follows from the number of parameters"""
    base = os.path.join(tmp.path, "13b")
    write_13b(base)
    dry = ["--model_name_or_path", base, "--dry_run", "True", "--bf16", "True", "--memory_limit", "64GB",
           "--gradient_checkpointing", "True", "--device", "cuda:9"]
    ran = train(os.path.join(tmp.path, "no"), *dry, "--host_memory_limit", "100GB", "--optim", "adamw_8bit",
                "--master_weights", "False")
    have, G = rows_of(ran.out), 13.0423e-9 * 1e9
    n8, n32 = G - 0.1638, 0.1638 + 0.0004  # embeddings and norms keep 32 bits
    want = {"trained weights": 2 * G, "f32 masters": 4 * n32, "gradients, away": 4 * G}
    ok(ran.code == 0 and all(abs(have.get(k, 0) - v) < 0.006 * v for k, v in want.items()), "13b: what each thing takes",
       [want, have, ran.text])
    moments = have.get("moments", 0) + have.get("moments, away", 0)
    ok(abs(moments - (2 * n8 * (1 + 4 / 256) + 8 * n32)) < 0.7 + 2.2 * ("moments, away" in have), "13b: moments",
       [moments, have])
    ok("--memory_limit" in have and re.search(r"^> gradients", ran.out, re.M) and "layers again" in ran.out,
       "13b: the choice", ran.out)
    ran = train(os.path.join(tmp.path, "no"), *dry, "--host_memory_limit", "100GB")
    ok(ran.code == 1 and one_line(ran, "with --optim adamw_8bit --master_weights False it takes") and "choices:" in ran.out,
       "13b with 32 bits: the refusal says what would fit", ran.text)
    ran = train(os.path.join(tmp.path, "no"), *dry, "--host_memory_limit", "20GB", "--optim", "adamw_8bit")
    ok(ran.code == 1 and one_line(ran, "--host_memory_limit is 20.0 GB"), "13b: a host that is too small", ran.text)
    lora = [*dry, "--lora_enable", "True", "--lora_r", "128", "--model_max_length", "1024",
            "--per_device_train_batch_size", "16", "--memory_limit", "38GB", "--image_aspect_ratio", "pad"]
    for offload, away, again in (("none", False, True), ("auto", True, False)):
        ran = train(os.path.join(tmp.path, "no"), *lora, "--offload", offload, "--host_memory_limit", "100GB")
        have = rows_of(ran.out)
        runs_again = re.search(r"^> nothing .* ([1-9]\d*) of +40 |^layers that run again on the way back: [1-9]", ran.out, re.M)
        ok(ran.code == 0 and abs(have.get("frozen weights", 0) - 26) < 0.1 and ("activations, away" in have) == away and
           bool(runs_again) == again, f"13b, LoRA, --offload {offload}: layers leave for the host, else they run again", ran.text)


with Temp() as tmp:
    for name, more in KINDS.items():
        keep = same_bytes(tmp, name, more)
        if name != "8 bits without masters":
            for d in os.listdir(tmp.path):
                shutil.rmtree(os.path.join(tmp.path, d))
    stays_the_same_kind(tmp, keep)
    limits(tmp)
    a_card_that_is_not_here(tmp)
    if not SANITIZED:
        learns(tmp)
finish()
