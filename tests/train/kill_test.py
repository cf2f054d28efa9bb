"""A training that is killed (SIGKILL) at random instants and started again ends with the same bytes as one that never was.

    kill_test.py [KILLS] [SEED]

KILLS (default 12) kills are given out over runs of a tiny model, which saves after every step, so that many fall into a
save. Each time the folder must hold whole checkpoints only, and the next start must go on from the newest. For the
figure of 50: LLAVA_BUILD=build/main tests/train/kill_test.py 50
"""
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import ENV, GOLDEN, LLAVA, Temp, finish, llava, model, ok  # noqa: E402

KILLS = int(sys.argv[1]) if len(sys.argv) > 1 else 12
SEED = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 30)
STEPS = 12
PROJECTOR = os.path.join(model("llava-projector-mlp"), "mm_projector.bin")
COMMON = ["train", "--model_name_or_path", model("vicuna-base"), "--image_folder", os.path.join(GOLDEN, "pictures"),
          "--vision_tower", model("clip-tiny"), "--mm_projector_type", "mlp2x_gelu", "--mm_vision_select_layer", "-2",
          "--pretrain_mm_mlp_adapter", PROJECTOR,
          "--mm_use_im_patch_token", "False", "--model_max_length", "512", "--per_device_train_batch_size", "2",
          "--num_train_epochs", str(STEPS // 2), "--learning_rate", "1e-3", "--save_strategy", "steps",
          "--save_steps", "1", "--save_total_limit", "2", "--logging_steps", "1", "--report_to", "jsonl,tensorboard",
          "--dataloader_num_workers", "1"]
KINDS = {
    "projector": ["--version", "plain", "--data_path", os.path.join(GOLDEN, "training/projector.json"),
                  "--tune_mm_mlp_adapter", "True"],
    "full": ["--version", "v1", "--data_path", os.path.join(GOLDEN, "training/full.json"),
             "--group_by_modality_length", "True"],
    "lora": ["--version", "v1", "--data_path", os.path.join(GOLDEN, "training/lora.json"), "--lora_enable", "True",
             "--lora_r", "4", "--lora_alpha", "8", "--lora_dropout", "0.1", "--bf16", "True"],
    "away": ["--version", "v1", "--data_path", os.path.join(GOLDEN, "training/full.json"), "--bf16", "True",
             "--optim", "adamw_8bit", "--master_weights", "False", "--offload", "both"],
}
NOT_MODEL = ("trainer_state.json", "log.jsonl", "loss.svg")  # times are in them, or follow from them


def digest(out):
    """name -> SHA-256 of the model's files at the end of a run, and of the newest checkpoint's state"""
    files = {f: os.path.join(out, f) for f in os.listdir(out) if os.path.isfile(os.path.join(out, f))}
    files["state"] = os.path.join(out, f"checkpoint-{STEPS}/resume.safetensors")
    result = {}
    for name, path in files.items():
        if name not in NOT_MODEL:
            with open(path, "rb") as f:
                result[name] = hashlib.sha256(f.read()).hexdigest()
    return result


def losses(out):
    with open(os.path.join(out, "trainer_state.json"), encoding="utf-8") as f:
        state = [(x["step"], x["loss"]) for x in json.load(f)["log_history"] if "loss" in x]
    with open(os.path.join(out, "log.jsonl"), encoding="utf-8") as f:
        lines = [json.loads(x) for x in f]
    return state, [(x["step"], x["loss"]) for x in lines if "loss" in x]


def whole(out):
    """why a checkpoint that has its name is not whole, or ''"""
    for name in os.listdir(out) if os.path.isdir(out) else []:
        if not name.startswith("checkpoint-") or not name[11:].isdigit():
            continue
        for file in ("resume.json", "resume.safetensors", "trainer_state.json", "config.json", "loss.svg"):
            if not os.path.exists(os.path.join(out, name, file)):
                return f"{name} has no {file}"
        with open(os.path.join(out, name, "resume.json"), encoding="utf-8") as f:
            if json.load(f)["state"]["step"] != int(name[11:]):
                return f"{name} is of another step"
    return ""


def start(kind, out):
    return subprocess.Popen([LLAVA, *COMMON, *KINDS[kind], "--output_dir", out], stdin=subprocess.DEVNULL,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=ENV)


class Counts:
    kills = saves = 0


def killed_run(kind, out, duration, left, rng, seen):
    """runs to the end, killed up to `left` times on the way; '' or what went wrong"""
    while True:
        p = start(kind, out)
        if left > 0:
            try:
                p.communicate(timeout=rng.uniform(0.0, duration))
            except subprocess.TimeoutExpired:
                p.send_signal(signal.SIGKILL)
        text = p.communicate()[1].decode(errors="replace")
        if p.returncode == 0:
            return ""
        if p.returncode != -signal.SIGKILL:
            return f"exit {p.returncode}: {text}"
        left -= 1
        seen.kills += 1
        inside = os.path.isdir(out) and any(f.endswith((".writing", ".saving", ".removing", ".old"))
                                            for f in os.listdir(out))
        seen.saves += inside
        why = whole(out)
        if why:
            return why


def check(tmp, kind, kills, rng, seen):
    plain = os.path.join(tmp.path, kind)
    begin = time.time()
    ran = llava(*COMMON, *KINDS[kind], "--output_dir", plain)
    duration = time.time() - begin
    if not ok(ran.code == 0, f"{kind}: a run of {STEPS} steps", ran.text):
        return
    want, goal, round_ = digest(plain), seen.kills + kills, 0
    while seen.kills < goal and round_ < 20 * kills:
        out = os.path.join(tmp.path, f"{kind}-{round_}")
        round_ += 1
        before = seen.kills
        why = killed_run(kind, out, duration, min(4, goal - seen.kills), rng, seen)
        have = digest(out) if not why else {}
        state, lines = losses(out) if not why else ([], [])
        if why or have != want or state != losses(plain)[0] or lines != state:
            ok(False, f"{kind}: killed {seen.kills - before} times, seed {SEED}",
               why or f"{want}\n{have}\n{state}\n{lines}\n{losses(plain)[0]}")
            return
    ok(seen.kills >= goal, f"{kind}: {kills} kills in {round_} runs, the same bytes, seed {SEED}")


with Temp() as tmp:
    rng, seen = random.Random(SEED), Counts()
    share = [KILLS // len(KINDS) + (i < KILLS % len(KINDS)) for i in range(len(KINDS))]
    for kind, kills in zip(KINDS, share):
        check(tmp, kind, kills, rng, seen)
    ok(KILLS < 30 or seen.saves > 0, f"{seen.saves} of {seen.kills} kills fell into a save")
finish()
