#!/usr/bin/python3
"""The command line: help, usage errors, exit codes, what is printed where, and what becomes of bad input.

    cli_test.py [--update]       --update writes tests/cli/help/COMMAND.txt anew from what the commands say

Bad models are made here from the fixtures: one line on stderr, which begins with "llava: " and names the file or the
value; exit code 1, or 2 where the options are at fault; nothing on stdout, no file left behind."""
import ast
import glob
import json
import os
import pickle
import re
import struct
import sys
import zipfile
import zlib

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import GOLDEN, PICTURE, ROOT, Ran, LLAVA, Temp, finish, llava, model, ok, read_safetensors  # noqa: E402

HELP = os.path.join(ROOT, "tests/cli/help")
SEEING = model("llava-liuhaotian")
PROMPT = "USER: <image>\nWhat is in the picture? ASSISTANT:"


def run(path, *more, image=PICTURE, prompt=PROMPT, command="run"):
    pictures = ["--image-file", image] if image else []
    return llava(command, "--quiet", "--model-path", path, *pictures, "--prompt", prompt, *more)


def answer(path, *more, **how):
    return run(path, "--temperature", "0", "--max-new-tokens", "4", *more, **how)


def refused(name, r, *says, code=1):
    """Usage errors may add a sentence that says where help is."""
    lines = r.err.splitlines()
    one = len(lines) == 1 or (code == 2 and len(lines) in (2, 3) and "--help" in lines[1])
    begins = bool(lines) and re.match(r"llava( \w+){0,2}: ." if code == 2 else "llava: .", lines[0])
    named = all(s in lines[0] for s in says) if lines else False
    ok(r.code == code and one and begins and named and not r.out.strip(), name, r.text + f"\nwanted: exit {code}, {says}")


# ---- help and usage

def commands():
    return re.findall(r"^  ([a-z]+)\s{2,}", llava("--help").out.split("Commands:")[1].split("\n\n")[0], re.M)


def declared(source):
    """Options of the argp tables in a source file that are not hidden."""
    with open(source, encoding="utf-8") as f:
        rows = re.findall(r'^\s*\{ "([a-z0-9-]+)", (?:K_|\d)[^\n]*?, (OPTION_\w+|0)', f.read(), re.M)
    return [name for name, flag in rows if flag != "OPTION_HIDDEN"]


def test_help(update):
    everything = set()
    for command in [[name] for name in commands()] + [["bench", "train"]]:
        name = "_".join(command)
        r = llava(*command, "--help")
        path = os.path.join(HELP, name + ".txt")
        if update:
            with open(path, "w", encoding="utf-8") as f:
                f.write(r.out)
        kept = open(path, encoding="utf-8").read() if os.path.exists(path) else ""
        ok(r.code == 0 and r.out == kept and not r.err, f"{name} --help is what tests/cli/help has", r.text[:1500])
        own = [p for p in (f"{ROOT}/src/cmd/{name}.c",) if os.path.exists(p)]
        missing = [o for p in own for o in declared(p) if "--" + o not in r.out]
        ok(not missing, f"{name} --help names each of its options", missing)
        ok(max(map(len, r.out.splitlines()), default=99) <= 80, f"{name} --help fits 80 columns", r.out)
        everything |= set(re.findall(r"--([a-z0-9-]+)", r.out))
        refused(f"{name} --no-such-option", llava(*command, "--no-such-option"), "no-such-option", code=2)
    shared = [o for o in declared(f"{ROOT}/src/cmd/cmd.c") if o not in everything]
    ok(not shared, "shared options are in some command's help", shared)


