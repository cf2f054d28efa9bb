#!/usr/bin/env python3
"""Trains tiny models with `llava train` in its three modes and has transformers, peft and tensorboard open what is left.

    validate_train.py --llava build/llava [--work DIR] [--large]

Needs PyTorch, transformers and peft (tensorboard if it is there); no GPU. Base, tower, pictures and records are those of
tests/golden. For the projector alone, the whole model and LoRA, in f32 and in bf16, each checkpoint-N and the result:
    logits     transformers' Llama and CLIP (peft's adapters, torch.load's projector) on our ids and pixels: as `llava forward`
    tokens     transformers' tokenizer of the folder gives the ids
    merged     `llava merge` has the weights of peft's merge_and_unload; transformers' LLaVA opens the result converted
    resumed    a run gone on from checkpoint-N in a folder of its own leaves the same bytes
    state      TrainerState and tensorboard read the log
--large also trains a model of 1.3 G numbers, whose result takes several files (30 GB of memory, 12 GB of disk).
One JSON object a check; the last line is "ok" or "FAILED".
"""
import argparse
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
import torch.nn.functional as F

GOLDEN = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests/golden")
BASE, TOWER = os.path.join(GOLDEN, "models/vicuna-base"), os.path.join(GOLDEN, "models/clip-tiny")
PICTURE = os.path.join(GOLDEN, "pictures/wide-37x23.png")
TEXT = "USER: <image>\nWhat is in the picture? ASSISTANT:"
PREFIX = "model.vision_tower.vision_tower."
STEPS, SAVE = 6, 3
TIMES = ("trainer_state.json", "loss.svg", "resume.json")  # times and the name of the folder are in them
KINDS = {
    "projector": ["--version", "plain", "--data_path", f"{GOLDEN}/training/projector.json", "--tune_mm_mlp_adapter", "True"],
    "full": ["--version", "v1", "--data_path", f"{GOLDEN}/training/full.json"],
    "lora": ["--version", "v1", "--data_path", f"{GOLDEN}/training/lora.json", "--lora_enable", "True", "--lora_r", "8",
             "--lora_alpha", "16", "--lora_dropout", "0.1", "--mm_projector_lr", "5e-4"],
}
failures = []


def say(name, good, **more):
    print(json.dumps({"check": name, **more, "ok": bool(good)}), flush=True)
    if not good:
        failures.append(name)


def check(name, function, *args):
    """one line a check, whatever happens in it"""
    try:
        got = function(*args)
        say(name, got.pop("good"), **got)
    except Exception as e:  # noqa: BLE001  another library's errors are what this looks for
        say(name, False, error=repr(e)[:600])


def run(*args):
    p = subprocess.run([opt.llava, *args], capture_output=True, text=True)
    if p.returncode:
        raise RuntimeError(f"{args[0]}: exit {p.returncode}: {p.stderr[-600:]}")


def train(out, base, kind, *more):
    run("train", "--model_name_or_path", base, "--image_folder", f"{GOLDEN}/pictures", "--vision_tower", TOWER,
        "--mm_projector_type", "mlp2x_gelu", "--mm_vision_select_layer", "-2", "--mm_use_im_patch_token", "False",
        "--model_max_length", "512", "--per_device_train_batch_size", "2", "--learning_rate", "1e-3", "--logging_steps", "1",
        "--report_to", "tensorboard", "--output_dir", out, *KINDS[kind], *more)


def read_safetensors(path):
    with open(path, "rb") as f:
        raw = f.read()
    n = struct.unpack("<Q", raw[:8])[0]
    kinds = {"F32": "<f4", "I64": "<i8", "I32": "<i4"}
    return {k: torch.from_numpy(np.frombuffer(raw, kinds[t["dtype"]], offset=8 + n + t["data_offsets"][0],
                                              count=int(np.prod(t["shape"]))).reshape(t["shape"]).copy())
            for k, t in json.loads(raw[8:8 + n]).items() if k != "__metadata__"}


def forward(folder, base):
    """ids, pixels, features and logits of our own program"""
    out = os.path.join(opt.work, "forward.safetensors")
    run("forward", "--quiet", "--dtype", "f32", "--model-path", folder, *(["--model-base", base] if base else []),
        "--image-file", PICTURE, "--prompt", TEXT, "--out", out)
    return read_safetensors(out)


# ---- their side


def load_state(folder):
    from safetensors.torch import load_file
    files = [f for f in os.listdir(folder) if f.endswith(".safetensors") and f.startswith("model")]
    state = {}
    for f in files:
        state.update(load_file(os.path.join(folder, f)))
    return state, files


