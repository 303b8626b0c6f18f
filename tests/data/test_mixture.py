"""The order of a run: exact shares, every document of an epoch once, the same everywhere."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pollux.content import Content, Document, Text
from pollux.data.folder import FolderConfig, Prompts
from pollux.data.mixture import DataConfig, Mixture, SourceConfig, Stage, open_mixture
from pollux.data.source import describe, sample
from pollux.data.world import SceneConfig, WorldConfig
from pollux.media import Limits


@dataclass(frozen=True)
class Numbers:
    """Documents that say which source and index they are."""

    name: str
    length: int | None = None
    bad_files: str = "stop"

    def document(self, index: int) -> Document:
        assert index >= 0 and (self.length is None or index < self.length)
        return Document((Content("", (Text(f"{self.name} {index}"),)),))

    def origin(self, index: int) -> str:
        return f"{self.name} {index}"


def located(mixture: Mixture, n: int, start: int = 0) -> list[tuple[int, int]]:
    return [mixture.locate(i) for i in range(start, start + n)]


@pytest.mark.parametrize("length", [1, 2, 3, 7, 64, 101])
def test_a_finite_source_is_read_once_per_epoch(length):
    order = [index for _, index in located(Mixture([Numbers("a", length)], [1], seed=3), 4 * length)]
    epochs = np.reshape(order, (4, length))
    assert (np.sort(epochs, axis=1) == np.arange(length)).all()


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(located(Mixture([Numbers("a", 50)], [1], seed=seed), 50, 50 * epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_every_document_is_equally_likely_to_open_an_epoch():
    first = np.bincount([Mixture([Numbers("a", 5)], [1], seed=seed).locate(0)[1] for seed in range(1000)], minlength=5)
    assert ((first - 200) ** 2 / 200).sum() < 18.5  # chi-square, 4 degrees of freedom, p = 0.001


def test_two_sources_of_one_length_are_read_in_different_orders():
    order = located(Mixture([Numbers("a", 40), Numbers("b", 40)], [1, 1]), 80)
    assert [i for source, i in order if source == 0] != [i for source, i in order if source == 1]


def test_in_a_mixture_nothing_is_repeated_or_skipped_within_an_epoch():
    lengths, weights = [13, 5, None], [0.2, 0.3, 0.5]
    order = located(Mixture([Numbers(str(n), n) for n in lengths], weights, seed=1), 1000)
    for number, length in enumerate(lengths):
        read = [index for source, index in order if source == number]
        if length is None:
            assert read == list(range(len(read)))
        else:
            for start in range(0, len(read), length):
                epoch = read[start : start + length]
                assert len(set(epoch)) == len(epoch)


def test_shares_are_exact_after_every_cycle_and_close_in_between():
    weights = np.array([0.1, 0.25, 0.65])  # 2 : 5 : 13
    order = [source for source, _ in located(Mixture([Numbers(str(i)) for i in range(3)], weights), 2000)]
    counts = np.cumsum(np.eye(3)[order], axis=0)
    ideal = np.arange(1, 2001)[:, None] * weights
    assert np.abs(counts - ideal).max() < 3
    assert np.abs(counts - ideal)[19::20].max() < 1e-6


def test_a_weight_of_zero_reads_nothing_wherever_it_stands():
    for number in range(3):
        weights = [1.0, 1.0, 1.0]
        weights[number] = 0.0
        counts = Counter(source for source, _ in located(Mixture([Numbers(str(i)) for i in range(3)], weights), 100))
        assert number not in counts and set(counts.values()) == {50}


def test_stages_change_the_shares_and_continue_where_each_source_was():
    mixture = Mixture([Numbers("a"), Numbers("b", 7)], [1, 0], [Stage(10, (1, 1)), Stage(30, (0, 1))])
    order = located(mixture, 60)
    assert [source for source, _ in order[:10]] == [0] * 10
    assert Counter(source for source, _ in order[10:30]) == {0: 10, 1: 10}
    assert [source for source, _ in order[30:]] == [1] * 30
    assert [index for source, index in order if source == 0] == list(range(20))
    read = [index for source, index in order if source == 1]
    assert all(sorted(read[start : start + 7]) == list(range(7)) for start in range(0, 35, 7))


def test_a_position_is_found_without_the_ones_before_it():
    def new():
        return Mixture([Numbers("a", 11), Numbers("b")], [2, 1], [Stage(50, (1, 5))], seed=5)

    assert [new().locate(i) for i in (140, 3, 77, 50)] == [located(new(), 150)[i] for i in (140, 3, 77, 50)]


def test_another_process_sees_the_same_order():
    code = "from test_mixture import *; print(located(Mixture([Numbers('a', 11), Numbers('b', 9)], [2, 1], seed=4), 100))"
    there = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout
    assert there.strip() == str(located(Mixture([Numbers("a", 11), Numbers("b", 9)], [2, 1], seed=4), 100))


def test_positions_far_out_are_as_good_as_near_ones():
    mixture = Mixture([Numbers("a", 10), Numbers("b")], [0.5, 0.5])
    far = located(mixture, 20, 10**12)
    assert sorted(index for source, index in far if source == 0) == list(range(10))


@pytest.mark.parametrize(
    ("weights", "stages", "sentence"),
    [
        ([1.0], [], "one weight per source"),
        ([0.0, 0.0], [], "not all 0"),
        ([1.0, -1.0], [], ">= 0"),
        ([1.0, float("nan")], [], ">= 0"),
        ([1.0, 1.0], [Stage(5, (1.0,))], "one weight per source"),
        ([1.0, 1.0], [Stage(5, (1.0, 2.0)), Stage(5, (1.0, 1.0))], "later than the one before"),
        ([1.0, 1.0], [Stage(0, (1.0, 2.0))], "after document 0"),
    ],
)
def test_wrong_weights_and_stages_are_refused(weights, stages, sentence):
    with pytest.raises(ValueError, match=sentence):
        Mixture([Numbers("a"), Numbers("b")], weights, stages)


def test_an_empty_source_is_refused():
    with pytest.raises(ValueError, match="no documents"):
        Mixture([Numbers("a", 0)], [1])


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "world"},
        {"kind": "world", "task": "dance"},
        {"kind": "folder", "task": "draw"},
        {"kind": "web", "path": "x"},
        {"kind": "folder", "path": "x", "weight": -1},
    ],
)
def test_a_wrong_source_is_refused(wrong):
    with pytest.raises(ValueError):
        SourceConfig(**wrong)


def test_a_config_survives_json():
    config = DataConfig(
        sources=(SourceConfig("world", task="draw", weight=0.5), SourceConfig("folder", path="photos")),
        stages=(Stage(100, (1.0, 2.0)),),
        folder=FolderConfig(prompts=Prompts(audio="write down"), bad_files="stop"),
        prompt_dropout=0.1,
        world=WorldConfig(picture=SceneConfig(max_objects=2)),
        limits=Limits(max_seconds=9.0),
    )
    assert DataConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_an_unknown_field_of_a_config_is_named():
    with pytest.raises(ValueError, match="data.folder has no field drawn"):
        DataConfig.from_json({"sources": [{"kind": "folder", "path": "x"}], "folder": {"drawn": True}})


def test_a_config_opens_folders_and_the_world(tmp_path):
    (tmp_path / "note.txt").write_text("hello")
    config = DataConfig(
        (SourceConfig("folder", path=str(tmp_path)), SourceConfig("world", task="arithmetic")), folder=FolderConfig(held_out=0)
    )
    mixture = open_mixture(config, seed=0)
    assert mixture.document(0).contents[0].parts[0].text == "hello" or mixture.document(1).contents[0].parts[0].text == "hello"
    assert "arithmetic" in mixture.origin(0) + mixture.origin(1)


def test_a_description_counts_what_a_sample_holds():
    source = Numbers("abc", 5)
    assert [document.contents[0].parts[0].text for document in sample(source, 2)] == ["abc 0", "abc 1"]
    described = describe(source, 100)
    assert described["documents"] == {"looked_at": 5, "in_source": 5, "branches": 0}
    assert described["parts"] == {"text": 5} and described["text"] == {"characters": 25}