def test_usage():
    r = llava()
    ok(r.code == 2 and "Usage:" in r.err and not r.out, "no command: usage on stderr, exit 2", r.text)
    r = llava("--help")
    ok(r.code == 0 and "Usage:" in r.out and not r.err, "--help: usage on stdout, exit 0", r.text)
    r = llava("--version")
    ok(r.code == 0 and re.fullmatch(r"llava \d+\.\d+\.\d+\n", r.out), "--version", r.text)
    refused("a command that is not there", llava("rum"), "'rum'", "'run'", code=2)
    refused("no model", llava("run", "--query", "x"), "--model-path", code=2)
    refused("no question", llava("run", "--model-path", SEEING), "--query", code=2)
    refused("a stray word", llava("run", "--model-path", SEEING, "--query", "x", "stray"), "'stray'", code=2)
    for option, value in (("num-beams", "2"), ("temperature", "-1"), ("temperature", "warm"), ("top-p", "0"), ("top-p", "nan"),
                          ("top-k", "-3"), ("max-new-tokens", "0"), ("max-new-tokens", "12x"), ("seed", "-1"),
                          ("threads", "0"), ("context", "99999999999999999999")):
        refused(f"--{option} {value}", answer(SEEING, f"--{option}", value), f"--{option}", value, code=2)
    refused("--dtype f12", answer(SEEING, "--dtype", "f12"), "'f12'", code=2)
    refused("--device tpu", answer(SEEING, "--device", "tpu"), "'tpu'", code=2)
    refused("--device cuda:x", answer(SEEING, "--device", "cuda:x"), "'cuda:x'", code=2)
    refused("a device that is not there", answer(SEEING, "--device", "cuda:9"), "cuda")
    refused("--conv-mode", llava("run", "--quiet", "--model-path", SEEING, "--query", "x", "--conv-mode", "nope"),
            "'nope'", "vicuna_v1", code=2)


# ---- what works

def test_answers():
    want = answer(SEEING)
    ok(want.code == 0 and want.out.endswith("\n") and len(want.out) > 1 and not want.err, "run answers", want.text)
    for name, args in {"underscores": ["--max_new_tokens", "4", "--temperature=0"],
                       "unique prefixes": ["--max-new", "4", "--temp", "0"],
                       "any seed is greedy at temperature 0": ["--max-new-tokens", "4", "--temperature", "0", "--seed", "5"],
                       "two threads": ["--max-new-tokens", "4", "--temperature", "0", "--threads", "2"]}.items():
        r = run(SEEING, *args)
        ok(r.code == 0 and r.out == want.out, name, r.text)
    again = [run(SEEING, "--temperature", "1", "--max-new-tokens", "16", "--seed", s).raw for s in ("7", "7", "8")]
    ok(again[0] == again[1] != again[2], "a seed gives one answer, another seed another", again)
    both = f"{PICTURE},{GOLDEN}/pictures/square-50x50.png"
    r = llava("run", "--quiet", "--model-path", SEEING, "--image-file", both, "--query",
              "<image-placeholder> or <image-placeholder>?", "--max-new-tokens", "3")
    ok(r.code == 0 and r.out, "two pictures with a comma", r.text)
    loud = llava("run", "--model-path", SEEING, "--image-file", PICTURE, "--query", "What?", "--max-new-tokens", "12")
    ok(loud.code == 0 and "tok/s" in loud.err and all(x.startswith("llava: ") for x in loud.err.splitlines()),
       "statistics on stderr", loud.text)
    r = Ran([LLAVA, "run", "--quiet", "--model-path", SEEING, "--query", "x", "--max-new-tokens", "3"],
            stdout=open("/dev/full", "wb"))
    ok(r.code == 1 and r.err == "llava: cannot write to standard output\n", "a full disk", r.text)


def test_first():
    """What is cheap to see is seen before a model is fetched or opened."""
    for args in (("run", "--image-file", f"{PICTURE},/none.png", "--query", "x"), ("chat", "--image-file", "/none.png"),
                 ("forward", "--image-file", "/none.png", "--prompt", "<image>", "--out", "/dev/null"),
                 ("run", "--image-folder", "/none.png", "--query", "x", "--output", "/dev/null"),
                 ("run", "--image-folder", GOLDEN, "--question-file", "/none.png", "--output", "/dev/null")):
        r = llava(*args, "--model-path", "nobody/has-this")
        ok(r.code == 1 and r.err == "llava: cannot open '/none.png': No such file or directory\n", f"{args[0]} {args[1]}", r.text)


