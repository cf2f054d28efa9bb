#!/usr/bin/env python3
"""Checks that transformers, peft and torch open what a training run leaves, and get the logits that we get.

    validate_train.py --base VICUNA --tower CLIP --forward DIR [--lora DIR] [--full DIR] [--projector DIR]

Needs PyTorch, transformers and peft; no GPU. DIR of --forward holds lora.safetensors, full.safetensors and
projector.safetensors: what `llava forward --dtype f32 --out FILE` says of each folder on one prompt with one picture
(lora and projector with --model-base VICUNA). One line a folder with the largest relative difference of the logits,
which must be under 1e-5; the last line is "ok" or "FAILED".
"""
import argparse
import json
import os
import struct
import sys
import tempfile

import numpy as np
import torch
import torch.nn.functional as F

PREFIX = "model.vision_tower.vision_tower."


def read_safetensors(path):
    with open(path, "rb") as f:
        raw = f.read()
    n = struct.unpack("<Q", raw[:8])[0]
    kinds = {"F32": "<f4", "I64": "<i8", "I32": "<i4"}
    return {k: torch.from_numpy(np.frombuffer(raw, kinds[t["dtype"]], offset=8 + n + t["data_offsets"][0],
                                              count=int(np.prod(t["shape"]))).reshape(t["shape"]).copy())
            for k, t in json.loads(raw[8:8 + n]).items() if k != "__metadata__"}


def projector(w, x):
    w = {k.split("mm_projector.")[1]: t.float() for k, t in w.items() if "mm_projector." in k}
    x = F.gelu(F.linear(x, w["0.weight"], w["0.bias"]))
    return F.linear(x, w["2.weight"], w["2.bias"])


def logits(lm, tower, w, got):
    """our ids and pixels through their modules"""
    px = got["pixel_values"].float()
    with torch.no_grad():
        states = tower(pixel_values=px, output_hidden_states=True).hidden_states
        feature = projector(w, states[-2][0, 1:])
        table = lm.get_input_embeddings().weight
        parts = [feature if i == -200 else F.embedding(torch.tensor([i]), table) for i in got["input_ids"].tolist()]
        return lm(inputs_embeds=torch.cat(parts)[None], use_cache=False).logits[0].float()


def tower_of(a, state=None):
    import transformers as tf
    tower = tf.CLIPVisionModel.from_pretrained(a.tower, dtype=torch.float32).eval()
    if state:
        cut = 0 if any(k.startswith("vision_model.") for k in tower.state_dict()) else len("vision_model.")
        tower.load_state_dict({k[len(PREFIX) + cut:]: t.float() for k, t in state.items()}, strict=False)
        missing = [k for k in tower.state_dict() if "position_ids" not in k and
                   PREFIX + ("vision_model." if cut else "") + k not in state]
        assert not missing, f"the checkpoint's tower has no {missing[:3]}"
    return tower


def lora(a, got):
    import peft
    import transformers as tf
    base = tf.LlamaForCausalLM.from_pretrained(a.base, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, a.lora).eval()
    other = torch.load(os.path.join(a.lora, "non_lora_trainables.bin"), weights_only=True)
    other = {k[len("base_model."):] if k.startswith("base_model.") else k: t for k, t in other.items()}
    assert all(k.startswith("model.model.") for k in other), sorted(other)[:3]
    return logits(model, tower_of(a), other, got)


def full(a, got):
    import transformers as tf
    from safetensors.torch import load_file
    state = load_file(os.path.join(a.full, "model.safetensors"))
    lm, info = tf.LlamaForCausalLM.from_pretrained(a.full, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"], sorted(info["missing_keys"])[:3]
    g = tf.GenerationConfig.from_pretrained(a.full)
    with tempfile.TemporaryDirectory() as tmp:
        g.save_pretrained(tmp)
    return logits(lm.eval(), tower_of(a, {k: t for k, t in state.items() if k.startswith(PREFIX)}), state, got)


def first_stage(a, got):
    import transformers as tf
    lm = tf.LlamaForCausalLM.from_pretrained(a.base, dtype=torch.float32).eval()
    return logits(lm, tower_of(a), torch.load(os.path.join(a.projector, "mm_projector.bin"), weights_only=True), got)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "tower", "forward"):
        ap.add_argument("--" + name, required=True)
    for name in ("lora", "full", "projector"):
        ap.add_argument("--" + name)
    a = ap.parse_args()
    good = True
    for name, check in (("lora", lora), ("full", full), ("projector", first_stage)):
        if not getattr(a, name):
            continue
        got = read_safetensors(os.path.join(a.forward, name + ".safetensors"))
        try:
            want = check(a, got)
            by = float((got["logits"].float() - want).norm() / want.norm())
            print(json.dumps({"folder": name, "relative": by, "ok": by < 1e-5}), flush=True)
            good &= by < 1e-5
        except Exception as e:
            print(json.dumps({"folder": name, "error": repr(e)[:500], "ok": False}), flush=True)
            good = False
    print("ok" if good else "FAILED")
    sys.exit(not good)


if __name__ == "__main__":
    main()
