#!/usr/bin/python3
"""The index of a training file against Python's json: records, words, pictures, byte offsets; what is refused, and where.

Files are generated: every kind of white space, escape and value, and each of them broken at random bytes. Where json
reads a file the index must say the same of it; where json does not, neither must the index.
"""
import json
import os
import random
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import BUILD, finish, ok  # noqa: E402

PROGRAM = os.path.join(BUILD, "tests", "unit", "data_lines")
SCRATCH = tempfile.TemporaryDirectory(prefix="llava-json-")
WORDS = ["cat", "dog", "<image>", "é", "你好", "😀", "\u00a0", "\u3000", "\u2028", "\x1c", "\x85", "\n", "\t", "\\", '"', "/", "\0",
         "\x7f", "a" * 9, "b" * 70, "\ufffd", "\U00010000", "\u200b", " ", "  ", "u0041"]


def place(data, name="a.json"):
    path = os.path.join(SCRATCH.name, name)
    with open(path, "wb") as f:
        f.write(data if isinstance(data, bytes) else data.encode())
    return path


def index(data):
    """[(image, words, bytes of the record)], or the message."""
    p = subprocess.run([PROGRAM, "index", "file=" + place(data)], capture_output=True, timeout=100)
    text = p.stdout.decode(errors="replace")
    if p.returncode or text.startswith("error"):
        return text.strip() + p.stderr.decode()
    rows = [[int(x) for x in line.split()] for line in text.splitlines()[:-1]]
    data = data if isinstance(data, bytes) else data.encode()
    return [(image, words, data[at:at + n]) for image, words, at, n in rows]


def samples(data, *more):
    p = subprocess.run([PROGRAM, "samples", "file=" + place(data), *more], capture_output=True, text=True, timeout=100)
    return p.stdout.splitlines()


# ---- what a file says, by Python

def strict(pairs):
    return dict(pairs)


def meaning(records):
    """What the index should hold; a record that is none of ours counts the words that it has all the same."""
    out = []
    for r in records:
        image, turns = r.get("image"), r.get("conversations")
        n = 1 if isinstance(image, str) else sum(isinstance(x, str) for x in image) if isinstance(image, list) else 0
        turns = [t for t in turns if isinstance(t, dict)] if isinstance(turns, list) else []
        out.append((int(n > 0), sum(len(t["value"].split()) for t in turns if isinstance(t.get("value"), str))))
    return out


# ---- generated files

def text(rng):
    return "".join(rng.choice(WORDS) + rng.choice(["", " "]) for _ in range(rng.randint(0, 12)))


def string(rng, s):
    if rng.random() < 0.5:
        return json.dumps(s, ensure_ascii=rng.random() < 0.5)
    out = ""
    for c in s:
        if rng.random() < 0.2:
            units = c.encode("utf-16-be")
            c = "".join("\\u%02x%02X" % (units[i], units[i + 1]) for i in range(0, len(units), 2))
        else:
            c = json.dumps(c, ensure_ascii=False)[1:-1].replace("/", rng.choice(["/", "\\/"]))
        out += c
    return '"' + out + '"'


def value(rng, depth=0):
    kind = rng.randrange(8 if depth < 4 else 6)
    if kind == 6:
        return "[" + space(rng) + ",".join(value(rng, depth + 1) for _ in range(rng.randint(0, 3))) + "]"
    if kind == 7:
        return "{" + space(rng) + ",".join(string(rng, text(rng)) + ":" + value(rng, depth + 1)
                                           for _ in range(rng.randint(0, 3))) + space(rng) + "}"
    return space(rng) + [rng.choice(["0", "-1", "12.5", "1e9", "-0.1E-3", "NaN", "Infinity", "-Infinity"]), "true", "false",
                         "null", string(rng, text(rng)), "12345678901234567890"][kind] + space(rng)


def space(rng):
    return rng.choice(["", "", "", " ", "\n", "\r\n", "\t", "  \n "])


def turn(rng):
    parts = ['"from":' + string(rng, rng.choice(["human", "gpt", "system"])), '"value":' + string(rng, text(rng))]
    if rng.random() < 0.1:
        parts = parts[:rng.randint(0, 1)]
    if rng.random() < 0.1:
        parts.append('"value"' + space(rng) + ":" + value(rng))
    if rng.random() < 0.2:
        parts.insert(0, string(rng, text(rng)) + ":" + value(rng))
    rng.shuffle(parts)
    return "{" + ("," + space(rng)).join(parts) + space(rng) + "}"


