"""Few-shot documents of the world: three labelled pictures of one object each, then a picture to label.

Two games: the label is an attribute that the examples show (colour, shape or both), or a made-up word that stands for one
value of an attribute in this document only, so that it can be known from the examples alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pollux.data.world.scene import COLOURS, GRID, HELD_OUT, SHAPES, Scene, SceneConfig, make_scene, place_thing, sample_pairs

WORDS = ("dax", "wug", "blick", "toma", "fep", "zup")
EXAMPLES = 3


@dataclass(frozen=True)
class FewShot:
    """The truth of one few-shot document; the last scene and label are the query."""

    kind: str  # "colour", "shape", "pair" or "word"
    scenes: tuple[Scene, ...]
    labels: tuple[str, ...]

    @property
    def held_out(self) -> bool:
        return any(s.held_out for s in self.scenes)


def sample_few_shot(rng: np.random.Generator, config: SceneConfig, held_out: bool) -> FewShot:
    """A random game. held_out True: the query shows a held-out pair, the examples never do."""
    return _word_game(rng, config, held_out) if rng.random() < 0.5 else _attribute_game(rng, config, held_out)


def _attribute_game(rng: np.random.Generator, config: SceneConfig, held_out: bool) -> FewShot:
    kind = ("colour", "shape", "pair")[rng.integers(3)]
    pairs = [sample_pairs(rng, 1, held_out and i == EXAMPLES)[0] for i in range(EXAMPLES + 1)]
    labels = tuple({"colour": c, "shape": s, "pair": f"{c} {s}"}[kind] for c, s in pairs)
    return FewShot(kind, tuple(_picture(rng, config, p) for p in pairs), labels)


def _word_game(rng: np.random.Generator, config: SceneConfig, held_out: bool) -> FewShot:
    by_colour = bool(rng.random() < 0.5)
    query = sample_pairs(rng, 1, held_out)[0]
    value, other = query if by_colour else query[::-1]
    values = [v for v in (COLOURS if by_colour else SHAPES) if v != value]
    shown = [value, *(values[i] for i in rng.permutation(len(values))[: EXAMPLES - 1])]
    shown = [shown[i] for i in rng.permutation(EXAMPLES)]
    words = [WORDS[i] for i in rng.permutation(len(WORDS))[:EXAMPLES]]
    pairs = [_example(rng, v, other) for v in shown] + [query]
    labels = (*words, words[shown.index(value)])
    return FewShot("word", tuple(_picture(rng, config, p) for p in pairs), labels)


def _example(rng: np.random.Generator, value: str, other: str) -> tuple[str, str]:
    """A pair for training with this colour or shape, and without the query's value of the other attribute."""
    pairs = [(c, s) for c in COLOURS for s in SHAPES if value in (c, s) and other not in (c, s) and (c, s) not in HELD_OUT]
    return pairs[rng.integers(len(pairs))]


def _picture(rng: np.random.Generator, config: SceneConfig, pair: tuple[str, str]) -> Scene:
    return make_scene(rng, config, (place_thing(rng, config, pair, int(rng.integers(GRID * GRID))),))
