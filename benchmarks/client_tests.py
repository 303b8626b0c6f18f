"""The official client's own tests against a running server: which of those that send a request pass.

    .venv/bin/python benchmarks/client_tests.py runs/calls/model --client 3.4.0 --reasons docs/conformance.md

Starts `pollux serve` with the folder (or takes --server URL), makes a virtual environment with the asked version of google-genai, and runs
the tests that its wheel ships in `--mode=api`. A test counts only when a request of its left for the server; client_plugin.py counts. Media
that the tests open but the wheel lacks are made here, and files that they name by id are uploaded first. The list of those that must
pass is tests/serve/client_allow_list.txt; the exit code is 1 if one of them does not.
"""

from __future__ import annotations

import collections
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import client_reasons
import small_media
import tyro
from served import environment, gemini

HERE = Path(__file__).resolve().parent
ALLOW_LIST = HERE.parent / "tests" / "serve" / "client_allow_list.txt"
PACKAGES = ("pytest", "pytest-asyncio", "mcp", "pillow", "httpx", "requests")
FOLDERS = (
    "shared",
    "tokens",
    "models",
    "chats",
    "files",
    "caches",
    "batches",
    "file_search_stores",
    "documents",
    "operations",
    "public_samples",
    "afc",
    "interactions",
    "live_api",
)
# Files that tests name by an id of their authors' account: the file of ours that stands for it.
UPLOADS = {
    "az606f58k7zj": "google.png",
    "8q6j6weg80ey": "story.txt",
    "kje1wewvo85z": "google.jpg",
    "tyvaih24jwje": "animal.mp4",
    "v200dhvn15h7": "story.pdf",
    "n1gls7dyh90q": "story.txt",
    "mk4h34zkv33d": "story.txt",
    "ansa0kyotrsw": "story.txt",
    "vjvu9fwk2qj8": "story.txt",
    "s0pa54alni6w": "requests.jsonl",
    "mq9e3mg3u2y5": "embeddings.jsonl",
}
KINDS = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".pdf": "application/pdf",
    ".txt": "text/plain",
    ".mp4": "video/mp4",
    ".jsonl": "application/jsonl",
}


@dataclass(frozen=True)
class Settings:
    folder: tyro.conf.Positional[str] = ""  # of the model to serve
    server: str = ""  # URL of a server that runs already, instead of a folder; with the aliases that served.py gives
    client: str = metadata.version("google-genai")  # version of the client
    tests: tuple[str, ...] = FOLDERS  # folders or files below google/genai/tests
    seconds: float = 60.0  # for one test
    reasons: str = ""  # page that gets a section with those that fail and why, such as docs/conformance.md
    environments: str = "~/.cache/pollux/clients"  # one virtual environment per version
    allow: bool = False  # add the tests that pass to the list of those that must


def main(settings: Settings) -> int:
    """Run the tests, print the table, return the exit code."""
    server = gemini(settings.folder, settings.server)
    python = environment(Path(settings.environments).expanduser() / settings.client, (f"google-genai=={settings.client}", *PACKAGES))
    with tempfile.TemporaryDirectory(prefix="client_tests_") as name, server as url:
        work = Path(name)
        tests = copy_client(python, work)
        make_media(tests / "data")
        upload_files(url, tests / "data")
        make_film(url)
        results = run(python, work, url, settings)
    print(f"google-genai {settings.client} against {url}\n")
    print(table(results))
    if settings.reasons:
        client_reasons.write(Path(settings.reasons), results, settings.client, table(results))
    if settings.allow:
        allow(results, settings.client)
    return check_allowed(results, settings)


def copy_client(python: Path, work: Path) -> Path:
    """A copy of google/genai that comes before the installed one, so that media can lie beside its tests; its tests folder."""
    source = subprocess.run(
        [python, "-c", "import google.genai; print(google.genai.__path__[0])"], check=True, capture_output=True, text=True
    ).stdout.strip()
    target = work / "google" / "genai"
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    return target / "tests"


