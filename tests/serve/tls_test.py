#!/usr/bin/python3
"""https: which versions of TLS are spoken, that answers and streams come through, and what becomes of those who speak plain
HTTP, nonsense or nothing at that port. The certificate is made here."""
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import warnings

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import LLAVA, finish, ok, skip  # noqa: E402
from serving import DEMO, PATIENCE, Server, wait_for  # noqa: E402


def certificate(folder, name):
    cert, key = os.path.join(folder, name + ".pem"), os.path.join(folder, name + ".key")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2",
                    "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    return cert, key


def connect(port, cert, version=None):
    """A connection whose certificate was checked, against the name too."""
    context = ssl.create_default_context(cafile=cert)
    if version:
        context.minimum_version = context.maximum_version = version
    s = context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE), server_hostname="localhost")
    return s


def ask(s, method, path, body=None, **headers):
    data = json.dumps(body).encode() if body else b""
    more = "".join(f"{k.replace('_', '-')}: {v}\r\n" for k, v in headers.items())
    s.sendall(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\nConnection: close\r\n{more}\r\n"
              .encode() + data)
    out = b""
    while True:
        more = s.recv(65536)
        if not more:
            return out
        out += more


def versions(port, cert):
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        with connect(port, cert, version) as s:
            reply = ask(s, "GET", "/health")
            ok(reply.startswith(b"HTTP/1.1 200") and s.version() == version.name.replace("_", "."), f"{version.name}", reply)
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        warnings.simplefilter("ignore", DeprecationWarning)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = version
        try:
            with context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)) as s:
                ok(False, f"{version.name} is refused", s.version())
        except (ssl.SSLError, ConnectionError) as e:
            ok(True, f"{version.name} is refused", e)


def answers(port, cert):
    body = {"prompt": "USER: Hi ASSISTANT:", "max_tokens": 20, "temperature": 2, "stream": True}
    with connect(port, cert) as s:
        reply = ask(s, "POST", "/v1/completions", body, Authorization="Bearer sesame")
        ok(reply.startswith(b"HTTP/1.1 200") and b"data: [DONE]" in reply, "a stream", reply[-200:])
    with connect(port, cert) as s:
        large = ask(s, "POST", "/v1/completions", {**body, "user": "x" * 500000, "stream": False}, Authorization="Bearer sesame")
        ok(large.startswith(b"HTTP/1.1 200"), "a large body", large[:200])
    with connect(port, cert) as s:
        ok(ask(s, "GET", "/v1/models").startswith(b"HTTP/1.1 401"), "a key is wanted here too")
    idle = [connect(port, cert) for _ in range(50)]
    with connect(port, cert) as s:
        ok(ask(s, "GET", "/health").startswith(b"HTTP/1.1 200"), "among 50 that are open")
    for s in idle:
        s.close()


def strangers(server, port, cert):
    """Each is let go with an alert or nothing, soon, and holds nobody up."""
    for name, data in (("plain HTTP", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"), ("nonsense", bytes(range(256)) * 8),
                       ("half a hello", b"\x16\x03\x01\x02\x00\x01\x00"), ("nothing", b"")):
        s = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        start, reply = time.time(), b""
        try:
            s.sendall(data)
            reply = s.recv(65536)
            while reply and s.recv(65536):
                pass
        except (ConnectionError, socket.timeout) as e:
            reply = reply or str(e).encode()
        took = time.time() - start
        s.close()
        ok(took < 20 and not reply.startswith(b"HTTP/"), f"{name}: a clean end after {took:.1f} s", reply)
    with connect(port, cert) as s:  # cut off in the middle
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sesame\r\nContent-Length: 100\r\n\r\n{")
    with connect(port, cert) as s:
        ok(ask(s, "GET", "/health").startswith(b"HTTP/1.1 200"), "others are answered")
    gone = connect(port, cert)
    body = json.dumps({"prompt": "USER: Hi ASSISTANT:", "max_tokens": 1500, "temperature": 2, "n": 8}).encode()
    gone.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sesame\r\nContent-Length: %d\r\n\r\n%s"
                 % (len(body), body))
    time.sleep(0.3)
    gone.close()

    def calm():
        with connect(port, cert) as s:
            return b"\nllava_http_requests_active 1\n" in ask(s, "GET", "/metrics", Authorization="Bearer sesame")
    ok(wait_for(calm, 30), "who leaves is not waited for")


def main():
    if subprocess.run(["sh", "-c", "command -v openssl"], capture_output=True).returncode:
        skip("https", "no openssl to make a certificate with")
        finish()
    with tempfile.TemporaryDirectory(prefix="llava-tls-") as folder:
        cert, key = certificate(folder, "one")
        other = certificate(folder, "two")
        with Server("serve", "--model-path", DEMO, "--tls-cert", cert, "--tls-key", key, "--header-timeout", "2",
                    env={"LLAVA_API_KEY": "sesame"}) as s:
            ok(s.scheme == "https", "it says https", s.text())
            versions(s.port, cert)
            answers(s.port, cert)
            strangers(s, s.port, cert)
            ok(s.stop() == 0, "an orderly end", s.text())
        for name, args, word in (("another's key", (cert, other[1]), "fits its key"), ("no file", (cert, "/none"), "/none"),
                                 ("the two exchanged", (key, cert), "certificate")):
            r = subprocess.run([LLAVA, "controller", "--port", "0", "--log-dir", folder, "--tls-cert", args[0], "--tls-key",
                                args[1]], capture_output=True, text=True, timeout=PATIENCE)
            ok(r.returncode == 1 and word in r.stderr and r.stderr.count("\n") == 1, f"refused: {name}", r.stderr)
    finish()


if __name__ == "__main__":
    main()
