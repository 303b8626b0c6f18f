"""Conversations in which functions are declared, called and answered, so that a model learns to call whatever is declared to it.

Names of functions, of their arguments and the values in a question are endless: half of them are made up. What can be learnt is
therefore the way: find the function that the question is about, copy its arguments out of the question, read the result back. Some
questions need two functions, some none of those that are there, and some turns have nothing to do with functions, so that a model goes
on talking too. Results come as the Gemini API's clients send them, {"result": ...} or {"error": ...}.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pollux.content import Content, Document, FunctionCall, FunctionResponse, Part, Text
from pollux.data.world import talk
from pollux.data.world.talk import made_up, pick, place, said_as
from pollux.tokens.calls import declare

VERBS = ("get", "find", "look_up", "fetch", "read", "query", "show", "tell", "describe", "retrieve", "check")
TOPICS = (
    *("weather", "price", "age", "height", "owner", "colour", "size", "status", "address", "population", "score", "temperature", "time"),
    *("name", "author", "capital", "distance", "speed", "level", "balance", "rating", "forecast", "news", "schedule", "value", "weight"),
)
PARAMETERS = ("city", "location", "place", "name", "symbol", "item", "person", "country", "title", "key", "target", "subject", "word")
LINKS = ("of", "in", "for", "at")
THINGS = ("light", "lamp", "music", "heater", "fan", "door", "radio", "camera", "screen", "window", "clock", "oven", "alarm", "pump")
WEATHERS = ("windy", "sunny", "cold", "cloudy", "rainy", "dry", "warm", "foggy")
ADJECTIVES = ("", "", "current", "daily", "new", "local", "latest", "custom", "special", "total")
SUFFIXES = ("", "", "", "_async", "_info", "_tool", "_now", "_by_name", "_2")
OPERATIONS: dict[str, tuple[tuple[str, ...], Callable[[float, float], float]]] = {  # how a question may spell them
    "add": (("{a} + {b}", "{a}+{b}", "{a} plus {b}", "the sum of {a} and {b}"), lambda a, b: a + b),
    "subtract": (("{a} - {b}", "{a}-{b}", "{a} minus {b}"), lambda a, b: a - b),
    "multiply": (("{a} * {b}", "{a}*{b}", "{a} times {b}", "the product of {a} and {b}"), lambda a, b: a * b),
    "divide": (("{a} / {b}", "{a}/{b}", "{a} divided by {b}"), lambda a, b: a / b),
}
SINGLE: dict[str, Callable[[int], int]] = {
    "square": lambda a: a * a,
    "double": lambda a: 2 * a,
    "cube": lambda a: a**3,
    "halve": lambda a: a // 2,
}
NUMBER_PAIRS = (("a", "b"), ("x", "y"), ("first", "second"), ("left", "right"), ("numerator", "denominator"), ("n", "m"))
ROUNDS = 4  # of questions in one conversation, at most
ROOM = 900  # characters of what a conversation says and declares, about; a token of the quick start has two


@dataclass(frozen=True)
class Asked:
    """A question in words, and what follows from it."""

    question: str  # without capital and mark
    args: dict[str, Any]
    result: Any
    answer: str


@dataclass(frozen=True)
class Function:
    declaration: dict[str, Any]
    ask: Callable[[np.random.Generator], Asked]

    @property
    def name(self) -> str:
        return self.declaration["name"]


def conversation(rng: np.random.Generator) -> Document:
    """A document in which functions are declared, asked about and called, now and then with other talk between."""
    functions = {made.name: made for made in (_function(rng) for _ in range(int(rng.choice((1, 2, 3), p=(0.55, 0.35, 0.1)))))}
    known = list(functions.values())
    missing = known.pop() if len(known) > 1 and rng.random() < 0.15 else None

    def turns() -> Sequence[Content]:
        kind = rng.random()
        if kind < 0.1:
            return talk.turns(rng)
        if kind < 0.3 and missing is not None:
            return _declined(rng, missing)
        number = 2 if rng.random() < 0.2 else 1
        return _called(rng, [pick(rng, known) for _ in range(number)])

    return Document(_filled(rng, [declare(made.declaration for made in known)], turns))


def _filled(rng: np.random.Generator, begun: list[Content], turns: Callable[[], Sequence[Content]]) -> tuple[Content, ...]:
    """Rounds of turns until there is no room or it is enough; one at least."""
    made = begun
    for _ in range(int(rng.integers(1, ROUNDS + 1))):
        more = turns()
        if len(made) > len(begun) and _size([*made, *more]) > ROOM:
            break
        made = [*made, *more]
    return tuple(made)


def _size(turns: Iterable[Content]) -> int:
    return sum(len(str(part)) for turn in turns for part in turn.parts)


def _called(rng: np.random.Generator, functions: list[Function]) -> list[Content]:
    """A user's question, the calls, their results, the answer."""
    asked = [one.ask(rng) for one in functions]
    question = said_as(rng, " and ".join(one.question for one in asked), True)
    if len(asked) > 1 and rng.random() < 0.6:
        question = " And ".join(said_as(rng, one.question, True) for one in asked)
    calls: tuple[Part, ...] = tuple(FunctionCall(one.name, done.args) for one, done in zip(functions, asked, strict=True))
    if rng.random() < 0.06:
        reason = " ".join(made_up(rng) for _ in range(int(rng.integers(1, 4))))
        results: tuple[Part, ...] = tuple(FunctionResponse(one.name, {"error": reason}) for one in functions)
        answer = f"it did not work: {reason}"
    else:
        key = "result" if rng.random() < 0.8 else pick(rng, ("output", "content", "value", "answer"))
        results = tuple(FunctionResponse(one.name, {key: done.result}) for one, done in zip(functions, asked, strict=True))
        answer = " ".join(done.answer for done in asked)
    return [Content("user", (Text(question),)), Content("model", calls), Content("tool", results), Content("model", (Text(answer),))]


