"""`pollux generate`: one prompt, one answer."""

from __future__ import annotations

from pathlib import Path

import tyro

import pollux
from pollux.commands.pictures import save_pictures
from pollux.commands.settings import SamplingFlags, Settings
from pollux.compilation import use_compilation_cache
from pollux.content import Audio, Content, Image, Part, Text, Video
from pollux.model.cache import CacheDtype

Paths = tyro.conf.UseAppendAction[tuple[Path, ...]]


def generate(
    folder: tyro.conf.Positional[Path],
    prompt: tyro.conf.Positional[str],
    /,
    image: Paths = (),
    audio: Paths = (),
    video: Paths = (),
    out: Path = Path("."),
    draft: str | None = None,
    kv_cache_dtype: CacheDtype | None = None,
    sampling: SamplingFlags = Settings(),
) -> None:
    """Answer one prompt; media come before the text, drawn pictures are saved and their paths printed.

    Example: pollux generate runs/quickstart/model "what is in the picture?" --image photo.png

    Args:
        folder: Model folder.
        prompt: Text of the user's turn.
        image: Picture file; may be given several times.
        audio: Sound file; may be given several times.
        video: Video file; may be given several times.
        out: Folder for drawn pictures.
        draft: Folder of a smaller model with the same vocabulary, or "lookup": the same answer from fewer passes of a large model.
        kv_cache_dtype: Keep keys and values in 8 bits each, for longer texts in the same memory; on a CPU int8 has kernels.
    """
    use_compilation_cache()
    parts: list[Part] = [*map(Image, image), *map(Audio, audio), *map(Video, video), Text(prompt)]
    result = pollux.load(folder, draft=draft, kv_cache_dtype=kv_cache_dtype).generate(Content("user", tuple(parts)), **sampling.given())
    if result.text:
        print(result.text)
    for path in save_pictures(result.images, out):
        print(path)


def main(arguments: list[str]) -> None:
    """Entry of `pollux generate`."""
    tyro.cli(generate, prog="pollux generate", args=arguments)