def test_chat():
    r = llava("chat", "--quiet", "--model-path", SEEING, "--image-file", PICTURE, "--temperature", "0", "--max-new-tokens",
              "6", input=b"What is it?\nAnd what colour?\n\n")
    ok(r.code == 0 and r.out.count("ASSISTANT: ") == 2 and r.out.count("USER: ") == 3, "two turns of chat", r.text)
    loud = llava("chat", "--model-path", SEEING, "--image-file", PICTURE, "--temperature", "0", "--max-new-tokens", "6",
                 input=b"What is it?\nAnd what colour?\n")
    kept = [int(n) for n in re.findall(r"\((\d+) kept\)", loud.err)]
    ok(len(kept) == 2 and kept[0] == 0 < kept[1], "the second turn keeps what was read", loud.text)
    for question in ("It's \"this\",\\ isn't it?", "It's", 'A "word"', "\t"):
        r = llava("chat", "--quiet", "--model-path", SEEING, "--image-file", PICTURE, "--temperature", "0", "--max-new-tokens",
                  "6", "--debug", input=(question + "\n").encode())
        said = [x for x in r.out.splitlines() if x.startswith(" {'prompt'")]
        shown = ast.literal_eval(said[0].strip()) if said else {}
        ok(said == [f" {shown} "] and f"<image>\n{question}" in shown["prompt"] and f"ASSISTANT: {shown['outputs']}" in r.out,
           f"--debug shows {question!r} as Python does", r.text)


def test_bench_train():
    """One line; what it counts follows from the sizes; what the trainer refuses it refuses."""
    tiny = ("bench", "train", "--quiet", "--random", "tiny", "--batch", "2", "--seq", "96", "--steps", "1")
    try:
        line = json.loads(llava(*tiny, "--stage", "lora", "--accum", "2", "--", "--lora_r=8").out)
    except ValueError:
        line = {}
    seconds = line.get("step_s", 0)
    ok(seconds > 0 and abs(line["samples_s"] * seconds - 4) < 1e-3 and abs(line["tok_s"] * seconds - 4 * 96) < 0.1 and
       line["useful_tflops"] > 0 and (line["tflops"] > line["useful_tflops"]) == (line["layers_again"] > 0) and
       line["ceiling_tflops"] > 0, "bench train counts what it does", line)
    for stage in ("pretrain", "qlora"):
        r = llava(*tiny, "--stage", stage)
        ok(r.code == 0 and json.loads(r.out)["stage"] == stage, f"bench train --stage {stage}", r.text)
    r = llava(*tiny, "--stage", "full", "--", "--unfreeze_mm_vision_tower=True", "--patch_dropout=0.5")
    line = json.loads(r.out) if r.code == 0 else {"tok_s": 0, "step_s": 0}
    ok(abs(line["tok_s"] * line["step_s"] - 2 * (96 - 32)) < 0.1, "bench train leaves out half of the patches", r.text)
    for how in ((), ("--padded",)):
        r = llava(*tiny, "--stage", "pretrain", "--seq", "200", "--mix665k", "--list", "--accum", "3", *how)
        try:
            line = json.loads(r.out)
        except ValueError:
            line = {"records": []}
        long, s = [text + 64 * pictures for text, pictures in line["records"]], line.get("step_s", 0)
        took = 2 * sum(max(long[i:i + 2]) for i in (0, 2, 4)) if how and len(long) == 6 else sum(long)
        ok(len(long) == 6 and 4 < min(long) < max(long) <= 200 and abs(line["samples_s"] * s - 6) < 1e-3 and
           abs(line["tok_s"] * s - sum(long)) < 0.1 and abs(line["positions_s"] * s - took) < 0.1,
           "bench train: six records of real lengths" + ", padded" * bool(how), r.text)
    refused("bench train: a limit", llava(*tiny, "--memory-limit", "1M"), "--memory_limit is 1.0 MB")
    refused("bench train: a short record", llava(*tiny, "--seq", "64"), "--seq 64")
    refused("bench train: no such shape", llava(*tiny, "--random", "3b"), "'3b'")
    refused("bench train: no such argument", llava(*tiny, "--", "--lora_rank=8"), "lora_rank", code=2)


