"""What a run leaves and goes on from, through the program: the files of each kind of training, save strategies, rotation,
reports, and every reason not to go on from a checkpoint."""
import json
import os
import shutil
import subprocess
import sys

import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import GOLDEN, Temp, finish, llava, model, ok, read_safetensors, skip  # noqa: E402

COMMON = ["train", "--model_name_or_path", model("vicuna-base"), "--image_folder", os.path.join(GOLDEN, "pictures"),
          "--vision_tower", model("clip-tiny"), "--mm_projector_type", "mlp2x_gelu", "--mm_vision_select_layer", "-2",
          "--mm_use_im_patch_token", "False", "--model_max_length", "512", "--per_device_train_batch_size", "2",
          "--learning_rate", "1e-3", "--logging_steps", "1"]
PLAIN = ["--version", "plain", "--data_path", os.path.join(GOLDEN, "training/projector.json"), "--tune_mm_mlp_adapter", "True"]
CHAT = ["--version", "v1", "--data_path", os.path.join(GOLDEN, "training/full.json")]
LORA = [*CHAT, "--lora_enable", "True", "--lora_r", "4", "--lora_alpha", "8"]
OURS = {"resume.json", "resume.safetensors", "trainer_state.json", "loss.svg"}
TOKENS = {"tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"}


def train(out, *more):
    return llava(*COMMON, "--output_dir", out, *more)


def names(*path):
    folder = os.path.join(*path)
    return set(os.listdir(folder)) if os.path.isdir(folder) else set()


def sizes(folder):
    return {n: os.path.getsize(os.path.join(folder, n)) for n in names(folder)}


def read_json(*path):
    with open(os.path.join(*path), encoding="utf-8") as f:
        return json.load(f)


def one_line(ran, *parts):
    """exit 1 with one last line that says all of this"""
    last = (ran.err.strip().splitlines() or [""])[-1]
    return ran.code == 1 and last.startswith("llava: ") and all(p in last for p in parts)


def kinds(tmp):
    for kind, more, files in (
            ("projector", PLAIN, {"config.json", "mm_projector.bin"}),
            ("full", CHAT, TOKENS | {"config.json", "model.safetensors", "vision_tower"}),
            ("lora", LORA, TOKENS | {"config.json", "adapter_config.json", "adapter_model.safetensors",
                                     "non_lora_trainables.bin"})):
        out = os.path.join(tmp.path, kind)
        ran = train(out, *more, "--num_train_epochs", "1", "--save_strategy", "epoch", "--report_to", "none")
        ok(ran.code == 0 and names(out) == files | {"checkpoint-2", "trainer_state.json", "loss.svg"},
           f"{kind}: the files of a result", f"{names(out)}\n{ran.text}")
        ok(names(out, "checkpoint-2") == files | OURS, f"{kind}: the files of a checkpoint", names(out, "checkpoint-2"))
    config = read_json(tmp.path, "projector", "config.json")
    ok(config["model_type"] == "llava_llama" and config["tune_mm_mlp_adapter"] is True and config["use_cache"] is True
       and config["mm_projector_type"] == "mlp2x_gelu" and config["tokenizer_model_max_length"] == 512
       and config["image_aspect_ratio"] == "square", "config.json of a projector", config)
    lora = read_json(tmp.path, "lora", "adapter_config.json")
    ok(lora["r"] == 4 and lora["lora_alpha"] == 8 and lora["peft_type"] == "LORA" and sorted(lora["target_modules"]) ==
       sorted(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]), "adapter_config.json", lora)
    full = set(read_safetensors(os.path.join(tmp.path, "full/model.safetensors")))
    ok("model.vision_tower.vision_tower.vision_model.pre_layrnorm.weight" in full and "model.mm_projector.2.bias" in full
       and "lm_head.weight" in full, "names of a full model", sorted(full)[:5])
    for kind in ("projector", "full", "lora"):
        answers(tmp, kind, kind)