def tower_of(state=None):
    import transformers as tf
    tower = tf.CLIPVisionModel.from_pretrained(TOWER, dtype=torch.float32).eval()
    if state:
        cut = 0 if any(k.startswith("vision_model.") for k in tower.state_dict()) else len("vision_model.")
        tower.load_state_dict({k[len(PREFIX) + cut:]: t.float() for k, t in state.items() if k.startswith(PREFIX)}, strict=False)
        missing = [k for k in tower.state_dict() if "position_ids" not in k and
                   PREFIX + ("vision_model." if cut else "") + k not in state]
        assert not missing, f"the checkpoint's tower has no {missing[:3]}"
    return tower


def logits(lm, tower, w, got):
    """our ids and pixels through their modules; w: who has the projector"""
    p = {k.split("mm_projector.")[1]: t.float() for k, t in w.items() if "mm_projector." in k}
    with torch.no_grad():
        rows = tower(pixel_values=got["pixel_values"].float(), output_hidden_states=True).hidden_states[-2][0, 1:]
        rows = F.linear(F.gelu(F.linear(rows, p["0.weight"], p["0.bias"])), p["2.weight"], p["2.bias"])
        table = lm.get_input_embeddings().weight
        parts = [rows if i == -200 else F.embedding(torch.tensor([i]), table) for i in got["input_ids"].tolist()]
        return lm.eval()(inputs_embeds=torch.cat(parts)[None].float(), use_cache=False).logits[0].float()


def llama(folder):
    import transformers as tf
    lm, info = tf.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"], sorted(info["missing_keys"])[:3]
    return lm


def peft_model(base, folder):
    import peft
    other = torch.load(os.path.join(folder, "non_lora_trainables.bin"), weights_only=True)
    assert all(k.startswith("base_model.model.model.mm_projector.") for k in other), sorted(other)[:3]
    return peft.PeftModel.from_pretrained(llama(base), folder), other


def close(ours, theirs, bound):
    by = float((ours.float() - theirs).norm() / theirs.norm())
    return {"good": by < bound, "relative": by}


def check_logits(kind, folder, base):
    got = forward(folder, None if kind == "full" else base)
    if kind == "projector":
        want = logits(llama(base), tower_of(), torch.load(os.path.join(folder, "mm_projector.bin"), weights_only=True), got)
    elif kind == "lora":
        want = logits(*(lambda m, o: (m, tower_of(), o))(*peft_model(base, folder)), got)
    else:
        state, files = load_state(folder)
        want = logits(llama(folder), tower_of(state), state, got)
        return {**close(got["logits"], want, opt.bound), "files": len(files)}
    return close(got["logits"], want, opt.bound)


def check_tokens(folder):
    import transformers as tf
    text = TEXT.replace("<image>", "")
    ids = tf.AutoTokenizer.from_pretrained(folder, use_fast=False)(text).input_ids
    with tempfile.TemporaryDirectory() as tmp:
        tf.GenerationConfig.from_pretrained(folder).save_pretrained(tmp)
    out = os.path.join(opt.work, "tokens.safetensors")
    run("forward", "--quiet", "--model-path", BASE, "--prompt", text, "--out", out)
    return {"good": read_safetensors(out)["input_ids"].tolist() == ids, "ids": len(ids)}


def check_merge(folder, base):
    merged = folder + "-merged"
    shutil.rmtree(merged, ignore_errors=True)
    run("merge", "--quiet", "--model-path", folder, "--model-base", base, "--save-model-path", merged, "--dtype", "f32")
    ours = load_state(merged)[0]
    model, other = peft_model(base, folder)
    theirs = model.merge_and_unload().state_dict()
    theirs.update({k[len("base_model.model."):]: t for k, t in other.items()})
    lost = [k for k in theirs if k not in ours and "rotary" not in k]
    assert not lost, lost[:3]
    worst = max((float((ours[k].float() - theirs[k].float()).abs().max() / theirs[k].float().abs().max()), k) for k in theirs
                if k in ours)
    return {"good": worst[0] < 1e-6, "relative": worst[0], "at": worst[1], "tensors": len(theirs)}


