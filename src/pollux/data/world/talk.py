"""Talk without media or functions: short stories about whom one likes, facts in JSON, words said again, and the made-up words for them.

Words are made of syllables, so that there is no end of them; to say one again is to copy it, letter by letter.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from pollux.content import Content, Document, Text
from pollux.data.world.stories import NAMES, ROOMS

T = TypeVar("T")

ONSETS = (*"bcdfghjklmnprstvwz", "st", "br", "tr", "sh", "ch", "pl", "gr", "fr", "sl", "th", "kr", "fl")
VOWELS = (*"aeiou", "ai", "ea", "oo", "ou", "y")
CODAS = ("", "", "", "n", "r", "l", "s", "t", "m", "ck", "st", "nd", "ng", "x")
HEROES = ("fox", "bird", "girl", "boy", "king", "cat", "dog", "car", "robot", "ship", "bear", "teacher")
WISHES = ("a home", "a friend", "a song", "some bread", "the sea", "an old map", "a red ball", "a warm coat")
PLACES = (*ROOMS, "river", "forest", "hill", "town", "bridge", "market")
WEATHER = ("the sun was warm", "it rained", "the wind was loud", "snow fell", "it was very quiet", "the moon was bright")
ENDINGS = ("so all was well", "and they went home", "and nobody was sad", "and that was the end", "and they became friends")
STORY_PROMPTS = ("tell me a story", "tell a story", "write a story", "a story please", "make up a story", "i want to hear a story")
ECHO_PROMPTS = ("say {}", "repeat {}", "say again: {}", "repeat after me: {}", "write {}", "echo {}")
FACT_PROMPTS = ("tell me about {}", "give me information about {}", "what do you know of {}", "describe {}")
LIST_PROMPTS = ("list {n} {what}", "name {n} {what}", "give me {n} {what}")
KEYS = ("name", "size", "colour", "age", "owner", "code", "price", "title", "kind", "parts", "year", "home", "friend", "number", "text")
KINDS = ("text", "text", "number", "decimal", "flag", "list", "object", "objects")  # of values
NUMBERS = ("two", "three", "four", "five")
GREETINGS = ("hello", "hi", "good morning", "good evening", "hey there")


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    return choices[int(rng.integers(len(choices)))]


def made_up(rng: np.random.Generator) -> str:
    """A word of one to three syllables, in lower case."""
    return "".join(pick(rng, ONSETS) + pick(rng, VOWELS) + pick(rng, CODAS) for _ in range(int(rng.choice((1, 2, 3), p=(0.3, 0.5, 0.2)))))


def place(rng: np.random.Generator) -> str:
    """A name of one or two words, or a few capitals."""
    kind = rng.random()
    if kind < 0.12:
        return "".join(chr(65 + int(i)) for i in rng.integers(0, 26, int(rng.integers(2, 5))))
    if kind < 0.45:
        first = pick(rng, ("New", "San", "Port", "Old", "Los", "Fort")) if rng.random() < 0.5 else made_up(rng).capitalize()
        return f"{first} {made_up(rng).capitalize()}"
    return made_up(rng).capitalize() if kind < 0.9 else made_up(rng)


def said_as(rng: np.random.Generator, text: str, question: bool) -> str:
    """The way people write it: with or without a capital and, of a question, a mark."""
    if rng.random() < 0.6:
        text = text[:1].upper() + text[1:]
    if text.endswith("="):
        return text
    ends = ("?", "?", "", ".", "?") if question else (".", ".", "")
    return text + pick(rng, ends)


def conversation(rng: np.random.Generator) -> Document:
    """A document of up to six rounds."""
    return Document(tuple(turn for _ in range(int(rng.integers(1, 7))) for turn in turns(rng)))


def turns(rng: np.random.Generator) -> tuple[Content, ...]:
    """Something that the user says, and the answer."""
    kind = rng.random()
    if kind < 0.3:
        prompt, answer = story(rng)
    elif kind < 0.55:
        prompt, answer = facts(rng)
    elif kind < 0.6:
        greeting = pick(rng, GREETINGS)
        prompt, answer = greeting, f"{greeting}, what can i do for you"
    else:
        words = " ".join(_word(rng) for _ in range(int(rng.integers(1, 5))))
        prompt, answer = pick(rng, ECHO_PROMPTS).format(words), words
    return Content("user", (Text(said_as(rng, prompt, False)),)), Content("model", (Text(answer),))


def story(rng: np.random.Generator) -> tuple[str, str]:
    """A request for a story, perhaps about somebody, and one of three to six sentences, as many as were asked for."""
    hero, name = pick(rng, HEROES), pick(rng, NAMES) if rng.random() < 0.5 else made_up(rng)
    prompt, number = pick(rng, STORY_PROMPTS), int(rng.integers(2, 6))
    if rng.random() < 0.5:
        prompt += f" about a {hero}"
    if rng.random() < 0.3:
        prompt += f" in {number + 1} sentences"
    sentences = [f"once there was a {hero} named {name} who wanted {pick(rng, WISHES)}"]
    for _ in range(number - 1):
        sentences.append(
            pick(rng, (f"{name} went to the {pick(rng, PLACES)}", f"there {pick(rng, WEATHER)}", f"{name} met a {pick(rng, HEROES)}"))
        )
    return prompt, ". ".join([*sentences, pick(rng, ENDINGS)]) + "."


def facts(rng: np.random.Generator) -> tuple[str, str]:
    """A request, with or without a word about its form, and a list or objects in JSON, whose values are never empty."""
    form = pick(rng, ("", " as json", " in json"))
    if rng.random() < 0.4:
        what, number = pick(rng, ("words", "names", "numbers", made_up(rng))), int(rng.integers(len(NUMBERS)))
        prompt = pick(rng, LIST_PROMPTS).format(n=NUMBERS[number], what=what)
        return prompt + form, json.dumps([_value(rng, "number" if what == "numbers" else "text") for _ in range(number + 2)])
    names = [place(rng) for _ in range(int(rng.integers(2, 4)) if rng.random() < 0.3 else 1)]
    keys = {"name": "text"} | {
        pick(rng, KEYS) if rng.random() < 0.6 else made_up(rng): pick(rng, KINDS) for _ in range(int(rng.integers(1, 4)))
    }
    told = [{key: name if key == "name" else _value(rng, kind) for key, kind in keys.items()} for name in names]
    return pick(rng, FACT_PROMPTS).format(" and ".join(names)) + form, json.dumps(told if len(told) > 1 else told[0])


def _value(rng: np.random.Generator, kind: str) -> Any:
    if kind == "number":
        return int(10 ** rng.uniform(0, 5))
    if kind == "decimal":
        return round(float(rng.uniform(0, 100)), 1)
    if kind == "flag":
        return bool(rng.random() < 0.5)
    if kind == "list":
        inner = pick(rng, ("text", "number"))
        return [_value(rng, inner) for _ in range(int(rng.integers(1, 4)))]
    if kind in ("object", "objects"):
        key = pick(rng, KEYS)
        made = [{key: _value(rng, "text")} for _ in range(int(rng.integers(1, 3)) if kind == "objects" else 1)]
        return made if kind == "objects" else made[0]
    return place(rng) if rng.random() < 0.5 else " ".join(made_up(rng) for _ in range(int(rng.integers(1, 3))))


def _word(rng: np.random.Generator) -> str:
    kind = rng.random()
    if kind < 0.25:
        return str(int(10 ** rng.uniform(0, 6)))
    if kind < 0.35:
        return f"{float(rng.uniform(0, 5000)):.{int(rng.integers(1, 3))}f}"
    return place(rng) if kind < 0.6 else made_up(rng) + (f"_{made_up(rng)}" if rng.random() < 0.3 else "")