def answers(tmp, kind, out):
    picture = os.path.join(GOLDEN, "pictures/wide-37x23.png")
    args = ["run", "--model-path", os.path.join(tmp.path, out), "--image-file", picture, "--query", "What?",
            "--temperature", "0", "--max-new-tokens", "4"]
    ran = llava(*args, *(["--model-base", model("vicuna-base")] if kind != "full" else []))
    ok(ran.code == 0, f"{out}: the result answers", ran.text)


def new_tokens(tmp):
    """<im_patch>, <im_start>, <im_end>: rows and tokens of the result, whatever was trained"""
    for kind, more in (("projector", PLAIN), ("full", CHAT), ("lora", LORA)):
        out = "tokens-" + kind
        ran = train(os.path.join(tmp.path, out), *more, "--max_steps", "1", "--save_strategy", "no", "--report_to", "none",
                    "--mm_use_im_start_end", "True", "--mm_use_im_patch_token", "True")
        if ok(ran.code == 0, f"{out} runs", ran.text):
            added = read_json(tmp.path, out, "added_tokens.json")
            ok(added == {"<im_patch>": 320, "<im_start>": 321, "<im_end>": 322} and
               read_json(tmp.path, out, "config.json")["vocab_size"] == 323, f"{out}: tokens and rows", added)
            answers(tmp, kind, out)


def special_folder(tmp):
    out = os.path.join(tmp.path, "stage1", "checkpoint-x")
    ran = train(out, *PLAIN, "--max_steps", "1", "--save_strategy", "no", "--report_to", "none")
    ok(ran.code == 0 and names(tmp.path, "stage1", "mm_projector") == {"checkpoint-x.bin"}
       and "mm_projector.bin" not in names(out) and "config.json" in names(out),
       "an output_dir named checkpoint-* has its projector beside it", ran.text)


def strategies(tmp):
    out = os.path.join(tmp.path, "steps")
    ran = train(out, *PLAIN, "--max_steps", "7", "--save_steps", "2", "--save_total_limit", "2", "--report_to",
                "tensorboard,jsonl")
    saved = {n for n in names(out) if n.startswith("checkpoint-")}
    ok(ran.code == 0 and saved == {"checkpoint-4", "checkpoint-6"}, "every second step, the last two kept", saved)
    state = read_json(out, "trainer_state.json")
    steps = [x["step"] for x in state["log_history"] if "loss" in x]
    last = state["log_history"][-1]
    ok(steps == list(range(1, 8)) and state["global_step"] == 7 == state["max_steps"] and "train_loss" in last
       and "train_runtime" in last, "trainer_state.json", state)
    with open(os.path.join(out, "log.jsonl"), encoding="utf-8") as f:
        lines = [json.loads(x) for x in f]
    ok(lines == state["log_history"], "log.jsonl has the same lines", lines)
    runs = [os.path.join(d, f) for d, _, files in os.walk(os.path.join(out, "runs")) for f in files]
    ok(len(runs) == 1 and os.path.getsize(runs[0]) > 500, "an event file", runs)
    none = os.path.join(tmp.path, "none")
    ran = train(none, *PLAIN, "--max_steps", "3", "--save_steps", "1", "--save_strategy", "no", "--report_to", "none")
    ok(ran.code == 0 and names(none) == {"config.json", "mm_projector.bin", "trainer_state.json", "loss.svg"},
       "--save_strategy no, --report_to none", names(none))
    ran = train(none, *PLAIN, "--max_steps", "3", "--report_to", "mlflow")
    ok(ran.code in (1, 2) and "mlflow" in ran.err, "an unknown report", ran.text)
    ran = train(os.path.join(tmp.path, "wandb"), *PLAIN, "--max_steps", "1", "--report_to", "wandb")
    ok(ran.code == 0 and "wandb sync" in ran.err, "the line for wandb", ran.text)


