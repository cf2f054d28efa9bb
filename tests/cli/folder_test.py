#!/usr/bin/python3
"""llava run --image-folder: every picture once, the answers of single runs, errors recorded, counted and tried again, names of
any bytes, answers to something else refused, and going on after being killed at any instant."""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import ENV, LLAVA, ROOT, Temp, finish, llava, ok  # noqa: E402

DEMO = os.path.join(ROOT, "models/demo")
PICTURES = sorted(os.listdir(os.path.join(DEMO, "pictures")))
QUESTION = ["--model-path", DEMO, "--query", "What is this?", "--temperature", "0"]


def records(path):
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def run(folder, output, *more):
    return llava("run", *QUESTION, "--image-folder", folder, "--output", output, *more)


def make_folder(t, copies):
    """The demo's pictures, many times over and in a subfolder, and what is no picture."""
    folder = os.path.join(t.path, f"pictures{copies}")
    os.makedirs(os.path.join(folder, "sub"))
    names = []
    for i in range(copies):
        for p in PICTURES:
            names.append(f"sub/{i}-{p}" if i % 2 else f"{i}-{p}")
            shutil.copy(os.path.join(DEMO, "pictures", p), os.path.join(folder, names[-1]))
    for name in ("notes.txt", ".hidden.png", "sub/list.json"):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
            f.write("no picture")
    return folder, names


def same_as_alone(t):
    folder, names = make_folder(t, 1)
    with open(os.path.join(folder, "broken.jpg"), "wb") as f:
        f.write(b"\xff\xd8\xff broken")
    for parallel in ("1", "4"):
        out = os.path.join(t.path, f"out{parallel}.jsonl")
        r = run(folder, out, "--parallel", parallel)
        got = {x["image"]: x for x in records(out)}
        ok(sorted(got) == sorted(names + ["broken.jpg"]), f"every picture, {parallel} at once", r.text)
        ok("error" in got["broken.jpg"] and "broken.jpg" in got["broken.jpg"]["error"] and "1 failed" in r.err and
           r.code == 1 and f"1 of {len(got)} pictures failed: '{out}' says why" in r.err,
           "a broken one is recorded, counted, and the exit status", r.text)
        for name in names:
            alone = llava("run", *QUESTION, "--image-file", os.path.join(folder, name), "--quiet").out.strip()
            ok(got[name]["text"] == alone and got[name]["tokens"] > 0, f"{name}: as alone", f"{got[name]} {alone}")
    out = os.path.join(t.path, "out4.jsonl")
    os.chmod(out, 0o640)
    r = run(folder, out)
    ok(r.code == 1 and "0 pictures answered, 1 failed" in r.err and {x["image"]: x for x in records(out)} == got and
       len(records(out)) == len(got), "only what failed is done twice", r.text)
    shutil.copy(os.path.join(folder, names[0]), os.path.join(folder, "broken.jpg"))
    r = run(folder, out)
    new = {x["image"]: x for x in records(out)}
    ok(r.code == 0 and "1 that failed before" in r.err and "1 pictures answered, 0 failed" in r.err and
       new.pop("broken.jpg")["text"] == got[names[0]]["text"] and new == {n: got[n] for n in names} and
       len(records(out)) == len(got), "one that was mended is answered, and its error is gone", r.text)
    ok(os.stat(out).st_mode & 0o777 == 0o640, "the output keeps its permissions", oct(os.stat(out).st_mode))
    r = run(folder, out)
    ok(r.code == 0 and "0 pictures answered, 0 failed" in r.err, "nothing is done twice", r.text)
    other_question(out, folder)


def other_question(out, folder):
    """Answers to another question, or of another model, are no answers."""
    with open(out, "rb") as f:
        before = f.read()
    copy = os.path.join(os.path.dirname(out), "other-model")
    shutil.copytree(DEMO, copy, ignore=shutil.ignore_patterns("pictures*"))
    model, rest = QUESTION[:2], ["--temperature", "0", "--image-folder", folder, "--output", out]
    for what, args in (("question", [*model, "--query", "Where is it?"]),
                       ("question", [*model, "--prompt", "USER: <image>\nWhere is it? ASSISTANT:"]),
                       ("model", ["--model-path", copy, *QUESTION[2:4]])):
        r = llava("run", *args, *rest)
        with open(out, "rb") as f:
            ok(r.code == 1 and f"line 1 of '{out}'" in r.err and f"of the {what} '" in r.err and "--output" in r.err and
               f.read() == before, f"another {what}: refused, and the answers stay", r.text)


