"""`pollux codec train`: the image codec on a folder of pictures, or on the world's drawings."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import tyro

from pollux.compilation import use_compilation_cache
from pollux.content import Image
from pollux.data.folder import files
from pollux.data.world import WorldConfig, render, sample_scene, stream
from pollux.media import MediaError, media_kind
from pollux.tokens.codec import CodecConfig, CodecTraining, Progress
from pollux.tokens.codec import train as train_codec
from pollux.tokens.image import resize

HELD_OUT = 20  # every so many pictures of a folder are kept for the reported PSNR
JUDGED = 256  # most pictures that PSNR is measured on
KEPT_BYTES = 1 << 30  # of pictures at the codec's size that stay in memory; the others are read from their files every time


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
        pictures: A folder, whose pictures are scaled to the codec's size, or the word world. Hidden files are ignored, broken ones listed.
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
    broken: dict[Path, str] = {}
    if pictures == "world":
        learned, judged = _world(config, seed)
    else:
        read = _Pictures(Path(pictures), config)
        learned, judged, broken = read.learned(seed), np.stack(read.judged), read.broken
    batches = (np.stack(list(itertools.islice(learned, batch))) for _ in itertools.count())
    codec = train_codec(batches, config, training, _print_progress)
    quality = codec.quality(judged)
    codec.save(out)
    perplexity = ", ".join(f"{used:.0f} of {size}" for used, size in zip(quality.perplexity, codec.levels, strict=True))
    if broken:
        print(f"pictures that could not be used: {len(broken)}")
        for reason in broken.values():
            print(f"    {reason}")
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


class _Pictures:
    """The pictures of a folder at the codec's size, as many as there is room for in memory.

    `judged` is one of each HELD_OUT pictures, `broken` maps those that could not be read so far to the reason.
    """

    def __init__(self, folder: Path, config: CodecConfig):
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder of pictures; give a folder or the word world")
        self.folder, self.size = folder, config.size
        self.broken: dict[Path, str] = {}
        self._kept: dict[Path, np.ndarray] = {}
        self._room = KEPT_BYTES
        paths = [path for path in files(folder) if media_kind(path) == "image"]
        groups = [paths[start : start + HELD_OUT] for start in range(0, len(paths), HELD_OUT)]
        judged = dict(first for group in groups[:JUDGED] for first in itertools.islice(self._read(group), 1))
        self.judged = list(judged.values())
        self._learned = sorted(set(paths) - set(judged) - set(self.broken))
        if not self._learned:
            reason = f", the first is {next(iter(self.broken.values()))}" if self.broken else ""
            raise ValueError(
                f"{folder} holds {len(paths)} pictures, {len(self.broken)} of them broken{reason};"
                " a codec needs at least 2 whole ones, one of them to be judged on"
            )

    def learned(self, seed: int) -> Iterator[np.ndarray]:
        """The other pictures without end, each once an epoch. Raises ValueError if none can be read."""
        rng = np.random.default_rng(seed)
        while any(path not in self.broken for path in self._learned):
            yield from (pixels for _, pixels in self._read([self._learned[i] for i in rng.permutation(len(self._learned))]))
        raise ValueError(f"none of the pictures of {self.folder} to learn from can be read, the last is {list(self.broken.values())[-1]}")

    def _read(self, paths: Iterable[Path]) -> Iterator[tuple[Path, np.ndarray]]:
        """The pictures of those paths that are not broken."""
        for path in paths:
            if path in self._kept:
                yield path, self._kept[path]
            elif path not in self.broken:
                try:
                    pixels = resize(Image(path).pixels(), *self.size)
                except MediaError as error:
                    self.broken[path] = str(error)
                    continue
                if pixels.nbytes <= self._room:
                    self._kept[path], self._room = pixels, self._room - pixels.nbytes
                yield path, pixels


def main(arguments: list[str]) -> None:
    """Entry of `pollux codec`."""
    tyro.extras.subcommand_cli_from_dict({"train": train}, prog="pollux codec", args=arguments)