def refusals(tmp):
    out = os.path.join(tmp.path, "r")
    keep = ["--num_train_epochs", "4", "--save_steps", "2", "--report_to", "none"]
    ran = train(out, *PLAIN, *keep)
    ok(ran.code == 0, "a run to go on from", ran.text)
    with open(os.path.join(GOLDEN, "training/projector.json"), encoding="utf-8") as f:
        records = json.load(f)
    records[0]["conversations"][1]["value"] += "!"
    data = tmp.file("other.json", json.dumps(records).encode())
    other = [data if a.endswith("projector.json") else a for a in PLAIN]
    ran = train(out, *other, *keep)
    ok(one_line(ran, "cannot resume from", "checkpoint-8", "data is"), "other data", ran.text)
    ran = train(out, *PLAIN, *keep, "--per_device_train_batch_size", "1")
    ok(one_line(ran, "cannot resume from", "per_device_train_batch_size is 2 there and 1 here"), "another batch", ran.text)
    for name, value in (("version", "v1"), ("image_aspect_ratio", "pad"), ("weight_decay", "0.1"), ("warmup_ratio", "0.5"),
                        ("max_grad_norm", "0.5"), ("mm_projector_lr", "1e-4"), ("dataloader_drop_last", "True"),
                        ("label_smoothing_factor", "0.1"), ("lr_scheduler_kwargs", "{}")):
        ran = train(out, *PLAIN, *keep, "--" + name, value)
        ok(one_line(ran, "cannot resume from", f"{name} is ", "there and"), f"another {name}", ran.text)
    ran = train(out, *CHAT, *keep)
    ok(one_line(ran, "cannot resume from"), "another kind of training", ran.text)
    base = tmp.copy("vicuna-base")
    weights = torch.load(os.path.join(base, "pytorch_model.bin"))
    weights["model.layers.1.mlp.up_proj.weight"][0, 1] += 1
    torch.save(weights, os.path.join(base, "pytorch_model.bin"))
    ran = train(out, *PLAIN, *keep, "--model_name_or_path", base)
    ok(one_line(ran, "cannot resume from", 'model is "'), "another model of the same shapes", ran.text)
    ran = train(out, *PLAIN, *keep, "--mm_projector_type", "linear")
    ok(one_line(ran, "cannot resume from", "model.mm_projector"), "another architecture", ran.text)
    ran = train(os.path.join(tmp.path, "empty"), *PLAIN, *keep, "--resume_from_checkpoint", "True")
    ok(one_line(ran, "no checkpoint in"), "nothing to go on from", ran.text)
    ran = train(out, *PLAIN, *keep, "--resume_from_checkpoint", os.path.join(tmp.path, "nowhere"))
    ok(one_line(ran, "nowhere"), "a folder that is not there", ran.text)
    resume = os.path.join(out, "checkpoint-8/resume.json")
    was = read_json(resume)
    with open(resume, "w", encoding="utf-8") as f:
        json.dump({**was, "same": {**was["same"], "world size": 2}}, f)
    ran = train(out, *PLAIN, *keep)
    ok(one_line(ran, "world size is 2 there and 1 here"), "another world size", ran.text)
    older(out, keep, resume, was)
    os.remove(resume)
    ran = train(out, *PLAIN, *keep)
    ok(one_line(ran, "checkpoint-8", "no 'resume.json'"), "half of a checkpoint", ran.text)
    ran = train(out, *PLAIN, *keep, "--resume_from_checkpoint", os.path.join(out, "checkpoint-6"))
    ok(ran.code == 0 and "resume.json" in names(out, "checkpoint-8"), "an older one, over the broken one", ran.text)
    with open(os.path.join(out, "checkpoint-8/resume.safetensors"), "r+b") as f:
        f.truncate(500)
    ran = train(out, *PLAIN, *keep)
    ok(one_line(ran, "checkpoint-8", "resume.safetensors"), "a file that is cut", ran.text)
    ok("--resume_from_checkpoint takes another one, or False" in ran.err, "what to do about it", ran.text)
    base = tmp.copy("vicuna-base")
    was = sizes(base)
    ran = train(base, *PLAIN, *keep, "--model_name_or_path", base)
    ok(one_line(ran, "is the folder of the model itself") and was == sizes(base),
       "a model is not trained into its own folder", ran.text)
    before = read_json(out, "checkpoint-6", "resume.json")
    shutil.rmtree(os.path.join(out, "checkpoint-8"))
    ran = train(out, *PLAIN, *keep, "--resume_from_checkpoint", "False")
    after = read_json(out, "checkpoint-6", "resume.json")
    ok(ran.code == 0 and before["state"]["loss_total"] == after["state"]["loss_total"],
       "a run begun anew is the same", f"{before}\n{after}")


