"""A headless Chromium, driven through its DevTools protocol over a websocket: pages, scripts, screenshots."""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars", "--mute-audio",
    "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist", "--no-first-run",
    "--disable-extensions", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--remote-debugging-port=0",
)  # fmt: skip


def find() -> str | None:
    """The program, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of one browser process, which can reach 127.0.0.1 and nothing else."""

    def __init__(self, profile: Path, width: int, height: int):
        from websockets.sync.client import connect

        program = find()
        assert program
        flags = (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}")
        self.process = subprocess.Popen([program, *flags, "about:blank"], stderr=subprocess.DEVNULL)
        port_file = profile / "DevToolsActivePort"
        wait_for(lambda: port_file.exists() and port_file.read_text().count("\n") >= 1, 60, "the browser")
        port = port_file.read_text().splitlines()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            page = next(p for p in json.load(answer) if p["type"] == "page")
        self.closing = contextlib.ExitStack()
        self.socket = self.closing.enter_context(
            connect(page["webSocketDebuggerUrl"], max_size=None, ping_interval=None)
        )
        self.numbers = itertools.count(1)
        self.asked: list[str] = []  # addresses the page asked for
        for domain in ("Page", "Network", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **values):
        """One command and its result; notes what the page asks for on the way."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": values}))
        while True:
            message = json.loads(self.socket.recv(timeout=60))
            if message.get("method") == "Network.requestWillBeSent":
                self.asked.append(message["params"]["request"]["url"])
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def script(self, text: str):
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=text, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self) -> np.ndarray:
        """[h, w, 3] uint8."""
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        return np.array(Image.open(io.BytesIO(data)).convert("RGB"))

    def close(self) -> None:
        self.closing.close()
        self.process.terminate()
        self.process.wait(timeout=30)


def wait_for(ready, seconds: float, what: str):
    """Poll until `ready()` gives something true; its value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := ready():
            return value
        time.sleep(0.2)
    raise AssertionError(f"{what} was not there after {seconds:g} s")