def _declined(rng: np.random.Generator, missing: Function) -> list[Content]:
    """A question for which no function is declared."""
    question = missing.ask(rng).question
    return [Content("user", (Text(said_as(rng, question, True)),)), Content("model", (Text(f"i have no function for {question}"),))]


def _function(rng: np.random.Generator) -> Function:
    return pick(rng, (_lookup, _lookup, _lookup, _sum, _sum, _single, _switch))(rng)


def _declaration(rng: np.random.Generator, name: str, about: str, properties: dict[str, Any]) -> dict[str, Any]:
    described = {"description": said_as(rng, about, False)} if rng.random() < 0.5 else {}
    return {"name": name} | described | {"parameters": {"type": "object", "properties": properties, "required": list(properties)}}


def _lookup(rng: np.random.Generator) -> Function:
    """What something is of a place, a person, a thing."""
    topic = pick(rng, TOPICS) if rng.random() < 0.6 else made_up(rng)
    name = "_".join(filter(None, (pick(rng, VERBS), pick(rng, ADJECTIVES), topic))) + pick(rng, SUFFIXES)
    key = pick(rng, PARAMETERS) if rng.random() < 0.7 else made_up(rng)
    text: dict[str, Any] = {"type": "string"}
    if rng.random() < 0.2:
        text = {"description": f"the {key}", "type": "string"}
    inner = (f"{key}_name" if rng.random() < 0.5 else "name") if rng.random() < 0.12 else ""
    item = {"type": "object", "properties": {inner: text}, "required": [inner]} if inner else text
    several = rng.random() < 0.1
    slot = f"{key}_list" if several else key
    properties: dict[str, Any] = {slot: {"type": "array", "items": item} if several else item}
    extra, season = rng.random(), pick(rng, ("winter", "summer", "night", made_up(rng)))
    units = [made_up(rng), made_up(rng).upper()]
    if extra < 0.12:
        properties[f"is_{season}"] = {"type": "boolean"}
    elif extra < 0.24:
        properties["unit"] = {"type": "string", "enum": units}

    def ask(rng: np.random.Generator) -> Asked:
        values = [place(rng) for _ in range(int(rng.integers(1, 4)) if several else 1)]
        items: list[Any] = [{inner: value} if inner else value for value in values]
        subject = f"the {topic} {pick(rng, LINKS)} {' and '.join(values)}"
        question = pick(rng, ("what is {}", "what is {}", "tell me {}", "give me {}", "how is {}")).format(subject)
        args = {slot: items if several else items[0]}
        if extra < 0.12:
            args[f"is_{season}"] = true = bool(rng.random() < 0.6)
            question = f"it is {'' if true else 'not '}{season} now, {question}"
        elif extra < 0.24:
            args["unit"] = unit = pick(rng, units)
            question = f"{question} in {unit}"
        return Asked(question, args, *_found(rng, subject))

    return Function(_declaration(rng, name, f"{name.split('_')[0]} the {topic} of a {key}", properties), ask)


def _found(rng: np.random.Generator, subject: str) -> tuple[Any, str]:
    """A result, a word, a number or a whole sentence, and how it is said."""
    kind = rng.random()
    if kind < 0.3:
        sentence = (
            f"The {subject[4:]} is {_condition(rng)} and {int(rng.integers(0, 200))} {pick(rng, ('degrees', 'points', made_up(rng)))}."
        )
        return sentence, sentence
    value: Any = _condition(rng) if kind < 0.65 else int(10 ** rng.uniform(0, 4))
    return (str(value) if rng.random() < 0.4 else value), f"{subject} is {value}"


