"""The notebooks of the public Gemini cookbook against a running server, cell by cell, with nothing but addresses changed.

    git clone https://github.com/google-gemini/cookbook && git -C cookbook checkout e26e33d29a60
    .venv/bin/python benchmarks/notebooks.py cookbook runs/quickstart/model

That commit is the last one whose quick starts ask for generateContent. Starts `pollux serve` with the folder (or takes --server URL), makes
a virtual environment with what the notebooks import, and runs each in a folder of its own. The address of the Gemini API becomes the
server's; every other address becomes that of a small server of this program that answers with a file of the same kind, made here, or,
where the Gemini API is to fetch it, that of such a file uploaded before. A cell that needs an account elsewhere is left out, and so is a
failure of one that needs the model to have answered in a certain way, or its reader to have filled in something (NEEDS); both are counted.
The exit code is 1 if another cell failed.
"""

from __future__ import annotations

import collections
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import small_media
import tyro
from served import environment, gemini

HERE = Path(__file__).resolve().parent
PACKAGES = ("google-genai", "google-api-core", "ipython", "openai", "pillow", "pandas", "scikit-learn", "seaborn", "requests", "aiohttp")
PACKAGES += ("pydub", "pdf2image", "pdfminer.six", "typing_extensions")
NOTEBOOKS = (
    *("Streaming", "System_instructions", "JSON_mode", "Enum", "Function_calling", "Counting_Tokens", "Caching", "File_API", "Embeddings"),
    *("Audio", "Video_understanding", "Safety", "Error_handling", "PDF_Files", "Models", "Prompting", "Asynchronous_requests"),
    *("Batch_mode", "Get_started", "Get_started_thinking", "Get_started_OpenAI_Compatibility"),
    *("rest/Streaming_REST", "rest/System_instructions_REST", "rest/JSON_mode_REST", "rest/Function_calling_REST"),
    *("rest/Function_calling_config_REST", "rest/Caching_REST", "rest/Embeddings_REST", "rest/Audio_REST", "rest/Video_REST"),
    *("rest/Safety_REST", "rest/Models_REST", "rest/Prompting_REST"),
)
ELSEWHERE = {  # what a cell says that needs more than a model's server
    r"\bgcloud\b|google\.auth|register_files|registered_": "an account of Google Cloud",
    r"google_maps|grounding\.maps|\.maps\b|generate_sources": "Google Maps",
    r"webhooks\.": "a server that is called back",
}
_CALLS, _ENDS = "a model that calls a function where it may also answer in words", "a model that ends a long answer by itself"
_SEARCH = "grounding, for which the server's operator has to name what is searched"
NEEDS: dict[str, dict[int, str]] = {  # by notebook and number of the cell, where nothing in its text says so
    "Function_calling": {34: _CALLS, 36: _CALLS},
    "Counting_Tokens": {14: "a name that the notebook sets only later"},
    "File_API": {39: "a URL of the reader's own"},
    "Get_started": {78: _SEARCH, 124: "an answer in two parts"},
    "Get_started_thinking": {60: _SEARCH},
    "Get_started_OpenAI_Compatibility": {35: _ENDS, 39: _ENDS, 43: _CALLS},
    "rest/Video_REST": {24: "a server that is still at work on a file when it is first asked"},
    "rest/Safety_REST": {9: "words that the reader fills in"},
}
_URL = re.compile(r"""https?://[^\s"'`<>)\\,;]+""")
_FETCHED = re.compile(r"""file_?uri["']?\s*[=:]\s*["']$""", re.IGNORECASE)


@dataclass(frozen=True)
class Settings:
    cookbook: tyro.conf.Positional[Path]  # folder of the cookbook
    folder: tyro.conf.Positional[str] = ""  # of the model to serve
    server: str = ""  # URL of a server that runs already, instead of a folder; its model must have the alias gemini-*
    notebooks: tuple[str, ...] = NOTEBOOKS  # below quickstarts/
    seconds: float = 900.0  # for one notebook
    environments: str = "~/.cache/pollux/programs"  # where the virtual environment is made


@dataclass(frozen=True)
class Cell:
    """number: its place in the notebook. reason: "" if it ran. left_out: what it needs, then it was not run or does not count."""

    number: int
    source: str
    reason: str = ""
    left_out: str = ""


