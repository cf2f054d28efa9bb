"""Data of every broken kind through `llava train`: one clear line each, exit 1, nothing lost; and what is unusual but right."""
import json
import os
import sys

import numpy as np
from PIL import Image

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import Temp, finish, llava, model, ok  # noqa: E402

TEXT = {"from": "gpt", "value": "A cat."}


def ask(text):
    return {"from": "human", "value": text}


def record(i=1, image="rgb.png", question="<image>\nWhat?", answer="A cat.", more=()):
    r = {"id": str(i), "conversations": [ask(question), {"from": "gpt", "value": answer}, *more]}
    return {**r, "image": image} if image is not None else r


GOOD = [record(i) for i in range(4)]
RAW = json.dumps(GOOD).encode()


class Runs:
    def __init__(self, tmp):
        self.tmp, self.n = tmp, 0
        self.pictures = os.path.join(tmp.path, "pictures")
        os.makedirs(self.pictures)
        rgb = Image.fromarray(np.random.RandomState(0).randint(0, 255, (40, 50, 3)).astype("uint8"))
        for name, im in (("rgb.png", rgb), ("palette.png", rgb.convert("P")), ("grey-alpha.png", rgb.convert("LA")),
                         ("one-bit.png", rgb.convert("1")), ("cmyk.jpg", rgb.convert("CMYK")),
                         ("dot.png", rgb.crop((0, 0, 1, 1))),
                         ("deep.png", Image.fromarray(np.arange(2000, dtype="uint16").reshape(40, 50) * 30))):
            im.save(os.path.join(self.pictures, name))
        turned = Image.Exif()
        turned[0x112] = 6
        rgb.save(os.path.join(self.pictures, "turned.jpg"), exif=turned)
        with open(os.path.join(self.pictures, "rgb.png"), "rb") as f:
            start = f.read(300)
        for name, data in (("cut.png", start), ("text.png", b"hello"), ("empty.png", b"")):
            with open(os.path.join(self.pictures, name), "wb") as f:
                f.write(data)
        os.mkfifo(os.path.join(self.pictures, "pipe.png"))

    def train(self, data, *more, out=None):
        """data: records, or the file's bytes"""
        self.n += 1
        path = self.tmp.file(f"data-{self.n}.json", data if isinstance(data, bytes) else json.dumps(data).encode())
        self.out = out or os.path.join(self.tmp.path, f"out-{self.n}")
        return llava("train", "--model_name_or_path", model("vicuna-base"), "--image_folder", self.pictures, "--vision_tower",
                     model("clip-tiny"), "--mm_projector_type", "mlp2x_gelu", "--mm_vision_select_layer", "-2",
                     "--mm_use_im_patch_token", "False", "--model_max_length", "512", "--per_device_train_batch_size", "1",
                     "--learning_rate", "1e-3", "--logging_steps", "1", "--report_to", "none", "--version", "v1", "--data_path",
                     path, "--output_dir", self.out, "--num_train_epochs", "1", *more)

    def refused(self, name, data, *parts, more=()):
        """exit 1, all of this in the output, and nothing left behind"""
        ran = self.train(data, *more)
        left = os.listdir(self.out) if os.path.isdir(self.out) else []
        ok(ran.code == 1 and ran.err.strip().splitlines()[-1].startswith("llava: ") and all(p in ran.err for p in parts) and
           not left, name, f"{left}\n{ran.text}")

    def taken(self, name, data, *parts, more=()):
        ran = self.train(data, *more)
        ok(ran.code == 0 and all(p in ran.err for p in parts), name, ran.text)


def files(runs):
    at = RAW.index(b'"image"', 300)
    runs.refused("JSON that is broken at a byte", RAW[:at] + b"!" + RAW[at:], f"byte {at}, line 1")
    runs.refused("JSON that is cut", RAW[:-9], "the text ends too early")
    runs.refused("an empty file", b"", "has no records")
    runs.refused("UTF-16", RAW.decode().encode("utf-16"), "UTF-16, want UTF-8")
    runs.refused("a byte that is no UTF-8", RAW.replace(b"A cat.", b"\xdcber", 1), "not UTF-8")
    runs.refused("a comma too many", RAW[:-1] + b",]", "expected a value")
    runs.taken("a byte order mark", b"\xef\xbb\xbf" + RAW)
    runs.taken("CRLF", json.dumps(GOOD, indent=2).replace("\n", "\r\n").encode())
    runs.taken("a record a line, with CRLF and empty lines", b"\r\n\r\n".join(json.dumps(r).encode() for r in GOOD))
    runs.taken("equal ids, and ids that are none", [record(), record(), {**record(), "id": None}, {**record(), "id": {"a": 1}}])


def turns(runs):
    runs.refused("no turns", [record(), {"id": "x", "conversations": []}], "record 'x' (number 2): a conversation without a turn")
    runs.refused("null for turns", [{"id": "x", "conversations": None}], "'conversations' is null")
    runs.refused("a number for a text", [{"id": "x", "conversations": [ask(1), TEXT]}], "'value' of a turn is a number")
    runs.refused("an unknown role", [{"id": "x", "conversations": [{"from": "user", "value": "a"}, TEXT]}], "is from 'user'")
    runs.refused("blank turns", [record(question="", answer=" ", image=None)], "all turns are empty")
    runs.refused("no answers", [record(answer="")], "nothing would be learned")
    runs.refused("no place for the picture", GOOD, "no more than the", more=("--model_max_length", "9"))
    runs.taken("an empty answer", [record(answer=""), record(2)], "1 record of which nothing is learned")
    runs.taken("an answer of 10 MB", [record(answer="word " * 2000000), record(2)], "cut by model_max_length")
    runs.taken("an answer of 10 MB without a space", [record(answer="x" * 10000000), record(2)], "cut by model_max_length")
    runs.taken("6,000 turns", [record(more=[ask("q"), TEXT] * 3000)], "cut by model_max_length")
    runs.taken("tokens' names as text", [record(answer="</s> <s> <unk> ASSISTANT: USER:"), record(2)])
    runs.taken("other writing, and a NUL", [record(question="<image>\n你好 🙂?", answer="猫 🐱 \u0000"), record(2)])