def older(out, keep, resume, was):
    """A checkpoint that does not say of every argument: it stands among all arguments there, or was as it is by default."""
    def go(seed_there, key, drop, *more):
        o = {**was, "same": {k: v for k, v in was["same"].items() if k != key},
             "arguments": {k: v for k, v in {**was["arguments"], key: seed_there}.items() if not drop or k != key}}
        with open(resume, "w", encoding="utf-8") as f:
            json.dump(o, f)
        return train(out, *PLAIN, *keep, "--resume_from_checkpoint", "True", *more)
    ran = go(7, "seed", False)
    ok(one_line(ran, "seed is 7 there and 42 here"), "what only the arguments say", ran.text)
    ran = go(None, "weight_decay", True, "--weight_decay", "0.5")
    ok(one_line(ran, "weight_decay is 0.0 there and 0.5 here"), "what nothing says was the default", ran.text)
    ran = go(None, "weight_decay", True)
    ok(ran.code == 0 and "going on from" in ran.err, "which goes on", ran.text)
    with open(resume, "w", encoding="utf-8") as f:
        json.dump(was, f)


def full_disk(tmp):
    """files may not grow past 20 kB: the run ends with one line, the last checkpoint is good"""
    out = os.path.join(tmp.path, "disk")
    ran = train(out, *PLAIN, "--max_steps", "2", "--save_steps", "1", "--report_to", "none")
    ok(ran.code == 0, "two checkpoints", ran.text)
    import resource
    import signal

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
    ran = llava(*COMMON, "--output_dir", out, *PLAIN, "--max_steps", "4", "--save_steps", "1", "--report_to", "none",
                preexec_fn=limit)
    left = {n for n in names(out) if n.startswith("checkpoint")}
    ok(one_line(ran, "cannot write") and left == {"checkpoint-1", "checkpoint-2"}, "a full disk", f"{left}\n{ran.text}")
    ran = train(out, *PLAIN, "--max_steps", "4", "--save_steps", "1", "--report_to", "none")
    ok(ran.code == 0 and "going on from" in ran.err and "checkpoint-4" in names(out), "and on from there", ran.text)


def no_room(tmp):
    """a disk that has no room for a checkpoint is refused before the first step (a file system of 1 MB, if one can be had)"""
    small = os.path.join(tmp.path, "small")
    os.mkdir(small)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], stderr=subprocess.DEVNULL,
                      check=False).returncode:
        return skip("a disk without room", "no file system can be mounted here")
    try:
        out = os.path.join(small, "out")
        ran = train(out, *PLAIN, "--max_steps", "2", "--save_steps", "1", "--report_to", "none")
        ok(one_line(ran, "it needs 1.", "MB and the disk has 1.0 MB free") and "step 1" not in ran.err and not os.listdir(out),
           "a disk without room is refused before the first step", ran.text)
        subprocess.run(["mount", "-o", "remount,size=8m", small], check=True)
        ran = train(out, *PLAIN, "--max_steps", "2", "--save_steps", "1", "--report_to", "none")
        ok(ran.code == 0 and "mm_projector.bin" in os.listdir(out), "and one with room is not", ran.text)
    finally:
        subprocess.run(["umount", small], check=True)
    return None


def nowhere(tmp):
    """an output that cannot be is said before anything is read"""
    name = tmp.file("taken", b"x")
    for out, why in ((name, "Not a directory"), (os.path.join(name, "below", "it"), "Not a directory"), ("", "must be given")):
        ran = train(out, *PLAIN, "--model_name_or_path", os.path.join(tmp.path, "no-model"))
        ok(ran.code in (1, 2) and "--output_dir" in ran.err and why in ran.err, f"output '{os.path.basename(out)}': {why}",
           ran.text)


with Temp() as tmp:
    for part in (kinds, new_tokens, special_folder, strategies, refusals, full_disk, no_room, nowhere):
        part(tmp)
finish()
