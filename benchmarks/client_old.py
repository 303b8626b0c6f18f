"""The previous official client, google-generativeai 0.8.6 over REST, against a running server: what a program of its day does.

    python benchmarks/client_old.py http://127.0.0.1:8000

Run it with an interpreter that has google-generativeai 0.8.6 and Pillow; it needs nothing of pollux. Uploads of that client begin at
Google's discovery address, whatever it is configured for, so the file is brought by a plain request; the client then finds and uses it.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import urllib.request
from collections.abc import Callable


def main(server: str, model: str) -> int:
    """Take all steps, print how each went; the exit code is the number of those that failed."""
    import google.generativeai as genai
    import PIL.Image

    genai.configure(api_key="key", transport="rest", client_options={"api_endpoint": server})
    picture = PIL.Image.new("RGB", (64, 48), "red")

    def chat() -> str:
        conversation = genai.GenerativeModel(model, system_instruction="Be brief.").start_chat()
        conversation.send_message("Hello")
        conversation.send_message("And again")
        return f"{len(conversation.history)} turns"

    def upload() -> str:
        data = io.BytesIO()
        picture.save(data, "PNG")
        request = urllib.request.Request(f"{server}/upload/v1beta/files", data.getvalue(), {"Content-Type": "image/png"})
        request.add_header("X-Goog-Upload-Protocol", "raw")
        with urllib.request.urlopen(request) as reply:
            file = genai.get_file(json.load(reply)["file"]["name"])
        answer = genai.GenerativeModel(model).generate_content([file, "What is this?"], generation_config={"max_output_tokens": 16})
        genai.delete_file(file.name)
        return f"{file.name}, then {answer.candidates[0].finish_reason.name}"

    def call() -> str:
        declaration = {
            "name": "weather",
            "description": "Weather of a city",
            "parameters": {"type": "OBJECT", "properties": {"city": {"type": "STRING", "enum": ["Bern", "Rome"]}}, "required": ["city"]},
        }
        answer = genai.GenerativeModel(model, tools=[{"function_declarations": [declaration]}]).generate_content(
            "Weather in Rome?", tool_config={"function_calling_config": {"mode": "ANY"}}
        )
        return str(answer.candidates[0].content.parts[0].function_call.name)

    short = {"max_output_tokens": 16}
    schema = {"response_mime_type": "application/json", "response_schema": {"type": "BOOLEAN"}}
    steps: dict[str, Callable[[], object]] = {
        "list models": lambda: [found.name for found in genai.list_models()],
        "get model": lambda: genai.get_model(f"models/{model}").input_token_limit,
        "generate": lambda: (
            genai.GenerativeModel(model).generate_content("Hello", generation_config=short).usage_metadata.total_token_count
        ),
        "picture": lambda: genai.GenerativeModel(model).generate_content([picture, "What?"], generation_config=short).candidates[0].index,
        "stream": lambda: len(list(genai.GenerativeModel(model).generate_content("Hello", generation_config=short, stream=True))),
        "chat": chat,
        "JSON": lambda: genai.GenerativeModel(model).generate_content("Yes?", generation_config=schema).text,
        "call": call,
        "count": lambda: genai.GenerativeModel(model).count_tokens("Hello").total_tokens,
        "embed": lambda: len(genai.embed_content(f"models/{model}", "Hello", output_dimensionality=8)["embedding"]),
        "embed several": lambda: len(genai.embed_content(f"models/{model}", ["Hello", "You"])["embedding"]),
        "upload": upload,
    }
    failed = 0
    for name, step in steps.items():
        try:
            print(f"{name}: {step()}")
        except Exception as error:  # whatever goes wrong is what this script is for
            failed += 1
            print(f"{name}: FAILED {type(error).__name__}: {str(error)[:300]}")
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", help="its URL")
    parser.add_argument("model", nargs="?", default="gemini-2.5-flash")
    asked = parser.parse_args()
    sys.exit(main(asked.server.rstrip("/"), asked.model))