def check_hf(folder, base):
    """transformers' own LLaVA, from what `llava convert` makes of it"""
    import transformers as tf
    hf = folder + "-hf"
    shutil.rmtree(hf, ignore_errors=True)
    run("convert", "--quiet", "--model-path", folder, *(["--model-base", base] if base else []), "--to", "hf5", "--dtype", "f32",
        "--output", hf)
    model, info = tf.LlavaForConditionalGeneration.from_pretrained(hf, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"], sorted(info["missing_keys"])[:3]
    got = forward(folder, base)
    rows = got["image_features"].shape[0]
    ids = [j for i in got["input_ids"].tolist() for j in ([model.config.image_token_id] * rows if i == -200 else [i])]
    with torch.no_grad():
        want = model.eval()(input_ids=torch.tensor([ids]), pixel_values=got["pixel_values"].float()).logits[0].float()
    return close(got["logits"][:, :want.shape[1]], want[:, :got["logits"].shape[1]], 1e-5)


def digest(folder):
    out = {}
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if os.path.isfile(path) and name not in TIMES:
            with open(path, "rb") as f:
                out[name] = hashlib.sha256(f.read()).hexdigest()
    return out


def check_resume(kind, out, more):
    again = out + "-again"
    shutil.rmtree(again, ignore_errors=True)
    os.makedirs(again)
    shutil.copytree(os.path.join(out, f"checkpoint-{SAVE}"), os.path.join(again, f"checkpoint-{SAVE}"))
    train(again, BASE, kind, "--max_steps", str(STEPS), "--save_steps", str(SAVE), *more)
    same = digest(out) == digest(again) and digest(f"{out}/checkpoint-{STEPS}") == digest(f"{again}/checkpoint-{STEPS}")
    return {"good": same, "files": len(digest(out))}


def check_state(out):
    import transformers as tf
    state = tf.TrainerState.load_from_json(os.path.join(out, "trainer_state.json"))
    losses = {x["step"]: x["loss"] for x in state.log_history if "loss" in x}
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        return {"good": state.global_step == STEPS == len(losses), "tensorboard": "is not here"}
    acc = EventAccumulator(os.path.join(out, "runs", os.listdir(os.path.join(out, "runs"))[0]))
    acc.Reload()
    seen = {s.step: s.value for s in acc.Scalars("train/loss")}
    good = state.global_step == STEPS and seen.keys() == losses.keys() and all(abs(seen[k] - losses[k]) < 1e-6 for k in seen)
    return {"good": good, "losses": len(seen), "tags": len(acc.Tags()["scalars"])}


def small():
    for dtype, more in (("f32", []), ("bf16", ["--bf16", "True"])):
        for kind in KINDS:
            out = os.path.join(opt.work, f"{kind}-{dtype}")
            shutil.rmtree(out, ignore_errors=True)
            train(out, BASE, kind, "--max_steps", str(STEPS), "--save_steps", str(SAVE), *more)
            for folder in (f"{out}/checkpoint-{SAVE}", f"{out}/checkpoint-{STEPS}", out):
                check(f"logits {kind} {dtype} {os.path.relpath(folder, out)}", check_logits, kind, folder, BASE)
            check(f"resumed {kind} {dtype}", check_resume, kind, out, more)
            check(f"state {kind} {dtype}", check_state, out)
            if kind != "projector":
                check(f"tokens {kind} {dtype}", check_tokens, out)
            if kind == "lora":
                check(f"merged {kind} {dtype}", check_merge, out, BASE)
            check(f"transformers' LLaVA {kind} {dtype}", check_hf, out, None if kind == "full" else BASE)


def large():
    """a result in several files"""
    import transformers as tf
    base, out = os.path.join(opt.work, "large-base"), os.path.join(opt.work, "large")
    with open(os.path.join(BASE, "config.json"), encoding="utf-8") as f:
        config = tf.LlamaConfig(**{**json.load(f), "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 26,
                                   "num_attention_heads": 16, "num_key_value_heads": 16, "torch_dtype": "float32"})
    with torch.device("meta"):
        model = tf.LlamaForCausalLM(config)
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.fill_(1) if "norm" in name else p.uniform_(-0.03, 0.03)
    model.save_pretrained(base)
    del model
    for name in os.listdir(BASE):
        if "token" in name:
            shutil.copy(os.path.join(BASE, name), base)
    train(out, base, "full", "--max_steps", "1", "--save_strategy", "no")
    shutil.rmtree(base)
    opt.bound = 1e-4  # 26 layers, summed in other orders
    check("logits full f32, 1.3 G numbers", check_logits, "full", out, None)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--llava", required=True)
parser.add_argument("--work")
parser.add_argument("--large", action="store_true")
opt = parser.parse_args()
opt.bound = 1e-5
opt.work = opt.work or tempfile.mkdtemp(prefix="llava-validate-")
os.makedirs(opt.work, exist_ok=True)
start = time.time()
small()
if opt.large:
    large()
print("FAILED: " + ", ".join(failures) if failures else "ok", f"{time.time() - start:.0f} s")
sys.exit(bool(failures))
