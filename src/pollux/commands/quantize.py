"""`pollux quantize`: a model folder with weights of 4 or 8 bits."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import tyro

import pollux
from pollux.data.folder import FolderConfig, FolderSource
from pollux.data.source import Source, WorldSource, sample
from pollux.data.world import World, WorldConfig
from pollux.generate.model import Model
from pollux.shrink.quantize import Method
from pollux.shrink.quantize import quantize as quantize_model
from pollux.tokens.interleave import encode
from pollux.tokens.sequence import Sequence

TASKS = {"image": "picture", "audio": "speech", "video": "clip"}  # of the world, by what a model reads


def quantize(
    folder: tyro.conf.Positional[Path],
    /,
    out: Path,
    bits: int = 4,
    method: Method = "gptq",
    data: Path | None = None,
    documents: int = 512,
) -> None:
    """Write a model folder whose matrices have 4 or 8 bits a weight and a scale for every 32 of them.

    Example: pollux quantize runs/quickstart/model --bits 4 --out runs/quickstart/model-4bit

    Args:
        folder: Model folder.
        out: Folder to write; it must not exist, or be empty.
        bits: 4 or 8.
        method: gptq moves rounding errors to where the calibration documents feel them least; nearest needs no documents.
        data: Your folder of calibration documents, laid out as for training; without it, documents of the built-in world.
        documents: Number of calibration documents.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: choose a folder that does not exist")
    model = pollux.load(folder)
    seen = calibration(model, data, documents) if method == "gptq" else ()
    quantized = quantize_model(model, bits, method, seen, lambda line: print(line, flush=True))
    quantized.save(out)
    before, after = (sum(file.stat().st_size for file in path.glob("*.safetensors")) for path in (folder, out))
    print(f"{out}: {after / 1e6:,.1f} MB of weights instead of {before / 1e6:,.1f} MB")


def calibration(model: Model, data: Path | None, documents: int) -> Iterator[Sequence]:
    """Documents of the folder, or of those tasks of the world whose media the model reads and draws, taking turns.

    What cannot be read, or not by this model, is left out. Raises ValueError if nothing can.
    """
    if model.vocabulary is None:
        raise ValueError("the model folder has no tokenizer.json, so it cannot read calibration documents; use --method nearest")
    if data is not None:
        sources: list[Source] = [FolderSource(data, FolderConfig(held_out=0.0))]
    else:
        reads = [soft.name for soft in model.config.soft_inputs]
        tasks = ["story", *(TASKS[name] for name in reads), *(["draw"] if model.codec else [])]
        world = World(WorldConfig(speech_clips=200))
        sources = [WorldSource(world, task) for task in tasks]
    turns = itertools.zip_longest(*(sample(source, documents) for source in sources))
    read, problem = 0, "there is none"
    for document in itertools.islice((d for turn in turns for d in turn if d is not None), documents):
        try:
            sequence = encode(document, model.vocabulary, model.tokens_config, model.codec, model.limits)
        except ValueError as error:
            problem = str(error)
            continue
        read += 1
        yield sequence
    if not read:
        raise ValueError(f"no calibration document can be read ({problem}): give others with --data, or use --method nearest")


def main(arguments: list[str]) -> None:
    """Entry of `pollux quantize`."""
    tyro.cli(quantize, prog="pollux quantize", args=arguments)