def pictures(runs):
    for name in ("palette.png", "grey-alpha.png", "one-bit.png", "cmyk.jpg", "deep.png", "turned.jpg", "dot.png"):
        runs.taken(name, [record(image=name)])
    runs.refused("a picture that is not there", [record(image="nope.png")], "nope.png': No such file")
    runs.refused("a picture that is a pipe", [record(image="pipe.png")], "not a regular file")
    runs.refused("a picture without bytes", [record(image="empty.png")], "is empty")
    runs.refused("a picture that is text", [record(image="text.png")], "not a picture of a known format")
    runs.refused("a picture that is a number", [{**record(), "image": 5}], "'image' is a number")
    runs.refused("a place without a picture", [record(image=None)], "\"<image>\" in turn 0 and no picture")
    both = ["rgb.png", "palette.png"]
    runs.refused("more places than pictures", [record(image=both, question="<image><image><image>")], "3 \"<image>\"",
                 "2 pictures")
    runs.taken("several pictures", [record(image=both, question="<image>\n<image>\nWhich?")])
    runs.taken("more pictures than places", [record(image=both)], "with more pictures than")
    runs.taken("a picture in a later turn", [record(question="Hi", more=[ask("<image>\nand this?"), TEXT])])
    runs.taken("null and an empty list for a picture", [record(image=None, question="Hi"),
                                                        {**record(question="Hi"), "image": []}])


def midway(runs):
    """a picture that cannot be read, met after some steps"""
    data = [record(1), record(2), record(3, image="cut.png"), record(4), record(5), record(6)]
    ran = runs.train(data)
    left = os.listdir(runs.out)
    last = ran.err.strip().splitlines()[-1]
    done = [n for n in left if n.startswith("checkpoint-")]
    ok(ran.code == 1 and "record '3' (number 3): picture" in last and "is truncated after 300 bytes" in last and len(done) == 1
       and last.endswith(f"step {done[0][11:]} is saved in '{runs.out}/{done[0]}'") and left == done,
       "an unreadable picture: what was learned before it is saved", f"{left}\n{ran.text}")
    ran = runs.train(data, "--on_bad_record", "skip", out=runs.out)
    ok(ran.code == 0 and "going on from" in ran.err and "left out" in ran.err, "and gone on from without it", ran.text)
    runs.taken("left out", data, "cut.png' is truncated after 300 bytes: left out", "1 times a record was left out",
               more=("--on_bad_record", "skip"))
    ran = runs.train([record(i, image="cut.png") for i in range(3)], "--on_bad_record", "skip")
    ok(ran.code == 1 and "no record of" in ran.err and "config.json" not in os.listdir(runs.out),
       "no picture of a pass can be read", ran.text)
    ran = runs.train([record(i, image="cut.png") for i in range(30)], "--on_bad_record", "skip")
    ok(ran.err.count(": left out") == 20 and "only counted" in ran.err, "not a line for each of thousands", ran.text)
    rest = [record(i, question="<image>\nWhat?" + 60 * " red", image="cut.png") for i in range(3)]
    for seed in range(4):  # without their places the three good ones would be one batch that nobody planned
        runs.taken(f"packed around what is left out, order {seed}", [*(record(i, answer="red") for i in range(3)), *rest],
                   "3 times a record was left out",
                   more=("--on_bad_record", "skip", "--packing", "True", "--model_max_length", "450", "--seed", str(seed),
                         "--gradient_accumulation_steps", "6"))


def arguments(runs):
    for more, code, part in (
            (("--num_gpus", "8"), 2, "--num_gpus wants 1, not '8': a run is one process on one device"),
            (("--local_rank", "3"), 2, "--local_rank wants one of -1, 0, not '3': a run is one process"),
            (("--nproc_per_node=4",), 2, "one process on one device"),
            (("--include", "localhost:0,1"), 2, "one process on one device"),
            (("--local_rank=0", "--num_gpus", "1", "--include", "localhost:0", "--master_port", "29600"), 0, "--master_port"),
            (("--vision_tower", "/nope"), 1, "no vision tower '/nope'\n"),
            (("--learning_rate", "0"), 2, "above 0"), (("--learning_rate", "-1"), 2, "above 0"),
            (("--evaluation_strategy", "steps"), 0, "nothing is evaluated"),
            (("--use_cpu", "--device", "auto"), 0, "done: 4 steps")):
        ran = runs.train(GOOD, *more)
        ok(ran.code == code and part in ran.err and (code == 0 or len(ran.err.splitlines()) <= 2), " ".join(more), ran.text)
    ran = runs.train(GOOD, "--run_name", "First try <1>")
    with open(os.path.join(runs.out, "loss.svg"), encoding="utf-8") as f:
        svg = f.read()
    ok(ran.code == 0 and "First try &lt;1>" in svg, "--run_name is the title of loss.svg", svg[:400])


with Temp() as tmp:
    runs = Runs(tmp)
    for part in (files, turns, pictures, midway, arguments):
        part(runs)
finish()