def make_media(folder: Path) -> None:
    """The files that tests open: pictures, sounds, a film, a text, a PDF and lists of requests, small but whole."""
    folder.mkdir(exist_ok=True)
    for name in ("google", "checkerboard", "bridge1", "google_homepage", "a-man-and-a-dog"):
        (folder / f"{name}.png").write_bytes(small_media.picture())
    for name in ("google", "man", "dog", "skateboard_stop_sign", "segmentation_scribble"):
        (folder / f"{name}.jpg").write_bytes(small_media.picture("JPEG"))
    (folder / "story.pdf").write_bytes(small_media.pdf())
    (folder / "story.txt").write_text(small_media.TEXT)
    (folder / "animal.mp4").write_bytes(small_media.clip(seconds=2, rate=4))
    for name in ("pixel.m4a", "voice_sample.wav"):
        (folder / name).write_bytes(small_media.sound(Path(name).suffix, seconds=2))
    ask = {"contents": [{"role": "user", "parts": [{"text": "what is the number after 1?"}]}]}
    write_lines(folder / "requests.jsonl", ask)
    write_lines(folder / "embeddings.jsonl", {"content": {"parts": [{"text": "1"}]}})


def write_lines(path: Path, request: dict[str, Any]) -> None:
    """A list of two requests for a batch."""
    path.write_text("".join(json.dumps({"key": f"request-{i}", "request": request}) + "\n" for i in range(2)))


def upload_files(url: str, data: Path) -> None:
    """Give the server the files that tests name by id. A server without files refuses; then those tests fail by themselves."""
    for name, source in UPLOADS.items():
        content = (data / source).read_bytes()
        head = {"X-Goog-Upload-Protocol": "resumable", "Content-Type": "application/json", "x-goog-api-key": "key"}
        start = {"X-Goog-Upload-Command": "start", "X-Goog-Upload-Header-Content-Length": str(len(content))}
        kind = {"X-Goog-Upload-Header-Content-Type": KINDS[Path(source).suffix]}
        body = json.dumps({"file": {"name": f"files/{name}"}}).encode()
        try:
            answer = urllib.request.urlopen(urllib.request.Request(f"{url}/upload/v1beta/files", body, head | start | kind))
            last = {"X-Goog-Upload-Command": "upload, finalize", "X-Goog-Upload-Offset": "0"}
            urllib.request.urlopen(urllib.request.Request(answer.headers["X-Goog-Upload-URL"], content, last))
        except urllib.error.HTTPError as error:
            print(f"files/{name} was not taken: {error.read().decode(errors='replace')[:200]}", file=sys.stderr)


def make_film(url: str) -> None:
    """Have the film that tests find among the files. A model that does not draw refuses; then those tests fail by themselves."""
    body, head = (
        json.dumps({"instances": [{"prompt": "a red circle"}]}).encode(),
        {"Content-Type": "application/json", "x-goog-api-key": "key"},
    )
    try:
        ask = urllib.request.Request(f"{url}/v1beta/models/veo-2.0-generate-001:predictLongRunning", body, head)
        operation = json.load(urllib.request.urlopen(ask))
        while not operation.get("done"):
            time.sleep(1)
            operation = json.load(urllib.request.urlopen(urllib.request.Request(f"{url}/v1beta/{operation['name']}", headers=head)))
    except urllib.error.HTTPError as error:
        print(f"no film was made: {error.read().decode(errors='replace')[:200]}", file=sys.stderr)


