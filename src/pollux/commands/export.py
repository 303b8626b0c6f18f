"""`pollux export`: a model folder in the layout of another program."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import tyro

import pollux
from pollux.shrink.export import to_transformers


def export(
    folder: tyro.conf.Positional[Path],
    /,
    out: Path,
    to: Literal["hf", "gguf"] = "hf",
    type: Literal["f16", "q8_0", "q4_0"] | None = None,
) -> None:
    """Write a model that another program opens: hf for Hugging Face transformers, and so vLLM and SGLang; gguf for llama.cpp.

    Example: pollux export runs/mine/model --to hf --out runs/mine/hf

    Example: pollux export runs/mine/model --to gguf --type q4_0 --out runs/mine/model.gguf

    Args:
        folder: Model folder.
        out: Folder to write, or file for gguf; it must not exist, or be an empty folder.
        to: Layout of what is written.
        type: How gguf keeps weights: f16, or with a scale for 32 of 8 bits (q8_0) or 4 bits (q4_0). Without it, f16.
    """
    if to == "gguf":
        _export_gguf(folder, out, type or "f16")
        return
    if type is not None:
        raise ValueError("--type is about --to gguf; a folder for transformers keeps the types that it has")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: choose a folder that does not exist")
    to_transformers(pollux.load(folder), out)
    print(f"{out}: open it with transformers, for example AutoModelForCausalLM.from_pretrained({str(out)!r})")


def _export_gguf(folder: Path, out: Path, kind: Literal["f16", "q8_0", "q4_0"]) -> None:
    try:
        from pollux.shrink.gguf_file import to_gguf
    except ModuleNotFoundError as error:
        raise ValueError(f"--to gguf needs the package {error.name}: pip install 'pollux[export]'") from error
    if out.exists():
        raise ValueError(f"{out} exists: choose a file that does not")
    model = pollux.load(folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    to_gguf(model, out, kind)
    inputs = [soft.name for soft in model.config.soft_inputs] + ["drawing"] * (model.codec is not None)
    print(f"{out}: open it with llama.cpp, for example llama-cli -m {out}" + (f"; without {', '.join(inputs)}" if inputs else ""))


def main(arguments: list[str]) -> None:
    """Entry of `pollux export`."""
    tyro.cli(export, prog="pollux export", args=arguments)
