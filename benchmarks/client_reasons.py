"""Why tests of the official client do not pass, in words, and the page docs/conformance.md that lists them; part of client_tests.py."""

from __future__ import annotations

import collections
import re
from pathlib import Path
from typing import Any

HEAD = """# Conformance with the official client

The tests that a version of google-genai ships, run against `pollux serve` by benchmarks/client_tests.py, whose `--reasons` writes this
page; a test counts if it sent a request. What does not pass is listed under the reason, with the words in which it failed.
"""

# The first pattern that is found in how a test failed says why; what is left over failed for what the model said.
WHY = (
    (r"parameters\.(aspectRatio|resolution)", "It asks for a film of a form that the model does not draw"),
    (r"lastFrame|referenceImages", "It asks for a film with a given end or given things, and the model draws from the beginning on"),
    (r"there is no operation", "It means a film of its authors' account"),
    (r"download_uri", "It needs a film that was made before"),
    (r"_EXISTING_", "It means a store or a document of its authors' account"),
    (r"media_id", "It looks for pictures in a store, which holds text here"),
    (r"only supported in Gemini Enterprise", "Its own client refuses to send it without an account at Google"),
    (r"does not answer with AUDIO", "It asks for speech, and the model writes and draws"),
    (r"gs://|files:register", "It means a file in Google's storage, which nothing here may fetch"),
    (r"tunedModels", "It means a tuned model of its authors' account"),
    (r"'Content-Type' in", "It looks for a header in capitals, but httpx makes all names lower case"),
    (r"Should have raised|DID NOT RAISE", "It wants a refusal of what works here, or of what is ignored with a warning"),
    (r"has_thought", "It wants thoughts, and the model has none"),
    (r"executable_code", "It wants code to be run, and the model ran none"),
    (r"is not served here", "It means a model that its authors alone have"),
    (r"not supported; supported are|INVALID_ARGUMENT|NOT_FOUND", "The server refuses it"),
    (r"INTERNAL|ServerError|no end after", "The server failed"),
)
ELSE = "It asserts what the answer says, and a model of this size says something else"


def write(path: Path, results: list[dict[str, Any]], version: str, table: str) -> None:
    """Put the section of a version into the page, in place of the one that was there."""
    sections: dict[str, str] = {}
    if path.exists():
        for part in re.split(r"(?m)^(?=## google-genai )", path.read_text())[1:]:
            sections[part.split()[2]] = part.strip() + "\n"
    sections[version] = _section(results, version, table)
    ordered = sorted(sections, key=lambda name: [int(number) for number in name.split(".")])
    path.write_text("\n".join([HEAD, *(sections[name] for name in ordered)]))


def _section(results: list[dict[str, Any]], version: str, table: str) -> str:
    groups: dict[str, list[str]] = collections.defaultdict(list)
    for result in results:
        if result["outcome"] == "broken" or (result["sent"] and result["outcome"] != "passed"):
            groups[why(result["reason"])].append(f"- {result['test']}: `{result['reason'].replace('`', '')[:110]}`")
    lines = [f"## google-genai {version}", "", "```", table, "```"]
    for reason, tests in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0])):
        lines += ["", f"{reason} ({len(tests)}):", "", *sorted(tests)]
    return "\n".join(lines) + "\n"


def why(reason: str) -> str:
    """A sentence for how a test failed."""
    return next((sentence for pattern, sentence in WHY if re.search(pattern, reason)), ELSE)
