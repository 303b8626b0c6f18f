"""A real browser for the tests of the page: Chromium without a window, driven over its DevTools protocol with what the server needs anyway,
websockets. It types, clicks and looks as a person does; what goes wrong in scripts or against the security policy is collected.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # which needs rights that containers do not give; the only pages here are our own
    "--remote-debugging-port=0",
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--mute-audio",
    "--use-fake-ui-for-media-stream",  # says yes when the page asks for the microphone
    "--use-fake-device-for-media-stream",  # which beeps
    "--force-color-profile=srgb",
    "--blink-settings=primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4",  # as with a mouse
)
KEYS = {"Enter": (13, "\r"), "Escape": (27, ""), "Tab": (9, ""), "ArrowRight": (39, "")}
SHIFT = 8


def find() -> str | None:
    """The browser of this machine, None if there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """A running browser with a fresh profile in `folder`."""

    def __init__(self, folder: Path):
        program = find()
        assert program is not None
        command = [program, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
        self._stack = contextlib.ExitStack()
        self._log = self._stack.enter_context(open(folder / "log", "wb"))
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log)
        port_file = folder / "DevToolsActivePort"
        end = time.monotonic() + 60
        while not port_file.exists() or "\n" not in port_file.read_text():
            if self._process.poll() is not None or time.monotonic() > end:
                self.close()
                raise RuntimeError(f"{program} did not start: {(folder / 'log').read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        port, path = port_file.read_text().split()
        self.socket = self._stack.enter_context(
            connect(f"ws://127.0.0.1:{port}{path}", max_size=None, open_timeout=30, ping_interval=None, compression=None)
        )
        self.numbers = itertools.count(1)

    def open(self, address: str, width: int = 1280, height: int = 800) -> Page:
        """A page of its own, with nothing kept from those before."""
        context = self.send("Target.createBrowserContext")["browserContextId"]
        target = self.send("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return Page(self, session, context, address, width, height)

    def send(self, method: str, session: str | None = None, listen: Any = None, **params: Any) -> Any:
        """Call a method of the protocol and wait for its result; `listen` is given what else comes meanwhile."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        self.socket.send(json.dumps(message))
        while True:
            reply = json.loads(self.socket.recv(timeout=60))
            if reply.get("id") == number:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']['message']}")
                return reply["result"]
            if listen is not None and reply.get("sessionId") == session:
                listen(reply)

    def close(self) -> None:
        self._stack.close()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Page:
    """One page. `problems`: errors of scripts and of the security policy, in words."""

    def __init__(self, browser: Browser, session: str, context: str, address: str, width: int, height: int):
        self._browser, self._session, self._context = browser, session, context
        self.problems: list[str] = []
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")
        self.resize(width, height)
        self.go(address)

    def call(self, method: str, **params: Any) -> Any:
        return self._browser.send(method, self._session, self._listen, **params)

    def _listen(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description") or details["text"])
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(f"{params['entry']['text']} ({params['entry'].get('url', '')})")

    def go(self, address: str) -> None:
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def reload(self) -> None:
        self.evaluate("window.isOld = true")
        self.call("Page.reload")
        self.wait("document.readyState === 'complete' && !window.isOld")

    def evaluate(self, script: str) -> Any:
        """The value of an expression, awaited."""
        reply = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
        if "exceptionDetails" in reply:
            details = reply["exceptionDetails"]
            raise RuntimeError(f"{script}: {details.get('exception', {}).get('description') or details['text']}")
        return reply["result"].get("value")

    def wait(self, condition: str, seconds: float = 60.0) -> Any:
        """Wait until an expression is true -> its value."""
        end = time.monotonic() + seconds
        while True:
            try:
                value = self.evaluate(condition)
            except RuntimeError as error:
                if "navigat" not in str(error) and "context" not in str(error):
                    raise  # other than that the page is just being replaced by another
                value = None
            if value:
                return value
            if time.monotonic() > end:
                raise TimeoutError(f"{condition} did not come true; problems: {self.problems}; page: {self.text('body')[-1500:]}")
            time.sleep(0.03)

    def text(self, selector: str) -> str:
        """What is written there for a person to see."""
        return self.evaluate(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def click(self, selector: str) -> None:
        """Press the mouse in the middle of an element, wherever that leads; fails where something lies over it."""
        name = json.dumps(selector)
        x, y = self.wait(
            f"""(() => {{
                const found = document.querySelector({name});
                if (!found) return null;
                found.scrollIntoView({{block: 'nearest'}});
                const box = found.getBoundingClientRect();
                const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
                const top = document.elementFromPoint(x, y);
                return box.width && (found.contains(top) || top?.contains(found)) ? [x, y] : null;
            }})()"""
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def press(self, key: str, modifiers: int = 0) -> None:
        code, text = KEYS[key]
        params = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown", **params, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **params)

    def choose_files(self, selector: str, *files: Path) -> None:
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def download_to(self, folder: Path) -> None:
        """Where files go that are downloaded, without asking."""
        self._browser.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder), browserContextId=self._context)

    def resize(self, width: int, height: int, phone: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone)
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)

    def prefer(self, **features: str) -> None:
        """What the system prefers: prefer(color_scheme="dark")."""
        chosen = [{"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", features=chosen)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        self._browser.send("Target.disposeBrowserContext", browserContextId=self._context)
