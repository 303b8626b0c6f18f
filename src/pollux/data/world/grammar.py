"""What is said about a scene: captions in several styles, questions with their answers, and requests to draw.

All strings are lower case and follow from the scene, so that an answer can be compared word for word. Styles differ in the
order of the attributes: if the colour always came before the shape, text alone would predict one from the other. Every kind
of prompt has phrasings for training and one, last in its list, that only evaluation uses and whose words all occur in training.
Where an answer follows from two facts, the facts are said first and the verdict last ("left and middle, yes"): chain of thought (Wei
et al. 2022). A bare yes or no teaches a small model next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pollux.data.world.scene import COLOURS, HELD_OUT, SHAPES, SIZES, Scene, Thing

NUMBERS = ("zero", "one", "two", "three")
LINES = {"column": ("left", "middle", "right"), "row": ("top", "middle", "bottom")}  # of the grid

STYLES: dict[str, Callable[[Thing], str]] = {
    "": lambda t: f"a {t.size} {t.colour} {t.shape} {t.place}",
    " shape first": lambda t: f"{t.shape} {t.colour} {t.size} {t.place}",
    " place first": lambda t: f"{t.place} {t.shape} {t.size} {t.colour}",
    " colour first": lambda t: f"{t.colour} {t.place} {t.shape} {t.size}",
}
CAPTION_PROMPTS = ("caption{style}", "describe{style}", "caption this{style}", "describe this{style}")
LIST_PROMPTS = ("list{style}", "name{style}", "list all{style}")
DRAW_PROMPTS = ("draw {objects}", "paint {objects}", "draw a picture of {objects}", "paint a picture of {objects}")
QUESTIONS: dict[str, tuple[str, ...]] = {  # how each kind's last one is built, other kinds show in training
    "colour": ("what colour is {a}", "{a} is what colour", "{a} is which colour", "say which colour {a} is", "which colour is {a}"),
    "shape": ("what shape is {a}", "which shape is {a}", "{a} is what shape", "say what shape {a} is", "{a} is which shape"),
    "size": ("what size is {a}", "which size is {a}", "{a} is which size", "say which size {a} is", "{a} is what size"),
    "place": ("where is {a}", "what place is {a} in", "{a} is where", "say where {a} is", "which place is {a} in"),
    "count": ("how many {a}", "count the {a}", "how many {a} are there", "say how many {a} there are", "count how many {a}"),
    "exists": ("is there {a}", "do you see {a}", "is {a} here", "say if there is {a}", "is there {a} here"),
    "left_of": ("is {a} left of {b}", "is {a} to the left of {b}", "{a} is left of {b} yes or no", "{a} is to the left of {b} yes or no"),
    "above": ("is {a} above {b}", "is {a} higher than {b}", "{a} is above {b} yes or no", "{a} is higher than {b} yes or no"),
}
SPOKEN_KINDS = ("colour", "shape", "size", "place", "count", "exists")  # asked aloud, in the first phrasing


@dataclass(frozen=True)
class Exchange:
    """A prompt and its right answer; `kind` names the type of question."""

    kind: str
    prompt: str
    answer: str
    facts: str = ""  # what the answer says before its verdict

    @property
    def verdict(self) -> str:
        """The part of the answer that settles the question, which is all of it where no facts come first."""
        return self.answer.removeprefix(f"{self.facts}, ") if self.facts else self.answer


def concluded(kind: str, prompt: str, facts: str, verdict: str) -> Exchange:
    """An exchange whose answer is the verdict, after the facts if there are any."""
    return Exchange(kind, prompt, f"{facts}, {verdict}" if facts else verdict, facts)


def phrase(rng: np.random.Generator, phrasings: tuple[str, ...], unseen: bool) -> str:
    """A training phrasing at random, or the one that only evaluation uses."""
    return phrasings[-1] if unseen else phrasings[rng.integers(len(phrasings) - 1)]


def describe(scene: Scene, style: str = "") -> str:
    """The objects of a scene in reading order, in one of STYLES."""
    return ", ".join(STYLES[style](t) for t in scene.things)


def captions(rng: np.random.Generator, scene: Scene, count: int, unseen: bool = False) -> list[Exchange]:
    """`count` captions of different styles, each asked for by the name of its style."""
    names = list(STYLES)
    chosen = [names[i] for i in rng.permutation(len(names))[:count]]
    return [Exchange("caption", phrase(rng, CAPTION_PROMPTS, unseen).format(style=s), describe(scene, s)) for s in chosen]


def listings(rng: np.random.Generator, scene: Scene, count: int) -> list[Exchange]:
    """`count` captions of different styles that name the objects in any order: all but the first word of each has to be looked up by it."""
    found = []
    for i in rng.permutation(len(STYLES))[:count]:
        style = list(STYLES)[i]
        things = [scene.things[j] for j in rng.permutation(len(scene.things))]
        prompt = LIST_PROMPTS[rng.integers(len(LIST_PROMPTS))].format(style=style)
        found.append(Exchange("list", prompt, ", ".join(STYLES[style](t) for t in things)))
    return found


def draw_request(rng: np.random.Generator, scene: Scene, unseen: bool = False) -> str:
    """A request to draw the scene's objects, in a random style."""
    style = list(STYLES)[rng.integers(len(STYLES))]
    return phrase(rng, DRAW_PROMPTS, unseen).format(objects=describe(scene, style))


