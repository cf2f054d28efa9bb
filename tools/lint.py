#!/usr/bin/python3
"""The rules of the house that a machine can check.  tools/lint.py [FILE...]: without files, all that git tracks.

One line a finding, FILE:LINE: what; exit status 1 if there is one. The rules are the functions marked @rule; budgets
and allowed exceptions are the tables below. Rooms and who may include whom: tools/rooms.txt.
"""
import collections
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CODE = (".c", ".h", ".cc", ".cu")
TEXT = CODE + (".py", ".md", ".mk", ".txt", ".js", ".css", ".html", ".json.in", ".pc.in", ".sh")
SCRIPTS = ("Makefile", ".ci/run", "tests/run", "tools/deps")

WIDTH = 120           # columns; 110 is the aim
WIDTH_SCRIPT = 130    # of Python, shell and make
FUNCTION_LINES = 60
FUNCTION_LINES_TEST = 80
FUNCTION_LINES_LONG = 150  # with a comment "long: why" directly above
FILE_LINES = 1000
IFS_PER_KLOC = 3      # of a room, outside those where the machine is the subject
IF_ROOMS = ("base", "kern", "dev")

VENDOR = re.compile(r"\b(?:cuda|hip|nccl)[A-Z_]\w*|\bcu(?:blas|Mem|Stream|Graph)\w*|__shfl\w*|\bwarpSize\b")
VENDOR_ALLOWED = re.compile(r"^src/(?:dev/gpu\.h|kern/gpu/blas|dist/nccl)")
# name -> what to use instead
FORBIDDEN = {
    "strcpy": "snprintf or buf_str", "strcat": "buf_str", "sprintf": "snprintf", "vsprintf": "vsnprintf",
    "gets": "fgets", "strtok": "strcspn", "atoi": "strtol", "atol": "strtol", "atof": "strtod", "scanf": "strtol, strtod",
    "tmpnam": "mkstemp", "mktemp": "mkstemp", "alloca": "an arena", "rand": "base/rng.h", "srand": "base/rng.h",
    "system": "nothing: no shells", "popen": "nothing: no shells", "setlocale": "nothing: numbers are C's",
    "assert": "ASSERT",
}
BAD_SIGNS = re.compile(r"\b(?:hack|for now|unclear why|TO" r"DO|FIX" r"ME|XX" r"X)\b(?!\s*\()")
WORKPLACE = re.compile(r"/wo" r"rk/|/ro" r"ot/|\bsub" r"agent|\bclau" r"de\b|\banthro" r"pic\b|\bpyenv\b", re.I)

findings = collections.Counter()


def say(path, line, text):
    findings[path] += 1
    print(f"{path}:{line}: {text}")


class Source:
    """A file: its lines as they are, and, for C, the same lines with comments and literals blanked."""

    def __init__(self, path):
        with open(path, encoding="utf-8") as f:
            self.text = f.read()
        self.path, self.lines = path, self.text.split("\n")
        self.is_code = path.endswith(CODE)
        self.bare = blanked(self.text).split("\n") if self.is_code else []
        parts = path.split("/")
        self.room = "api" if path.startswith("include/") else parts[1] if parts[0] == "src" and len(parts) > 2 else None


LITERAL = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.S)


def blanked(text):
    """Comments and the insides of literals become spaces; every character keeps its place. #include paths stay."""
    def blank(m):
        s = m[0]
        body = re.sub(r"[^\n]", " ", s)
        return body if s[0] == "/" else s[0] + body[1:-1] + s[-1]
    return LITERAL.sub(blank, text)


RULES = []


def rule(f):
    RULES.append(f)
    return f


def rooms_read(path="tools/rooms.txt"):
    rooms = {}
    with open(path, encoding="utf-8") as f:
        for line in f:
            name, colon, below = line.split("#")[0].partition(":")
            if colon:
                rooms[name.strip()] = set(below.split()) | {name.strip()}
    for a, below in rooms.items():
        for b in below - {a}:
            if b not in rooms or a in rooms[b]:
                say(path, 1, f"'{a}: {b}': " + ("a cycle" if b in rooms else "no such room"))
    return rooms


@rule
def includes(s, rooms):
    """An include path starts with a room, and that room lies below. Tests may include anything."""
    for n, line in enumerate(s.lines, 1):
        m = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
        if not m or s.room is None:
            continue
        to = "api" if m[1] in ("llava.h", "llava_batch.h") else m[1].split("/")[0]
        if to not in rooms:
            say(s.path, n, f'include path must start with a room: "{m[1]}"')
        elif to not in rooms.get(s.room, ()):
            say(s.path, n, f"{s.room} may not include {to} (allowed: {' '.join(sorted(rooms.get(s.room, ())))})")


@rule
def names(s, _):
    for n, line in enumerate(s.bare, 1):
        m = VENDOR.search(line)
        if m and not VENDOR_ALLOWED.match(s.path):
            say(s.path, n, f"vendor's name '{m[0]}' outside dev/gpu.h")
        if re.search(r"\b(?:getenv|setenv|putenv)\s*\(", line) and s.room not in ("base", None):
            say(s.path, n, "only src/base reads the environment")
        m = re.search(r"(?<![\w.>])(%s)\s*\(" % "|".join(FORBIDDEN), line)
        if m and s.room:
            say(s.path, n, f"'{m[1]}' is not used here: {FORBIDDEN[m[1]]}")