def _condition(rng: np.random.Generator) -> str:
    return pick(rng, WEATHERS) if rng.random() < 0.4 else made_up(rng)


def _sum(rng: np.random.Generator) -> Function:
    """Two numbers and what is to be done with them; now and then by a rule of its own, so that what counts is what the function says."""
    verb = pick(rng, list(OPERATIONS))
    spellings, apply = OPERATIONS[verb]
    whole = rng.random() < 0.7
    noun = pick(rng, ("", "_numbers", "_integers", "_floats", "_values", "_two_numbers", f"_{made_up(rng)}"))
    name = verb + noun + pick(rng, SUFFIXES)
    if rng.random() < 0.15:
        name = f"{pick(rng, ('my', 'do', made_up(rng)))}_{name}"
    first, second = pick(rng, NUMBER_PAIRS) if rng.random() < 0.8 else (made_up(rng), f"{made_up(rng)}_2")
    added = int(rng.integers(1, 10)) if rng.random() < 0.3 else 0

    def ask(rng: np.random.Generator) -> Asked:
        a, b = number(rng, whole), number(rng, whole)
        written = pick(rng, spellings).format(a=a, b=b)
        question = pick(rng, ("what is {}", "what is the result of {}", "compute {}", "calculate {}", "how much is {}", "{} ="))
        exact = apply(a, b) if verb != "divide" or b else 0
        result = (int(exact // 1) if whole else round(exact, 2)) + added
        return Asked(
            question.format(written), {first: a, second: b}, result, f"{written if rng.random() < 0.5 else 'the result'} is {result}"
        )

    schema = {"type": "integer" if whole else "number"}
    return Function(_declaration(rng, name, f"{verb} two {pick(rng, ('numbers', 'values'))}", {first: schema, second: schema}), ask)


def _single(rng: np.random.Generator) -> Function:
    """What one number becomes, or what the thing with a number is."""
    key = pick(rng, ("n", "number", "value", "x", "given_number", "id", made_up(rng)))
    if rng.random() < 0.6:
        verb = pick(rng, tuple(SINGLE))
        name = verb + pick(rng, ("", "_number", "_integer", "_it", f"_{made_up(rng)}"))
        phrasings: tuple[str, ...] = (
            f"{verb} {{}}",
            f"what is the {verb} of {{}}",
            f"do the {verb} of {{}}",
            f"compute the {verb} of {{}}",
        )
        said = f"the {verb} of {{}} is"
    else:
        verb, thing, topic = "", made_up(rng), pick(rng, TOPICS)
        name = f"{pick(rng, VERBS)}_{thing}_{topic}"
        phrasings = (f"what is the {topic} of the {thing} with id {{}}", f"tell me the {topic} of {thing} {{}}", f"{topic} of {thing} {{}}")
        said = f"the {topic} is"

    def ask(rng: np.random.Generator) -> Asked:
        value = int(10 ** rng.uniform(0, 3.5))
        result: int | float = SINGLE[verb](value) if verb else round(float(rng.uniform(0, 50)), int(rng.integers(2)) or None)
        return Asked(pick(rng, phrasings).format(value), {key: value}, result, f"{said.format(value)} {result}")

    return Function(_declaration(rng, name, name.replace("_", " "), {key: {"type": "integer"}}), ask)


def _switch(rng: np.random.Generator) -> Function:
    """Something to be done; what is said is that it was."""
    thing = pick(rng, THINGS) if rng.random() < 0.6 else made_up(rng)
    kind = pick(rng, ("boolean", "integer", "number", "string"))
    verb = pick(rng, ("switch", "turn", "power", "control") if kind == "boolean" else ("set", "change", "adjust"))
    key = pick(rng, ("on", "power", "active") if kind == "boolean" else ("value", "to", "level", made_up(rng)))

    def ask(rng: np.random.Generator) -> Asked:
        if kind == "boolean":
            on = bool(rng.random() < 0.5)
            return Asked(f"turn the {thing} {'on' if on else 'off'}", {key: on}, True, f"the {thing} is {'on' if on else 'off'}")
        value = place(rng) if kind == "string" else number(rng, kind == "integer")
        return Asked(f"set the {thing} to {value}", {key: value}, True, f"the {thing} is set to {value}")

    return Function(_declaration(rng, f"{verb}_{thing}", f"{verb} the {thing}", {key: {"type": kind}}), ask)


def number(rng: np.random.Generator, whole: bool) -> int | float:
    """Of up to five digits before the point, often a round one, as people ask about."""
    made = int(10 ** rng.uniform(0, 5))
    if rng.random() < 0.4:
        made -= made % 10 ** int(rng.integers(0, 4))
    return made if whole else round(made + float(rng.integers(0, 100)) / (10 if rng.random() < 0.5 else 100), 2)
