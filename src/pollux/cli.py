"""The `pollux` command: one verb per job, each in its own module under `commands/`.

Only the module of the verb that was asked for is imported, so help is quick. A user's mistake (ValueError, a missing file)
becomes one line on stderr and exit code 2.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys

from pollux.commands.memory import keep_freed_memory

VERBS = {
    "quickstart": "train a small model on the built-in world, judge it on held-out data and write report.html",
    "train": "train a model from a recipe",
    "teach": "write what a teacher expects at every step of a student's run",
    "tokenizer": "train a text tokeniser on your files",
    "codec": "train the image codec that lets a model draw",
    "data": "show the documents of the world, of a folder or of a step of a run",
    "model": "show a model's size and cost, hash its weights or write a random one",
    "tokens": "count the tokens of files per modality",
    "generate": "answer one prompt of text, images, sound and video",
    "chat": "hold a conversation in the terminal",
    "serve": "answer over HTTP: the Gemini API, OpenAI's routes and a page",
    "keys": "make, list and remove the API keys of a server",
    "quantize": "write a model folder with weights of 4 or 8 bits",
    "export": "write a model folder that another program opens",
    "evaluate": "score a model on held-out items of the world",
}


def usage() -> str:
    """The text of `pollux --help`."""
    verbs = "\n".join(f"  {name:<11} {sentence}" for name, sentence in VERBS.items())
    return (
        "usage: pollux VERB ...\n\n"
        f"{verbs}\n\n"
        '`pollux VERB --help` lists the flags of a verb. Example: pollux generate runs/quickstart/model "What is this?" --image photo.png\n'
        "POLLUX_TRACEBACK=1 shows where in the code an error arose."
    )


def main(arguments: list[str] | None = None) -> int:
    """Run one command line (default: sys.argv) and return the exit code: 0, or 2 for a user's mistake."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        print(f"pollux: there is no verb {verb!r}; choose from {', '.join(VERBS)}", file=sys.stderr)
        return 2
    # numpy's matrix products here are small, and its threads would spin against those of XLA.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    keep_freed_memory()
    gc.set_threshold(100_000)  # importing and tracing make many objects and hardly a cycle
    try:
        importlib.import_module(f"pollux.commands.{verb}").main(rest)
    except (ValueError, OSError) as error:
        if os.environ.get("POLLUX_TRACEBACK") == "1":
            raise
        print(f"pollux {verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"\npollux {verb}: {interrupt.args[0] if interrupt.args else 'stopped'}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
