#!/usr/bin/python3
"""Does training teach? Two small trainings of models/demo on real pictures, and what the trained models then answer.

    tools/learn.py [--work DIR] [--npm DIR] [--llava build/llava] [--only memorise|adapter]

memorise   200 emoji of one drawing style, each with a code that nothing tells but this training; the language model and
           the projector are trained. Every code must be answered, letter for letter.
adapter    a LoRA adapter learns a question that the demo model does not know: whether one can eat what is in the picture.
           It sees the seven drawing styles of the training pictures, and is asked about pictures of two others. Before,
           the answers are right by chance; after, 90% must be (twemoji). Half of the pictures are food.

The pictures are drawn as for models/demo (tools/demo/make_data.py, whose head says what is fetched by npm): needs npm,
network and librsvg2-bin, unless --npm names a folder that has the packages unpacked. Minutes of two cores in all; each
line of the report has its own. Exit status 0 if both have learned.
"""
import argparse
import json
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tools/demo"))
import make_data  # noqa: E402

PACKAGES = ["unicode-emoji-json@0.9.0", "emojilib@4.0.3"] + ["@iconify-json/" + s for s in make_data.STYLES]
CODE_QUESTION, FOOD_QUESTION = "What is the code of this?", "Is this something to eat?"
LETTERS, DIGITS = "ABCDEFGHJKLMNPRSTUVWXYZ", "23456789"
MODEL = os.path.join(ROOT, "models/demo")
opt = argparse.Namespace()