def run(python: Path, work: Path, url: str, settings: Settings) -> list[dict[str, Any]]:
    """One result per test: {test, sent, outcome, reason}."""
    report = work / "report.jsonl"
    report.touch()
    cleared = ("GOOGLE_GENAI_USE_VERTEXAI", "GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION", "GEMINI_API_KEY", "http_proxy", "https_proxy")
    environ = {key: value for key, value in os.environ.items() if key not in cleared and key.upper() not in ("HTTP_PROXY", "HTTPS_PROXY")}
    environ |= {
        "PYTHONPATH": os.pathsep.join([str(work), str(HERE)]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "GOOGLE_API_KEY": "key",
        "GOOGLE_GENAI_REPLAYS_DIRECTORY": str(work / "replays"),
        "GOOGLE_GENAI_RUN_GEMINI_ONLY_IN_API_MODE": "1",
        "NO_GCE_CHECK": "true",
        "CLIENT_TESTS_SERVER": url,
        "CLIENT_TESTS_REPORT": str(report),
        "CLIENT_TESTS_SECONDS": str(settings.seconds),
    }
    paths = [str(path) for name in settings.tests if (path := work / "google" / "genai" / "tests" / name).exists()]
    options = ["--mode=api", "-p", "client_plugin", "-p", "no:cacheprovider", "--continue-on-collection-errors", "-q", "--no-header"]
    options += ["-o", "consider_namespace_packages=true", "-o", "addopts=", "--tb=no", "--show-capture=no", "-W", "ignore", "-r", "N"]
    subprocess.run([python, "-P", "-m", "pytest", *options, *paths], cwd=work / "google" / "genai", env=environ, stdout=sys.stderr)
    return [json.loads(line) for line in report.read_text().splitlines()]


def table(results: list[dict[str, Any]]) -> str:
    """Per folder: tests, those that sent a request, passed and failed among these, skipped by themselves, broken at import."""
    columns = ("tests", "sent a request", "passed", "failed", "skipped", "not importable")
    rows: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for result in results:
        for name in (result["test"].split("/")[0], "all"):
            row = rows[name]
            row["tests"] += result["outcome"] != "broken"
            row["not importable"] += result["outcome"] == "broken"
            row["skipped"] += result["outcome"] == "skipped" and not result["sent"]
            if result["sent"]:
                row["sent a request"] += 1
                row["passed" if result["outcome"] == "passed" else "failed"] += 1
    if not rows:
        return "no test was found"
    lines = [f"{'folder':<20}" + "".join(f"{name:>{len(name) + 2}}" for name in columns)]
    for folder in [*(name for name in rows if name != "all"), "all"]:
        lines.append(f"{folder:<20}" + "".join(f"{rows[folder][name]:>{len(name) + 2}}" for name in columns))
    return "\n".join(lines)


def allowed() -> dict[str, set[str]]:
    """The tests that must pass, by version: lines of `VERSION TEST`."""
    tests: dict[str, set[str]] = collections.defaultdict(set)
    for line in ALLOW_LIST.read_text().splitlines() if ALLOW_LIST.exists() else []:
        if line.strip() and not line.startswith("#"):
            version, name = line.split()
            tests[version].add(name)
    return tests


def allow(results: list[dict[str, Any]], version: str) -> None:
    """Add what passed to the list."""
    tests = allowed()
    tests[version] |= {result["test"] for result in results if result["sent"] and result["outcome"] == "passed"}
    head = ["# Tests of google-genai that must pass with the model of recipes/calls.py; benchmarks/client_tests.py checks them"]
    names = [f"{version} {name}" for version in sorted(tests) for name in sorted(tests[version])]
    ALLOW_LIST.write_text("\n".join([*head, *names]) + "\n")


def check_allowed(results: list[dict[str, Any]], settings: Settings) -> int:
    """Name the tests that must pass and did not; 1 if there are any."""
    found = {result["test"]: result for result in results}
    wanted = [name for name in sorted(allowed()[settings.client]) if any(name.startswith(part.rstrip("/")) for part in settings.tests)]
    bad = [name for name in wanted if name not in found or not found[name]["sent"] or found[name]["outcome"] != "passed"]
    if bad:
        print(f"\n{len(bad)} of {len(wanted)} tests that must pass did not:")
        for name in bad:
            print(f"  {name}: {found[name]['reason'] if name in found else 'it did not run'}")
    elif wanted:
        print(f"\nall {len(wanted)} tests that must pass did")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings, description=__doc__)))
