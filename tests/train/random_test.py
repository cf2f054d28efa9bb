"""Training from nothing: --random_start, Muon, pictures that look otherwise in each pass, dropout; what is drawn is drawn
again."""
import json
import os
import shutil
import sys

import numpy as np
from PIL import Image

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import GOLDEN, Temp, finish, llava, model, ok, read_safetensors  # noqa: E402

DATA, PICTURES = os.path.join(GOLDEN, "training/full.json"), os.path.join(GOLDEN, "pictures")
COMMON = ["train", "--image_folder", PICTURES, "--mm_use_im_patch_token", "False", "--version", "v1",
          "--model_max_length", "512", "--per_device_train_batch_size", "2", "--logging_steps", "1", "--report_to", "none",
          "--data_path", DATA]


def shapes(tmp, name, source):
    """a folder with everything of a model but its weights"""
    folder = os.path.join(tmp.path, name)
    shutil.copytree(model(source), folder, ignore=lambda _, names: [n for n in names if n.endswith((".safetensors", ".bin"))
                                                                   or n.endswith(".index.json")])
    return folder


def tensors(folder):
    out = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors"):
            out.update(read_safetensors(os.path.join(folder, name)))
    return out


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def drawn(tmp):
    """the weights before the first step: by the seed, and of the right size"""
    start = shapes(tmp, "shapes", "llava-transformers5")
    got = []
    for n, seed in enumerate(("5", "5", "6")):
        out = os.path.join(tmp.path, f"drawn{n}")
        # the first step of a schedule with warm-up has the rate 0
        ran = llava(*COMMON, "--model_name_or_path", start, "--random_start", "True", "--unfreeze_mm_vision_tower", "True",
                    "--seed", seed, "--data_seed", "1", "--max_steps", "1", "--warmup_steps", "5", "--output_dir", out)
        if not ok(ran.code == 0, f"a run of random weights, seed {seed}", ran.text):
            return
        got.append(tensors(out))
    ok(same(got[0], got[1]) and not same(got[0], got[2]), "the seed tells the weights")
    bad = []
    for name, w in got[0].items():
        w = np.asarray(w, np.float64)
        table = any(s in name for s in ("embed_tokens", "lm_head", "class_embedding", "position_embedding"))
        if name.endswith("newline"):
            continue
        if w.ndim == 1 and "class_embedding" not in name:
            if not np.array_equal(w, np.full(w.shape, float("norm" in name and name.endswith("weight")))):
                bad.append((name, "vector"))
            continue
        want = 0.02 if table else 0.7 / np.sqrt(w[0].size)
        if not (abs(w.std() / want - 1) < 5 / np.sqrt(w.size) and abs(w.mean()) < 5 * want / np.sqrt(w.size)):
            bad.append((name, w.std(), want, w.mean()))
    ok(not bad, "matrices are normal of their size, norms 1, biases 0", bad)
    a, b = (got[0][next(k for k in got[0] if k.endswith(f"layers.0.self_attn.{n}_proj.weight") and "vision" not in k)]
            for n in "kv")
    ok(not np.array_equal(a, b), "no two matrices are alike")


def refused(tmp):
    start = shapes(tmp, "refused", "llava-transformers5")
    out = os.path.join(tmp.path, "none")
    for args, want in ((["--vision_tower", model("clip-tiny")], "--vision_tower has no use"),
                       (["--bits", "4"], "--bits has no use")):
        ran = llava(*COMMON, "--model_name_or_path", start, "--random_start", "True", "--output_dir", out, *args)
        ok(ran.code == 1 and want in ran.err and ran.err.count("\n") == 1 and not os.path.exists(out), want, ran.text)
    ran = llava(*COMMON, "--model_name_or_path", shapes(tmp, "elsewhere", "llava-liuhaotian"), "--random_start", "True",
                "--output_dir", out)
    ok(ran.code == 1 and "vision_config" in ran.err and ran.err.count("\n") == 1, "a tower that is elsewhere", ran.text)