def test_plan():
    """A card that is not here: what a token of the 13B has to read, and how fast the card's data sheet says it reads."""
    linears, head, cache = 40 * (4 * 5120 ** 2 + 3 * 5120 * 13824), 32000 * 5120, 2 * 40 * 5120 * 640
    r = llava("bench", "--random", "13b", "--plan", "hip:k100_ai", "--prompt", "640")
    lines = [json.loads(x) for x in r.out.splitlines()] if r.code == 0 else []
    ok([x["bits"] for x in lines] == [16, 8, 4], "a plan for 16, 8 and 4 bits", r.text)
    for x in lines:
        each, rest = (2, 2) if x["bits"] == 16 else ((x["bits"] + 0.25) / 8, 8.25 / 8)
        want = 896e9 / (linears * each + (head + cache) * rest)
        ok(abs(x["decode_tok_s"] / want - 1) < 1e-3 and x["fits"] and x["card_gb"] == 64,
           f"{x['bits']} bits: what the card can read", f"{x} {want}")
    small = [json.loads(x) for x in llava("bench", "--random", "13b", "--plan", "cuda:rtx4090").out.splitlines()]
    ok([x["fits"] for x in small] == [False, True, True] and small[0]["missing_gb"] > 0, "which precision fits a small card",
       small)
    for word in ("--load-4bit", "--device=cuda:9", "--dtype=f32", "--kv-dtype=q8", "--gen=5", "--no-image"):
        refused("a plan is for all precisions", llava("bench", "--random", "1b", "--plan", "cuda:t4", word),
                f"{word.split('=')[0]} has no use", code=2)
    refused("a plan of more than the context", llava("bench", "--random", "1b", "--plan", "cuda:t4", "--context", "64"),
            "640 positions is more than the context of 64")
    refused("a card that nobody knows", llava("bench", "--random", "13b", "--plan", "hip:k9"), "hip:k100_ai")


def test_other_commands():
    r = llava("bench", "--quiet", "--random", "tiny", "--prompt", "16", "--gen", "2", "--repeat", "1")
    try:
        line = json.loads(r.out)
    except ValueError:
        line = {}
    ok(r.code == 0 and line.get("decode_tok_s", 0) > 0, "bench prints one JSON object", r.text)
    ok(line.get("first_token_ms", 0) > 0, "the first token's time, of a prompt that is shorter too", r.text)
    ok(0 < line.get("peak_memory_bytes", 0) < 256 << 20, "the memory is the model's, not the ceiling's", r.text)
    test_bench_train()
    test_plan()
    r = llava("env")
    ok(r.code == 0 and "kernels" in r.out and "HF_HOME" in r.out, "env", r.text)
    with Temp() as t:
        out = os.path.join(t.path, "f.safetensors")
        r = run(SEEING, "--dtype", "f32", "--out", out, command="forward")
        made = read_safetensors(out) if r.code == 0 else {}
        want = read_safetensors(os.path.join(GOLDEN, "expected/llava-liuhaotian.safetensors"))
        ok(r.code == 0 and np.array_equal(made["input_ids"], want["c0.input_ids"]) and
           np.abs(made["logits"] - want["c0.logits"]).max() < 1e-4, "forward writes what PyTorch says", r.text)
        ok(os.listdir(t.path) == ["f.safetensors"], "and one file", os.listdir(t.path))
        os.mkdir(os.path.join(t.path, "folder"))
        for name, to in (("a folder that is not there", "none/x.safetensors"), ("a folder", "folder")):
            before = sorted(os.listdir(t.path))
            refused(f"forward into {name}", run(SEEING, "--out", os.path.join(t.path, to), command="forward"), to)
            ok(sorted(os.listdir(t.path)) == before, "leaves nothing behind", os.listdir(t.path))


# ---- pictures and prompts that cannot be

