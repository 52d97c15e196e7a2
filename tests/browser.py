"""A headless Chromium that tests drive as a person would: real clicks and keys, screenshots, downloads.

It speaks the DevTools protocol (https://chromedevtools.github.io/devtools-protocol/) over a pair of pipes, messages of
JSON that end with a zero byte. Nothing is reached over the network.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio",
         "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
         "--remote-debugging-pipe")  # fmt: skip
PIPES = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)
KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Enter": 13, "Tab": 9}
SECONDS = 30.0  # that anything may take


@contextmanager
def browser(folder: Path) -> Iterator["Browser"]:
    """A browser with an empty profile in `folder`, downloads in folder/downloads; skips where there is no browser."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"needs a browser ({', '.join(NAMES)})")
    downloads = folder / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    to_browser, from_browser = os.pipe(), os.pipe()
    # the browser wants them as 3 and 4: first out of the way of these
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_browser[0], from_browser[1])]
    command = [sys.executable, "-ISc", PIPES, *map(str, ends), program, *FLAGS, f"--user-data-dir={folder / 'profile'}"]
    environment = os.environ | {"HOME": str(folder)}
    with (folder / "browser.log").open("wb") as log:
        process = subprocess.Popen(command, pass_fds=ends, stdout=log, stderr=log, env=environment)
    for end in (to_browser[0], from_browser[1], *ends):
        os.close(end)
    try:
        yield Browser(to_browser[1], from_browser[0], downloads)
    finally:
        os.close(to_browser[1])
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)  # it ends when the pipe does
        process.kill()
        process.wait()
        os.close(from_browser[0])


class Browser:
    """One tab. `problems` collects errors and uncaught exceptions that pages log."""

    def __init__(self, write: int, read: int, downloads: Path) -> None:
        self.downloads, self.problems = downloads, []
        self._write, self._read = write, read
        self._buffer, self._number, self._session = b"", 0, None
        self._begun: dict[str, str] = {}  # downloads: name by id
        self._whole: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")
        self.call("Runtime.enable")
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads), eventsEnabled=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        answer = self._until(lambda message: message.get("id") == self._number, method)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _until(self, wanted: Any, what: str) -> dict[str, Any]:
        deadline = time.monotonic() + SECONDS
        while True:
            while b"\0" in self._buffer:
                data, self._buffer = self._buffer.split(b"\0", 1)
                message = json.loads(data)
                self._note(message)
                if wanted(message):
                    return message
            if not select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"the browser did not answer: {what}")
            part = os.read(self._read, 2**20)
            if not part:
                raise RuntimeError(f"the browser ended: {what} (see browser.log in the folder)")
            self._buffer += part

    def _note(self, message: dict[str, Any]) -> None:
        method, about = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            details = about["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and about["type"] == "error":
            self.problems.append(str(about["args"]))
        elif method == "Browser.downloadWillBegin":
            self._begun[about["guid"]] = about["suggestedFilename"]
        elif method == "Browser.downloadProgress" and about["state"] == "completed":
            self._whole.append(self._begun[about["guid"]])

    # ------------------------------------------------------------------------------------------------- what people do

    def open(self, path: Path) -> None:
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")

    def visit(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait(f"document.readyState === 'complete' && location.href.startsWith({json.dumps(url)})")

    def give(self, selector: str, file: Path) -> None:
        """A file to the input of that kind in an element, as its dialogue would."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=f"{selector} input[type=file]")["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """The pressed mouse, in pixels of the window."""
        points = [[a + (b - a) * i / 8 for a, b in zip(start, end, strict=True)] for i in range(9)]
        kinds = ["mousePressed", *["mouseMoved"] * 8, "mouseReleased"]
        for kind, (x, y) in zip(kinds, [*points, points[-1]], strict=True):
            held = {"button": "left", "buttons": 1, "clickCount": 1}
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **held)

    def reload(self) -> None:
        self.run("window.leaving = true")
        self.call("Page.reload")
        self.wait("!window.leaving && document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of an expression of JavaScript, or of the promise that it is."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script}: {found['result'].get('description')}")
        return found["result"].get("value")

    def pause(self, seconds: float) -> None:
        """For what no condition tells of."""
        time.sleep(seconds)

    def wait(self, condition: str, seconds: float = SECONDS) -> None:
        """Until the expression is true."""
        deadline = time.monotonic() + seconds
        while True:
            with suppress(RuntimeError):  # between two pages there is nothing to ask
                if self.run(f"Boolean({condition})"):
                    return
            if time.monotonic() > deadline:
                raise TimeoutError(f"never true: {condition}")
            time.sleep(0.02)

    def click(self, selector: str) -> None:
        """With the mouse, in the middle of the element, which must be the one that is seen there."""
        place = f"""(() => {{
            const element = document.querySelector({json.dumps(selector)});
            element.scrollIntoView({{ block: "center" }});
            const box = element.getBoundingClientRect(), x = box.x + box.width / 2, y = box.y + box.height / 2;
            return element.contains(document.elementFromPoint(x, y)) ? [x, y] : null; }})()"""
        found = self.run(place)
        assert found, f"{selector} cannot be clicked: it is hidden, or something lies over it"
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=found[0], y=found[1], button="left", clickCount=1)

    def press(self, key: str) -> None:
        about = {"key": key, "windowsVirtualKeyCode": KEYS.get(key) or ord(key.upper())}
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def downloaded(self) -> Path:
        """Of the next download that is whole."""
        while not self._whole:
            self._until(lambda message: True, "a download")
        return self.downloads / self._whole.pop(0)

    def view(self, width: int, height: int, *, dark: bool = False) -> None:
        """The window's size in pixels, and the scheme that the person prefers."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 640}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> None:
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=False)["data"]
        path.write_bytes(base64.b64decode(data))
