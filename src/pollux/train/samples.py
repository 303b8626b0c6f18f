"""What a finished model does: prompts from documents that the run never read, answered, beside what they went on with.

A source that keeps nothing back shows documents of the training itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pollux.content import Content, Document, Part, Text
from pollux.data.source import Source
from pollux.generate.model import Model
from pollux.media import MediaError

TEXT_TOKENS = 64  # most tokens of an answer without a picture
DRAW_MARGIN = 16  # tokens beside the codes of a picture
OPENING = 240  # characters of running text in a prompt, and in what is expected


@dataclass(frozen=True)
class Sample:
    """One prompt, the answer of the model, and what the document says."""

    prompt: tuple[Part, ...]
    answer: tuple[Part, ...]
    expected: tuple[Part, ...] = ()


def answered(model: Model, sources: Sequence[Source], number: int, longest: int) -> list[Sample]:
    """At most `number` samples, taken from the sources in turn; the most probable answer to each.

    Documents that the model cannot read, or whose prompt has more than `longest` tokens, are passed over.
    """
    cases = list(itertools.islice(_cases(model, sources, longest), number))
    limit = TEXT_TOKENS
    if model.codec is not None:
        codes = model.codec.config.num_codes * len(model.codec.levels)
        limit = max(limit, codes + DRAW_MARGIN)
    results = model.generate_many([contents for contents, _ in cases], temperature=0, max_output_tokens=limit)
    return [
        Sample(tuple(part for content in contents for part in content.parts), result.parts, expected)
        for (contents, expected), result in zip(cases, results, strict=True)
    ]


def _cases(model: Model, sources: Sequence[Source], longest: int) -> Iterator[tuple[tuple[Content, ...], tuple[Part, ...]]]:
    """(prompt, what the document goes on with), a document of each source after the other, until the finite ones have ended."""
    readable = {soft.name for soft in model.config.soft_inputs}
    documents = [_documents(source) for source in sources]
    for document in itertools.chain.from_iterable(itertools.zip_longest(*documents)):
        if document is not None and (document.contents or document.branches):
            contents, expected = split(document)
            try:
                prompt = model.prompt(contents)
            except MediaError:
                continue
            if len(prompt) <= longest and set(prompt.soft) <= readable:
                yield contents, expected


def _documents(source: Source) -> Iterator[Document | None]:
    """The documents of a source, None for one that cannot be read."""
    kept = source.held_out()
    source = source if kept.length == 0 else kept
    for index in itertools.count() if source.length is None else range(source.length):
        try:
            yield source.document(index)
        except MediaError:
            yield None


def split(document: Document) -> tuple[tuple[Content, ...], tuple[Part, ...]]:
    """A document with its first branch as a prompt and what follows: its last model turn, or how running text goes on."""
    *before, last = document.contents + (document.branches[0] if document.branches else ())
    if last.role == "model":
        return tuple(before), last.parts
    if last.role == "" and last.parts and isinstance(last.parts[-1], Text):
        text = last.parts[-1].text
        half = min(OPENING, len(text) // 2)
        middle = text.rfind(" ", 0, half + 1) if " " in text[: half + 1] else half
        prompt = Content("", (*last.parts[:-1], Text(text[:middle])))
        return (*before, prompt), (Text(text[middle : middle + OPENING]),)
    return (*before, last), ()