def png(w, h, rows=b""):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0)) +
            chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def test_pictures():
    with open(f"{GOLDEN}/pictures/tall-20x61.jpg", "rb") as f:
        jpeg = f.read()
    with open(PICTURE, "rb") as f:
        whole = f.read()
    bad = {"0x0.png": png(0, 0), "huge.png": png(100000, 100000), "tail.jpg": jpeg[:len(jpeg) * 2 // 3],
           "tail.png": whole[:len(whole) * 2 // 3], "text.png": b"this is no picture\n", "empty.png": b"",
           "short.png": png(64, 64, b"\0" * 100)}
    with Temp() as t:
        for name, data in bad.items():
            refused(f"picture {name}", answer(SEEING, image=t.file(name, data)), name)
        refused("a picture that is not there", answer(SEEING, image=f"{t.path}/none.png"), "none.png")
        refused("a folder as a picture", answer(SEEING, image=t.path), t.path)
    refused("an address where nobody is", answer(SEEING, image="http://127.0.0.1:9/x.png"), "http://127.0.0.1:9/x.png")
    refused("a picture for a model that sees none", answer(model("vicuna-base")), "vicuna-base")


def test_prompts():
    refused("more <image> than pictures", answer(SEEING, prompt="<image> <image> ASSISTANT:"), '2 "<image>"')
    refused("a picture without <image>", answer(SEEING, prompt="Why? ASSISTANT:"), '0 "<image>"')
    refused("a prompt over the context", answer(SEEING, "--context", "16"), "16")
    refused("a context over the model's", answer(SEEING, "--context", "100000"), "100000")
    refused("text that is not UTF-8", answer(SEEING, image=None, prompt=b"USER: \xff\xfe ASSISTANT:"), "UTF-8")
    r = answer(SEEING, image=None, prompt="USER: \U0001f642 \u4f60\u597d\u0301 \u202e ASSISTANT:")
    ok(r.code == 0, "text in any script", r.text)


# ---- models that cannot be

def edit_json(path, **changes):
    with open(path, encoding="utf-8") as f:
        data = json.load(f)
    data.update(changes)
    with open(path, "w", encoding="utf-8") as f:
        json.dump(data, f)


def edit_safetensors(path, change):
    """change(head, body) -> (head, body) or whole bytes"""
    with open(path, "rb") as f:
        raw = f.read()
    size = struct.unpack("<Q", raw[:8])[0]
    made = change(json.loads(raw[8:8 + size]), bytearray(raw[8 + size:]))
    if isinstance(made, tuple):
        head = json.dumps(made[0]).encode()
        made = struct.pack("<Q", len(head)) + head + bytes(made[1])
    with open(path, "wb") as f:
        f.write(made)


def cut(path, keep):
    with open(path, "rb+") as f:
        f.truncate(int(os.path.getsize(path) * keep) if keep < 1 else keep)


Q0, K0 = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"


def overlapping(head, body):
    head[Q0]["data_offsets"] = head[K0]["data_offsets"]
    return head, body


def past_end(head, body):
    at = head[Q0]["data_offsets"]
    head[Q0]["data_offsets"] = [at[0] + (1 << 40), at[1] + (1 << 40)]
    return head, body


def long_header(head, body):
    return struct.pack("<Q", 1 << 62) + json.dumps(head).encode() + bytes(body)


def not_json(head, body):
    text = json.dumps(head).encode()[:-1] + b"?"
    return struct.pack("<Q", len(text)) + text + bytes(body)


def other_shape(head, body):
    head[Q0]["shape"] = [head[Q0]["shape"][0] // 2, head[Q0]["shape"][1] * 2]
    return head, body


def without(head, body):
    head["model.layers.0.self_attn.z_proj.weight"] = head.pop(Q0)
    return head, body


def not_a_number(head, body):
    at = head[Q0]["data_offsets"][0]
    body[at + 40:at + 44] = struct.pack("<f", float("nan"))
    return head, body


def unknown_type(head, body):
    head[Q0]["dtype"] = "F33"
    return head, body


def test_safetensors():
    for change, says in ((overlapping, ()), (past_end, (Q0,)), (long_header, ()), (not_json, ()), (other_shape, (Q0,)),
                         (without, ("q_proj",)), (not_a_number, (Q0,)), (unknown_type, ())):
        with Temp() as t:
            d = t.copy("llava-self-trained")
            edit_safetensors(f"{d}/model.safetensors", change)
            refused(f"safetensors: {change.__name__}", answer(d), *(says if says else ("model.safetensors",)))
    for keep in (0, 4, 100, 0.3, 0.99):
        with Temp() as t:
            d = t.copy("llava-self-trained")
            cut(f"{d}/model.safetensors", keep)
            refused(f"safetensors cut to {keep}", answer(d), "model.safetensors")


class Call:
    def __init__(self, f, *args):
        self.f, self.args = f, args

    def __reduce__(self):
        return self.f, self.args


def torch_zip(path, data, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as z:
        z.writestr("archive/data.pkl", data)
        z.writestr("archive/version", "3\n")


def test_torch_files():
    with Temp() as t:
        d, mark = t.copy("vicuna-base"), os.path.join(t.path, "called")
        torch_zip(f"{d}/pytorch_model.bin", pickle.dumps({"a": Call(os.system, f"touch {mark}")}, 2))
        refused("a pickle that calls something", answer(d, image=None, prompt="x"), "pytorch_model.bin", "system")
        ok(not os.path.exists(mark), "which was not called")
        torch_zip(f"{d}/pytorch_model.bin", pickle.dumps({"a": Call(eval, "1")}, 2))
        refused("a pickle that evaluates", answer(d, image=None, prompt="x"), "pytorch_model.bin", "eval")
        torch_zip(f"{d}/pytorch_model.bin", b"\0" * (300 << 20), zipfile.ZIP_DEFLATED)
        refused("a zip bomb", answer(d, image=None, prompt="x"), "pytorch_model.bin")
        for name, data in (("empty", b""), ("no zip", b"hello"), ("half a zip", None)):
            d = t.copy("vicuna-base")
            if data is None:
                cut(f"{d}/pytorch_model.bin", 0.5)
            else:
                with open(f"{d}/pytorch_model.bin", "wb") as f:
                    f.write(data)
            refused(f"torch file: {name}", answer(d, image=None, prompt="x"), "pytorch_model.bin")


def test_folders():
    with Temp() as t:
        refused("no such folder", answer(f"{t.path}/none"), "none")
        refused("an empty folder", answer(t.path), "config.json")
        d = t.copy("llava-hf-old")
        shard = glob.glob(f"{d}/*-00002-of-00002.safetensors")[0]
        os.remove(shard)
        refused("a shard that is not there", answer(d), os.path.basename(shard))
        d = t.copy("llava-self-trained")
        os.remove(f"{d}/model.safetensors")
        refused("no weights", answer(d), d)
        for name, change, says in (("another width", {"hidden_size": 64}, ("64",)),
                                   ("another vocabulary", {"vocab_size": 400}, ("400",)),
                                   ("heads that do not divide", {"num_attention_heads": 5}, ("config.json",)),
                                   ("no layers", {"num_hidden_layers": 0}, ("config.json",)),
                                   ("absurd layers", {"num_hidden_layers": 1 << 40}, ("config.json",)),
                                   ("a width that is a word", {"hidden_size": "wide"}, ("config.json", "hidden_size")),
                                   ("another kind of model", {"model_type": "resnet"}, ("resnet",))):
            d = t.copy("llava-self-trained")
            edit_json(f"{d}/config.json", **change)
            refused(f"config.json with {name}", answer(d), *says)
        for data in (b"", b"{", b"[]", b"\xff\xfe{}"):
            d = t.copy("llava-self-trained")
            with open(f"{d}/config.json", "wb") as f:
                f.write(data)
            refused(f"config.json that is {data!r}", answer(d), "config.json")
        d = t.copy("llava-self-trained")
        with open(f"{d}/tokenizer.model", "wb") as f:
            f.write(b"\x0a\xff\xff\xff")
        refused("a broken tokenizer.model", answer(d), "tokenizer.model")
        d = t.copy("llava-liuhaotian")
        os.remove(glob.glob(f"{d}/clip/*.bin")[0])
        refused("a tower without weights", answer(d), "clip")
    refused("an adapter without its base", answer(model("llava-lora"), "--model-base", "/no/such/base"), "/no/such/base")


def main():
    update = "--update" in sys.argv[1:]
    test_help(update)
    if update:
        finish()
    for test in (test_usage, test_answers, test_first, test_chat, test_other_commands, test_pictures, test_prompts,
                 test_safetensors, test_torch_files, test_folders):
        test()
    finish()


if __name__ == "__main__":
    main()
