#!/usr/bin/python3
"""llava train, from the command line to the folder it leaves: the three modes of the tutorial on tiny models, what is
written, going on from a checkpoint, the dry run, evaluation, and what is refused."""
import json
import os
import re
import sys
import time

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import GOLDEN, ROOT, Temp, config, finish, history, llava, losses, model, ok, read_safetensors  # noqa: E402

PICTURES = ["square-50x50.png", "tall-20x61.jpg", "thin-1x9.png", "wide-37x23.png"]


def records(n, plain):
    out = []
    for i in range(n):
        ask = "Describe it.\n<image>" if plain else "<image>\nWhat is it?" if i % 3 else "Say hello."
        r = {"id": f"r{i}", "conversations": [{"from": "human", "value": ask}, {"from": "gpt", "value": f"thing {i % 4}"}]}
        if plain or i % 3:
            r["image"] = PICTURES[i % 4]
        out.append(r)
    return out


class Runs:
    """Commands as the tutorial has them, on the fixtures."""

    def __init__(self, t):
        self.t = t
        self.plain = t.file("plain.json", json.dumps(records(12, True)).encode())
        self.talk = t.file("talk.json", json.dumps(records(12, False)).encode())

    def out(self, name):
        return os.path.join(self.t.path, name)

    def common(self, out, stage):
        return ["train", "--deepspeed", os.path.join(ROOT, f"scripts/zero{stage}.json"), "--model_name_or_path",
                model("vicuna-base"), "--image_folder", os.path.join(GOLDEN, "pictures"), "--vision_tower",
                model("clip-tiny"), "--mm_projector_type", "mlp2x_gelu", "--mm_vision_select_layer", "-2",
                "--mm_use_im_start_end", "False", "--mm_use_im_patch_token", "False",
                "--output_dir", self.out(out), "--num_train_epochs", "1", "--per_device_train_batch_size", "2",
                "--per_device_eval_batch_size", "4", "--gradient_accumulation_steps", "1", "--evaluation_strategy", "no",
                "--save_strategy", "steps", "--save_steps", "24000", "--save_total_limit", "1", "--weight_decay", "0.",
                "--warmup_ratio", "0.03", "--lr_scheduler_type", "cosine", "--logging_steps", "1", "--model_max_length",
                "256", "--gradient_checkpointing", "True", "--dataloader_num_workers", "2", "--lazy_preprocess", "True",
                "--report_to", "none"]

    def stage1(self, out, *more):
        return llava(*self.common(out, 2), "--version", "plain", "--data_path", self.plain, "--tune_mm_mlp_adapter", "True",
                     "--bf16", "True", "--learning_rate", "1e-3", "--tf32", "True", *more)

    def stage2(self, out, *more):
        return llava(*self.common(out, 3), "--version", "v1", "--data_path", self.talk, "--image_aspect_ratio", "pad",
                     "--group_by_modality_length", "True", "--learning_rate", "2e-3", *more)


def answers(path, *more):
    return llava("run", "--quiet", "--model-path", path, "--image-file", os.path.join(GOLDEN, "pictures", PICTURES[3]),
                 "--query", "What is it?", "--temperature", "0", "--max-new-tokens", "4", *more)


def test_first(runs):
    """Files that are not there are said before a base is fetched."""
    for option in ("data_path", "eval_data_path", "image_folder", "pretrain_mm_mlp_adapter"):
        r = llava("train", "--model_name_or_path", "nobody/has-this", "--data_path", runs.talk, "--output_dir",
                  runs.out("none"), f"--{option}", "/none")
        ok(r.code == 1 and r.err == f"llava: --{option}: cannot open '/none': No such file or directory\n" and
           not os.path.exists(runs.out("none")), f"--{option} is not there", r.text)


