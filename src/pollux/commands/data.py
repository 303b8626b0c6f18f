"""`pollux data`: what a run would read from the world or from a folder, and what a step of a run has read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import tyro

from pollux.content import Content, Document, FunctionCall, FunctionResponse, Text, write_jsonl
from pollux.data.folder import FolderConfig, FolderSource
from pollux.data.source import Source, WorldSource, describe, sample
from pollux.data.world import TASKS, World

Task = Literal[
    "picture", "speech", "spoken_question", "clip", "draw", "film", "few_shot", "arithmetic", "story", "conversation", "call", "talk"
]
MOST_CHARACTERS = 400  # of a text that are printed


def data(
    source: tyro.conf.Positional[str],
    /,
    task: tuple[Task, ...] = (),
    show: int = 1,
    count: int = 100,
    step: int | None = None,
    out: Path | None = None,
) -> None:
    """Show what a source of documents holds: a few documents as text, and how much there is in the first ones.

    Example: pollux data world --task picture draw

    Example: pollux data my-folder --show 5 --out look

    Example: pollux data runs/smoke --step 40

    Args:
        source: The word world, a folder, or with --step the folder of a run.
        task: Tasks of the world to show; all if none is named.
        show: Documents to print from each source.
        count: Documents to count from each source.
        step: Show what this step of a run has read, rebuilt exactly; the first step is 1.
        out: Folder that receives what is shown: documents.jsonl with media as files, or step-N.npz with the arrays of a step.
    """
    if step is not None:
        show_step(Path(source), step, out)
        return
    shown: list[Document] = []
    for name, opened in _sources(source, task).items():
        documents = list(sample(opened, show))
        shown += documents
        print(f"{name}: {_summary(opened, count)}")
        for document in documents:
            print("\n".join(f"    {line}" for line in _lines(document)))
    if out is not None:
        write_jsonl(out / "documents.jsonl", shown, out / "media")
        print(f"{out / 'documents.jsonl'}: {len(shown)} documents")


def show_step(run: Path, step: int, out: Path | None) -> None:
    """Print what a step of a run has read and, if `out` is given, write its arrays there. Raises ValueError if there was no such step."""
    from pollux.train.divergence import save_batch
    from pollux.train.reading import replay, spell

    batch, vocabulary = replay(run, step)
    for line in spell(batch, vocabulary):
        print(line)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        save_batch(out / f"step-{step}.npz", batch)
        print(out / f"step-{step}.npz")


def _sources(source: str, task: tuple[str, ...]) -> dict[str, Source]:
    if source == "world":
        world = World()
        return {name: WorldSource(world, name) for name in task or TASKS}
    if task:
        raise ValueError(f"--task names a task of the world, but the source is the folder {source}")
    folder = FolderSource(source, FolderConfig(held_out=0))
    for file, reason in folder.left_out.items():
        print(f"left out: {file}: {reason}")
    return {source: folder}


def _summary(source: Source, count: int) -> str:
    """One line about the first `count` documents of a source."""
    facts = describe(source, count)
    documents = facts["documents"]
    size = "endless" if documents["in_source"] < 0 else f"documents: {documents['in_source']:,}"
    parts = ", ".join(f"{number:,} {kind}" for kind, number in facts["parts"].items())
    held = f"{documents['branches']:,} branches, {parts}, {facts['text']['characters']:,} characters"
    return f"{size}; the first {documents['looked_at']} hold {held}"


def _lines(document: Document) -> list[str]:
    """A document as lines of text, branches indented."""
    lines = [_turn(content) for content in document.contents]
    for branch in document.branches:
        lines.append("  └ " + "  ".join(_turn(content) for content in branch))
    return lines + ([f"means: {document.align}"] if document.align is not None else [])


def _turn(content: Content) -> str:
    words = []
    for part in content.parts:
        if isinstance(part, Text):
            words.append(part.text if len(part.text) <= MOST_CHARACTERS else f"{part.text[:MOST_CHARACTERS]} ...")
        elif isinstance(part, FunctionCall | FunctionResponse):
            words.append(str(part))
        else:
            path = f" {part.source}" if isinstance(part.source, str | Path) else ""
            words.append(f"[{type(part).__name__.lower()}{path}]")
    return f"{content.role or 'text'}: {' '.join(words)}"


def main(arguments: list[str]) -> None:
    """Entry of `pollux data`."""
    tyro.cli(data, prog="pollux data", args=arguments)