SIGNATURE = re.compile(r"[\w\s(*]")
NOT_SIGNATURE = re.compile(r"[;}{]\s*$|^\s*$|^\s*#")


def functions(s):
    """(first line, last line) of each function with a body, counted from its first line. A body opens and closes in
    column 0 or opens at the end of the signature, as K&R has it; anything but `)` before the brace is data."""
    start = None
    for i, line in enumerate(s.bare):
        if start is None:
            if line.startswith("{"):
                start = i
            elif re.match(r"[A-Za-z_].*\)\s*\{\s*$", line) and not line.startswith(("extern", "namespace")):
                start = i
        elif line.startswith("}"):
            first = start
            while first > 0 and SIGNATURE.match(s.bare[first - 1]) and not NOT_SIGNATURE.search(s.bare[first - 1]):
                first -= 1
            yield first, i
            start = None


@rule
def lengths(s, _):
    if len(s.lines) > FILE_LINES + 1 and (s.is_code or s.path.endswith(".py")):
        say(s.path, FILE_LINES, f"{len(s.lines)} lines, more than {FILE_LINES}")
    for first, last in functions(s):
        n, above = last - first + 1, first - 1
        comment = ""
        while above >= 0 and s.lines[above].strip() and not s.bare[above].strip():
            comment, above = s.lines[above] + comment, above - 1
        most = FUNCTION_LINES_TEST if s.path.startswith("tests/") else FUNCTION_LINES
        if n > (FUNCTION_LINES_LONG if re.search(r"\blong: \w", comment) else most):
            say(s.path, first + 1, f"function of {n} lines, more than {most}")


@rule
def layout(s, _):
    for n, line in enumerate(s.lines, 1):
        most = WIDTH if s.is_code else WIDTH_SCRIPT
        if len(line) > most and not s.path.endswith((".md", ".txt", ".html")):
            say(s.path, n, f"{len(line)} columns, more than {most}")
        if "\t" in line and not os.path.basename(s.path).startswith("Makefile"):
            say(s.path, n, "a tab")
        if re.match(r"<{7} |>{7} |={7}$", line):
            say(s.path, n, "a mark of a merge that was not finished")
        if line != line.rstrip():
            say(s.path, n, "blanks at the end")
    if s.text and not s.text.endswith("\n") and not s.path.startswith("tests/data/"):
        say(s.path, len(s.lines), "no newline at the end")
    if s.text.endswith("\n\n"):
        say(s.path, len(s.lines), "empty lines at the end")


@rule
def heads(s, _):
    """Every file of code opens with a comment on what it is; headers have #pragma once, unless they are
    bodies that are included several times (_impl.h)."""
    if s.is_code and s.room and not s.lines[0].startswith(("/*", "//")):
        say(s.path, 1, "does not open with a comment that says what it is")
    if s.path.endswith(".h") and s.room and not s.path.endswith("_impl.h") and "#pragma once" not in s.text:
        say(s.path, 1, "no #pragma once")


@rule
def words(s, _):
    if s.path == "tools/lint.py":
        return
    for n, line in enumerate(s.lines, 1):
        m = BAD_SIGNS.search(line)
        if m and s.room:
            say(s.path, n, f"bad sign: '{m[0]}'")
        m = WORKPLACE.search(line)
        if m:
            say(s.path, n, f"'{m[0]}' belongs to one machine or workplace")


def ifs(sources):
    """Preprocessor conditions for each thousand lines of a room. Include guards for C++ do not count."""
    count, lines = collections.Counter(), collections.Counter()
    for s in sources:
        if s.room and s.room not in IF_ROOMS:
            lines[s.room] += len(s.lines)
            count[s.room] += len(re.findall(r"^\s*#\s*if(?!def __cplusplus)", s.text, re.M))
    for room, n in count.items():
        if n > max(1, IFS_PER_KLOC * lines[room] / 1000):
            say(f"src/{room}", 1, f"{n} #if in {lines[room]} lines, more than {IFS_PER_KLOC} per 1,000")


def tracked():
    out = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True)
    if out.returncode == 0:
        return out.stdout.splitlines()
    found = (os.path.relpath(os.path.join(d, f), ".") for d, _, fs in os.walk(".") for f in fs)  # a tarball: no git
    return [p for p in found if not p.startswith((".git/", "build/"))]


def main(paths):
    if not paths:
        os.chdir(ROOT)
        paths = tracked()
    rooms, sources = rooms_read(), []
    for path in sorted(paths):
        read = path.endswith(TEXT) or path in SCRIPTS
        if read and not re.search("/corpus/|/models/|^tests/cli/help/", path) and os.path.exists(path):
            sources.append(Source(path))
    for s in sources:
        for check in RULES:
            check(s, rooms)
    ifs(sources)
    n = sum(findings.values())
    print(f"lint: {len(sources)} files, {n} finding{'s' * (n != 1)}")
    return n > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