def fetch_packages():
    folder = opt.npm or os.path.join(opt.work, "npm")
    if opt.npm or os.path.exists(os.path.join(folder, "done")):
        return folder
    os.makedirs(folder, exist_ok=True)
    subprocess.run(["npm", "pack", "--silent", *PACKAGES], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    for name in [f for f in os.listdir(folder) if f.endswith(".tgz")]:
        into = os.path.join(folder, name[:-4])
        os.makedirs(into, exist_ok=True)
        subprocess.run(["tar", "xzf", os.path.join(folder, name), "-C", into], check=True)
    open(os.path.join(folder, "done"), "w").close()
    return folder


def pictures(jobs):
    """draws what is not there yet; the facts of those that could be drawn"""
    folder = os.path.join(opt.work, "pictures")
    missing = [j for j in jobs if not os.path.exists(os.path.join(folder, j[1]["image"]))]
    make_data.draw(missing, folder, 112)
    return [f for _, f in jobs if os.path.exists(os.path.join(folder, f["image"]))]


def record(n, fact, question, answer):
    return {"id": f"{n}-{fact['image']}", "image": fact["image"], "conversations": [
        {"from": "human", "value": "<image>\n" + question}, {"from": "gpt", "value": answer}]}


def train(name, records, *more):
    """trains on the records; (folder, seconds)"""
    data, out, start = os.path.join(opt.work, name + ".json"), os.path.join(opt.work, name), time.time()
    with open(data, "w", encoding="utf-8") as f:
        json.dump(records, f)
    subprocess.run(["rm", "-rf", out], check=True)
    with open(os.path.join(opt.work, name + ".log"), "wb") as log:
        p = subprocess.run([opt.llava, "train", "--model_name_or_path", MODEL, "--version", "v1", "--data_path", data,
                            "--image_folder", os.path.join(opt.work, "pictures"), "--output_dir", out,
                            "--mm_vision_select_layer", "-2", "--mm_projector_type", "mlp2x_gelu",
                            "--mm_use_im_patch_token", "False", "--model_max_length", "512", "--weight_decay", "0.",
                            "--warmup_ratio", "0.03", "--lr_scheduler_type", "cosine", "--logging_steps", "1",
                            "--save_strategy", "no", "--gradient_checkpointing", "False", "--report_to", "jsonl", *more],
                           stdout=log, stderr=subprocess.STDOUT)
    if p.returncode:
        sys.exit(f"learn.py: the training failed, {os.path.join(opt.work, name)}.log says why")
    return out, time.time() - start


def ask(model, base, question, facts):
    """what the model answers about each picture"""
    def one(fact):
        args = [opt.llava, "run", "--model-path", model, "--image-file", os.path.join(opt.work, "pictures", fact["image"]),
                "--query", question, "--temperature", "0", "--max-new-tokens", "12", "--quiet", "--threads", "1"]
        p = subprocess.run(args + (["--model-base", base] if base else []), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        return p.stdout.decode().strip() if p.returncode == 0 else sys.exit(p.stderr.decode())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(one, facts))


def share(answers, wanted):
    return sum(a == b for a, b in zip(answers, wanted)) / len(wanted)


def codes(n, rng):
    every = [a + b + c for a in LETTERS for b in DIGITS for c in LETTERS]
    return rng.sample(every, n)


def memorise(jobs):
    rng = random.Random(1)
    facts = pictures(rng.sample([j for j in jobs if j[1]["style"] == "noto"], 210))[:200]
    want = codes(200, rng)
    before = share(ask(MODEL, None, CODE_QUESTION, facts[:40]), want[:40])
    out, seconds = train("memorise", [record(i, f, CODE_QUESTION, c) for i, (f, c) in enumerate(zip(facts, want))],
                         "--num_train_epochs", str(opt.epochs), "--per_device_train_batch_size", "4",
                         "--learning_rate", "1e-3")
    right = share(ask(out, None, CODE_QUESTION, facts), want)
    print(f"memorise: {before:.1%} of the codes before, {right:.1%} of {len(want)} after {seconds:.0f} s of training", flush=True)
    return right == 1.0


def food(fact):
    return "Yes" if fact["group"] == "Food & Drink" else "No"


def some_of(jobs, styles, n, rng):
    """n pictures in these styles, half of them food"""
    of = {"Yes": [], "No": []}
    for j in jobs:
        if j[1]["style"] in styles:
            of[food(j[1])].append(j)
    picked = rng.sample(of["Yes"], n // 2) + rng.sample(of["No"], n // 2)
    rng.shuffle(picked)
    return pictures(picked)


def adapter(jobs):
    rng = random.Random(2)
    styles = [s for s in make_data.STYLES if s not in make_data.SPLIT]
    facts = some_of(jobs, styles, 1200, rng)
    tests = {s: some_of(jobs, [s], 200, rng) for s in make_data.SPLIT}
    want = {s: [food(f) for f in tests[s]] for s in tests}
    before = {s: share(ask(MODEL, None, FOOD_QUESTION, tests[s]), want[s]) for s in tests}
    out, seconds = train("adapter", [record(i, f, FOOD_QUESTION, food(f)) for i, f in enumerate(facts)],
                         "--lora_enable", "True", "--lora_r", "16", "--lora_alpha", "32", "--num_train_epochs", "1",
                         "--per_device_train_batch_size", "8", "--learning_rate", "1e-3", "--mm_projector_lr", "1e-4")
    after = {s: share(ask(out, MODEL, FOOD_QUESTION, tests[s]), want[s]) for s in tests}
    for s in tests:
        print(f"adapter: {before[s]:.1%} of {len(want[s])} pictures of {s} right before, {after[s]:.1%} after "
              f"{seconds:.0f} s of training on other styles", flush=True)
    return after["twemoji"] >= 0.9


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", default=os.path.join(ROOT, "build/learn"))
    parser.add_argument("--npm")
    parser.add_argument("--llava", default=os.path.join(ROOT, "build/llava"))
    parser.add_argument("--only", choices=("memorise", "adapter"))
    parser.add_argument("--epochs", type=int, default=9, help="of memorise")
    parser.parse_args(namespace=opt)
    os.makedirs(opt.work, exist_ok=True)
    jobs = make_data.jobs(fetch_packages())
    results = [part(jobs) for part in (memorise, adapter) if opt.only in (None, part.__name__)]
    print("learned" if all(results) else "not learned")
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