def kinds_for(scene: Scene) -> tuple[str, ...]:
    """The kinds of question that this scene allows."""
    rows, columns = {t.row for t in scene.things}, {t.column for t in scene.things}
    return (*SPOKEN_KINDS, *(("left_of",) if len(columns) > 1 else ()), *(("above",) if len(rows) > 1 else ()))


def questions(rng: np.random.Generator, scene: Scene, count: int) -> list[Exchange]:
    """Up to `count` training questions of different kinds."""
    kinds = kinds_for(scene)
    return [ask(rng, scene, kinds[i]) for i in rng.permutation(len(kinds))[:count]]


def ask(rng: np.random.Generator, scene: Scene, kind: str, unseen: bool = False, held_out: bool = False) -> Exchange:
    """One question of this kind. `unseen`: in the phrasing for evaluation; `held_out`: it may name held-out pairs."""
    names, *answer = _subject(rng, scene, kind, held_out)
    return concluded(kind, phrase(rng, QUESTIONS[kind], unseen).format(**names), *answer)


def ask_aloud(rng: np.random.Generator, scene: Scene, held_out: bool = False) -> Exchange:
    """One question among those that `spoken_sentences` lists."""
    kind = SPOKEN_KINDS[rng.integers(len(SPOKEN_KINDS))]
    names, *answer = _subject(rng, scene, kind, held_out)
    return concluded(kind, QUESTIONS[kind][0].format(**names), *answer)


def spoken_sentences(held_out: bool) -> tuple[str, ...]:
    """Every sentence of `ask_aloud`; those about a held-out pair only if `held_out`."""
    by_shape, by_colour = [f"the {s}" for s in SHAPES], [f"the {c} one" for c in COLOURS]
    pairs = [f"{_article(c)} {c} {s}" for c in COLOURS for s in SHAPES if held_out or (c, s) not in HELD_OUT]
    subjects = {
        "colour": by_shape,
        "shape": by_colour,
        "size": by_shape + by_colour,
        "place": by_shape + by_colour,
        "count": ["objects", *(f"{s} ones" for s in SIZES)],
        "exists": pairs,
    }
    return tuple(QUESTIONS[kind][0].format(a=a) for kind in SPOKEN_KINDS for a in subjects[kind])


def _subject(rng: np.random.Generator, scene: Scene, kind: str, held_out: bool) -> tuple[dict[str, str], str, str]:
    """What a question is about, by the names in its phrasings, the facts to say first, and the verdict."""
    thing = scene.things[rng.integers(len(scene.things))]
    if kind == "colour":
        return {"a": f"the {thing.shape}"}, "", thing.colour
    if kind == "shape":
        return {"a": f"the {thing.colour} one"}, "", thing.shape
    if kind == "size":
        return {"a": refer(rng, thing)}, "", thing.size
    if kind == "place":
        return {"a": refer(rng, thing)}, "", thing.place
    if kind == "count":
        if rng.random() < 0.5:
            return {"a": "objects"}, "", NUMBERS[len(scene.things)]
        size = SIZES[rng.integers(2)]
        return {"a": f"{size} ones"}, "", NUMBERS[sum(t.size == size for t in scene.things)]
    if kind == "exists":
        present = bool(rng.random() < 0.5)
        colour, shape = (thing.colour, thing.shape) if present else _near_miss(rng, scene, thing, held_out)
        names = {"a": f"{_article(colour)} {colour} {shape}"}
        return names, f"{_article(colour)} {colour} {thing.shape}", "yes" if present else "no"
    if kind in ("left_of", "above"):
        axis = "column" if kind == "left_of" else "row"
        pairs = [(s, t) for s in scene.things for t in scene.things if getattr(s, axis) < getattr(t, axis)]
        pair = pairs[rng.integers(len(pairs))]
        yes = bool(rng.random() < 0.5)
        first, second = pair if yes else pair[::-1]
        facts = " and ".join(LINES[axis][getattr(t, axis)] for t in (first, second))
        return {"a": refer(rng, first), "b": refer(rng, second)}, facts, "yes" if yes else "no"
    raise ValueError(f"question kind {kind!r} must be one of {', '.join(QUESTIONS)}")


def refer(rng: np.random.Generator, thing: Thing) -> str:
    """Name an object by its colour or by its shape; either is unique in a scene."""
    return f"the {thing.colour} one" if rng.random() < 0.5 else f"the {thing.shape}"


def _near_miss(rng: np.random.Generator, scene: Scene, thing: Thing, held_out: bool) -> tuple[str, str]:
    """An absent pair with the colour of an object that is present: half the time with the shape of another one."""
    others = [t.shape for t in scene.things if t is not thing]
    shapes = others if others and rng.random() < 0.5 else [s for s in SHAPES if s != thing.shape]
    allowed = [s for s in shapes if held_out or (thing.colour, s) not in HELD_OUT]
    if not allowed:
        return _near_miss(rng, scene, thing, held_out)
    return thing.colour, allowed[rng.integers(len(allowed))]


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
