#!/usr/bin/python3
"""What `make install` leaves, used as others would: examples/ask.c compiled through pkg-config against the shared and the
static library, and examples/ask.py over the shared one, all run, with one answer; the headers under strict compilers of
C and C++. The build is that of LLAVA_BUILD."""
import os
import shlex
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import BUILD, PICTURE, ROOT, Ran, Temp, finish, model, ok, skip  # noqa: E402

PREFIX = "/opt/llava"
FILES = {"bin/llava", "include/llava.h", "include/llava_batch.h", "lib/libllava.a", "lib/libllava.so",
         "lib/libllava.so.0", "lib/libllava.so.0.1.0", "lib/pkgconfig/llava.pc"}
ASK = [model("llava-liuhaotian"), PICTURE, "What is it?"]
HEADERS = "#include <llava.h>\n#include <llava_batch.h>\nint main(void) { return !llava_version(); }\n"
WARN = ["-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-pedantic-errors", "-Werror", "-fsyntax-only"]


def files(root):
    return {os.path.relpath(os.path.join(d, f), root) for d, _, names in os.walk(root) for f in names}


def make(*args):
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}
    return Ran(["make", "-C", ROOT, "--no-print-directory", *args], env=env)


def pkg_config(root, *args):
    env = {**os.environ, "PKG_CONFIG_PATH": f"{root}/lib/pkgconfig"}
    out = subprocess.run(["pkg-config", f"--define-variable=prefix={root}", *args, "llava"], env=env, capture_output=True,
                         text=True)
    return shlex.split(out.stdout) if out.returncode == 0 else [out.stderr]


def headers(root):
    """Both headers, alone, in the oldest and newest standards that they promise, with the warnings others build with."""
    strict = [["cc", "-x", "c", "-std=c11", "-Wstrict-prototypes", "-Wc++-compat"], ["cc", "-x", "c", "-std=c2x"]]
    for compiler in [*strict, *(["c++", "-x", "c++", f"-std=c++{v}", "-Wold-style-cast"] for v in ("11", "20"))]:
        r = Ran([*compiler, *WARN, f"-I{root}/include", "-"], input=HEADERS.encode())
        ok(r.code == 0, "headers: " + " ".join(compiler), r.text)


def asks(root, name, command):
    """Runs one of examples/ask.*; its answer."""
    env = {**os.environ, "LD_LIBRARY_PATH": f"{root}/lib"}
    r = Ran([*command, *ASK], env=env)
    ok(r.code == 0 and len(r.out) > 2 and not r.err.replace("llava: ", ""), f"{name}: answers", r.text)
    wrong = Ran([*command, ASK[0], "/no/such/picture.png", "x"], env=env)
    ok(wrong.code == 1 and "/no/such/picture.png" in wrong.err, f"{name}: says what is wrong", wrong.text)
    return r.out


def compiled(root, name, flags):
    program = os.path.join(root, name)
    r = Ran(["cc", "-std=c11", "-Wall", "-Wextra", "-Werror", f"{ROOT}/examples/ask.c", "-o", program, *flags])
    ok(r.code == 0, f"{name}: compiles", r.text)
    return asks(root, name, [program])


def main():
    if shutil.which("hipcc"):
        r = make("GPU=hip", "SAN=", "ARCH=gfx906,gfx1", "build/hip/flags")
        ok(r.code != 0 and "does not know 'gfx1'" in r.out, "a GPU that the compiler does not know is named", r.text)
    with Temp() as t:
        os.mkdir(os.path.join(t.path, "bin"))
        nvcc = t.file("bin/nvcc", b"#!/bin/sh\necho sm_75\necho sm_80\necho sm_90\n")
        os.chmod(nvcc, 0o755)
        for arch in ("80,75", "80,100"):
            r = make("GPU=cuda", "SAN=", f"CUDA={t.path}", f"ARCH={arch}", "build/cuda/flags")
            ok(r.code != 0 and f"do not both know '{arch[3:]}'" in r.out, "a card that one of them does not know", r.text)
        for how, said in ((("GPU=cuda", "CUDA=/no"), "'/no/bin/nvcc'"), (("GPU=hip", "HIPCC=/no/hipcc"), "'/no/hipcc'")):
            r = make(*how, "SAN=", "ARCH=", f"build/{how[0][4:]}/flags")
            ok(r.code != 0 and f"there is no {said}: say where it is" in r.out, "a compiler that is not there is named", r.text)
    if os.path.basename(BUILD) != "main":
        skip("installation", "the main build only")
        finish()
    with Temp() as t:
        root = t.path + PREFIX
        r = make("install", f"DESTDIR={t.path}", f"PREFIX={PREFIX}")
        ok(r.code == 0 and files(t.path) == {PREFIX[1:] + "/" + f for f in FILES}, "make install puts these and no others",
           r.text + str(files(t.path)))
        ok(pkg_config(root, "--modversion") == ["0.1.0"], "pkg-config knows the version")
        r = Ran([f"{root}/bin/llava", "--version"])
        ok(r.out == "llava 0.1.0\n", "the program runs from there", r.text)
        headers(root)
        answers = [compiled(root, "shared", pkg_config(root, "--cflags", "--libs"))]
        names = Ran(["nm", "-D", "--defined-only", f"{root}/lib/libllava.so"]).out
        others = [n.split()[-1] for n in names.splitlines() if not n.split()[-1].startswith("llava_")]
        ok(not others, "the shared library shows llava_* and nothing else", others[:10])
        static = [f"{root}/lib/libllava.a" if f == "-lllava" else f for f in
                  pkg_config(root, "--cflags", "--libs", "--static")]
        answers.append(compiled(root, "static", static))
        answers.append(asks(root, "Python", [sys.executable, f"{ROOT}/examples/ask.py"]))
        ok(len(set(answers)) == 1, "one answer from all", answers)
        linked = Ran(["ldd", f"{root}/shared"], env={**os.environ, "LD_LIBRARY_PATH": f"{root}/lib"}).out
        ok("libllava.so.0 => " + root in linked, "by its soname", linked)
        ok("libllava" not in Ran(["ldd", f"{root}/static"]).out, "static needs no libllava.so")
        make("uninstall", f"DESTDIR={t.path}", f"PREFIX={PREFIX}")
        left = files(t.path) - {f"{PREFIX[1:]}/{n}" for n in ("shared", "static")}
        ok(not left, "make uninstall takes all of it away", left)
    finish()


main()
