#!/usr/bin/python3
"""models/demo from nothing, by this program alone: pictures, vocabulary, three trainings, an examination, fewer bits.

    tools/train_demo.py [--work DIR] [--device auto|cpu|cuda] [--scale X] [--only STEP[,STEP...]]

STEP, in this order:
  pictures    draws emoji in 23 styles, 24,235 pictures, and varies 7,692 of them four times (tools/demo/make_data.py; npm,
              network, librsvg2-bin, python3-pil)
  words       texts of all questions and answers, a vocabulary by spm_train, and the records of all trainings
  pretrain    random weights; pictures and their names alone (--version plain); tower, projector, language model
  tune        on from there, twice: questions of five kinds, in the template v1; the second time more of a picture is seen
  mean        the mean of states that the second one went through
  ask         four kinds of questions about every picture of the two styles that were never trained on
  export      the result as transformers has it, as models/demo is
  quantise    the result in 8 and in 4 bits
  draw        groups.svg: which groups are taken for which; the curves are */loss.svg

Everything lies in DIR (build/demo): pictures/, records/, pretrain/, tune1/, tune2/, model/, model-8bit/, model-4bit/,
answers-*.jsonl, result.json, export/. A step whose result is there already is left out; a training that was stopped goes on.
--tiny makes all of it small enough for a test on two cores. Exit status 0 if names on twemoji are as right as --want says.
"""
import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from multiprocessing import Pool

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tools/demo"))
import make_data  # noqa: E402
import mean as weights  # noqa: E402
import words  # noqa: E402

SHAPES = os.path.join(ROOT, "models/demo")
SIDED = set("left right anticlockwise clockwise counterclockwise".split())
TWINS = 3       # other drawings of the same thing that a record names
FAR = 0.25      # of the wrong names that are asked about
EXAMS = {"test": "twemoji", "hard": "openmoji"}
# How often a drawing is shown beside others of its thing, 1 for the rest: the four of Fluent are one design, the lines of
# Noto are nearly another, icons count less than emoji.
SHARE = {"fluent-emoji": 0.5, "fluent-emoji-flat": 0.7, "fluent-emoji-high-contrast": 0.4, "fluent-emoji-3d": 0.5,
         "noto-2018": 0.7, "noto-2020": 0.5, "emojione-monotone": 0.5, make_data.LINES: 0.5,
         **dict.fromkeys(make_data.ICONS, 0.25)}
VARIED = 0.6    # of the pictures of a drawing that has variants
SHOWN = 8       # times `variants` records of each thing
# Trainings: steps, share of each picture that is not seen. The last one's states are kept, and the mean of the last ones is
# the model: between them nothing is worse, and it fits other drawings better than any (arXiv:1803.05407, 2102.08604).
PRETRAIN = 3800, 0.4
TUNE = (2500, 0.3, "constant_with_warmup"), (4700, 0.1, "cosine")
STATES, EVERY = 8, 300
opt = argparse.Namespace()


def at(*names):
    return os.path.join(opt.work, *names)


def run(*args, log=None):
    if not log:
        return subprocess.run(args, check=True)
    with open(log, "ab") as f:
        if subprocess.run(args, stdout=f, stderr=subprocess.STDOUT).returncode:
            sys.exit(f"train_demo.py: '{os.path.basename(args[0])} {args[1]}' failed, {log} says why")


def write_json(facts, *names):
    with open(at(*names), "w", encoding="utf-8") as f:
        json.dump(facts, f, ensure_ascii=False)


# ---- pictures and words


def pictures():
    if os.path.exists(at("pictures/facts.jsonl")):
        return
    folder = opt.npm or make_data.fetch(at("npm"))
    run(sys.executable, os.path.join(ROOT, "tools/demo/make_data.py"), folder, at("pictures"), "--limit",
        "900" if opt.tiny else "0")