def main(settings: Settings) -> int:
    """Run the notebooks, print the table, return the exit code."""
    server = gemini(settings.folder, settings.server)
    python = environment(Path(settings.environments).expanduser() / "notebooks", PACKAGES)
    results = {}
    with tempfile.TemporaryDirectory(prefix="notebooks_") as name, StandIns(Path(name)) as stand_ins, server as url:
        for notebook in settings.notebooks:
            path = settings.cookbook / "quickstarts" / f"{notebook}.ipynb"
            results[notebook] = run(python, path, Path(name) / notebook, url, stand_ins, settings.seconds, NEEDS.get(notebook, {}))
            print(row(notebook, results[notebook]), flush=True)
    print(row("all", [cell for cells in results.values() for cell in cells]))
    print(reasons(results))
    return int(any(cell.reason and not cell.left_out for cells in results.values() for cell in cells))


def run(python: Path, notebook: Path, folder: Path, url: str, stand_ins: StandIns, seconds: float, needs: dict[int, str]) -> list[Cell]:
    """What became of the code cells of a notebook."""
    folder.mkdir(parents=True)
    cells = read(notebook)
    asked = [readdressed(cell.source, url, stand_ins) for cell in cells if not cell.left_out]
    report = folder.parent / f"{folder.name}.jsonl"
    environ = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    environ |= {
        "GOOGLE_GEMINI_BASE_URL": url,
        "SHELL": "/bin/bash",  # which the cells are written for
        "PATH": os.pathsep.join([str(stand_ins.folder / "bin"), os.environ["PATH"]]),
        "MPLBACKEND": "agg",
        "IPYTHONDIR": str(stand_ins.folder / "ipython"),
    }
    command = [python, HERE / "notebook_cells.py", report.resolve()]
    with open(folder.parent / f"{folder.name}.log", "w") as log:
        try:
            subprocess.run(
                command, input=json.dumps(asked), text=True, cwd=folder, env=environ, stdout=log, stderr=subprocess.STDOUT, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            pass
    found = iter([json.loads(line)["reason"] for line in report.read_text().splitlines()] if report.exists() else [])
    unfinished = f"it did not come to its end within the {seconds:g} seconds of its notebook"
    done = []
    for cell in cells:
        if cell.left_out:
            done.append(cell)
        else:
            reason = next(found, unfinished)
            done.append(Cell(cell.number, cell.source, reason, needs.get(cell.number, "") if reason else ""))
    return done


def read(notebook: Path) -> list[Cell]:
    """The cells with code; those that only install packages are none."""
    cells = []
    for number, cell in enumerate(json.loads(notebook.read_text())["cells"]):
        source = "".join(cell["source"])
        lines = [line for line in source.splitlines() if line.strip() and not line.lstrip().startswith(("#", "%pip", "!pip", "!apt"))]
        if cell["cell_type"] == "code" and lines:
            needs = (need for words, need in ELSEWHERE.items() if re.search(words, source))
            cells.append(Cell(number, source, left_out=next(needs, "")))
    return cells


def readdressed(source: str, url: str, stand_ins: StandIns) -> str:
    """The text of a cell with addresses that can be reached."""

    def reachable(found: re.Match[str]) -> str:
        address = urlsplit(found[0])
        if address.netloc == "generativelanguage.googleapis.com":
            return found[0].replace(f"{address.scheme}://{address.netloc}", url)
        if "youtube.com" in address.netloc:
            return stand_ins.uploaded(url, "clip.mp4")
        if _FETCHED.search(source[: found.start()]) or address.netloc == "...":
            return stand_ins.uploaded(url, PurePosixPath(address.path).name or "text.txt")
        if "git clone" in source[: found.start()].rpartition("\n")[2]:
            return f"file://{stand_ins.folder / 'code'}"
        return f"{stand_ins.url}/{address.netloc}{address.path}"

    return _URL.sub(reachable, source)


class StandIns:
    """Files of all kinds, made here: served over HTTP by the ending of the path that is asked for, and uploaded to the server on demand.

    folder: also holds what lets the cells' programs run: a curl that ends with an error when it is answered one, an `apt` that does nothing
    and a repository for git.
    """

    def __init__(self, folder: Path):
        self.folder = folder / "stand_ins"
        (self.folder / "bin").mkdir(parents=True)
        # Addresses of files begin with https whatever the server speaks, since clients look for that.
        plain = f"exec {shutil.which('curl')} --fail-with-body --show-error"
        plain += ' "${@//https:\\/\\/127.0.0.1:/http:\\/\\/127.0.0.1:}"'
        for name, does in (("curl", plain), ("apt", ""), ("apt-get", "")):
            (self.folder / "bin" / name).write_text(f"#!/bin/bash\n{does}\n")
            (self.folder / "bin" / name).chmod(0o755)
        code = self.folder / "code"
        code.mkdir()
        for name in ("first", "second"):
            (code / f"{name}.py").write_text(f'"""The {name} module."""\n\nprint("{name}")\n')
        author = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
        for command in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "code"]):
            subprocess.run(["git", *command], cwd=code, check=True)
        self._made: dict[str, bytes] = {}
        self._uploaded: dict[tuple[str, str], str] = {}
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> StandIns:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def content(self, name: str) -> tuple[bytes, str]:
        """A file for this name, and its mime type."""
        suffix = PurePosixPath(name).suffix.lower()
        if suffix not in KINDS:
            suffix = ".jpg" if "img" in name or "image" in name else ".html"
        make, mime_type = KINDS[suffix]
        if suffix not in self._made:
            self._made[suffix] = make()
        return self._made[suffix], mime_type

    def uploaded(self, url: str, name: str) -> str:
        """The uri of such a file on the server of the Gemini API."""
        content, mime_type = self.content(name)
        if (url, mime_type) not in self._uploaded:
            head = {"X-Goog-Upload-Protocol": "raw", "Content-Type": mime_type, "x-goog-api-key": "key"}
            with urllib.request.urlopen(urllib.request.Request(f"{url}/upload/v1beta/files", content, head)) as answer:
                self._uploaded[url, mime_type] = json.load(answer)["file"]["uri"]
        return self._uploaded[url, mime_type]

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        stand_ins = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content, mime_type = stand_ins.content(urlsplit(self.path).path)
                self.send_response(200)
                self.send_header("Content-Type", mime_type)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


