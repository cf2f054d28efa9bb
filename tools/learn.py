#!/usr/bin/python3
"""Does training teach? Two small trainings of models/demo on real pictures, and what the trained models then answer.

    tools/learn.py [--work DIR] [--npm DIR] [--llava build/llava] [--only memorise|adapter]

memorise   200 emoji of one drawing style, each with a code of two letters that nothing tells but this training; the
           language model and the projector are trained. Every code must be answered, letter for letter.
adapter    a LoRA adapter learns to answer a question that the demo model does not know: "Where is it?", asked about
           pictures with something small in one of their corners. It sees seven drawing styles, and is asked about
           things that it has not seen, in two styles that neither it nor the demo model has seen: 90% must be right in
           each. There are as many pictures of each corner, so that 25% is chance; the question is always the same.

The pictures are drawn as for models/demo (tools/demo/make_data.py, whose head says what is fetched by npm): needs npm,
network and librsvg2-bin, unless --npm names a folder that has the packages unpacked. Under five minutes of two cores
that have nothing else to do; the report has the seconds, and the processor's, of each part. Exit status 0 if both have
learned.
"""
import argparse
import json
import os
import random
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tools/demo"))
import make_data  # noqa: E402

CODE_QUESTION, PLACE_QUESTION = "What is the code of this?", "Where is it?"
CORNERS = ("Top left", "Top right", "Bottom left", "Bottom right")
LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"
MODEL = os.path.join(ROOT, "models/demo")
SIDE = 112
opt = argparse.Namespace()


class Clock:
    """Seconds, and of the processor, since it was made"""

    def __init__(self):
        self.start, self.before = time.time(), os.times()

    def __str__(self):
        now = os.times()
        used = sum(now[i] - self.before[i] for i in range(4))
        return f"{time.time() - self.start:.0f} s ({used:.0f} s of processors)"


def png_of(fact):
    return os.path.splitext(os.path.basename(fact["image"]))[0] + ".png"


def draw(folder, jobs):
    """draws [(SVG, file)] into a fresh folder; the files that could be drawn"""
    path = os.path.join(opt.work, folder)
    subprocess.run(["rm", "-rf", path], check=True)
    os.makedirs(path)

    def one(job):
        run = subprocess.run(["rsvg-convert", "-w", str(SIDE), "-h", str(SIDE), "-b", "white", "-o", os.path.join(path, job[1])],
                             input=job[0].encode(), stderr=subprocess.DEVNULL)
        return run.returncode == 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [job[1] for job, good in zip(jobs, pool.map(one, jobs)) if good]


def train(name, folder, question, answers, *more):
    """trains on the pictures of a folder and their answers; where the result is"""
    data, out = os.path.join(opt.work, name + ".json"), os.path.join(opt.work, name)
    with open(data, "w", encoding="utf-8") as f:
        json.dump([{"id": image, "image": image, "conversations": [
            {"from": "human", "value": "<image>\n" + question}, {"from": "gpt", "value": answer}]}
            for image, answer in answers.items()], f)
    subprocess.run(["rm", "-rf", out], check=True)
    with open(os.path.join(opt.work, name + ".log"), "wb") as log:
        p = subprocess.run([opt.llava, "train", "--model_name_or_path", MODEL, "--version", "v1", "--data_path", data,
                            "--image_folder", os.path.join(opt.work, folder), "--output_dir", out,
                            "--mm_vision_select_layer", "-2", "--mm_projector_type", "mlp2x_gelu",
                            "--mm_use_im_patch_token", "False", "--model_max_length", "512", "--weight_decay", "0.",
                            "--warmup_ratio", "0.03", "--lr_scheduler_type", "cosine", "--logging_steps", "1",
                            "--save_strategy", "no", "--gradient_checkpointing", "False", "--report_to", "jsonl", *more],
                           stdout=log, stderr=subprocess.STDOUT)
    if p.returncode:
        sys.exit(f"learn.py: the training failed, {os.path.join(opt.work, name)}.log says why")
    return out


def ask(model, base, question, folder):
    """{picture: what the model answers} of a folder"""
    output = os.path.join(opt.work, "answers.jsonl")
    if os.path.exists(output):
        os.remove(output)
    p = subprocess.run([opt.llava, "run", "--model-path", model, "--image-folder", os.path.join(opt.work, folder),
                        "--query", question, "--output", output, "--temperature", "0", "--max-new-tokens", "12", "--quiet"]
                       + (["--model-base", base] if base else []), stderr=subprocess.PIPE)
    if p.returncode:
        sys.exit(p.stderr.decode())
    with open(output, encoding="utf-8") as f:
        return {r["image"]: r["text"] for r in map(json.loads, f)}