def load_facts():
    with open(at("pictures/facts.jsonl"), encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def may(thing, turned):
    """what may be done to a picture without making an answer wrong; turned: names of what a mirror makes another thing"""
    said, out = make_data.says(thing), []
    if (thing["group"] in ("Animals & Nature", "Food & Drink", "People & Body", "Activities") and not said & SIDED
            and thing["name"] not in turned):
        out.append("mirror")
    if thing["group"] != "Flags" and not said & make_data.COLOURS:
        out.append("recolour")
    return out


def record(n, image, others, changes, rounds):
    turns = []
    for k, (question, answer) in enumerate(rounds):
        turns += [{"from": "human", "value": question if k else "<image>\n" + question}, {"from": "gpt", "value": answer}]
    return json.dumps({"id": n, "image": image, "twins": others, "augment": changes, "conversations": turns},
                      ensure_ascii=False)


def records_of(job):
    """of one thing: (pretraining's, tuning's), as text"""
    things, c, facts, changes, seed = job
    asker, rng, plain, talk = words.Asker(things, seed, FAR), random.Random(seed + 1), [], []

    def shown(fact):
        varied = fact["varied"] and rng.random() < VARIED
        return make_data.variant(fact["image"], rng.randint(1, fact["varied"])) if varied else fact["image"]

    def twins(fact):
        others = [f for f in facts if f is not fact]
        return [shown(f) for f in rng.sample(others, min(len(others), TWINS))]
    share = [SHARE.get(fact["style"], 1) for fact in facts]
    for fact, often in zip(facts, [SHOWN * s / sum(share) for s in share]):      # all things alike
        for k in range(1 if opt.tiny else round(4 * often)):       # other twins each time
            plain.append(record(f"p{fact['n']}-{k}", shown(fact), twins(fact), changes, [("", things[c]["name"])]))
        for k in range(opt.variants if opt.tiny else round(opt.variants * often)):
            talk.append(record(f"t{fact['n']}-{k}", shown(fact), twins(fact), changes, asker.rounds(c)))
    return plain, talk


def records(facts, things, labels):
    by_thing, turned = {}, {t["name"].removesuffix(make_data.ACROSS) for t in things if t["name"].endswith(make_data.ACROSS)}
    for n, (fact, c) in enumerate(zip(facts, labels)):
        if fact["split"] == "train":
            by_thing.setdefault(c, []).append({"n": n, **{k: fact[k] for k in ("image", "style", "varied")}})
    with Pool() as pool:
        made = pool.map(records_of, [(things, c, some, may(things[c], turned), 1000 + 2 * c) for c, some in by_thing.items()],
                        chunksize=32)
    for name, k in (("pretrain", 0), ("tune", 1)):
        with open(at("records", name + ".json"), "w", encoding="utf-8") as f:
            f.writelines(line + "\n" for part in made for line in part[k])


def questions(facts, things, labels):
    """of every kind about every picture of a style, the same every time"""
    for split, style in EXAMS.items():
        asker, n = words.Asker(things, 99), 0
        with open(at("records", style + ".jsonl"), "w", encoding="utf-8") as f:
            for kind in words.KINDS:
                for fact, c in zip(facts, labels):
                    if fact["split"] == split:
                        q, a = asker.ask(c, kind, plain=True)
                        f.write(json.dumps({"question_id": n, "image": fact["image"], "text": q, "kind": kind, "answer": a,
                                            "group": things[c]["group"]}, ensure_ascii=False) + "\n")
                        n += 1


def vocabulary(things):
    with open(at("records/words.txt"), "w", encoding="utf-8") as f:
        f.writelines(line + "\n" for line in words.texts(things))
    run("spm_train", "--input=" + at("records/words.txt"), "--model_prefix=" + at("shapes/tokenizer"), "--vocab_size=1472",
        "--model_type=bpe", "--byte_fallback=true", "--normalization_rule_name=identity", "--add_dummy_prefix=true",
        "--remove_extra_whitespaces=false", "--character_coverage=1.0", "--split_digits=true", "--unk_id=0", "--bos_id=1",
        "--eos_id=2", "--pad_id=-1", "--num_threads=1", "--minloglevel=1", "--hard_vocab_limit=false")
    os.remove(at("shapes/tokenizer.vocab"))
    for name in ("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(SHAPES, name), at("shapes"))


def texts():
    if os.path.exists(at("records/done")):
        return
    for name in ("records", "shapes"):
        os.makedirs(at(name), exist_ok=True)
    facts = load_facts()
    things, labels = words.load_things(facts)
    if not os.path.exists(at("shapes/tokenizer.model")):
        vocabulary(things)
    records(facts, things, labels)
    questions(facts, things, labels)
    open(at("records/done"), "w").close()


# ---- training


def train(name, base, records, steps, hidden, schedule, *more):
    """hidden: share of each picture's patches"""
    if os.path.exists(at(name, "model.safetensors")):
        return
    start, steps = time.time(), max(2, round(steps * opt.scale))
    run(opt.llava, "train", "--model_name_or_path", base, "--data_path", at("records", records), "--image_folder",
        at("pictures"), "--output_dir", at(name), "--device", opt.device, "--optim", "muon", "--unfreeze_mm_vision_tower",
        "True", "--image_augment", "True", "--mm_use_im_patch_token", "False", "--mm_projector_type", "mlp2x_gelu",
        "--mm_vision_select_layer", "-2", "--model_max_length", "512", "--per_device_train_batch_size", str(opt.batch),
        "--max_steps", str(steps), "--warmup_steps", str(max(1, min(150, steps // 10))), "--patch_dropout", str(hidden),
        "--residual_dropout", str(opt.drop), "--weight_decay", str(opt.decay), "--adam_beta2", "0.97", "--learning_rate",
        str(opt.rate), "--lr_scheduler_type", schedule, "--logging_steps", "10", "--dataloader_num_workers",
        str(opt.workers), "--report_to", "jsonl", "--bf16", str(opt.device != "cpu"), *more, *opt.more, log=at(name + ".log"))
    print(f"{name}: {steps} steps of {opt.batch} records in {time.time() - start:.0f} s", flush=True)


def pretrain():
    train("pretrain", at("shapes"), "pretrain.json", *PRETRAIN, "constant_with_warmup", "--random_start", "True", "--version",
          "plain", "--save_steps", "2000", "--save_total_limit", "1")


def tune():
    """the second goes on from the first and sees more of the pictures, in another order"""
    (steps, *rest), (steps2, *rest2) = TUNE
    train("tune1", at("pretrain"), "tune.json", steps, *rest, "--version", "v1", "--save_steps", "2000", "--save_total_limit",
          "1")
    train("tune2", at("tune1"), "tune.json", steps2, *rest2, "--version", "v1", "--seed", "43", "--save_steps",
          str(1 if opt.tiny else EVERY), "--save_total_limit", str(STATES))


def mean():
    """tune2's folder, with other weights"""
    states = [n for n in os.listdir(at("tune2")) if n.startswith("checkpoint-")]
    shutil.rmtree(at("model"), ignore_errors=True)
    shutil.copytree(at("tune2"), at("model"), ignore=shutil.ignore_patterns("checkpoint-*", "model.safetensors"))
    weights.mean([at("tune2", n, "model.safetensors") for n in states], at("model/model.safetensors"))


# ---- what came of it


def examine(style, model, output):
    run(opt.llava, "run", "--model-path", model, "--device", opt.device, "--image-folder", at("pictures"), "--question-file",
        at("records", style + ".jsonl"), "--output", output, "--temperature", "0", "--max-new-tokens", "32", "--conv-mode",
        "vicuna_v1", "--parallel", "64", "--quiet")
    with open(at("records", style + ".jsonl"), encoding="utf-8") as f:
        asked = [json.loads(line) for line in f]
    with open(output, encoding="utf-8") as f:
        said = {r["question_id"]: r.get("text") for r in map(json.loads, f)}
    right, groups = {}, {}
    for q in asked:
        hit = said[q["question_id"]] == q["answer"]
        right.setdefault(q["kind"], []).append(hit)
        if q["kind"] == "name":
            groups.setdefault(q["group"], []).append(hit)
        if q["kind"] == "group":
            groups.setdefault("said", {}).setdefault(q["group"], {}).setdefault(said[q["question_id"]], 0)
            groups["said"][q["group"]][said[q["question_id"]]] += 1
    mean = lambda hits: round(sum(hits) / len(hits), 4)
    told = groups.pop("said")
    return {**{k: mean(v) for k, v in right.items()}, "names by group": {g: mean(v) for g, v in groups.items()},
            "groups told": told}


def ask():
    result = {}
    for style in EXAMS.values():
        output = at(f"answers-{style}.jsonl")
        if os.path.exists(output):
            os.remove(output)
        result[style] = examine(style, at("model"), output)
        print(style, *(f"{k} {100 * result[style][k]:.1f}%" for k in words.KINDS), flush=True)
    write_json(result, "result.json")
    return result["twemoji"]["name"]


def export():
    shutil.rmtree(at("export"), ignore_errors=True)
    run(opt.llava, "convert", "--model-path", at("model"), "--to", "hf5", "--output", at("export"), log=at("export.log"))


def quantise():
    for bits in (8, 4):
        folder = at(f"model-{bits}bit")
        shutil.rmtree(folder, ignore_errors=True)
        run(opt.llava, "quantize", "--model-path", at("model"), "--bits", str(bits), "--output", folder,
            log=at("quantise.log"))


DRAWN = """<style>
text{font:12px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:#57606a}
.m{text-anchor:middle}.e{text-anchor:end}
.bg{fill:#fff}.none{fill:#f6f8fa}.right{fill:#0969da}.wrong{fill:#cf222e}.share{fill:#1f2328}.strong{fill:#fff}
@media(prefers-color-scheme:dark){text{fill:#9198a1}.bg{fill:#0d1117}.none{fill:#151b23}.right{fill:#388bfd}.wrong{fill:#f85149}
.share,.strong{fill:#f0f6fc}}
</style>"""


def draw():
    """groups.svg: which group a picture is in (rows) and which the model says it is in (columns), twemoji; as plot.c's
    curves it is readable on white and on black"""
    with open(at("result.json"), encoding="utf-8") as f:
        told = json.load(f)["twemoji"]["groups told"]
    names, size, left, top = list(told), 46, 150, 110
    w, h = left + size * len(names) + 46, top + size * len(names) + 30

    def label(x, y, kind, text, more=""):
        return f'<text class="{kind}" x="{x}" y="{y}"{more}>{text.replace("&", "&amp;")}</text>'

    def cell(x, y, kind, more=""):
        return f'<rect class="{kind}" x="{x}" y="{y}" width="{size - 2}" height="{size - 2}" rx="4"{more}/>'
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" viewBox="0 0 {w} {h}">', DRAWN,
           f'<rect class="bg" width="{w}" height="{h}"/>',
           label(left, h - 10, "note", "rows: the picture's group; columns: what the model says; percent")]
    for i, name in enumerate(names):
        total = sum(told[name].values())
        y, x = top + size * i, left + size * i
        out += [label(left - 10, y + size // 2 + 3, "e", name),
                label(0, 0, "name", name, f' transform="translate({x + size // 2} {top - 8}) rotate(-40)"')]
        for k, other in enumerate(names):
            x, share = left + size * k, told[name].get(other, 0) / total
            out.append(cell(x, y, "none"))
            if share:
                out.append(cell(x, y, "right" if i == k else "wrong", f' opacity="{share ** 0.6:.2f}"'))
            if share >= 0.005:
                out.append(label(x + size // 2 - 1, y + size // 2 + 3, "m strong" if share > 0.4 else "m share",
                                 f"{100 * share:.0f}"))
    with open(at("groups.svg"), "w", encoding="utf-8") as f:
        f.write("\n".join(out + ["</svg>\n"]))


STEPS = {"pictures": pictures, "words": texts, "pretrain": pretrain, "tune": tune, "mean": mean, "ask": ask,
         "export": export, "quantise": quantise, "draw": draw}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", default=os.path.join(ROOT, "build/demo"))
    parser.add_argument("--npm", help="a folder with the npm packages unpacked")
    parser.add_argument("--llava", default=os.path.join(ROOT, "build/llava"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--scale", type=float, default=1, help="times the steps")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rate", type=float, default=1.8e-3)
    parser.add_argument("--decay", type=float, default=0.1)
    parser.add_argument("--drop", type=float, default=0.05)
    parser.add_argument("--variants", type=int, default=40, help="records of tuning for each picture")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 1) - 2))
    parser.add_argument("--only")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--want", type=float, default=0.8)
    parser.add_argument("more", nargs="*", help="further arguments of llava train, after --")
    parser.parse_args(namespace=opt)
    if opt.tiny:
        opt.scale, opt.batch, opt.variants, opt.want = 0, 4, 2, 0
    os.makedirs(opt.work, exist_ok=True)
    names = 1.0
    for step in opt.only.split(",") if opt.only else STEPS:
        start, got = time.time(), STEPS[step]()
        names = got if step == "ask" else names
        print(f"{step}: {time.time() - start:.0f} s", flush=True)
    sys.exit(names < opt.want)


if __name__ == "__main__":
    main()