_TEXT = small_media.TEXT.encode()
_SECONDS = 9  # of a sound; a small model reads ten
KINDS: dict[str, tuple[Callable[[], bytes], str]] = {
    **dict.fromkeys((".jpg", ".jpeg"), (lambda: small_media.picture("JPEG"), "image/jpeg")),
    ".png": (small_media.picture, "image/png"),
    ".mp3": (lambda: small_media.sound(".mp3", _SECONDS), "audio/mp3"),
    ".wav": (lambda: small_media.sound(".wav", _SECONDS), "audio/wav"),
    ".mp4": (lambda: small_media.clip(seconds=1800, rate=1), "video/mp4"),
    ".pdf": (small_media.pdf, "application/pdf"),
    **dict.fromkeys((".txt", ".md", ".cc", ".py"), (lambda: _TEXT, "text/plain")),
    ".html": (lambda: b"<!doctype html><title>A page</title><p>" + _TEXT, "text/html"),
}


def row(name: str, cells: list[Cell]) -> str:
    """A line of the table."""
    ran = sum(not cell.reason and not cell.left_out for cell in cells)
    failed = sum(bool(cell.reason) and not cell.left_out for cell in cells)
    left = sum(bool(cell.left_out) for cell in cells)
    return f"{name:<36}{len(cells):>4} cells {ran:>4} ran {failed:>4} failed" + (f" {left:>4} left out" if left else "")


def reasons(results: dict[str, list[Cell]]) -> str:
    """Why cells failed and what those left out need, with their numbers."""
    lines = []
    for name, cells in results.items():
        for cell in cells:
            if cell.reason and not cell.left_out:
                lines.append(f"{name} [{cell.number}] failed: {' '.join(cell.reason.split())[:300]}")
    needs: dict[str, list[str]] = collections.defaultdict(list)
    for name, cells in results.items():
        for cell in cells:
            if cell.left_out:
                needs[cell.left_out].append(f"{name} [{cell.number}]")
    lines += [f"left out, for {need}: {', '.join(names)}" for need, names in needs.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings, description=__doc__)))