def text_alone(tmp):
    """a language model without a tower learns its records"""
    records = os.path.join(tmp.path, "text.json")
    with open(records, "w", encoding="utf-8") as f:
        json.dump([{"id": str(i), "conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]}
                   for i, (q, a) in enumerate([("What is red?", "An apple."), ("What barks?", "A dog.")])], f)
    out = os.path.join(tmp.path, "text")
    args = [a for a in COMMON if a != DATA]
    ran = llava(*args, records, "--model_name_or_path", shapes(tmp, "llama", "vicuna-base"), "--random_start", "True", "--optim",
                "muon", "--learning_rate", "2e-2", "--num_train_epochs", "30", "--output_dir", out)
    losses = [r["loss"] for r in json.load(open(os.path.join(out, "trainer_state.json")))["log_history"] if "loss" in r] \
        if ran.code == 0 else [0]
    ok(losses[-1] < 0.1 * losses[0], "a language model from nothing, on text, with Muon", (losses[:1], losses[-1:], ran.text))


def again(tmp):
    """stopped and gone on, and with other threads: the same bytes, with pictures that are drawn anew in each pass"""
    start = shapes(tmp, "again", "llava-transformers5")
    what = [*COMMON, "--model_name_or_path", start, "--random_start", "True", "--unfreeze_mm_vision_tower", "True", "--optim",
            "muon", "--image_augment", "True", "--learning_rate", "1e-3", "--max_steps", "6", "--num_train_epochs", "9"]
    one, two, plain = (os.path.join(tmp.path, n) for n in ("one", "two", "plain"))
    ran = llava(*what, "--save_strategy", "no", "--output_dir", one)
    ok(ran.code == 0, "six steps with changed pictures", ran.text)
    llava(*what, "--save_steps", "3", "--output_dir", two)
    shutil.rmtree(os.path.join(two, "checkpoint-6"))
    ran = llava(*what, "--save_steps", "3", "--dataloader_num_workers", "3", "--output_dir", two)
    ok(ran.code == 0 and "going on from" in ran.err and same(tensors(one), tensors(two)),
       "gone on in the middle, with threads: the same bytes", ran.text)
    ran = llava(*what, "--image_augment", "False", "--output_dir", two)
    ok(ran.code != 0 and "image_augment" in ran.err, "going on with other pictures is refused", ran.text)
    llava(*what, "--image_augment", "False", "--save_strategy", "no", "--output_dir", plain)
    ok(not same(tensors(one), tensors(plain)), "changed pictures change what is learned")


def words(tmp):
    """the member "augment" of a record"""
    path = os.path.join(tmp.path, "words.json")
    for value, bad in (('["mirror", "recolour"]', ""), ("[]", ""), ('["flip"]', "neither 'mirror' nor 'recolour'"),
                       ('"mirror"', "'augment' is a string, want a list of strings"), ("[1]", "is a number, want a string")):
        with open(path, "w", encoding="utf-8") as f:
            f.write('[{"id": "x", "augment": %s, "conversations": [{"from": "human", "value": "a"}, '
                    '{"from": "gpt", "value": "b"}]}]' % value)
        args = [a for a in COMMON if a != DATA]
        ran = llava(*args, path, "--model_name_or_path", model("vicuna-base"), "--output_dir", os.path.join(tmp.path, "w"),
                    "--dry_run", "True")
        ok((ran.code == 0) == (not bad) and bad in ran.err, f'"augment": {value}', ran.text)


def twins(tmp):
    """other pictures of the same thing: mixed in where pictures are changed, missing ones found before the first step"""
    records, out = os.path.join(tmp.path, "twins.json"), os.path.join(tmp.path, "twins")
    start, names = shapes(tmp, "twins-shapes", "llava-transformers5"), sorted(os.listdir(PICTURES))
    names = [n for n in names if n.endswith((".png", ".jpg"))][:2]

    def run(image, others, augmented, dry=False):
        with open(records, "w", encoding="utf-8") as f:
            json.dump([{"id": str(i), "image": image, "twins": others, "conversations": [
                {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]} for i in range(24)], f)
        args = [a for a in COMMON if a not in (DATA, "--image_folder", PICTURES)]
        shutil.rmtree(out, ignore_errors=True)
        return llava(*args, records, "--image_folder", PICTURES, "--model_name_or_path", start, "--random_start", "True",
                     "--unfreeze_mm_vision_tower", "True", "--image_augment", str(augmented),
                     "--max_steps", "12", "--save_strategy", "no", "--dry_run", str(dry), "--output_dir", out)
    for augmented in (False, True):
        runs = []
        for others in ([], [names[1]]):
            ran = run(names[0], others, augmented)
            ok(ran.code == 0, f"a run with {len(others)} twins", ran.text)
            runs.append(tensors(out))
        ok(same(*runs) != augmented, "twins are mixed in if pictures are changed, and only then")
    ran = run(names[0], [names[1], "none.png"], True, True)
    ok(ran.code == 1 and "none.png" in ran.err and "record '0'" in ran.err, "a twin that is not there", ran.text)
    ran = run(names, [names[1]], True, True)
    ok(ran.code == 1 and "'twins' beside 2 pictures, want one" in ran.err, "twins of two pictures", ran.text)
    ran = run(names[0], names[1], True, True)
    ok(ran.code == 1 and "'twins' is a string, want a list of strings" in ran.err, "a twin that is no list", ran.text)


def quarters(colours):
    """28 x 28 pixels, a patch of 14 each"""
    picture = np.zeros((28, 28, 3), np.uint8)
    for k, c in enumerate(colours):
        picture[k // 2 * 14:k // 2 * 14 + 14, k % 2 * 14:k % 2 * 14 + 14] = c
    return Image.fromarray(picture)


def patches(tmp):
    """half of the patches are seen, and nothing of the others comes into a step; a share that rounds to none changes nothing"""
    start, folder = shapes(tmp, "patches-shapes", "llava-transformers5"), os.path.join(tmp.path, "patches")
    os.makedirs(folder)
    records, colours = os.path.join(folder, "records.json"), [(200, 20, 20), (20, 200, 20), (20, 20, 200), (90, 90, 90)]
    with open(records, "w", encoding="utf-8") as f:
        json.dump([{"id": "0", "image": "p.png", "conversations": [
            {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]}] * 2, f)
    args = [a for a in COMMON if a not in (DATA, "--image_folder", PICTURES)]

    def run(name, *more):
        out = os.path.join(folder, name)
        ran = llava(*args, records, "--image_folder", folder, "--model_name_or_path", start, "--random_start", "True",
                    "--unfreeze_mm_vision_tower", "True", "--learning_rate", "1e-3", "--per_device_train_batch_size", "1",
                    "--save_strategy", "no", "--output_dir", out, *more)
        return tensors(out) if ok(ran.code == 0, f"a run, {name}", ran.text) else {}
    quarters(colours).save(os.path.join(folder, "p.png"))
    ok(same(run("all", "--max_steps", "4"), run("none", "--max_steps", "4", "--patch_dropout", "0.1")),
       "a tenth of four patches is none: the same bytes")
    half, changed = ("--max_steps", "1", "--patch_dropout", "0.5"), 0
    base = run("half", *half)
    for k in range(4):
        quarters([(250, 250, 0) if i == k else c for i, c in enumerate(colours)]).save(os.path.join(folder, "p.png"))
        changed += not same(base, run(f"other{k}", *half))
    ok(changed == 2, "two of four patches are seen in a step", changed)
    ok(not same(base, run("seed", *half, "--seed", "7", "--data_seed", "42")), "others with another seed")


def dropout(tmp):
    """of what blocks add some is zeroed, the same after a stop; evaluation sees everything"""
    start = shapes(tmp, "drop-shapes", "llava-transformers5")
    what = [*COMMON, "--model_name_or_path", start, "--random_start", "True", "--unfreeze_mm_vision_tower", "True",
            "--max_steps", "4", "--num_train_epochs", "9", "--learning_rate", "1e-3"]
    drops = ["--residual_dropout", "0.2", "--patch_dropout", "0.4"]
    one, two, plain = (os.path.join(tmp.path, "drop-" + n) for n in ("one", "two", "plain"))
    ran = llava(*what, *drops, "--save_strategy", "no", "--output_dir", one)
    ok(ran.code == 0, "four steps with dropout", ran.text)
    llava(*what, *drops, "--save_steps", "2", "--output_dir", two)
    shutil.rmtree(os.path.join(two, "checkpoint-4"))
    ran = llava(*what, *drops, "--save_steps", "2", "--output_dir", two)
    ok(ran.code == 0 and "going on from" in ran.err and same(tensors(one), tensors(two)), "gone on: the same bytes", ran.text)
    llava(*what, *drops[2:], "--save_strategy", "no", "--output_dir", plain)
    ok(not same(tensors(one), tensors(plain)), "what is zeroed changes what is learned")
    losses = []
    for more in ([], drops):
        out = os.path.join(tmp.path, f"drop-eval{len(losses)}")
        ran = llava(*what, *more, "--save_strategy", "no", "--learning_rate", "1e-30", "--eval_data_path", DATA, "--eval_steps",
                    "2", "--output_dir", out)
        if ok(ran.code == 0, "a run with evaluation", ran.text):
            with open(os.path.join(out, "trainer_state.json"), encoding="utf-8") as f:
                losses.append([r["eval_loss"] for r in json.load(f)["log_history"] if "eval_loss" in r])
    ok(len(losses) == 2 and losses[0] and losses[0] == losses[1], "evaluation drops nothing", losses)
    for more, want in ((["--unfreeze_mm_vision_tower", "False"], "the vision tower is not trained"),
                       (["--patch_dropout", "0.9"], "leaves nothing of 4 patches"),
                       (["--residual_dropout", "1"], "residual_dropout")):
        ran = llava(*what, *drops, *more, "--output_dir", os.path.join(tmp.path, "drop-none"))
        ok(ran.code != 0 and want in ran.err and ran.err.count("\n") <= 2, want, ran.text)


with Temp() as temp:
    for part in (drawn, refused, text_alone, again, words, twins, patches, dropout):
        part(temp)
finish()
