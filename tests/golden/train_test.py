"""`llava train` against PyTorch, transformers and peft: Adam's moments after the first step (so every gradient), twenty
losses, gradient norms, learning rates and the trained tensors at the end; projector only, all of the language model, LoRA.

The runs are described in tools/golden/runs.py and manifest.json ("runs"). fp32 must agree to 1e-4 relative; bf16 may be
twice as far from fp32 as PyTorch's bf16 is.

LLAVA_TEST_DEVICE=cuda: on a device that the build has. An argument: that run alone."""
import json
import os
import shutil
import sys

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import (GOLDEN, Temp, finish, forward, history, llava, losses, model, ok, read_safetensors,  # noqa: E402
                 write_safetensors)

SKETCH, WIDTH, TOLERANCE = 200, 6, 1e-4
DEVICE = os.environ.get("LLAVA_TEST_DEVICE", "cpu")     # of a build that has it: "emu", "cuda"
# The emulator is slow: a warm-up of two steps and two more have the rates of any longer run.
STEPS = 4 if DEVICE == "emu" else None


def signs(n):
    """as in tools/golden/runs.py"""
    at = np.arange(n * WIDTH, dtype=np.uint64).reshape(n, WIDTH)
    bits = (at * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x632BE59BD9B4E019)) >> np.uint64(40) & np.uint64(1)
    return bits.astype(np.float64) * 2 - 1


def sketch(a):
    a = a.astype(np.float64)
    if a.size <= SKETCH:
        return a
    a = a[None] if a.ndim == 1 else a.T if a.shape[0] > a.shape[1] else a
    return a @ signs(a.shape[1])


def distance(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or not np.isfinite(a).all():
        return float("inf")
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-12))


def arguments(run, out, *more):
    n = 4
    args = ["train", "--model_name_or_path", model("vicuna-base"), "--version", run["version"],
            "--data_path", os.path.join(GOLDEN, run["records"]), "--image_folder", os.path.join(GOLDEN, "pictures"),
            "--vision_tower", model("clip-tiny"), "--mm_projector_type", "mlp2x_gelu",
            "--pretrain_mm_mlp_adapter", os.path.join(model("llava-projector-mlp"), "mm_projector.bin"),
            "--mm_vision_select_layer", "-2", "--mm_use_im_start_end", "False", "--mm_use_im_patch_token", "False",
            "--image_aspect_ratio", run["aspect"], "--model_max_length", "512", "--output_dir", out,
            "--per_device_train_batch_size", str(1 if run["accumulate"] else n),
            "--gradient_accumulation_steps", str(n if run["accumulate"] else 1),
            "--max_steps", str(STEPS or run["steps"]), "--warmup_steps", str(run["warmup"]), "--learning_rate", str(run["lr"]),
            "--lr_scheduler_type", run["schedule"], "--weight_decay", str(run["decay"]),
            "--max_grad_norm", str(run["clip"]), "--logging_steps", "1", "--save_strategy", "steps", "--save_steps", "1",
            "--gradient_checkpointing", "True", "--report_to", "none", "--device", DEVICE]
    if run["train"] == "projector":
        args += ["--tune_mm_mlp_adapter", "True"]
    if run["train"] == "lora":
        args += ["--lora_enable", "True", "--lora_r", str(run["rank"]), "--lora_alpha", str(run["alpha"]),
                 "--lora_dropout", "0"]
    if run["projector_lr"] is not None:
        args += ["--mm_projector_lr", str(run["projector_lr"])]
    return args + list(more)


def logged(out):
    return [x for x in history(out) if "loss" in x]


def start_adapters(from_dir, out, expected):
    """A checkpoint of step 0 whose adapters are the fixture's: that of step 1 (whose learning rate was 0, so that only
    moments changed) with these put in and all moments zero."""
    at = os.path.join(out, "checkpoint-0")
    shutil.copytree(os.path.join(from_dir, "checkpoint-1"), at)
    path = os.path.join(at, "resume.safetensors")
    tensors = {}
    for name, t in read_safetensors(path).items():
        own = name[len("master/"):] if name.startswith("master/") else name
        t = t.copy()
        if name.startswith("moment"):
            t[:] = 0
        elif "start." + own in expected:
            t[:] = expected["start." + own]
        tensors[name] = t
    write_safetensors(path, tensors)
    with open(os.path.join(at, "resume.json"), encoding="utf-8") as f:
        resume = json.load(f)
    resume["state"] = {k: type(v)(0) for k, v in resume["state"].items()}
    with open(os.path.join(at, "resume.json"), "w", encoding="utf-8") as f:
        json.dump(resume, f)
    with open(os.path.join(at, "trainer_state.json"), "w", encoding="utf-8") as f:
        json.dump({"log_history": []}, f)


