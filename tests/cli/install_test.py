#!/usr/bin/python3
"""What `make install` leaves, used as others would: examples/ask.c compiled through pkg-config against the shared and the
static library, and run; the same answer from all. The build is that of LLAVA_BUILD."""
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
    """both of them as C++, under the warnings that people have on"""
    source = os.path.join(root, "headers.cc")
    with open(source, "w", encoding="utf-8") as f:
        f.write('#include <llava_batch.h>\n#include <llava.h>\nint main() { return !llava_version(); }\n')
    r = Ran(["c++", "-std=c++11", "-Wall", "-Wextra", "-Wshadow", "-Wpedantic", "-Werror", "-fsyntax-only", source,
             *pkg_config(root, "--cflags")])
    ok(r.code == 0, "the headers are C++ without warnings", r.text)
    os.remove(source)


def compiled(root, name, flags):
    program = os.path.join(root, name)
    r = Ran(["cc", "-std=c11", "-Wall", "-Wextra", "-Werror", f"{ROOT}/examples/ask.c", "-o", program, *flags])
    ok(r.code == 0, f"{name}: compiles", r.text)
    r = Ran([program, *ASK], env={**os.environ, "LD_LIBRARY_PATH": f"{root}/lib"})
    ok(r.code == 0 and len(r.out) > 2 and not r.err.replace("llava: ", ""), f"{name}: answers", r.text)
    r = Ran([program, ASK[0], "/no/such/picture.png", "x"], env={**os.environ, "LD_LIBRARY_PATH": f"{root}/lib"})
    ok(r.code == 1 and "/no/such/picture.png" in r.err, f"{name}: says what is wrong", r.text)
    return Ran(["nm", "-D", "--defined-only", f"{root}/lib/libllava.so"]).out


def main():
    if shutil.which("hipcc"):
        r = make("GPU=hip", "SAN=", "ARCH=gfx906,gfx1", "build/hip/flags")
        ok(r.code != 0 and "does not know 'gfx1'" in r.out, "a GPU that the compiler does not know is named", r.text)
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
        names = compiled(root, "shared", pkg_config(root, "--cflags", "--libs"))
        others = [n.split()[-1] for n in names.splitlines() if not n.split()[-1].startswith("llava_")]
        ok(not others, "the shared library shows llava_* and nothing else", others[:10])
        static = [f"{root}/lib/libllava.a" if f == "-lllava" else f for f in
                  pkg_config(root, "--cflags", "--libs", "--static")]
        compiled(root, "static", static)
        linked = Ran(["ldd", f"{root}/shared"], env={**os.environ, "LD_LIBRARY_PATH": f"{root}/lib"}).out
        ok("libllava.so.0 => " + root in linked, "by its soname", linked)
        ok("libllava" not in Ran(["ldd", f"{root}/static"]).out, "static needs no libllava.so")
        make("uninstall", f"DESTDIR={t.path}", f"PREFIX={PREFIX}")
        left = files(t.path) - {f"{PREFIX[1:]}/{n}" for n in ("shared", "static")}
        ok(not left, "make uninstall takes all of it away", left)
    finish()


main()