def share(answers, wanted):
    return sum(answers[image] == right for image, right in wanted.items()) / len(wanted)


def codes(n, rng):
    return rng.sample([a + b for a in LETTERS for b in LETTERS], n)


def memorise(jobs):
    rng, clock = random.Random(1), Clock()
    some = rng.sample([j for j in jobs if j[1]["style"] == "noto"], 200)
    drawn = draw("memorise-pictures", [(svg, png_of(fact)) for svg, fact in some])
    want = dict(zip(drawn, codes(len(drawn), rng)))
    before = share(ask(MODEL, None, CODE_QUESTION, "memorise-pictures"), want)
    out = train("memorise", "memorise-pictures", CODE_QUESTION, want, "--num_train_epochs", str(opt.epochs),
                "--per_device_train_batch_size", "4", "--learning_rate", "1e-3")
    right = share(ask(out, None, CODE_QUESTION, "memorise-pictures"), want)
    print(f"memorise: {before:.1%} of {len(want)} codes right before, {right:.1%} after; {clock}", flush=True)
    return right == 1.0


def in_corner(svg, corner, rng):
    """the drawing made small, in a corner of the picture"""
    box, body = re.match(r'<svg [^>]*viewBox="([^"]*)"[^>]*>(.*)</svg>$', svg, re.S).groups()
    size = rng.uniform(0.3, 0.5) * SIDE
    low, high = lambda: rng.uniform(0, SIDE / 2 - size), lambda: rng.uniform(SIDE / 2, SIDE - size)
    x, y = high() if corner % 2 else low(), high() if corner > 1 else low()
    return (f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{SIDE}" height="{SIDE}">'
            f'<svg x="{x}" y="{y}" width="{size}" height="{size}" viewBox="{box}">{body}</svg></svg>')


def corner_pictures(folder, jobs, n, rng):
    """n pictures drawn into the folder; {picture: its corner}"""
    want, some = {}, []
    for k, (svg, fact) in enumerate(rng.sample(jobs, n)):
        name = f"{k}-{png_of(fact)}"
        some.append((in_corner(svg, k % 4, rng), name))
        want[name] = CORNERS[k % 4]
    return {name: want[name] for name in draw(folder, some)}


def adapter(jobs):
    rng, clock = random.Random(2), Clock()
    names = sorted({fact["name"] for _, fact in jobs})
    unseen = set(rng.sample(names, len(names) // 4))
    learned = [j for j in jobs if j[1]["style"] not in make_data.SPLIT and j[1]["name"] not in unseen]
    want, before = {}, {}
    for s in make_data.SPLIT:
        asked = [j for j in jobs if j[1]["style"] == s and j[1]["name"] in unseen]
        want[s] = corner_pictures(s, asked, 120, rng)
        before[s] = share(ask(MODEL, None, PLACE_QUESTION, s), want[s])
    out = train("adapter", "adapter-pictures", PLACE_QUESTION, corner_pictures("adapter-pictures", learned, 400, rng),
                "--lora_enable", "True", "--lora_r", "16", "--lora_alpha", "32", "--lora_dropout", "0", "--num_train_epochs",
                "1", "--per_device_train_batch_size", "4", "--learning_rate", "2e-3", "--mm_projector_lr", "1e-3")
    after = {s: share(ask(out, MODEL, PLACE_QUESTION, s), want[s]) for s in want}
    for s in want:
        print(f"adapter: {before[s]:.1%} of {len(want[s])} places right in {s} before, {after[s]:.1%} after (chance 25%)",
              flush=True)
    print(f"adapter: {clock}", flush=True)
    return min(after.values()) >= 0.9


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", default=os.path.join(ROOT, "build/learn"))
    parser.add_argument("--npm")
    parser.add_argument("--llava", default=os.path.join(ROOT, "build/llava"))
    parser.add_argument("--only", choices=("memorise", "adapter"))
    parser.add_argument("--epochs", type=int, default=11, help="of memorise")
    parser.parse_args(namespace=opt)
    os.makedirs(opt.work, exist_ok=True)
    every = make_data.jobs(opt.npm or make_data.fetch(os.path.join(opt.work, "npm")))
    jobs, clock = [(svg, fact) for svg, _, fact in every if isinstance(svg, str)], Clock()
    results = [part(jobs) for part in (memorise, adapter) if opt.only in (None, part.__name__)]
    print("learned" if all(results) else "not learned", f"in {clock}")
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
