"""Prompts and what is expected after them come from documents that a run does not read; what cannot be read is passed over."""

from __future__ import annotations

import numpy as np
import PIL.Image
from random_batch import small_model

from pollux.content import Audio, Content, Document, Image, Text
from pollux.data.folder import FolderConfig, FolderSource
from pollux.data.source import WorldSource
from pollux.data.world import World
from pollux.generate.answer import Result, Usage
from pollux.media import MediaError
from pollux.tokens.config import TokensConfig
from pollux.tokens.interleave import encode_prompt
from pollux.tokens.text import MINIMUM_SIZE, train_bpe
from pollux.tokens.vocabulary import Vocabulary
from pollux.train.samples import answered


class Echo:
    """Stands in for a Model: answers with the last part of the prompt."""

    codec = None
    config = small_model()  # reads pictures
    vocabulary = Vocabulary(train_bpe([], MINIMUM_SIZE))

    def prompt(self, contents):
        return encode_prompt(contents, self.vocabulary, TokensConfig())

    def generate_many(self, prompts, **sampling):
        return [Result((p[-1].parts[-1],), np.zeros(1, np.int32), np.zeros(1, np.float32), "stop", Usage({}, {})) for p in prompts]


def picture(folder, name, content=None):
    folder.mkdir(exist_ok=True)
    PIL.Image.new("RGB", (4, 4)).save(folder / f"{name}.png")
    if content is not None:
        (folder / f"{name}.png").write_bytes(content)
    (folder / f"{name}.txt").write_text(f"picture {name}")


class Documents:
    """A source of given documents that keeps nothing back."""

    bad_files = "skip"

    def __init__(self, *documents):
        self.documents, self.length = documents, len(documents)

    def held_out(self):
        return Documents()

    def document(self, index):
        if self.documents[index] is None:
            raise MediaError("broken")
        return self.documents[index]


def test_sources_take_turns_and_broken_documents_are_passed_over(tmp_path):
    picture(tmp_path, "a", b"no picture")
    picture(tmp_path, "b")
    text = Documents(None, Document(()), Document((Content("", (Text("one two three four"),)),)))
    folder = FolderSource(tmp_path, FolderConfig(held_out=0))
    samples = answered(Echo(), [folder, text, WorldSource(World(), "arithmetic")], 4, longest=100)
    words = [[part.text for part in sample.prompt if isinstance(part, Text)] for sample in samples]
    assert words[1::2] == [["caption"], ["one two"]]
    assert [sample.expected for sample in samples[1::2]] == [(Text("picture b"),), (Text(" three four"),)]
    assert all(sample.answer == sample.prompt[-1:] for sample in samples)
    assert words[0] != words[2] and all(sample.prompt[-1].text.endswith(" =") for sample in samples[::2])


def test_what_is_held_out_is_shown_where_there_is_some(tmp_path):
    for i in range(40):
        picture(tmp_path, str(i))
    folder = FolderSource(tmp_path, FolderConfig(held_out=0.3))
    kept = folder.held_out()
    samples = answered(Echo(), [folder], 100, longest=100)
    assert [sample.expected[0].text for sample in samples] == [kept.document(i).contents[1].parts[0].text for i in range(kept.length)]
    assert 0 < len(samples) < 30


def test_what_is_too_long_or_cannot_be_heard_is_passed_over():
    def asked(*parts):
        return Document((Content("user", parts), Content("model", (Text("yes"),))))

    sound, letters = Audio(np.zeros(1600, np.float32), 16_000), Text("x" * 60)
    samples = answered(Echo(), [Documents(asked(sound), asked(letters), asked(Text("short")))], 9, longest=40)
    assert [sample.prompt for sample in samples] == [(Text("short"),)]


def test_a_branch_follows_its_prefix_and_an_empty_prompt_is_one():
    shown, question = Content("user", (Image(np.zeros((16, 16, 3), np.uint8)),)), Content("user", (Text("which way"),))
    branched = Document((shown,), ((question, Content("model", (Text("left"),))), (question, Content("model", (Text("up"),)))))
    drawing = Document((Content("model", (Image(np.zeros((2, 2, 3), np.uint8)),)),))
    first = answered(Echo(), [Documents(branched)], 5, longest=100)[0]
    assert first.prompt == (*shown.parts, Text("which way")) and first.expected == (Text("left"),)

    class Silent(Echo):
        def generate_many(self, prompts, **sampling):
            assert prompts == [()]
            return super().generate_many([(question,)])

    assert answered(Silent(), [Documents(drawing)], 5, longest=100)[0].expected == drawing.contents[0].parts


def test_a_document_of_the_world_that_no_run_reads_is_another_than_the_first():
    source = WorldSource(World(), "story")
    assert source.held_out().document(0) != source.document(0)
    assert source.held_out().document(0) == source.held_out().document(0)
