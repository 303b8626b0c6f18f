"""`pollux export`: a model folder in the layout of another program."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import tyro

import pollux
from pollux.shrink.export import to_transformers


def export(folder: tyro.conf.Positional[Path], /, out: Path, to: Literal["hf"] = "hf") -> None:
    """Write a model folder that another program opens: hf for Hugging Face transformers, and so vLLM and SGLang.

    Example: pollux export runs/mine/model --to hf --out runs/mine/hf

    Args:
        folder: Model folder.
        out: Folder to write; it must not exist, or be empty.
        to: Layout of the folder that is written.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: choose a folder that does not exist")
    to_transformers(pollux.load(folder), out)
    print(f"{out}: open it with transformers, for example AutoModelForCausalLM.from_pretrained({str(out)!r})")


def main(arguments: list[str]) -> None:
    """Entry of `pollux export`."""
    tyro.cli(export, prog="pollux export", args=arguments)