def record(rng):
    key = lambda s: string(rng, s) if rng.random() < 0.2 else '"' + s + '"'
    parts = [key("id") + ":" + rng.choice([string(rng, text(rng)), "17", "null", "[1]"])]
    if rng.random() < 0.7:
        image = rng.choice([string(rng, text(rng)), "[%s]" % string(rng, "a.jpg"), "[]", "null", "7", "[1]",
                            '["a","b" , "c"]'])
        parts.append(key("image") + space(rng) + ":" + space(rng) + image)
    if rng.random() < 0.95:
        parts.append(key("conversations") + ":[" + space(rng) + ",".join(turn(rng) for _ in range(rng.randint(0, 5))) + "]")
    if rng.random() < 0.3:
        parts.append(string(rng, text(rng)) + ":" + value(rng))
    if rng.random() < 0.05:
        parts.append(key("conversations") + ":" + value(rng))
    rng.shuffle(parts)
    return "{" + space(rng) + ("," + space(rng)).join(parts) + space(rng) + "}"


def parse(data):
    """What json makes of it, or None. A list of records, or one a line; white space and a mark of order around it."""
    try:
        s = data.decode()
    except UnicodeDecodeError:
        return None
    s = s.removeprefix("\ufeff")
    decode, at, out = json.JSONDecoder(object_pairs_hook=strict), 0, []
    skip = lambda at: at + len(s[at:]) - len(s[at:].lstrip(" \t\r\n"))
    try:
        if s[skip(0):skip(0) + 1] == "[":
            out, at = decode.raw_decode(s, skip(0))
            if skip(at) != len(s):
                return None
        else:
            while (at := skip(at)) < len(s):
                if not out and s[at] != "{":
                    return None
                r, at = decode.raw_decode(s, at)
                out.append(r)
    except (ValueError, RecursionError):
        return None
    return out if out and all(isinstance(r, dict) for r in out) else None


def agree(data, name, quiet=False):
    want, got = parse(data), index(data)
    good = isinstance(got, str) if want is None else not isinstance(got, str) and \
        [g[:2] for g in got] == meaning(want) and [parse(g[2])[0] for g in got] == want or \
        (not isinstance(got, str) and str([parse(g[2])[0] for g in got]) == str(want) and
         [g[:2] for g in got] == meaning(want))  # NaN differs from itself
    if not good or not quiet:
        ok(good, name, f"{data[:2000]!r}\ngot  {str(got)[:600]}\nwant {str(want and meaning(want))[:600]}")
    return good


def generated(rng):
    good = broken = 0
    for i in range(150):
        parts = [record(rng) for _ in range(rng.randint(1, 6))]
        if i % 3:
            data = space(rng) + "[" + space(rng) + (space(rng) + "," + space(rng)).join(parts) + space(rng) + "]" + space(rng)
        else:
            data = space(rng) + "\n".join(parts) + space(rng)
        data = data.encode()
        good += agree(data, f"file {i}", True)
        for _ in range(3):
            at = rng.randrange(len(data))
            cut = rng.choice([data[:at], data[:at] + bytes([rng.randrange(256)]) + data[at + 1:], data[:at] + data[at + 1:],
                              data[:at] + rng.choice([b",", b"]", b"}", b'"', b"\\", b"\xff", b"\xed\xa0\x80", b"0"]) +
                              data[at:]])
            other = parse(cut)
            # A record that json takes for something else than an object is the check's business, not the index's.
            broken += agree(cut, f"file {i}, broken at {at}", True) if other or not foreign(cut) else 1
    ok(good == 150 and broken == 450, f"{good} files, {broken} of them broken")


def foreign(data):
    try:
        v = json.loads(data.decode().removeprefix("\ufeff"))
        return not isinstance(v, list) or not v or not all(isinstance(r, dict) for r in v)
    except ValueError:
        return True  # lines: as likely as not that one of them is a number


