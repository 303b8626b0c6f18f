"""Text of the world without media: sums, and small stories with a question at the end.

Stories name any pair of colour and shape: a pair is held out from pictures, clips, drawings and speech, not from plain text.
"""

from __future__ import annotations

import numpy as np

from pollux.data.world.grammar import Exchange
from pollux.data.world.scene import COLOURS, SHAPES

NAMES = ("tom", "mia", "sam", "ben", "ana", "leo")
ROOMS = ("house", "park", "shop", "school", "garden")


def arithmetic(rng: np.random.Generator) -> Exchange:
    """A sum or a difference of numbers below 100 with a result of at least 0, for example `12 + 7 =` and `19`."""
    first, second = (int(v) for v in rng.integers(0, 100, 2))
    if rng.random() < 0.5:
        return Exchange("sum", f"{first} + {second} =", str(first + second))
    return Exchange("difference", f"{max(first, second)} - {min(first, second)} =", str(abs(first - second)))


def story(rng: np.random.Generator) -> Exchange:
    """A story of a few sentences and a question: who has a thing after gifts, or where a person is after walks."""
    return _gifts(rng) if rng.random() < 0.5 else _walks(rng)


def _gifts(rng: np.random.Generator) -> Exchange:
    names = [NAMES[i] for i in rng.permutation(len(NAMES))[:3]]
    colours, shapes = rng.permutation(list(COLOURS))[:2], rng.permutation(SHAPES)[:2]
    things = [f"{c} {s}" for c, s in zip(colours, shapes, strict=True)]
    owner = {things[0]: names[0], things[1]: names[1]}
    sentences = [f"{name} has the {thing}" for thing, name in owner.items()]
    for _ in range(int(rng.integers(1, 4))):
        thing = things[rng.integers(2)]
        receivers = [n for n in names if n != owner[thing]]
        receiver = receivers[rng.integers(2)]
        sentences.append(f"{owner[thing]} gave the {thing} to {receiver}")
        owner[thing] = receiver
    thing = things[rng.integers(2)]
    return Exchange("who_has", f"{', '.join(sentences)}, who has the {thing}", owner[thing])


def _walks(rng: np.random.Generator) -> Exchange:
    names = [NAMES[i] for i in rng.permutation(len(NAMES))[:2]]
    where: dict[str, str] = {}
    sentences = []
    for step in range(int(rng.integers(2, 6))):
        name = names[step] if step < 2 else names[rng.integers(2)]
        rooms = [r for r in ROOMS if r != where.get(name)]
        where[name] = rooms[rng.integers(len(rooms))]
        sentences.append(f"{name} went to the {where[name]}")
    name = names[rng.integers(2)]
    return Exchange("where_is", f"{', '.join(sentences)}, where is {name}", where[name])
