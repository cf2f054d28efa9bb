"""What the tests of servers share: starting one on a port of its own, raw requests, NUL-separated chunks, stand-ins for
LLaVA's Python controller and workers."""
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cli import LLAVA, ROOT

DEMO = os.path.join(ROOT, "models", "demo")
APPLE = os.path.join(DEMO, "pictures", "red-apple.png")
ERROR_TEXT = "**NETWORK ERROR DUE TO HIGH TRAFFIC. PLEASE REGENERATE OR REFRESH THIS PAGE.**"
PATIENCE = 60  # seconds; sanitizers are slow


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as s:
        return s.getsockname()[1]


class Server:
    """`llava COMMAND ... --port 0`, from when it listens; .stop() returns its exit status."""

    def __init__(self, *args, env=None, quiet=True):
        self.folder = tempfile.TemporaryDirectory(prefix="llava-serve-")
        self.lines = []
        args = list(args) + (["--port", "0"] if "--port" not in args else [])
        args += ["--log-dir", self.folder.name] if "--log-dir" not in args else []
        self.p = subprocess.Popen([LLAVA, *args], stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                  env={**os.environ, **(env or {})})
        threading.Thread(target=self._read, daemon=True).start()
        self.port = self._wait_port()

    def _read(self):
        for line in self.p.stderr:
            self.lines.append(line.rstrip("\n"))

    def _wait_port(self):
        end = time.time() + PATIENCE
        while time.time() < end and self.p.poll() is None:
            for line in self.lines:
                m = re.match(r"llava: \w+: open (https?)://[^:]*:(\d+)", line)
                if m:
                    self.scheme = m[1]
                    return int(m[2])
            time.sleep(0.02)
        raise RuntimeError("the server did not start:\n" + self.text())

    def text(self):
        return "\n".join(self.lines)

    @property
    def url(self):
        return f"http://localhost:{self.port}"

    def stop(self, sig=signal.SIGTERM):
        if self.p.poll() is None:
            self.p.send_signal(sig)
        try:
            rc = self.p.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.p.kill()
            rc = "hung"
        self.p.stdout.close()
        return rc

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
        self.folder.cleanup()


def request(port, method, path, body=None, headers=None, timeout=PATIENCE):
    """(status, headers, bytes)."""
    c = HTTPConnection("127.0.0.1", port, timeout=timeout)
    data = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
    c.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
    r = c.getresponse()
    out = r.status, {k.lower(): v for k, v in r.getheaders()}, r.read()
    c.close()
    return out


def post(port, path, body=None, **more):
    status, _, data = request(port, "POST", path, body, **more)
    return status, json.loads(data) if data else None


def chunks(data):
    """The messages of a NUL-separated stream."""
    return [json.loads(c) for c in data.split(b"\0") if c]


def generate(port, body, **more):
    status, _, data = request(port, "POST", "/worker_generate_stream", body, **more)
    return status, chunks(data)


def raw(port, data, half_close=False, timeout=PATIENCE, most=1 << 20):
    """Sends bytes as they are; what comes back until the other side closes (or the time is over)."""
    s = socket.create_connection(("127.0.0.1", port), timeout=timeout)
    out = b""
    try:
        s.sendall(data)
        if half_close:
            s.shutdown(socket.SHUT_WR)
        while len(out) < most:
            more = s.recv(65536)
            if not more:
                break
            out += more
    except (socket.timeout, ConnectionError):
        pass
    s.close()
    return out


def wait_for(f, seconds=PATIENCE):
    end = time.time() + seconds
    while time.time() < end:
        v = f()
        if v:
            return v
        time.sleep(0.05)
    return f()


def metric(port, name, **how):
    for line in request(port, "GET", "/metrics", **how)[2].decode().splitlines():
        if line.split(" ")[0] == name:
            return float(line.split(" ")[1])
    return None


class StandIn:
    """A small HTTP server of the test: `answer(self, path, body)` returns (status, bytes or an iterator of them)."""

    def __init__(self, answer):
        self.log, self.connections = [], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self):
                super().setup()
                outer.connections.append(self.connection)

            def log_message(self, *args):
                pass

            def do_POST(self):
                n = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(n)
                parsed = json.loads(body) if body else None
                outer.log.append((self.path, parsed, dict(self.headers)))
                status, out = answer(self.path, parsed)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                if isinstance(out, bytes):
                    self.send_header("Content-Length", str(len(out)))
                    self.end_headers()
                    self.wfile.write(out)
                    return
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                try:
                    for piece in out:
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                        self.wfile.flush()
                    self.wfile.write(b"0\r\n\r\n")
                except OSError:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request, client_address):
                pass

        self.httpd = Quiet(("127.0.0.1", 0), Handler)
        self.port = self.httpd.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.httpd.serve_forever, daemon=True).start()

    def stop(self):
        """As if killed: open connections break off."""
        self.httpd.shutdown()
        self.httpd.server_close()
        for c in self.connections:
            try:
                c.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def seen(self, path):
        return [body for p, body, _ in self.log if p == path]


def python_worker(models, speed=1, queue=0, text="Hello there", cut=None):
    """As llava/serve/model_worker.py answers. cut: breaks the connection off after so many chunks."""
    def answer(path, body):
        if path == "/worker_get_status":
            return 200, json.dumps({"model_names": models, "speed": speed, "queue_length": queue}).encode()
        if path == "/worker_generate_stream":
            return 200, stream(body)
        return 404, b"{}"

    def stream(body):
        said = body["prompt"]
        for n, word in enumerate(text.split(" ")):
            if cut is not None and n == cut:
                raise ConnectionError
            said += word + " "
            whole = json.dumps({"text": said, "error_code": 0}).encode() + b"\0"
            yield whole[:7]  # messages are not cut where chunks are
            yield whole[7:]

    w = StandIn(answer)
    w.models = models
    return w


def python_controller():
    """As llava/serve/controller.py answers; .workers has what registered."""
    workers = {}

    def answer(path, body):
        if path == "/register_worker":
            workers[body["worker_name"]] = body
            return 200, b"null"
        if path == "/receive_heart_beat":
            return 200, json.dumps({"exist": body["worker_name"] in workers}).encode()
        return 404, b"{}"

    c = StandIn(answer)
    c.workers = workers
    return c
