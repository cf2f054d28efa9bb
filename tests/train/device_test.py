#!/usr/bin/python3
"""Training on an emulated GPU beside the processor, where kernels cannot hide what they read and write: the projector, adapters
with dropout, adapters over 4 bits, everything, also with gradients, moments and activations on the host. In f32 losses and
first gradients are the processor's; in 8 bits without masters the bytes are the same wherever things are.

Needs a build of its own (`make GPU=emu build/emu32/llava`) and skips without one; a LLAVA_BUILD that is an emulator's is taken as
it is (check-full: under sanitizers). LLAVA_TEST_DEVICE says another device, which then is of the build under test: cuda, hip."""
import os
import sys

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import (BUILD, GOLDEN, LLAVA, ROOT, SANITIZED, Ran, Temp, finish, losses, model, ok, read_bytes,  # noqa: E402
                 read_safetensors, skip)

DEVICE = os.environ.get("LLAVA_TEST_DEVICE", "emu")
OWN = DEVICE != "emu" or os.path.basename(BUILD).startswith("emu")
PROGRAM = LLAVA if OWN else os.path.join(ROOT, "build/emu32/llava")
TOLERANCE = 1e-4    # of gradients in f32, relative: as in tests/golden/train_test.py
COMMON = ["train", "--model_name_or_path", model("vicuna-base"), "--image_folder", os.path.join(GOLDEN, "pictures"),
          "--vision_tower", model("clip-tiny"), "--mm_projector_type", "mlp2x_gelu", "--mm_vision_select_layer", "-2",
          "--mm_use_im_patch_token", "False", "--model_max_length", "512", "--per_device_train_batch_size", "1",
          "--max_steps", "2", "--save_steps", "1", "--logging_steps", "1", "--report_to", "none", "--learning_rate", "1e-3"]
LORA = ["--version", "v1", "--data_path", os.path.join(GOLDEN, "training/lora.json"), "--lora_enable", "True", "--lora_r", "4",
        "--lora_alpha", "8", "--lora_dropout", "0.1"]
FULL = ["--version", "v1", "--data_path", os.path.join(GOLDEN, "training/full.json")]
AWAY = ["--offload", "both", "--gradient_checkpointing", "True"]
KINDS = {
    "the projector": ["--version", "plain", "--data_path", os.path.join(GOLDEN, "training/projector.json"),
                      "--tune_mm_mlp_adapter", "True"],
    "adapters": [*LORA, "--packing", "True", "--gradient_accumulation_steps", "2", "--max_steps", "1"],
    "adapters over 4 bits": [*LORA, "--bits", "4"],
    "everything, states away": [*FULL, *AWAY],
}


def train(out, device, *more):
    return Ran([PROGRAM, *COMMON, "--output_dir", out, "--device", device, *more])


def worst(a, b):
    """the largest relative distance of two runs' first moments, and whose it is"""
    at = max((n for n in b if n.startswith("moment1/")), key=lambda n: distance(a[n], b[n]))
    return distance(a[at], b[at]), at


def distance(a, b):
    return float(np.linalg.norm(np.float64(a) - b) / max(np.linalg.norm(np.float64(b)), 1e-12))


def beside_the_processor(tmp, name, more):
    outs = [os.path.join(tmp.path, f"{name} {d}") for d in ("cpu", DEVICE)]
    for out, device in zip(outs, ("cpu", DEVICE)):
        ran = train(out, device, *more)
        if not ok(ran.code == 0, f"{name} on {device}", ran.text):
            return
    by = distance(losses(outs[1]), losses(outs[0]))
    ok(losses(outs[0]) and by < TOLERANCE / 10, f"{name}: losses within {by:.1e}", [losses(out) for out in outs])
    cpu, card = (read_safetensors(os.path.join(out, "checkpoint-1/resume.safetensors")) for out in outs)
    by, at = worst(card, cpu)
    ok(cpu.keys() == card.keys() and by < TOLERANCE, f"{name}: gradients within {by:.1e}", at)


def wherever_it_is(tmp):
    """8 bits without masters, in bf16: steps round at random, by numbers that are the same"""
    how = [*FULL, "--bf16", "True", "--optim", "adamw_8bit", "--master_weights", "False"]
    got = []
    for more in (["--offload", "none"], ["--offload", "activations", "--gradient_checkpointing", "True"]):
        out = os.path.join(tmp.path, "8 bits " + more[1])
        ran = train(out, DEVICE, *how, *more)
        if not ok(ran.code == 0, f"everything in 8 bits, --offload {more[1]}", ran.text):
            return
        got.append(read_bytes(out, "checkpoint-2", "resume.safetensors"))
    ok(len(got[0]) > 1000 and got[0] == got[1], "the same bytes wherever activations are")


def refused(tmp):
    """on a device weights become quantised after it was decided what is trained"""
    for device in ("cpu", DEVICE):
        ran = train(os.path.join(tmp.path, "none"), device, *FULL, "--bits", "4")
        ok(ran.code == 1 and "--bits 4 is for what stays frozen" in ran.err, f"everything in 4 bits on {device}", ran.text)


if SANITIZED:
    skip("training on an emulated GPU", "check-full has a step for it, with a sanitized emulator")
elif os.path.exists(PROGRAM):
    with Temp() as tmp:
        for name, more in KINDS.items():
            beside_the_processor(tmp, name, more)
        wherever_it_is(tmp)
        refused(tmp)
else:
    skip("training on an emulated GPU", "no build/emu32/llava")
finish()
