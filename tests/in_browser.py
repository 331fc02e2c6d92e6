"""A real browser without a window: Chromium, driven by the W3C's WebDriver protocol, which needs no package.

Plain functions: `from in_browser import has_browser, opened`.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_ARGUMENTS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1200,1600"]


def has_browser() -> bool:
    """Whether Chromium and its driver are installed (Debian: chromium, chromium-driver)."""
    return bool(shutil.which("chromium") and shutil.which("chromedriver"))


class Page:
    """A page that is open."""

    def __init__(self, address: str) -> None:
        self._address = address

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """One command of the protocol: a POST with a body, a GET without."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._address}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())["value"]

    def run(self, script: str) -> Any:
        """What a script returns."""
        return self.ask("/execute/sync", {"script": script, "args": []})

    def find(self, selector: str) -> list[str]:
        """Elements that a CSS selector means."""
        return [item[_ELEMENT] for item in self.ask("/elements", {"using": "css selector", "value": selector})]

    def drag(self, element: str, dx: int) -> None:
        """Hold the middle of an element and move it to the right, px."""
        origin = {_ELEMENT: element}
        steps = [
            {"type": "pointerMove", "origin": origin, "x": 0, "y": 0, "duration": 0},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerMove", "origin": origin, "x": dx, "y": 0, "duration": 50},
            {"type": "pointerUp", "button": 0},
        ]
        self.ask("/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": steps}]})

    def screenshot(self) -> bytes:
        """What is to be seen, PNG."""
        return base64.b64decode(self.ask("/screenshot"))

    def complaints(self) -> list[str]:
        """What the browser wrote to its console: errors, and what its policy kept from loading."""
        return [str(item["message"]) for item in self.ask("/se/log", {"type": "browser"})]


@contextmanager
def opened(path: Path) -> Iterator[Page]:
    """A file in a browser of its own, which ends with the block."""
    driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    session = ""
    try:
        found = next(found for line in driver.stdout if (found := re.search(r"successfully on port (\d+)", line)))
        server = f"http://127.0.0.1:{found[1]}/session"
        options = {"binary": shutil.which("chromium"), "args": _ARGUMENTS}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = Page(server).ask("", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        page = Page(f"{server}/{session}")
        page.ask("/url", {"url": path.absolute().as_uri()})
        yield page
    finally:
        if session:
            gone = urllib.request.Request(f"{server}/{session}", method="DELETE")
            urllib.request.urlopen(gone, timeout=60).close()
        driver.terminate()
        driver.wait(30)
        driver.stdout.close()
