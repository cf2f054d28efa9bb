"""A small Hugging Face hub for tests/unit/hub.c: an API and files on one port, the contents of large files ("CDN") on
another. Prints both ports, then serves until its stdin closes. Each request is a line in LOG:
    hub|cdn METHOD PATH RANGE AUTHORIZATION        ("-" where a header is absent)
The model's name says what goes wrong with it, see below."""
import hashlib
import json
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LOG = open(sys.argv[1], "a", buffering=1)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
BIG = bytes(i * 7 % 251 for i in range(300000))
SMALL = {"config.json": b'{"model_type": "llava"}', "README.md": b"hello", "preprocessor_config.json": b"{}",
         "image.png": b"x", "tokenizer.model": b"spm", "tokenizer_config.json": b"{}", "tf_model.h5": b"x",
         "tf_notes.json": b"{}", "onnx/model.json": b"{}", "empty.json": b""}
LARGE = {"model.safetensors": BIG, "pytorch_model.bin": BIG[::-1], "mm_projector.bin": BIG[:1000]}
seen = Counter()


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cdn = False

    def log_message(self, *args):
        pass

    def reply(self, status, body=b"", declared=None, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if declared is None else declared))
        for k, v in headers.items():
            self.send_header(k.replace("_", "-"), v)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
        if declared is not None and declared > len(body):
            self.close_connection = True

    def handle_any(self):
        rng, auth = self.headers.get("Range", "-"), self.headers.get("Authorization", "-")
        LOG.write(f"{'cdn' if self.cdn else 'hub'} {self.command} {self.path} {rng} {auth}\n")
        seen[self.cdn, self.command, self.path] += 1
        count = seen[self.cdn, self.command, self.path]
        if self.cdn:
            return self.content(self.path, rng, count)
        if self.path.startswith("/api/models/"):
            org, name, rest = self.path[len("/api/models/"):].split("/", 2)
            return self.api(f"{org}/{name}", rest, count)
        org, name, _, commit, file = self.path[1:].split("?")[0].split("/", 4)
        self.file(f"{org}/{name}", commit, file, count)

    do_GET = do_HEAD = handle_any

    def api(self, repo, rest, count):
        if repo == "org/flaky" and count <= 2:
            return self.reply(503)
        if repo == "org/broken":
            return self.reply(400)
        if repo == "org/gated":
            return self.reply(403, X_Error_Code="GatedRepo")
        if repo == "org/private" and self.headers.get("Authorization") != "Bearer secret":
            return self.reply(401, X_Error_Code="RepoNotFound")
        if repo == "org/missing":
            return self.reply(404, X_Error_Code="RepoNotFound")
        if repo == "org/moved":
            return self.reply(307, Location=self.path.replace("moved", "good"))
        if repo == "org/nonsense":
            return self.reply(200, b"<html>")
        if rest not in ("revision/main", "revision/v1.5", "revision/refs%2Fpr%2F1", "revision/" + COMMIT):
            return self.reply(404, X_Error_Code="RevisionNotFound")
        files = {**SMALL, **LARGE}
        if repo == "org/bin":
            del files["model.safetensors"]
        names = list(files) if repo != "org/evil" else ["config.json", "../../../evil.json"]
        if repo == "org/useless":
            names = ["README.md"]
        self.reply(200, json.dumps({"sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}).encode())

    def file(self, repo, commit, file, count):
        if commit != COMMIT or file not in {**SMALL, **LARGE}:
            return self.reply(404, X_Error_Code="EntryNotFound")
        if file in SMALL:
            body = SMALL[file]
            etag = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
            return self.reply(200, body, ETag=f'W/"{etag}"', X_Repo_Commit=COMMIT)
        body = LARGE[file]
        where = f"http://127.0.0.1:{cdn.server_port}/{repo}/{file}"
        if repo == "org/detour" and not self.path.endswith("?x"):  # first to another place of the hub itself
            return self.reply(307, Location=self.path + "?x")
        self.reply(302, b"Found", Location=where, ETag='"0000"', X_Linked_Etag=f'"{hashlib.sha256(body).hexdigest()}"',
                   X_Linked_Size=str(len(body)), X_Repo_Commit=COMMIT)

    def content(self, path, rng, count):
        repo, file = path[1:].rsplit("/", 1)
        body = LARGE[file]
        if repo == "org/damaged":
            body = b"x" + body[1:]
        start = 0
        if rng != "-" and repo != "org/norange":
            start = int(rng[len("bytes="):-1])
            if repo == "org/lies":
                start += 10
        extra = {"Content_Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
        if start >= len(body):
            return self.reply(416)
        rest = body[start:]
        if repo in ("org/short", "org/norange", "org/lies") and count <= 2:
            return self.reply(206 if start else 200, rest[:100000], len(rest), **extra)
        if repo == "org/stingy":  # a whole answer, but of too few bytes
            return self.reply(206 if start else 200, rest[:10], **extra)
        self.reply(206 if start else 200, rest, **extra)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # clients may hang up


class Cdn(Hub):
    cdn = True


hub = Server(("127.0.0.1", 0), Hub)
cdn = Server(("127.0.0.1", 0), Cdn)
for server in (hub, cdn):
    threading.Thread(target=server.serve_forever, daemon=True).start()
print(hub.server_port, cdn.server_port, flush=True)
sys.stdin.read()