def train(tmp, run, expected, name, *more):
    """the folder of a run, or None"""
    out = os.path.join(tmp.path, name)
    ran = llava(*arguments(run, out, *more))
    if ran.code == 0 and run["train"] == "lora":
        first, out = out, out + "-started"
        os.makedirs(out)
        start_adapters(first, out, expected)
        ran = llava(*arguments(run, out, *more))
    return out if ok(ran.code == 0, f"{name} runs", ran.text) else None


def worst_of(tensors, expected, prefix, name_of):
    """(largest distance, its name) over the tensors that the fixture has under this prefix"""
    rows = []
    for key in expected:
        if key.startswith(prefix):
            name = name_of(key[len(prefix):])
            rows.append((distance(sketch(tensors[name]), expected[key]) if name in tensors else float("inf"), name))
    return max(rows)


def check_fp32(tmp, run):
    name, expected = run["name"], read_safetensors(os.path.join(GOLDEN, run["expected"]))
    out = train(tmp, run, expected, name)
    if not out:
        return
    rows, steps = logged(out), STEPS or run["steps"]
    ok([x["step"] for x in rows] == list(range(1, steps + 1)), f"{name}: a line a step", rows)
    by = max(abs(x["loss"] / y - 1) for x, y in zip(rows, expected["loss"]))
    ok(by < TOLERANCE, f"{name}: {len(rows)} losses within {by:.1e}", [(x["loss"], y) for x, y in
                                                                    zip(rows, expected["loss"])])
    by = max(abs(x["grad_norm"] / y - 1) for x, y in zip(rows, expected["norm"]))
    ok(by < 10 * TOLERANCE, f"{name}: gradient norms within {by:.1e}", [(x["grad_norm"], y) for x, y in
                                                                     zip(rows, expected["norm"])])
    want = (run["rates"][1:] + [0.0])[:steps]   # logged after a step: that of the next
    if STEPS:
        rows, want = rows[:2], want[:2]
    by = max(abs(x["learning_rate"] - y) for x, y in zip(rows, want)) / run["lr"]
    ok(by < 1e-9, f"{name}: learning rates within {by:.1e}", [(x["learning_rate"], y) for x, y in zip(rows, want)])
    state = read_safetensors(os.path.join(out, "checkpoint-1/resume.safetensors"))
    n = sum(k.startswith("moment1.") for k in expected)
    by, at = worst_of(state, expected, "moment1.", lambda k: "moment1/" + k)
    ok(by < TOLERANCE and n == sum(k.startswith("moment1/") for k in state),
       f"{name}: first gradients of {n} tensors within {by:.1e}", at)
    if STEPS:
        return
    state = read_safetensors(os.path.join(out, f"checkpoint-{run['steps']}/resume.safetensors"))
    by, at = worst_of(state, expected, "final.", lambda k: "master/" + k)
    ok(by < 10 * TOLERANCE, f"{name}: trained tensors within {by:.1e}", at)


def check_bf16(tmp, run):
    name, expected = run["name"] + " bf16", read_safetensors(os.path.join(GOLDEN, run["expected"]))
    out = train(tmp, run, expected, name, "--bf16", "True")
    if not out:
        return
    theirs = distance(expected["loss_bf16"], expected["loss"])
    ours = distance(losses(out), expected["loss"][:STEPS])
    ok(ours <= 2 * theirs, f"{name}: losses {ours:.1e} from fp32, PyTorch's {theirs:.1e}")