def strange_names(t):
    """Names of files are bytes: also what is no UTF-8 is answered once, and known again."""
    folder, out = os.path.join(t.path, "strange"), os.path.join(t.path, "strange.jsonl")
    os.mkdir(folder)
    names = [b"caf\xe9.png", b"caf\xe8.png", b"caf?.png", b"two\nlines.png", "图.png".encode()]
    for n in names:
        shutil.copy(os.path.join(DEMO, "pictures", PICTURES[0]), os.path.join(folder.encode(), n))
    r = run(folder, out)
    got = records(out)
    seen = [bytes.fromhex(x["image_bytes"]) if "image_bytes" in x else x["image"].encode() for x in got]
    ok(r.code == 0 and sorted(seen) == sorted(names), "names that are no UTF-8", f"{r.text} {seen}")
    with open(out, "r+b") as f:
        lines = f.readlines()
        f.seek(0)
        f.truncate()
        f.writelines(lines[:3])
    r = run(folder, out)
    same = sorted(map(str, records(out))) == sorted(map(str, got))
    ok(r.code == 0 and "2 pictures answered, 0 failed, 3 were there before" in r.err and same,
       "and are known when going on", r.text)


def killed(t):
    folder, names = make_folder(t, 20)
    out = os.path.join(t.path, "killed.jsonl")
    rng = random.Random(7)
    for attempt in range(30):
        with subprocess.Popen([LLAVA, "run", *QUESTION, "--image-folder", folder, "--output", out], env=ENV,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as p:
            time.sleep(0.1 + 0.5 * rng.random())
            p.send_signal(signal.SIGKILL)
        if os.path.exists(out) and attempt % 3 == 0:
            size = os.path.getsize(out)
            os.truncate(out, max(0, size - rng.randrange(40)))  # a line that was cut
        if os.path.exists(out) and os.path.getsize(out) and len(open(out, "rb").read().splitlines()) >= len(names):
            break
    r = run(folder, out)
    got = [x["image"] for x in records(out)]
    ok(r.code == 0 and sorted(got) == sorted(names), "after kills every picture stands there once", f"{len(got)} {r.text}")
    ok(all(PICTURES[0].split(".")[0] in x["text"] for x in records(out) if x["image"].endswith(PICTURES[0])),
       "and with its own answer", r.text)


def refused(t):
    folder, _ = make_folder(t, 1)
    out = os.path.join(t.path, "refused.jsonl")
    r = llava("run", *QUESTION, "--image-folder", folder)
    ok(r.code == 2 and "--output" in r.err, "a folder without --output", r.text)
    r = llava("run", *QUESTION, "--image-folder", folder, "--output", out, "--image-file", "x.png")
    ok(r.code == 2, "a folder and a file", r.text)
    r = llava("run", "--model-path", DEMO, "--query", b"caf\xe9?", "--image-folder", folder, "--output", out)
    ok(r.code == 1 and "question is not UTF-8" in r.err and not os.path.exists(out), "a question that is no text", r.text)
    r = run(os.path.join(t.path, "nowhere"), out)
    ok(r.code == 1 and "nowhere" in r.err and not os.path.exists(out), "no such folder", r.text)
    os.mkdir(os.path.join(t.path, "empty"))
    r = run(os.path.join(t.path, "empty"), out)
    ok(r.code == 1 and "no picture" in r.err and not os.path.exists(out), "a folder without pictures", r.text)
    r = run(folder, os.path.join(t.path, "nowhere/out.jsonl"))
    ok(r.code == 1 and "nowhere/out.jsonl" in r.err, "an output that cannot be made", r.text)
    r = run(folder, "/dev/null")
    ok(r.code == 1 and "/dev/null" in r.err, "an output that is no file", r.text)
    with open(out, "w", encoding="utf-8") as f:
        f.write('{"image": "a.png"}\nother text\n')
    r = run(folder, out)
    ok(r.code == 1 and "line 2" in r.err and open(out, encoding="utf-8").read().endswith("other text\n"),
       "an output of something else stays as it is", r.text)


def questions(t):
    """--question-file: each with its own picture and words, known by its id"""
    asked = [(n, p, q) for n, (p, q) in enumerate((p, q) for p in PICTURES for q in ("What is this?", "Which group is this in?"))]
    path, out = os.path.join(t.path, "questions.jsonl"), os.path.join(t.path, "answers.jsonl")
    base = ["run", "--model-path", DEMO, "--temperature", "0", "--image-folder", os.path.join(DEMO, "pictures")]

    def write(lines):
        with open(path, "w", encoding="utf-8") as f:
            f.write("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    rows = [{"question_id": n, "image": p, "text": q} for n, p, q in asked]
    write([*rows[:5], "", *rows[5:], {"question_id": "text", "text": "What is this?"},
           {"question_id": "0", "image": "none.png", "text": "What is this?"}])
    r = llava(*base, "--question-file", path, "--output", out)
    got = {x["question_id"]: x for x in records(out)}
    ok(r.code == 1 and "1 of" in r.err and len(got) == len(asked) + 2 and len(records(out)) == len(got),
       "every question once; 0 is not '0'", r.text)
    ok("error" in got["0"] and "text" in got["text"] and "image" not in got["text"], "without its picture, and without one", got)
    for n, p, q in asked:
        alone = llava("run", "--model-path", DEMO, "--temperature", "0", "--query", q, "--image-file",
                      os.path.join(DEMO, "pictures", p), "--quiet").out.strip()
        ok(got[n]["text"] == alone and got[n]["prompt"] == q and got[n]["image"] == p, f"{p}: {q}", f"{got[n]} {alone}")
    lines = open(out, encoding="utf-8").read().splitlines(True)
    with open(out, "w", encoding="utf-8") as f:
        f.write("".join(lines[:4]) + lines[4][:-9])
    r = llava(*base, "--question-file", path, "--output", out)
    ok(r.code == 1 and "3 were there before" in r.err and {x["question_id"]: x for x in records(out)} == got, "goes on", r.text)
    for key, value in (("text", "Another?"), ("image", PICTURES[-1])):
        write([{**rows[0], key: value}, *rows[1:]])
        r = llava(*base, "--question-file", path, "--output", out)
        ok(r.code == 1 and f"'{value}'" in r.err and "line " in r.err and {x["question_id"]: x for x in records(out)} == got,
           f"a question with another {key} is refused", r.text)
    for lines, want in (([rows[0], rows[0]], "line 2 of"), (["{"], "line 1 of"), ([{"text": "a"}], "no 'question_id'"),
                        ([{"question_id": 1}], "no 'text'"), ([], "has no questions"),
                        ([{"question_id": 1, "text": "a", "image": 3}], "'image' is no text"),
                        ([{"question_id": None, "text": "a"}], "is neither a text nor a whole number"),
                        ([{"question_id": 1.5, "text": "a"}], "is neither a text nor a whole number"),
                        (["[1]"], "no 'question_id'")):
        write(lines)
        r = llava(*base, "--question-file", path, "--output", os.path.join(t.path, "none.jsonl"))
        ok(r.code == 1 and want in r.err and r.err.count("\n") == 1 and not os.path.exists(os.path.join(t.path, "none.jsonl")),
           f"refused: {want}", r.text)
    r = llava(*base, "--question-file", path, "--query", "What?", "--output", out)
    ok(r.code == 2, "a file and a question", r.text)


with Temp() as temp:
    same_as_alone(temp)
with Temp() as temp:
    questions(temp)
with Temp() as temp:
    strange_names(temp)
with Temp() as temp:
    killed(temp)
with Temp() as temp:
    refused(temp)
finish()
