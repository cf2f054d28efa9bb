"""A run that is asked to end (SIGINT, SIGTERM) or has to: what is saved, what is said; nothing that is broken is saved."""
import hashlib
import json
import os
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import ENV, GOLDEN, LLAVA, Temp, finish, llava, model, ok, read_safetensors, write_safetensors  # noqa: E402

COMMON = ["train", "--model_name_or_path", model("vicuna-base"), "--image_folder", os.path.join(GOLDEN, "pictures"),
          "--vision_tower", model("clip-tiny"), "--mm_projector_type", "mlp2x_gelu", "--mm_vision_select_layer", "-2",
          "--mm_use_im_patch_token", "False", "--model_max_length", "512", "--per_device_train_batch_size", "2",
          "--learning_rate", "1e-3", "--logging_steps", "1", "--report_to", "none", "--version", "v1",
          "--data_path", os.path.join(GOLDEN, "training/full.json")]
LORA = ["--lora_enable", "True", "--lora_r", "4", "--lora_alpha", "8", "--lora_dropout", "0.1"]


def heed():
    """a shell's background jobs ignore SIGINT, and so would what is started from here"""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(*args):
    return subprocess.Popen([LLAVA, *COMMON, *args], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                            env=ENV, text=True, preexec_fn=heed)


def wait_for(p, text, n=1):
    """reads stderr until a line holds the text for the nth time"""
    for line in p.stderr:
        n -= text in line
        if n == 0:
            return line
    return ""


def digest(out, *names):
    def one(name):
        with open(os.path.join(out, name), "rb") as f:
            return hashlib.sha256(f.read()).hexdigest()
    return {name: one(name) for name in names}


def asked(tmp):
    """ends after its step, saved even with --save_strategy no, and goes on to the same bytes"""
    what = [*LORA, "--max_steps", "24", "--gradient_accumulation_steps", "3", "--save_strategy", "no"]
    files = ("adapter_model.safetensors", "non_lora_trainables.bin")
    plain, out = os.path.join(tmp.path, "plain"), os.path.join(tmp.path, "asked")
    ran = llava(*COMMON, *what, "--output_dir", plain)
    ok(ran.code == 0, "a run of 24 steps", ran.text)
    for sig, at in ((signal.SIGINT, 3), (signal.SIGTERM, 5)):
        p = start(*what, "--output_dir", out)
        wait_for(p, "llava: step ", at)
        p.send_signal(sig)
        text = p.communicate()[1]
        last = text.strip().splitlines()[-1] if text.strip() else ""
        ok(p.returncode == 130 and "once more ends at once" in text and last.startswith("llava: stopped: step ") and
           "the same command goes on from there" in last, f"{sig.name}: exit 130, saved", f"{p.returncode}: {text}")
    ran = llava(*COMMON, *what, "--output_dir", out)
    ok(ran.code == 0 and "going on from" in ran.err and digest(out, *files) == digest(plain, *files),
       "started again it ends with the same bytes", ran.text)
    p = start(*what, "--output_dir", out, "--overwrite_output_dir")
    wait_for(p, "llava: step ", 2)
    p.send_signal(signal.SIGTERM)
    text = p.communicate()[1]
    ok(p.returncode == 130 and "with --resume_from_checkpoint True at its end" in text, "where the same command would begin anew",
       text)


def handles(p, sig):
    """has the program its own handler by now?"""
    with open(f"/proc/{p.pid}/status", encoding="ascii") as f:
        mask = next(line.split()[1] for line in f if line.startswith("SigCgt"))
    return int(mask, 16) >> (sig - 1) & 1


def ignored(tmp):
    """who starts it with SIGINT ignored, as nohup does with SIGHUP, wants it so"""
    p = subprocess.Popen([LLAVA, *COMMON, *LORA, "--max_steps", "3", "--output_dir", os.path.join(tmp.path, "ignored")],
                         stderr=subprocess.PIPE, env=ENV, text=True,
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    wait_for(p, "llava: step ")
    p.send_signal(signal.SIGINT)
    text = p.communicate()[1]
    ok(p.returncode == 0 and "stopping" not in text, "SIGINT that is ignored stays so", text)


def twice(tmp):
    """a step of a minute: the second signal does not wait for it, and nothing is saved"""
    out = os.path.join(tmp.path, "twice")
    with open(os.path.join(GOLDEN, "training/full.json"), encoding="utf-8") as f:
        records = json.load(f)
    data = tmp.file("many.json", json.dumps(records * 2000).encode())
    p = start("--output_dir", out, "--gradient_accumulation_steps", "4000", "--data_path", data)
    end = time.time() + 60
    while p.poll() is None and not handles(p, signal.SIGINT) and time.time() < end:
        time.sleep(0.02)
    p.send_signal(signal.SIGINT)
    said = wait_for(p, "once more ends at once")
    p.send_signal(signal.SIGINT)
    p.communicate(timeout=60)
    ok(said and p.returncode == -signal.SIGINT and not os.listdir(out), "a second signal ends it at once",
       f"{p.returncode} {said} {os.listdir(out)}")


def overflow(tmp):
    """an update that breaks a weight is noticed in its step, and what was saved before stays"""
    out = os.path.join(tmp.path, "overflow")
    what = ["--output_dir", out, "--max_steps", "6", "--save_steps", "1", "--lr_scheduler_type", "constant"]
    for more in (("--learning_rate", "1e38"), ("--fp16", "True", "--learning_rate", "1e6"),
                 ("--adam_epsilon", "0", "--adam_beta2", "0", "--learning_rate", "1e30")):
        ran = llava(*COMMON, *what, *more)
        last = ran.err.strip().splitlines()[-1]
        ok(ran.code == 1 and "step 1: '" in last and "became infinite or not a number, at record 'c" in last and
           last.endswith("nothing is saved") and not [n for n in os.listdir(out) if n.startswith("checkpoint")],
           f"{' '.join(more)}: stopped in step 1", ran.text)
    ran = llava(*COMMON, *what, "--max_steps", "2", *LORA)
    path = os.path.join(out, "checkpoint-2/resume.safetensors")
    state = dict(read_safetensors(path))
    good = {n: t for n, t in state.items()}
    # a first moment so large that the next update throws the weight out of range
    name = next(n for n in state if n.startswith("moment1/") and "lora_A" in n)
    state[name] = state[name] * 0 + 3e38
    second = name.replace("moment1/", "moment2/")
    state[second] = state[second] * 0
    write_safetensors(path, state)
    before = sorted(os.listdir(os.path.join(out, "checkpoint-2")))
    ran = llava(*COMMON, *what, *LORA)
    last = ran.err.strip().splitlines()[-1]
    ok(ran.code == 1 and "step 3: '" in last and "lora_A" in last and last.endswith("/checkpoint-2' is kept") and
       sorted(os.listdir(os.path.join(out, "checkpoint-2"))) == before and "checkpoint-3" not in os.listdir(out),
       "in step 3: the parameter, the records and the checkpoint are named", ran.text)
    name = name.replace("moment1/", "master/")
    write_safetensors(path, {**good, name: good[name] * float("nan")})
    ran = llava(*COMMON, *what, *LORA)
    ok(ran.code == 1 and "cannot resume from" in ran.err and name.split("/")[1] in ran.err, "a checkpoint with NaN in it",
       ran.text)


with Temp() as tmp:
    for part in (asked, ignored, twice, overflow):
        part(tmp)
finish()