def check_resume(tmp, run):
    """a run that goes on from half way writes the bytes of one that was not stopped"""
    whole, half = (os.path.join(tmp.path, x) for x in ("whole", "half"))
    more = ["--bf16", "True", "--lora_dropout", "0.1", "--save_steps", str((STEPS or run["steps"]) // 2)]
    ran = [llava(*arguments(run, whole, *more))]
    shutil.copytree(whole, half)
    last = f"checkpoint-{STEPS or run['steps']}/resume.safetensors"
    with open(os.path.join(whole, last), "rb") as f:
        want = f.read()
    shutil.rmtree(os.path.join(half, os.path.dirname(last)))
    ran.append(llava(*arguments(run, half, *more)))
    good = all(r.code == 0 for r in ran) and "going on from" in ran[1].err
    if ok(good, "a run goes on from half way", ran[-1].text):
        with open(os.path.join(half, last), "rb") as f:
            ok(f.read() == want, "and ends with the same bytes")


def check_schedules(tmp, run):
    """the factors that transformers' own schedulers gave; polynomial ends at the absolute rate of 1e-7"""
    with open(os.path.join(GOLDEN, "training/schedules.json"), encoding="utf-8") as f:
        golden = json.load(f)
    for name, rates in golden["rates"].items():
        out = os.path.join(tmp.path, name)
        how = {**run, "schedule": name, "warmup": golden["warmup"], "steps": golden["steps"], "lr": 1e-3}
        ran = llava(*arguments(how, out), "--save_strategy", "no")
        rows = [x["learning_rate"] / 1e-3 for x in logged(out)] if ran.code == 0 else []
        by = max((abs(a - b) for a, b in zip(rows, rates[1:])), default=1)
        ok(len(rows) == golden["steps"] and by < (2e-4 if name == "polynomial" else 1e-9), f"{name}: rates within {by:.1e}",
           f"{rows}\n{rates}\n{ran.text}")


def check_smoothing(tmp, run):
    """transformers' LabelSmoother on the labels of a text, from the logits that `llava forward` gives of it"""
    question, answer = "What is red?", "An apple is red."
    data = tmp.file("smooth.json", json.dumps([{"id": "0", "conversations": [
        {"from": "human", "value": question}, {"from": "gpt", "value": answer}]}]).encode())
    got, why = forward(model("vicuna-base"), "A chat between a curious user and an artificial intelligence assistant. The "
                       "assistant gives helpful, detailed, and polite answers to the user's questions. "
                       f"USER: {question} ASSISTANT: {answer}</s>")
    if not ok(got is not None, "logits of a text", why):
        return
    x, want = got["logits"][:-1].astype(np.float64), got["input_ids"][1:]
    lse = np.log(np.exp(x).sum(1))
    right, all_of = lse - x[np.arange(len(want)), want], lse - x.mean(1)
    n = 0
    for share in (0, 0.1, 0.9):
        out = os.path.join(tmp.path, f"smooth-{share}")
        ran = llava(*arguments(run, out, "--data_path", data, "--max_steps", "1", "--save_strategy", "no",
                               "--label_smoothing_factor", str(share), "--gradient_accumulation_steps", "1"))
        loss = losses(out)[0] if ran.code == 0 else 0
        n = n or next((k for k in range(1, len(want)) if abs(right[-k:].mean() / (loss or 1) - 1) < 1e-5), 0)
        if ok(n > 4, f"smoothing {share}: {n} labels", f"{loss}\n{ran.text}"):
            by = abs(loss / ((1 - share) * right[-n:].mean() + share * all_of[-n:].mean()) - 1)
            ok(by < 1e-5, f"smoothing {share}: the loss within {by:.1e}", loss)


with open(os.path.join(GOLDEN, "manifest.json"), encoding="utf-8") as f:
    RUNS = json.load(f)["runs"]
with Temp() as tmp:
    for run in [r for r in RUNS if r["name"] in (sys.argv[1:] or [r["name"]])]:
        check_fp32(tmp, run)
        check_bf16(tmp, run)
    if sys.argv[1:]:
        finish()
    if DEVICE != "cpu":     # of the host: tests/train/resume_test.py
        check_resume(tmp, next(r for r in RUNS if r["train"] == "lora"))
    if not STEPS:
        check_schedules(tmp, RUNS[0])
        check_smoothing(tmp, next(r for r in RUNS if r["train"] == "full"))
finish()
