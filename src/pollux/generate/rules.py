"""Rules and terminals of a grammar in llguidance's Lark while they are made, and a look at which of them can end.

Every rule that can be entered can also be left: an alternative that could only go on for ever is taken out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


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
            alternatives = [one for one in self._rules[name] if self._can_end(one, ending)]
            if alternatives:
                lines.append(f"{name}: {' | '.join(_written(one, self._rules.keys() - ending) for one in alternatives)}")
        lines += [f"{name}: {definition}" for definition, name in self._terminals.items()]
        return "\n".join(lines) + "\n"

    def _ending(self) -> set[str]:
        """The rules that some finite text follows."""
        ending: set[str] = set()
        size = -1
        while len(ending) > size:
            size = len(ending)
            ending |= {name for name, alternatives in self._rules.items() if any(self._can_end(one, ending) for one in alternatives)}
        return ending

    def _can_end(self, alternative: list[Symbol], ending: set[str]) -> bool:
        for symbol in alternative:
            name, needed = (symbol.rule, symbol.least > 0) if isinstance(symbol, Repeat) else (symbol, True)
            if needed and name in self._rules and name not in ending:
                return False
        return True

    def _reached(self, start: str) -> list[str]:
        found, waiting = {start: None}, [start]
        while waiting:
            for symbol in (symbol for one in self._rules[waiting.pop()] for symbol in one):
                name = symbol.rule if isinstance(symbol, Repeat) else symbol
                if name in self._rules and name not in found:
                    found[name] = None
                    waiting.append(name)
        return list(found)


def repeated(rule: str, least: int, most: int | None) -> list[Symbol]:
    return [] if most == 0 else [Repeat(rule, least, most)]


def _written(alternative: list[Symbol], endless: set[str]) -> str:
    kept = [str(symbol) for symbol in alternative if not (isinstance(symbol, Repeat) and symbol.rule in endless)]
    return " ".join(kept) or '""'
