"""Rules and terminals of a grammar in llguidance's Lark while they are made, and a look at which of them can end.

Every rule that can be entered can also be left: an alternative that could only go on for ever is taken out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MAX_RULES = 20_000
MAX_DEPTH = 400  # rules inside each other, which take llguidance some kilobytes of stack each


@dataclass(frozen=True)
class Repeat:
    """A rule several times; most = None: without end."""

    rule: str
    least: int
    most: int | None

    def __str__(self) -> str:
        return f"{self.rule}{{{self.least},{'' if self.most is None else self.most}}}"


Symbol = str | Repeat  # the name of a rule, or a terminal as it stands in Lark


class Rules:
    """`rule` makes one and gives its name, `terminal` the name of a terminal; `lark(start)` is the text of all that `start` leads to."""

    def __init__(self) -> None:
        self._rules: dict[str, list[list[Symbol]]] = {}
        self._terminals: dict[str, str] = {}
        self._paths: dict[str, str] = {}

    def rule(self, alternatives: Iterable[Sequence[Symbol]], path: str = "") -> str:
        """path: what errors call it."""
        made = [list(alternative) for alternative in alternatives]  # which may make rules of their own, before this one has its name
        name = f"r{len(self._rules)}"
        if len(self._rules) == MAX_RULES:
            raise ValueError(f"{path or 'the schema'} is too large: it takes more than {MAX_RULES:,} rules of grammar")
        self._rules[name], self._paths[name] = made, path
        return name

    def define(self, name: str, alternatives: Iterable[Sequence[Symbol]]) -> None:
        """Give a rule other alternatives, for those that lead back to themselves."""
        self._rules[name] = [list(alternative) for alternative in alternatives]

    def terminal(self, definition: str) -> str:
        return self._terminals.setdefault(definition, f"T{len(self._terminals)}")

    def require_an_end(self, start: str) -> None:
        """Raise a ValueError if no finite text follows the rule."""
        ending = self._ending()
        if start not in ending:
            endless = [self._paths[name] for name in self._reached(start) if name not in ending and self._paths[name]]
            raise ValueError(f"{min(endless, key=len)}: no value can ever be complete, because each has to hold another of its kind")

    def lark(self, start: str) -> str:
        ending = self._ending()
        lines = [f"start: {start}"]
        for name in self._reached(start):
            alternatives = [one for one in self._rules[name] if all(symbol in ending for symbol in self._needed(one))]
            if alternatives:
                lines.append(f"{name}: {' | '.join(self._written(one, ending) for one in alternatives)}")
        lines += [f"{name}: {definition}" for definition, name in self._terminals.items()]
        return "\n".join(lines) + "\n"

    def _ending(self) -> set[str]:
        """The rules that some finite text follows: those with an alternative whose rules all have one."""
        alternatives = [(name, self._needed(one)) for name, several in self._rules.items() for one in several]
        missing = [len(needed) for _, needed in alternatives]
        waiting: dict[str, list[int]] = {}  # alternatives by each rule they need
        for number, (_, needed) in enumerate(alternatives):
            for name in needed:
                waiting.setdefault(name, []).append(number)
        found = [name for name, needed in alternatives if not needed]
        ending: set[str] = set()
        while found:
            name = found.pop()
            for number in waiting.pop(name, ()):
                missing[number] -= 1
                if not missing[number]:
                    found.append(alternatives[number][0])
            ending.add(name)
        return ending

    def _needed(self, alternative: list[Symbol]) -> set[str]:
        """The rules that an alternative has at least once."""
        names = (symbol if isinstance(symbol, str) else symbol.rule if symbol.least else "" for symbol in alternative)
        return {name for name in names if name in self._rules}

    def _written(self, alternative: list[Symbol], ending: set[str]) -> str:
        return " ".join(str(symbol) for symbol in alternative if isinstance(symbol, str) or symbol.rule in ending) or '""'

    def _reached(self, start: str) -> list[str]:
        """The rules that `start` leads to, itself first. Raises ValueError if they lead on too far: llguidance, which reads them one inside
        the other, would run out of stack."""
        found, within = {start: None}, [(start, iter(self._inner(start)))]
        while within:
            name = next((name for name in within[-1][1] if name not in found), None)
            if name is None:
                within.pop()
                continue
            found[name] = None
            within.append((name, iter(self._inner(name))))
            if len(within) > MAX_DEPTH:
                path = next((self._paths[rule] for rule, _ in reversed(within) if self._paths[rule]), "the grammar")
                raise ValueError(f"{path:.200}: the schema is nested too deeply, {MAX_DEPTH} rules inside each other")
        return list(found)

    def _inner(self, name: str) -> list[str]:
        symbols = (symbol for one in self._rules[name] for symbol in one)
        return [name for symbol in symbols if (name := symbol if isinstance(symbol, str) else symbol.rule) in self._rules]


def repeated(rule: str, least: int, most: int | None) -> list[Symbol]:
    return [] if most == 0 else [Repeat(rule, least, most)]
