"""`pollux codec train`: the image codec on a folder of pictures, or on the world's drawings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tyro

from pollux.compilation import use_compilation_cache
from pollux.content import Image
from pollux.data.world import WorldConfig, render, sample_scene, stream
from pollux.media import media_kind
from pollux.tokens.codec import CodecConfig, CodecTraining, Progress
from pollux.tokens.codec import train as train_codec
from pollux.tokens.image import resize

HELD_OUT = 20  # every so many pictures of a folder are kept for the reported PSNR
JUDGED = 256  # most pictures that PSNR is measured on


def train(
    pictures: tyro.conf.Positional[str],
    /,
    out: Path,
    size: tuple[int, int] = CodecConfig.size,
    patch: int = CodecConfig.patch,
    form_levels: tuple[int, ...] = CodecConfig.form_levels,
    colour_levels: tuple[int, ...] = CodecConfig.colour_levels,
    hidden: int = CodecConfig.hidden,
    batch: int = 32,
    steps: int = CodecTraining.steps,
    seconds: float | None = None,
    learning_rate: float = CodecTraining.learning_rate,
    seed: int = 0,
) -> None:
    """Train an image codec, report the PSNR of pictures that it was not trained on, and write it to OUT.

    Example: pollux codec train photos/ --out my-codec --size 64 64 --steps 3000

    Args:
        pictures: A folder, whose pictures are scaled to the codec's size, or the word world.
        out: Folder that receives codec.json and codec.safetensors.
        size: Height and width of a picture in pixels.
        patch: Side in pixels of the square that one code stands for.
        form_levels: Quantisation levels of the digit that says how a patch varies; their product is its number of values.
        colour_levels: Quantisation levels of the digit that says which colours a patch has.
        hidden: Width of the codec's networks.
        batch: Pictures in a step.
        steps: Steps of training.
        seconds: End after this time if it comes before the last step.
        learning_rate: Highest learning rate of AdamW.
        seed: Seed of the weights and of the order of the pictures.
    """
    use_compilation_cache()
    if batch < 1:
        raise ValueError(f"batch {batch} must be at least 1 picture")
    config = CodecConfig(size, patch, 2 * patch, form_levels, colour_levels, hidden)
    training = CodecTraining(steps=steps, seconds=seconds, learning_rate=learning_rate, seed=seed)
    learned, judged = _world(config, seed) if pictures == "world" else _folder(Path(pictures), config, seed)
    batches = (np.stack(list(itertools.islice(learned, batch))) for _ in itertools.count())
    codec = train_codec(batches, config, training, _print_progress)
    quality = codec.quality(judged)
    codec.save(out)
    perplexity = ", ".join(f"{used:.0f} of {size}" for used, size in zip(quality.perplexity, codec.levels, strict=True))
    print(f"{out}: PSNR {quality.psnr:.2f} dB on {len(judged)} held-out pictures; values in use per digit: {perplexity}")


def _print_progress(progress: Progress) -> None:
    if progress.step == 1 or progress.step % 100 == 0:
        print(f"step {progress.step}  {progress.done:4.0%}  loss {progress.loss:.5f}  PSNR {progress.psnr:.2f} dB", flush=True)


def _world(config: CodecConfig, seed: int) -> tuple[Iterator[np.ndarray], np.ndarray]:
    """Endless drawings without held-out pairs, and a stack of drawings with them."""
    scenes = WorldConfig().drawing

    def drawing(split: str, index: int) -> np.ndarray:
        return resize(render(sample_scene(stream(seed, "codec", split, index), scenes, split == "held_out")), *config.size)

    return (drawing("train", i) for i in itertools.count()), np.stack([drawing("held_out", i) for i in range(JUDGED)])


def _folder(folder: Path, config: CodecConfig, seed: int) -> tuple[Iterator[np.ndarray], np.ndarray]:
    """The pictures of a folder without end, each once an epoch, and a stack of those that are held out."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of pictures; give a folder or the word world")
    paths = sorted(path for path in folder.rglob("*") if media_kind(path) == "image")
    if len(paths) < 2:
        raise ValueError(f"{folder} holds {len(paths)} pictures; a codec needs at least 2, one of them to be judged on")
    held_out = paths[::HELD_OUT]
    kept = sorted(set(paths) - set(held_out))

    def picture(path: Path) -> np.ndarray:
        return resize(Image(path).pixels(), *config.size)

    rng = np.random.default_rng(seed)
    learned = (picture(kept[i]) for _ in itertools.count() for i in rng.permutation(len(kept)))
    return learned, np.stack([picture(path) for path in held_out[:JUDGED]])


def main(arguments: list[str]) -> None:
    """Entry of `pollux codec`."""
    tyro.extras.subcommand_cli_from_dict({"train": train}, prog="pollux codec", args=arguments)
