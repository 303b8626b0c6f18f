"""Programs written for other servers against `pollux serve`: which of them work when one address is changed.

    .venv/bin/python benchmarks/programs.py runs/quickstart/model

Starts the server with the folder (or takes --server URL) and runs what lies in benchmarks/programs/: OpenAI's client, LangChain's wrapper
of the Gemini API, inspect-ai's google provider, lm-eval, and Google's client for JavaScript if node is here. Each has a virtual environment
of its own, with the version of its package that is newest when that is made. Prints what passed, and why the rest did not; the exit code is
1 if something failed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import small_media
import tyro
from served import environment, gemini

PROGRAMS = Path(__file__).resolve().parent / "programs"
PACKAGES = {
    "openai_client": ("openai", "numpy"),
    "langchain_google": ("langchain-google-genai",),
    "inspect_google": ("inspect-ai", "google-genai"),
    "lm_eval_local": ("lm-eval[api]",),
    "genai_js": ("@google/genai",),
}


@dataclass(frozen=True)
class Settings:
    folder: tyro.conf.Positional[str] = ""  # of the model to serve
    server: str = ""  # URL of a server that runs already, instead of a folder; its model must have the alias gemini-*
    programs: tuple[str, ...] = tuple(PACKAGES)  # that are run
    seconds: float = 900.0  # for one program
    environments: str = "~/.cache/pollux/programs"  # a virtual environment or folder of packages for each


def main(settings: Settings) -> int:
    """Run the programs, print the table, return the exit code."""
    server = gemini(settings.folder, settings.server)
    if unknown := sorted(set(settings.programs) - set(PACKAGES)):
        raise ValueError(f"there is no program {', '.join(unknown)}; there are {', '.join(PACKAGES)}")
    commands = {name: prepared(name, Path(settings.environments).expanduser() / name) for name in settings.programs}
    with tempfile.TemporaryDirectory(prefix="programs_") as work, server as url:
        results = {name: run(*command, Path(work), url, settings.seconds) for name, command in commands.items() if command}
    print(table(results, {name: command[1] for name, command in commands.items() if command}))
    return int(any(check["reason"] for checks in results.values() for check in checks))


def prepared(name: str, folder: Path) -> tuple[list[str], str] | None:
    """The command of a program whose packages are in the folder, and which version of its package that is; None without node."""
    package = PACKAGES[name][0].partition("[")[0]
    if name != "genai_js":
        python = environment(folder, PACKAGES[name])
        asked = f"from importlib import metadata; print(metadata.version('{package}'))"
        version = subprocess.run([python, "-c", asked], check=True, capture_output=True, text=True).stdout.strip()
        return [str(python), str(PROGRAMS / f"{name}.py")], f"{package} {version}"
    if not shutil.which("npm"):
        print("genai_js: node is not here", file=sys.stderr)
        return None
    if not (folder / "node_modules").exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "install", "--silent", "--prefix", str(folder), package], check=True)
    shutil.copy(PROGRAMS / f"{name}.mjs", folder)  # node looks for packages above the file
    version = json.loads((folder / "node_modules" / package / "package.json").read_text())["version"]
    return ["node", str(folder / f"{name}.mjs")], f"{package} {version}"


def run(command: list[str], title: str, work: Path, url: str, seconds: float) -> list[dict[str, str]]:
    """One result per check: {check, reason}, reason "" if it passed."""
    cleared = ("OPENAI_API_KEY", "GEMINI_API_KEY", "GOOGLE_GENAI_USE_VERTEXAI", "PYTHONPATH")
    environ = {key: value for key, value in os.environ.items() if key not in cleared and not key.lower().endswith("_proxy")}
    (work / "disc.png").write_bytes(small_media.picture())
    (work / "pages.pdf").write_bytes(small_media.pdf())
    environ |= {"PROGRAMS_SERVER": url, "PROGRAMS_FILES": str(work), "GOOGLE_API_KEY": "key", "HF_HUB_OFFLINE": "1"}
    print(f"{title} against {url}", file=sys.stderr, flush=True)
    try:
        done = subprocess.run(command, cwd=work, env=environ, stdout=subprocess.PIPE, text=True, timeout=seconds)
        output, end = done.stdout, f"it ended with exit code {done.returncode}" if done.returncode else ""
    except subprocess.TimeoutExpired as error:
        output, end = (error.stdout or b"").decode(), f"it did not come to its end within {seconds:g} seconds"
    checks = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return [*checks, {"check": "the program", "reason": end}] if end else checks


def table(results: dict[str, list[dict[str, str]]], versions: dict[str, str]) -> str:
    """A line for each program, and one for each check that failed."""
    lines = [f"pollux {metadata.version('pollux')}", f"{'program':<36}{'passed':>8}{'failed':>8}"]
    for name, checks in results.items():
        failed = [check for check in checks if check["reason"]]
        lines.append(f"{versions[name]:<36}{len(checks) - len(failed):>8}{len(failed):>8}")
        lines += [f"  {check['check']}: {' '.join(check['reason'].split())[:300]}" for check in failed]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings, description=__doc__)))
