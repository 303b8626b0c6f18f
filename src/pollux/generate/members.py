"""The members of an object: the declared ones in their order, of which some may be missing, and after them others.

Two ways to the same: without counts a tree over the members, so that thousands of them make neither a deep nor a large grammar; with
minProperties or maxProperties a chain that knows how many are written.
"""

from __future__ import annotations

from collections.abc import Sequence

from pollux.generate.rules import Rules, Symbol, repeated

MAX_COUNTED = 100  # declared members of an object with a count, whose grammar grows with their square

Member = tuple[str, bool]  # rule, required


def members(rules: Rules, declared: Sequence[Member], other: str | None, comma: str, least: int, most: int | None) -> str:
    """The rule of what stands between the braces. other: of any further member. Raises ValueError for more than can be counted."""
    if least > 1 or most is not None:
        if len(declared) > MAX_COUNTED:
            raise ValueError(f"minProperties and maxProperties go with up to {MAX_COUNTED} properties, not {len(declared)}")
        return _Counted(rules, declared, other, comma, least, most).first()
    more = rules.rule([[comma, other]]) if other is not None else ""
    further: list[Symbol] = repeated(more, 0, None) if more else []
    whole: list[list[Symbol]] = [[other, *further]] if other is not None else []
    if declared:
        first, _ = _tree(rules, declared, comma)
        whole = [[first, *further], *(whole if not any(required for _, required in declared) else [])]
    empty: list[list[Symbol]] = [] if least or any(required for _, required in declared) else [[]]
    return rules.rule([*whole, *empty])


def _tree(rules: Rules, declared: Sequence[Member], comma: str) -> tuple[str, str]:
    """Rules of one or more of the members, of which the first has no comma before it; and of all that follow another, none if none must."""
    if len(declared) == 1:
        rule, required = declared[0]
        return rule, rules.rule([[comma, rule], *([] if required else [[]])])
    middle = len(declared) // 2
    (first, before), (second, after) = (_tree(rules, part, comma) for part in (declared[:middle], declared[middle:]))
    left_out: list[list[Symbol]] = [] if any(required for _, required in declared[:middle]) else [[second]]
    return rules.rule([[first, after], *left_out]), rules.rule([[before, after]])


class _Counted:
    """Rules of what follows when the members before i are done and n are written; counts beyond what matters are one."""

    def __init__(self, rules: Rules, declared: Sequence[Member], other: str | None, comma: str, least: int, most: int | None):
        self._rules, self._declared, self._other, self._comma, self._least, self._most = rules, declared, other, comma, least, most
        self._matters = max(least, most or 0, 1)

    def first(self) -> str:
        after: dict[int, str] = {}  # by n
        for i in reversed(range(len(self._declared) + 1)):
            after = {n: self._rules.rule(self._following(i, n, after)) for n in range(min(i, self._matters) + 1)}
        return after[0]

    def _following(self, i: int, n: int, after: dict[int, str]) -> list[list[Symbol]]:
        if i == len(self._declared):
            return self._others(n)
        rule, required = self._declared[i]
        written: list[list[Symbol]] = [[*([self._comma] if n else []), rule, after[min(n + 1, self._matters)]]]
        skipped: list[list[Symbol]] = [[after[n]]]
        return [*(written if self._most is None or n < self._most else []), *([] if required else skipped)]

    def _others(self, n: int) -> list[list[Symbol]]:
        low, high = max(self._least - n, 0), None if self._most is None else self._most - n
        empty: list[list[Symbol]] = [] if low else [[]]
        if self._other is None or high == 0:
            return empty
        more = self._rules.rule([[self._comma, self._other]])
        if n:
            return [repeated(more, low, high)]
        return [*empty, [self._other, *repeated(more, max(low - 1, 0), None if high is None else high - 1)]]
