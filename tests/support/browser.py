"""A headless Chromium that looks at a page: its errors, what does not fit, a picture of it.

Speaks the DevTools protocol over two pipes, messages of JSON with a zero byte between, so that it needs no package.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
READY_S = 30  # for the first answer of the browser
OVERFLOW = """
(() => {
  const room = document.documentElement.clientWidth;
  const inside = e => { for (let p = e.parentElement; p; p = p.parentElement) {
    if (['auto', 'scroll', 'hidden'].includes(getComputedStyle(p).overflowX)) return true; } return false; };
  return [...document.querySelectorAll('body *')].filter(e => {
    const box = e.getBoundingClientRect();
    return box.width > 0 && (box.right > room + 1 || box.left < -1) && !inside(e) && !e.closest('svg');
  }).map(e => e.tagName + '.' + e.className + ' ' + e.textContent.slice(0, 40));
})()
"""
BROKEN = "[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt || i.src.slice(0, 60))"


def program() -> str | None:
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Seen(NamedTuple):
    errors: list[str]  # of the console, of scripts, of what could not be loaded
    requests: list[str]  # addresses that are neither the page nor inside it
    broken: list[str]  # images
    overflow: list[str]  # elements wider than the window
    width: int  # of the whole page, px


class Browser:
    def __init__(self, process: subprocess.Popen[bytes], out: int, back: int) -> None:
        self._process, self._out, self._back = process, out, back
        self._buffer, self._last, self.events = b"", 0, list[dict[str, Any]]()
        self._session = ""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._back, 1 << 16)
            if not part:
                raise RuntimeError("the browser ended")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        while True:
            answer = self._receive()
            if answer.get("id") == self._last:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def value_of(self, script: str) -> Any:
        result = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def look(self, page: Path, width: int, *, dark: bool = False, height: int = 900) -> Seen:
        """Open a page in a window of a width, px."""
        self.events.clear()
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        fault = self._call("Page.navigate", url=page.as_uri()).get("errorText")
        assert not fault, f"{page}: {fault}"
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())
        self.value_of("Promise.all([...document.images].map(i => i.decode().catch(() => 0))).then(() => 1)")
        errors = []
        for event in self.events:
            params = event.get("params", {})
            if event["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                errors.append(params["entry"]["text"])
            if event["method"] == "Runtime.exceptionThrown" or (
                event["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert")
            ):
                errors.append(json.dumps(params))
        requests = [
            url
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
            and not (url := event["params"]["request"]["url"]).startswith("data:")
            and url != page.as_uri()
        ]
        return Seen(
            errors, requests, self.value_of(BROKEN), self.value_of(OVERFLOW),
            self.value_of("document.documentElement.scrollWidth"),
        )  # fmt: skip

    def picture(self, *, top: int = 0, height: int | None = None, scale: float = 1.0) -> bytes:
        """Return a PNG of the page, all of it or a part."""
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": top, "width": size["width"], "height": height or size["height"] - top, "scale": scale}
        shot = self._call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        return base64.b64decode(shot["data"])


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start a browser of its own, which ends with the block and leaves nothing behind."""
    found = program()
    assert found is not None
    to_browser, out = os.pipe()
    back, from_browser = os.pipe()

    # The browser reads descriptor 3 and writes 4, which may be anything here: far ones become those after the fork.
    far = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (to_browser, from_browser)]
    pipes = f"import os, sys; os.dup2({far[0]}, 3); os.dup2({far[1]}, 4); os.execv(sys.argv[1], sys.argv[1:])"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [sys.executable, "-c", pipes, found, "--headless=new", "--no-sandbox", "--disable-gpu",
             "--remote-debugging-pipe", "--hide-scrollbars",
             "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
             "--disable-dev-shm-usage", f"--user-data-dir={profile}", "about:blank"],
            pass_fds=far, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        for end in (to_browser, from_browser, *far):
            os.close(end)
        try:
            yield Browser(process, out, back)
        finally:
            os.close(out)  # the browser ends when nobody is there
            os.close(back)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
