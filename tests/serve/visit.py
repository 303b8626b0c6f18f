"""A person at the page: a whole server with a small model, a browser that looks at it, and what one does there."""

import contextlib
import json
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser as browsers
import httpx
import numpy as np
import PIL.Image
import pytest
from whole_server import serving

needs_browser = pytest.mark.skipif(
    browsers.find() is None,
    reason="the page is tested in a real browser, and there is none here: install Chromium (on Debian, apt install chromium)",
)


@contextlib.contextmanager
def place(folder: Path) -> Iterator[tuple]:
    """A server and a browser; visit(*place) makes visits."""
    with serving(folder / "data") as server, browser(folder) as found:
        yield server, found


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[browsers.Browser]:
    profile = folder / "profile"
    profile.mkdir()
    found = browsers.Browser(profile)
    try:
        yield found
    finally:
        found.close()


@contextlib.contextmanager
def visit(server, found: browsers.Browser) -> Iterator["Visit"]:
    """A first visit; fails at its end if a script of the page failed, or if its security policy had to stop something."""
    visitor = Visit(found.open(server.url + "/"))
    visitor.wait("document.querySelector('#model').options.length || !!document.querySelector('dialog[open]')")
    yield visitor
    visitor.close()
    assert visitor.problems == []


class Visit:
    def __init__(self, page: browsers.Page):
        self.page = page

    def __getattr__(self, name: str) -> Any:
        return getattr(self.page, name)

    def set(self, **values: str) -> None:
        """Write into fields of the settings, by their names in the API."""
        self.click("#open-settings")
        for name, value in values.items():
            self.evaluate(
                f"""(() => {{
                    const field = document.getElementById({json.dumps(name)});
                    field.value = {json.dumps(value)};
                    field.dispatchEvent(new Event('input', {{bubbles: true}}));
                }})()"""
            )
        self.click("#close-settings")

    def write(self, text: str) -> None:
        self.click("#message")
        self.type(text)

    def ask(self, text: str) -> None:
        """Send a message and wait for the end of its answer."""
        before = self.evaluate("document.querySelectorAll('.turn').length")
        self.write(text)
        self.press("Enter")
        self.ended(before + 2)

    def ended(self, turns: int) -> None:
        """Wait until there are so many turns and no answer is being written."""
        self.wait(f"!document.querySelector('.turn.writing') && document.querySelectorAll('.turn').length === {turns}")

    def answer(self) -> str:
        return self.text(".turn.model:last-child .parts")

    def figures(self) -> dict[str, str]:
        """The read-out under the last answer: {"tokens in": "9", ...}."""
        lines = "[...document.querySelectorAll('.turn.model:last-child .figures div')]"
        return dict(self.evaluate(f"{lines}.map((line) => [...line.children].map((cell) => cell.innerText))"))

    def attached(self, number: int) -> list[str]:
        """The names of what is attached, when the tokens of `number` media have been counted."""
        states = "[...document.querySelectorAll('#attachments .state')]"
        self.wait(rf"{states}.filter((state) => /^[1-9]\d* tokens$/.test(state.innerText)).length === {number}")
        return self.evaluate("[...document.querySelectorAll('#attachments .name')].map((name) => name.innerText)")

    def code(self, language: str = "python") -> str:
        """The request of the last answer."""
        self.click(".turn.model:last-child [aria-label='This request as code']")
        self.click(f"#tab-{language}")
        text = self.text("#code-text")
        self.press("Escape")
        self.wait("!document.querySelector('dialog[open]')")
        return text

    def kept(self) -> dict[str, Any]:
        """What the browser keeps of the conversation; media are left out."""
        return self.evaluate(
            """new Promise((resolve, reject) => {
                const opening = indexedDB.open('pollux', 1);
                opening.onerror = () => reject(opening.error);
                opening.onsuccess = () => {
                    const reading = opening.result.transaction('conversation').objectStore('conversation').get('current');
                    reading.onsuccess = () => resolve(JSON.parse(JSON.stringify(reading.result ?? {})));
                };
            })"""
        )


def generate(server, text: str, **config: Any) -> dict[str, Any]:
    """What the server answers to one message without the page."""
    body = {"contents": [{"role": "user", "parts": [{"text": text}]}], "generationConfig": config}
    reply = httpx.post(f"{server.url}/v1beta/models/small:generateContent", json=body, timeout=120)
    return reply.raise_for_status().json()


def said(answer: dict[str, Any]) -> str:
    return "".join(part["text"] for part in answer["candidates"][0]["content"]["parts"])


def picture(folder: Path, name: str = "scene.png") -> Path:
    """32 x 24 pixels of noise."""
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)).save(folder / name)
    return folder / name


def sound(folder: Path, name: str = "talk.wav", seconds: float = 1.0, rate: int = 16000) -> Path:
    """A tone in stereo, of 4 bytes a frame."""
    with wave.open(str(folder / name), "wb") as file:
        file.setparams((2, 2, rate, 0, "NONE", ""))
        file.writeframes((np.sin(np.arange(int(2 * seconds * rate)) / 9) * 9000).astype("<i2").tobytes())
    return folder / name