def test_modes(runs):
    r = runs.stage1("pretrain", "--num_train_epochs", "4")
    one = runs.out("pretrain")
    ok(r.code == 0 and sorted(os.listdir(one))[:2] == ["config.json", "loss.svg"] and not r.out, "stage 1 runs", r.text)
    ok("not clipped" in r.err and re.search("without effect here: .*--lazy_preprocess.*--tf32", r.err),
       "clipping and what has no effect are named", r.err)
    ok(losses(one)[-1] < losses(one)[0] - 0.5, "the loss falls", losses(one))
    rates = [h["learning_rate"] for h in history(one) if "loss" in h]
    ok(len(rates) == 24 and rates[0] == 1e-3 and rates[-1] == 0 and abs(rates[1] - 9.953e-4) < 1e-6,
       "the learning rates are cosine's, logged after the step", rates)
    r = answers(one, "--model-base", model("vicuna-base"))
    ok(r.code == 0, "the projector opens with its base", r.text)

    projector = os.path.join(one, "mm_projector.bin")
    for name, precision in (("full", []), ("full16", ["--bf16", "True"])):
        r = runs.stage2(name, "--pretrain_mm_mlp_adapter", projector, *precision)
        ok(r.code == 0 and losses(runs.out(name))[-1] < losses(runs.out(name))[0], f"stage 2 runs ({name})", r.text)
        ok(answers(runs.out(name)).code == 0, f"its model opens ({name})", answers(runs.out(name)).text)
    a, b = losses(runs.out("full")), losses(runs.out("full16"))
    ok(np.allclose(a, b, rtol=0.05), "bf16 learns as f32 does", f"{a}\n{b}")

    r = runs.stage2("lora", "--pretrain_mm_mlp_adapter", projector, "--lora_enable", "True", "--lora_r", "8", "--lora_alpha",
                    "16", "--mm_projector_lr", "2e-5")
    lora = runs.out("lora")
    ok(r.code == 0 and {"adapter_config.json", "adapter_model.safetensors", "non_lora_trainables.bin", "config.json"}
       <= set(os.listdir(lora)), "LoRA runs", r.text)
    b = [np.abs(v).max() for k, v in read_safetensors(os.path.join(lora, "adapter_model.safetensors")).items()
         if "lora_B" in k]
    ok(len(b) and min(b) > 0, "every adapter has learned", b)
    r = answers(lora, "--model-base", model("vicuna-base"))
    ok(r.code == 0, "the adapter opens with its base", r.text)
    with open(os.path.join(lora, "config.json"), encoding="utf-8") as f:
        c = json.load(f)
    want = {"mm_projector_lr": 2e-5, "image_aspect_ratio": "pad", "tokenizer_model_max_length": 256, "mm_hidden_size": 32,
            "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2, "tune_mm_mlp_adapter": False}
    ok({k: c.get(k) for k in want} == {**want, "mm_hidden_size": c.get("mm_hidden_size")}, "config.json has LLaVA's keys", c)


def test_bases(runs):
    """A LLaVA brings its tower, whichever layout; new tokens; weights in f16."""
    for base in ("llava-transformers5", "llava-self-trained"):
        r = runs.stage2("base-" + base, "--model_name_or_path", model(base), "--vision_tower", "None")
        here = runs.out("base-" + base)
        ok(r.code == 0 and losses(here)[-1] < losses(here)[0], f"{base} goes on learning", r.text)
        ok(answers(here).code == 0, f"what {base} became opens", answers(here).text)
    base = model("llava-self-trained")  # patches of layer -2
    for more, want in (([], (-2, "patch")), (["--mm_vision_select_feature", "cls_patch"], (-2, "cls_patch")),
                       (["--mm_vision_select_layer", "-1"], (-1, "cls_patch"))):
        out = runs.out(f"select-{len(more)}-{want[0]}")
        r = llava("train", "--model_name_or_path", base, "--data_path", runs.talk, "--image_folder",
                  os.path.join(GOLDEN, "pictures"), "--version", "v1", "--output_dir", out, "--max_steps", "1",
                  "--report_to", "none", "--mm_use_im_patch_token", "False", *more)
        c = config(out) if r.code == 0 else {}
        ok((c.get("mm_vision_select_layer"), c.get("mm_vision_select_feature")) == want,
           f"{more or 'nothing'} said of what a LLaVA's tower gives: {want}", r.text)
        base = out  # the next one begins with what this one says
    r = runs.stage2("tokens", "--mm_use_im_start_end", "True", "--mm_use_im_patch_token", "True", "--fp16", "True")
    ok(r.code == 0 and "323" in r.err and answers(runs.out("tokens")).code == 0, "three new tokens, in f16", r.text)


def test_bits(runs):
    """Adapters over 8 and 4 bits: they learn, near what they learn over all bits, and fit the base as it is."""
    lora = ["--lora_enable", "True", "--lora_r", "8", "--lora_alpha", "16", "--learning_rate", "1e-2"]
    whole = runs.stage2("bits-16-llava-lora", *lora)
    want = losses(runs.out("bits-16-llava-lora"))
    ok(whole.code == 0, "adapters over all bits", whole.text)
    for bits, near in (("8", 0.02), ("4", 0.2)):
        name = f"bits-{bits}-llava-lora"
        r = runs.stage2(name, *lora, "--bits", bits)
        got = losses(runs.out(name)) if r.code == 0 else [0] * len(want)
        ok(got[-1] < got[0] and got != want and all(abs(a - b) < near * a for a, b in zip(want, got)),
           f"over {bits} bits", f"{r.text} {want} {got}")
    r = runs.stage2("bits-full", "--bits", "4")
    ok(r.code == 1 and "is for what stays frozen" in r.err, "without adapters they are refused", r.text)


def test_same(runs):
    """Ways to the same weights: another number of loader threads; in two parts; with and without recomputation."""
    def weights(name):
        return read_safetensors(os.path.join(runs.out(name), "model.safetensors"))

    base = runs.stage2("whole", "--save_steps", "4")
    want = weights("whole")
    ok(base.code == 0, "a run with checkpoints", base.text)
    for name, more in {"threads": ["--dataloader_num_workers", "0"], "kept": ["--gradient_checkpointing", "False"]}.items():
        r = runs.stage2(name, *more)
        got = weights(name) if r.code == 0 else {}
        ok(got.keys() == want.keys() and all(np.array_equal(got[k], want[k]) for k in want), f"same bytes: {name}", r.text)
    r = runs.stage2("parts", "--save_steps", "4")
    os.remove(os.path.join(runs.out("parts"), "model.safetensors"))
    r = runs.stage2("parts", "--save_steps", "4")
    ok("going on from" in r.err and "step 4 of 6" in r.err, "a run goes on from its checkpoint", r.text)
    got = weights("parts")
    ok(all(np.array_equal(got[k], want[k]) for k in want), "and ends with the same bytes")
    other = runs.t.file("other.json", json.dumps(records(11, False)).encode())
    r = runs.stage2("parts", "--data_path", other)
    ok(r.code == 1 and "data" in r.err.splitlines()[-1], "not with other data", r.text)
    r = runs.stage2("parts", "--per_device_train_batch_size", "4")
    ok(r.code == 1 and "per_device_train_batch_size" in r.err.splitlines()[-1], "not with another batch", r.text)
    r = runs.stage2("parts", "--overwrite_output_dir", "True", "--max_steps", "1")
    ok(r.code == 0 and "going on" not in r.err and len(losses(runs.out("parts"))) == 1, "anew, if asked", r.text)


def test_evaluation(runs):
    r = runs.stage2("eval", "--eval_data_path", runs.talk, "--evaluation_strategy", "steps", "--eval_steps", "3",
                    "--learning_rate", "1e-9")
    e = [h["eval_loss"] for h in history(runs.out("eval")) if "eval_loss" in h]
    ok(r.code == 0 and len(e) == 2 and abs(e[0] - e[1]) < 1e-3, "evaluation every third step", r.text)
    ok(abs(np.mean(losses(runs.out("eval"))) - e[0]) < 0.2, "its loss is that of the same records", f"{e}")


def test_best(runs):
    """A rate that is far too high: the first evaluations are the best."""
    def has(out, *names):
        return [open(os.path.join(runs.out(out), n, "model.safetensors"), "rb").read() for n in names]

    often = ("--eval_data_path", runs.talk, "--learning_rate", "0.03", "--lr_scheduler_type", "constant", "--max_steps", "9",
             "--load_best_model_at_end", "True")
    for name, how, limit, kept in (("steps", ("--eval_strategy", "steps", "--eval_steps", "1", "--save_steps", "1"), "1", 2),
                                   ("epoch", ("--eval_strategy", "epoch", "--save_strategy", "epoch", "--learning_rate", "0.3"),
                                    "2", 2)):
        out = "best-" + name
        r = runs.stage2(out, *often, *how, "--save_total_limit", limit)
        e = {h["step"]: h["eval_loss"] for h in history(runs.out(out)) if "eval_loss" in h}
        best = min(e, key=e.get) if e else 0
        there = sorted(int(d[11:]) for d in os.listdir(runs.out(out)) if d.startswith("checkpoint-"))
        with open(os.path.join(runs.out(out), "trainer_state.json"), encoding="utf-8") as f:
            state = json.load(f)
        if not ok(r.code == 0 and 0 < best < max(e) and there == [best, max(e)] and len(there) == kept,
                  f"by {name}: the best and the last checkpoint are kept", (e, there, r.text)):
            continue
        got = has(out, "", f"checkpoint-{best}", f"checkpoint-{max(e)}")
        ok(got[0] == got[1] != got[2] and state["best_model_checkpoint"].endswith(f"/checkpoint-{best}"),
           f"by {name}: the result is the best", r.text)
    before = has("best-steps", "")
    again = runs.stage2("best-steps", *often, "--eval_strategy", "steps", "--eval_steps", "1", "--save_steps", "1")
    ok(again.code == 0 and has("best-steps", "") == before, "started again it ends the same", again.text)
    for wrong in (("--eval_strategy", "epoch"), ("--eval_steps", "3", "--save_steps", "4"), ("--eval_data_path", "None")):
        r = runs.stage2("best-wrong", *often, *wrong)
        ok(r.code in (1, 2) and "--load_best_model_at_end wants" in r.err, f"{wrong}", r.text)


def test_dry(runs):
    r = runs.stage2("dry", "--dry_run", "True", "--model_name_or_path", model("llava-hf-old"))
    ok(r.code == 0 and f"'{model('clip-tiny')}' is not read" in r.err and "projector of" not in r.err,
       "a tower for a model that has one inside is said to be of no use", r.text)
    r = runs.stage1("dry", "--dry_run", "True")
    ok(r.code == 0 and not os.path.exists(runs.out("dry")), "a dry run writes nothing", r.text)
    for word in ("trained: 6272 of", "12 records", "steps: 6 of 2", "activations", "moments", "together", "time: about"):
        ok(word in r.out, f"it says '{word}'", r.out)
    r = runs.stage1("dry", "--dry_run", "True", "--image_aspect_ratio", "anyres")
    ok(r.code == 0 and "squares while training" in r.err, "anyres is not what it trains on, and it says so", r.text)
    started = time.monotonic()
    r = runs.stage1("dry", "--dry_run", "True", "--max_steps", "999999999999")
    ok(r.code == 0 and "steps: 999999999999 of 2" in r.out and time.monotonic() - started < 20,
       "of more steps than anybody lives", r.text)
    r = runs.stage2("dry", "--memory_limit", "1M")
    last = r.err.splitlines()[-1]
    ok(r.code == 1 and "needs" in last and "1.0 MB" in last and not os.path.exists(runs.out("dry")),
       "what does not fit is refused with the sum", r.text)


def test_refused(runs):
    """One line each, at the start, and nothing written."""
    t = runs.t
    nan = read_safetensors_model_with_nan(t)
    q4 = os.path.join(t.path, "q4")
    made = llava("quantize", "--model-path", model("llava-self-trained"), "--bits", "4", "--output", q4)
    ok(made.code == 0, "a quantised model", made.text)
    of_q4 = ["--model_name_or_path", q4, "--vision_tower", "None"]
    cases = {
        "a file that is not there": (["--data_path", "/nope.json"], ["/nope.json"], 1),
        "no JSON": (["--data_path", t.file("bad.json", b'[{"id": 1,')], ["bad.json"], 1),
        "no room for a picture": (["--model_max_length", "4"], ["model_max_length"], 1),
        "another projector": (["--pretrain_mm_mlp_adapter", os.path.join(model("llava-projector-linear"),
                                                                         "mm_projector.bin")], ["mm_projector"], 1),
        "a projector that is none": (["--mm_projector_type", "mlp2x_relu"], ["mlp2x_relu"], 2),
        "nothing to train": (["--lora_enable", "False", "--freeze_backbone", "True", "--tune_mm_mlp_adapter", "False",
                              "--freeze_mm_mlp_adapter", "True", "--lora_enable", "True", "--lora_bias", "none",
                              "--lora_r", "0"], ["lora_r"], 2),
        "no tower for a projector": (["--vision_tower", "None", "--tune_mm_mlp_adapter", "True"], ["vision_tower"], 1),
        "an adapter as base": (["--model_name_or_path", model("llava-lora")], ["merge"], 1),
        "a number that is none": (["--model_name_or_path", nan], ["not a number", "'r", "step 1"], 1),
        "a number that is none, gradients away": (["--model_name_or_path", nan, "--offload", "both"],
                                                  ["not a number", "'r", "step 1"], 1),
        "a report that is none": (["--report_to", "paper"], ["paper"], 2),
        "a limit that is none": (["--memory_limit", "x"], ["--memory_limit wants a size", "'x'"], 2),
        "a host's limit that is none": (["--host_memory_limit", "-3"], ["--host_memory_limit wants a size"], 2),
        "a quantised projector": ([*of_q4, "--lora_enable", "True"],
                                  ["mm_projector.0.weight' of '" + q4, "--freeze_mm_mlp_adapter True leaves it"], 1),
        "quantised linears": (of_q4, ["embed_tokens.weight' of '" + q4, "--lora_enable True trains adapters"], 1),
        "bits of what is trained": (["--bits", "4"], ["--bits 4 is for what stays frozen", "--lora_enable True"], 1),
    }
    for name, (more, words, code) in cases.items():
        r = runs.stage2("refused", *more)
        last = [x for x in r.err.splitlines() if "Try `" not in x][-1:] or [""]
        ok(r.code == code and all(w in last[0] for w in words), name, r.text)
        kept = [f for _, _, files in os.walk(runs.out("refused")) for f in files if not f.startswith(".")]
        ok(not kept, f"{name}: nothing is written", kept)


def read_safetensors_model_with_nan(t):
    """The base with a NaN in its last norm."""
    import torch
    path = t.copy("vicuna-base")
    w = torch.load(os.path.join(path, "pytorch_model.bin"))
    w["model.norm.weight"][3] = float("nan")
    torch.save(w, os.path.join(path, "pytorch_model.bin"))
    return path


with Temp() as temp:
    every = Runs(temp)
    test_first(every)
    test_modes(every)
    test_bases(every)
    test_bits(every)
    test_same(every)
    test_evaluation(every)
    test_best(every)
    test_dry(every)
    test_refused(every)
finish()
