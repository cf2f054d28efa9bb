"""What a terminal shows of a run: one line that fits its width and is redrawn, and nothing of the kind where there is none."""
import fcntl
import json
import os
import re
import struct
import subprocess
import sys
import termios

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import ENV, GOLDEN, LLAVA, Temp, finish, llava, model, ok  # noqa: E402

ARGS = ["train", "--model_name_or_path", model("vicuna-base"), "--image_folder", os.path.join(GOLDEN, "pictures"),
        "--vision_tower", model("clip-tiny"), "--mm_projector_type", "mlp2x_gelu", "--mm_vision_select_layer", "-2",
        "--mm_use_im_patch_token", "False", "--model_max_length", "512", "--per_device_train_batch_size", "2",
        "--logging_steps", "10", "--report_to", "none", "--version", "v1", "--max_steps", "20", "--save_strategy", "no",
        "--data_path", os.path.join(GOLDEN, "training/full.json")]
WHOLE = (r"\[#+\] 20/20(  loss \d+\.\d{4}(  left 0:00(  \d+ tok/s(  lr \S+(  norm \S+"
         r"(  \d+% of peak(  \S+ MB)?)?)?)?)?)?)?")


def on_terminal(columns, *args):
    """(exit code, all that the terminal was sent)"""
    ours, theirs = os.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    p = subprocess.Popen([LLAVA, *args], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=theirs, env=ENV)
    os.close(theirs)
    text = b""
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:
            break
        if not part:
            break
        text += part
    os.close(ours)
    return p.wait(), text.decode()


with Temp() as tmp:
    seen = {}
    for columns in (200, 80, 60, 30):
        code, text = on_terminal(columns, *ARGS, "--output_dir", os.path.join(tmp.path, str(columns)))
        bars = [part.split("\r")[0] for part in text.split("\r\033[K") if part.startswith("[")]
        last = seen[columns] = bars[-1] if bars else ""
        ok(code == 0 and bars and max(map(len, bars)) < columns and all(re.match(r"\[[#.]{8,}\] [ \d]\d/20", b) for b in bars),
           f"{columns} columns", text[-2000:])
        widths = [b.index("]") for b in bars]
        ok(widths == sorted(widths, reverse=True), f"{columns} columns: the bar never grows again", bars)
        ok(re.fullmatch(WHOLE, last), f"{columns} columns: full at the end, no part is cut", last)
    # the check of the data: a bar of another kind, which must fit as well
    with open(os.path.join(GOLDEN, "training/full.json"), encoding="utf-8") as f:
        records = json.load(f)
    for r in records:
        r["conversations"][1]["value"] = "".join(chr(0x4E00 + i % 20000) for i in range(40000))
    data = tmp.file("long.json", json.dumps(records * 5).encode())
    for columns in (80, 40):
        code, text = on_terminal(columns, *ARGS, "--dry_run", "True", "--data_path", data, "--threads", "1")
        bars = [b for b in re.findall("checking the data[^\r\n]*", text) if "model_max_length" not in b]
        ok(code == 0 and bars and max(map(len, bars)) < columns,
           f"{columns} columns: the check of the data", text[-2000:])
    ok("MB" in seen[200], "all of it where there is room", seen[200])
    ok("tok/s" in seen[80] and "left" in seen[60] and "MB" not in seen[60], "the weightiest where not", seen)
    code, text = on_terminal(80, *ARGS, "--output_dir", os.path.join(tmp.path, "none"), "--disable_tqdm", "True")
    ok(code == 0 and not re.search(r"\[[#.]+\] \d+/20", text), "--disable_tqdm", text[-2000:])
    ran = llava(*ARGS, "--output_dir", os.path.join(tmp.path, "file"))
    ok(ran.code == 0 and "\033" not in ran.err and "\r" not in ran.err and ran.err.count("llava: step ") == 2,
       "plain lines in a file", ran.text)
finish()