def refusals():
    for data, part in ((b"", "has no records"), (b"[]", "has no records"), (b" \n", "has no records"),
                       (b"7", "byte 0, line 1: expected '[' or '{'"), (b"[{}", "the text ends inside the list"),
                       (b'[{"id": "x"}\n,\n{"id": \n"y" "z"}]', "byte 27, line 4: expected ',' or '}'"),
                       (b'[{}]]', "byte 4, line 1: expected nothing after the list"), (b'[{},]', "byte 4, line 1"),
                       (b'[{} {}]', "byte 4, line 1: expected ',' or ']'"), (b'[{"a":"\n"}]', "a control character"),
                       (b'[{"a":"\\q"}]', "byte 7, line 1: no such escape"), (b'[{"a":"\xff"}]', "byte 7, line 1: not UTF-8"),
                       (b'[{"a":"\\u12g4"}]', "four hexadecimal digits"), (b'[{"a":01}]', "expected ','"),
                       (b'[{"a":' + b"[" * 1000 + b"]" * 1000 + b"}]", "nested too deep"), (b'[{"a":tru}]', "expected a value"),
                       (b'{"id":1}\n{"id":2}\n{"id":', "byte 24, line 3: the text ends too early"),
                       (b'{"id":1}\n{"id":2},\n', "byte 17, line 2: expected a value")):
        got = index(data)
        ok(isinstance(got, str) and "FORMAT" in got and part in got, f"refused: {data[:40]!r}", got)
    p = subprocess.run([PROGRAM, "index", "file=" + SCRATCH.name], capture_output=True, text=True)
    ok("is not a regular file" in p.stdout, "a folder", p.stdout)
    p = subprocess.run([PROGRAM, "index", "file=/nowhere/x.json"], capture_output=True, text=True)
    ok("cannot open '/nowhere/x.json'" in p.stdout, "no file", p.stdout)


def large():
    """Records around the window's size, so that they and their strings cross its end at every kind of place."""
    rng, parts = random.Random(9), []
    for n in [10] * 300 + [4 << 20, 100, (4 << 20) - 50, 17] + [rng.randint(1, 60000) for _ in range(60)]:
        unit = rng.choice(["word ", "é ", "😀", "\\n", "你好。"])
        parts.append({"id": str(n), "image": "x.jpg", "conversations": [{"from": "human", "value": unit * (n // len(unit))},
                                                                        {"from": "gpt", "value": "yes"}]})
    for name, data in (("list", json.dumps(parts)), ("indented", json.dumps(parts, indent=1, ensure_ascii=False)),
                       ("lines", "\n".join(json.dumps(p, ensure_ascii=False) for p in parts))):
        got = index(data)
        ok(not isinstance(got, str) and [g[:2] for g in got] == meaning(parts) and
           all(json.loads(g[2]) == p for g, p in zip(got, parts)), f"{len(data) >> 20} MB, {name}", str(got)[:300])
    data = json.dumps(parts).encode()
    at = data.rindex(b'"yes"') + 2
    got = index(data[:at] + b"\x01" + data[at + 1:])
    ok(f"byte {at}, line 1" in str(got), "broken near the end", str(got)[:300])


def shapes():
    """Records that are JSON but none of ours are found when they are read, by name."""
    turns = '"conversations":[{"from":"human","value":"a"},{"from":"gpt","value":"b"}]'
    for text_, part in (('[7,{%s}]' % turns, "record number 1: the record is a number, want an object"),
                        ('[{"id":"x","image":7,%s}]' % turns, "record 'x' (number 1): 'image' is a number, want a string or"),
                        ('[{"id":"x","image":["a",7],%s}]' % turns, "an element of 'image' is a number, want a string"),
                        ('[{"id":17,"conversations":{}}]', "record '17' (number 1): 'conversations' is an object, want a list"),
                        ('[{"id":"x","conversations":["a"]}]', "a turn is a string, want an object"),
                        ('[{"id":"x","conversations":[{"from":"human"}]}]', "turn 0 has no 'value'"),
                        ('[{"id":"x","conversations":[{"value":"human"}]}]', "turn 0 has no 'from'"),
                        ('[{"id":"x","conversations":[{"from":1,"value":"a"}]}]', "the 'from' of a turn is a number"),
                        ('[{"id":"\\u00e9\\u0000y","conversations":[]}]', "record 'é' (number 1): a conversation without a turn"),
                        ('[{"id":"%s"}]' % ("é" * 100), "record '%s...' (number 1)" % ("é" * 40)),
                        ('[{"conversations":[{"from":"human","value":"\\ud83d"},{"from":"gpt","value":"b"}]}]',
                         "half a surrogate pair"),
                        ('[{"id":"x","image":"a\\u0000b.jpg",%s}]' % turns.replace('"a"', '"<image>"'), "a NUL in the name")):
        got = samples(text_)
        ok(got and got[0].startswith("error: FORMAT") and part in got[0], part, got)
    got = samples('[{%s},{"x":NaN,"image":null,%s},{"image":[],%s}]' % (turns, turns, turns))
    ok(len(got) == 3 and got[0] == got[1] == got[2] and "error" not in got[0], "no picture, said in three ways", got)


def main():
    seed = int(os.environ.get("SEED", "5"))
    print(f"# seed {seed}")
    generated(random.Random(seed))
    refusals()
    large()
    shapes()
    finish()


main()
