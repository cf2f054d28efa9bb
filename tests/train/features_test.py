#!/usr/bin/python3
"""--cache_features: the same losses and tensors to the byte as without, in the first pass, in later ones and in another
run; files that are cut short, changed or of another tower; a folder without room; what it does not go together with.

LLAVA_TEST_DEVICE=cuda: on a device that the build has."""
import json
import os
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import GOLDEN, Temp, finish, llava, losses, model, ok, read_bytes  # noqa: E402

COMMON = ["train", "--model_name_or_path", model("vicuna-base"), "--image_folder", os.path.join(GOLDEN, "pictures"),
          "--mm_projector_type", "mlp2x_gelu", "--mm_vision_select_layer", "-2",
          "--mm_use_im_patch_token", "False", "--model_max_length", "512", "--per_device_train_batch_size", "2",
          "--device", os.environ.get("LLAVA_TEST_DEVICE", "cpu"), "--logging_steps", "1", "--version", "plain",
          "--report_to", "none", "--learning_rate", "1e-2", "--tune_mm_mlp_adapter", "True", "--num_train_epochs", "3",
          "--save_strategy", "epoch", "--data_path", os.path.join(GOLDEN, "training/projector.json")]
TOWER = ["--vision_tower", model("clip-tiny")]


def train(out, *more):
    return llava(*COMMON, "--output_dir", out, *more)


def last_checkpoint(out):
    return max((n for n in os.listdir(out) if n.startswith("checkpoint-")), key=lambda n: int(n[11:]))


def equal(out, keep):
    last = last_checkpoint(keep)
    return losses(out) == losses(keep) and os.path.isdir(os.path.join(out, last)) and \
        read_bytes(out, last, "resume.safetensors") == read_bytes(keep, last, "resume.safetensors")


def same_bytes(tmp):
    keep, cache = os.path.join(tmp.path, "keep"), os.path.join(tmp.path, "made", "here")
    ran = train(keep, *TOWER)
    ok(ran.code == 0 and len(losses(keep)) > 3, "without", ran.text)
    with open(os.path.join(GOLDEN, "training/projector.json"), encoding="utf-8") as f:
        pictures = {r["image"] for r in json.load(f) if "image" in r}
    different = {read_bytes(GOLDEN, "pictures", p) for p in pictures}
    ran = train(os.path.join(tmp.path, "first"), *TOWER, "--cache_features", cache)
    ok(ran.code == 0 and equal(os.path.join(tmp.path, "first"), keep), "kept on the way: the same bytes", ran.text)
    files = os.listdir(cache)
    ok(len(files) == len(different) and all(n.endswith(".features") for n in files), "a file a picture", files)
    when = {n: os.stat(os.path.join(cache, n)).st_mtime_ns for n in files}
    ran = train(os.path.join(tmp.path, "again"), *TOWER, "--cache_features", cache)
    ok(ran.code == 0 and equal(os.path.join(tmp.path, "again"), keep), "found by another run: the same bytes", ran.text)
    ok(when == {n: os.stat(os.path.join(cache, n)).st_mtime_ns for n in os.listdir(cache)}, "nothing is made again", "")
    ran = train(os.path.join(tmp.path, "packed"), *TOWER, "--cache_features", cache, "--packing", "True",
                "--gradient_accumulation_steps", "2")
    ok(ran.code == 0, "with packing", ran.text)
    return keep, cache


def broken(tmp, keep, cache):
    """one cut short, one with another byte, one that is empty, one too long"""
    files = sorted(os.listdir(cache))
    whole = {n: read_bytes(cache, n) for n in files}
    ways = (lambda b: b[:-1], lambda b: b[:90] + bytes([b[90] ^ 1]) + b[91:], lambda b: b"", lambda b: b + b"x")
    for n, data in zip(files, ways):
        with open(os.path.join(cache, n), "wb") as f:
            f.write(data(whole[n]))
    ran = train(os.path.join(tmp.path, "mended"), *TOWER, "--cache_features", cache)
    ok(ran.code == 0 and equal(os.path.join(tmp.path, "mended"), keep), "broken files: the same bytes", ran.text)
    ok(all(n in ran.err for n in files[:4]) and "made again" in ran.err, "broken files are named", ran.err)
    ok({n: read_bytes(cache, n) for n in os.listdir(cache)} == whole, "and whole again", "")


def others(tmp, cache):
    files = set(os.listdir(cache))
    ran = train(os.path.join(tmp.path, "pad"), *TOWER, "--cache_features", cache, "--image_aspect_ratio", "pad")
    ok(ran.code == 0 and len(os.listdir(cache)) == 2 * len(files), "pictures that are prepared otherwise are others", ran.text)
    ran = train(os.path.join(tmp.path, "layer"), *TOWER, "--cache_features", cache, "--mm_vision_select_layer", "-1")
    ok(ran.code == 0 and len(os.listdir(cache)) == 3 * len(files), "another layer's features are others", ran.text)
    ran = train(os.path.join(tmp.path, "dry"), *TOWER, "--cache_features", cache, "--dry_run", "True")
    ok(ran.code == 0 and f"features of pictures in '{cache}': at most " in ran.out, "the plan says how much", ran.text)
    plain = os.path.join(tmp.path, "file")
    with open(plain, "w", encoding="utf-8") as f:
        f.write("no folder")
    ran = train(os.path.join(tmp.path, "no"), *TOWER, "--cache_features", plain)
    ok(ran.code == 1 and plain in ran.err, "a file is no folder", ran.text)
    for more in (["--image_augment", "True"], ["--unfreeze_mm_vision_tower", "True"]):
        ran = train(os.path.join(tmp.path, "no"), *TOWER, "--cache_features", cache, *more)
        ok(ran.code == 2 and "--cache_features" in ran.err and more[0] in ran.err, f"not with {more[0]}", ran.text)


def no_room(tmp, keep):
    """a folder in which nothing can be written: the run goes on without"""
    if os.geteuid() == 0 and not os.path.isdir("/proc/self/fdinfo"):
        return
    cache = os.path.join(tmp.path, "full")
    os.mkdir(cache)
    for n in os.listdir(os.path.join(tmp.path, "made", "here")):   # folders in the files' places
        os.mkdir(os.path.join(cache, n))
    ran = train(os.path.join(tmp.path, "without"), *TOWER, "--cache_features", cache)
    ok(ran.code == 0 and equal(os.path.join(tmp.path, "without"), keep) and ran.err.count("no more features are kept") == 1,
       "where nothing can be written the run goes on", ran.text)
    shutil.rmtree(cache)


with Temp() as tmp:
    keep, cache = same_bytes(tmp)
    broken(tmp, keep, cache)
    others(tmp, cache)
    no_room(tmp, keep)
finish()
