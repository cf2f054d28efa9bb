"""A browser for the tests: headless Chromium behind chromium-driver, by the W3C WebDriver protocol over HTTP."""
import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

from serving import free_port

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"Enter": "\ue007", "Escape": "\ue00c", "Tab": "\ue004", "Shift": "\ue008"}


def available():
    return bool(shutil.which("chromium") and shutil.which("chromedriver"))


class Gone(Exception):
    """The driver answered with an error."""


class Browser:
    """with Browser(width=1280, height=800) as b: b.open(url); b.js("return document.title")

    patient: open() comes back when all has been loaded; otherwise at once."""

    def __init__(self, width=1280, height=800, dark=False, language="en", touch=False, patient=True):
        self.home = tempfile.mkdtemp(prefix="llava-browser-")
        self.port = free_port()
        self.driver = subprocess.Popen(
            ["chromedriver", f"--port={self.port}", "--silent"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": self.home},
        )
        args = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--window-size={width},{height}",
            f"--user-data-dir={self.home}/profile",
            f"--lang={language}",
            "--hide-scrollbars",
            "--use-fake-device-for-media-stream",
            "--use-fake-ui-for-media-stream",
        ]
        if dark:
            args.append("--force-dark-mode")
        options = {"args": args, "prefs": {"intl.accept_languages": language}}
        if touch:
            options["mobileEmulation"] = {
                "deviceMetrics": {"width": width, "height": height, "pixelRatio": 2, "touch": True}
            }
        self.session = None
        for _ in range(100):
            try:
                made = self.call(
                    "POST",
                    "/session",
                    {
                        "capabilities": {
                            "alwaysMatch": {
                                "goog:chromeOptions": options,
                                "goog:loggingPrefs": {"browser": "ALL"},
                                "unhandledPromptBehavior": "ignore",
                                "pageLoadStrategy": "normal" if patient else "none",
                            }
                        }
                    },
                )
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
            except Gone:
                self.close()
                raise
        else:
            self.close()
            raise Gone("chromedriver does not answer")
        self.session = made["sessionId"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        try:
            if self.session:
                self.call("DELETE", "", None)
        except (OSError, Gone):
            pass
        self.driver.terminate()
        self.driver.wait()
        shutil.rmtree(self.home, ignore_errors=True)

    def call(self, method, path, body):
        base = f"http://127.0.0.1:{self.port}" + (f"/session/{self.session}" if self.session else "")
        data = None if body is None else json.dumps(body).encode()
        ask = urllib.request.Request(
            base + path, data=data, method=method, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(ask, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as e:
            raise Gone(json.load(e)["value"]["message"].split("\n")[0]) from None

    def open(self, url):
        self.call("POST", "/url", {"url": url})

    def js(self, script, *args):
        return self.call("POST", "/execute/sync", {"script": script, "args": list(args)})

    def wait(self, script, seconds=20, what=None):
        """Until the expression is true; its value."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            value = self.js(f"return ({script})")
            if value:
                return value
            time.sleep(0.05)
        raise AssertionError(f"never came true: {what or script}")

    def find(self, css):
        return self.call("POST", "/element", {"using": "css selector", "value": css})[ELEMENT]

    def click(self, css):
        self.call("POST", f"/element/{self.find(css)}/click", {})

    def type(self, css, text):
        if max(text, default="") > "\uffff":  # ChromeDriver 150 types no such characters
            self.js(
                "document.querySelector(arguments[0]).focus(); document.execCommand('insertText', false, arguments[1])",
                css,
                text,
            )
            return
        self.call("POST", f"/element/{self.find(css)}/value", {"text": text})

    def press(self, key):
        self.call(
            "POST",
            "/actions",
            {
                "actions": [
                    {
                        "type": "key",
                        "id": "keys",
                        "actions": [{"type": "keyDown", "value": KEYS[key]}, {"type": "keyUp", "value": KEYS[key]}],
                    }
                ]
            },
        )

    def text(self, css):
        return self.js("return [...document.querySelectorAll(arguments[0])].map(n => n.innerText)", css)

    def alert(self, accept=True):
        self.call("POST", "/alert/" + ("accept" if accept else "dismiss"), {})

    def picture(self, path):
        with open(path, "wb") as f:
            f.write(base64.b64decode(self.call("GET", "/screenshot", None)))

    def tab(self):
        """Another tab, which is the one that is spoken to from now on."""
        handle = self.call("POST", "/window/new", {"type": "tab"})["handle"]
        self.switch(handle)
        return handle

    def here(self):
        return self.call("GET", "/window", None)

    def switch(self, handle):
        self.call("POST", "/window", {"handle": handle})

    def devtools(self, command, **parameters):
        """A command of Chromium's own protocol, for what WebDriver has no words for."""
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def console(self):
        """What the page complained about since the last call."""
        return [
            e["message"]
            for e in self.call("POST", "/se/log", {"type": "browser"})
            if e["level"] in ("SEVERE", "WARNING")
        ]
