"""Decimal numbers within bounds as regular expressions, compared digit by digit, for the grammars of schema_grammar.py.

A model that does not know better would write digits for ever, so numbers have a size: 18 digits before the point and 20 after it, and
where there are no bounds an exponent, which keep a finite double.
"""

from __future__ import annotations

import math
from decimal import ROUND_FLOOR, Decimal, localcontext

DIGITS, DECIMALS = 18, 20
EXACT = 15  # decimals with so few significant digits stay apart as doubles

INTEGER = rf"/0|-?[1-9][0-9]{{0,{DIGITS - 1}}}/"
NUMBER = rf"/-?(0|[1-9][0-9]{{0,{DIGITS - 1}}})(\.[0-9]{{1,{DECIMALS}}})?([eE][+\-]?([0-9]{{1,2}}|1[0-9]{{2}}|2[0-8][0-9]))?/"


def number(
    integer: bool, low: float | None = None, high: float | None = None, low_open: bool = False, high_open: bool = False
) -> str | None:
    """The terminal, as llguidance's Lark writes it, of the numbers from low to high; open: without the bound itself.

    None if there is no such number. Raises ValueError for bounds that no number of this size can meet exactly.
    """
    if low is None and high is None:
        return INTEGER if integer else NUMBER
    if integer:
        low, low_open = None if low is None else math.floor(low) + 1 if low_open else math.ceil(low), False
        high, high_open = None if high is None else math.ceil(high) - 1 if high_open else math.floor(high), False
    least, most = _decimal(low), _decimal(high)
    if least is not None and most is not None and (least > most or least == most and (low_open or high_open)):
        return None
    positive = _side(integer, least, most, low_open, high_open)
    negative = _side(integer, _negated(most), _negated(least), high_open, low_open, signed=True)
    return " | ".join([*([positive] if positive else []), *([f'"-" ({negative})'] if negative else [])]) or None


def _side(integer: bool, low: Decimal | None, high: Decimal | None, low_open: bool, high_open: bool, signed: bool = False) -> str | None:
    """The numbers from low to high that are at least 0, or above 0 if a sign stands before them."""
    if high is not None and (high < 0 or high == 0 and (high_open or signed)):
        return None
    if low is None or low < 0 or low == 0 and signed:
        low, low_open = Decimal(0), signed
    decimals = DECIMALS
    for bound, is_open in ((low, low_open), (high, high_open)):
        if bound is not None and is_open:
            decimals = min(decimals, max(1, EXACT - len(_split(bound)[0])))
    if not _reached(low, low_open, high, high_open, 0 if integer else decimals):
        return None
    fraction = "" if integer else rf"(\.[0-9]{{1,{decimals}}})?"
    parts = [rf"/(0|[1-9][0-9]{{0,{DIGITS - 1}}}){fraction}/"]
    if low > 0 or low_open:
        parts.append(f"/{_at_least(low, low_open)}/")
    if high is not None and high < 10**DIGITS:
        parts.append(f"/{_at_most(high, high_open)}/")
    return " & ".join(parts)


def _reached(low: Decimal, low_open: bool, high: Decimal | None, high_open: bool, decimals: int) -> bool:
    """Is there a number of this size between the bounds?"""
    if low >= 10**DIGITS or high is None:
        return low < 10**DIGITS
    with localcontext(prec=2 * (DIGITS + DECIMALS)):
        first = low.quantize(Decimal(1).scaleb(-decimals), ROUND_FLOOR)
        if first < low or first == low and low_open:
            first += Decimal(1).scaleb(-decimals)
        return first < high or first == high and not high_open


def _at_least(bound: Decimal, is_open: bool) -> str:
    whole, fraction = _split(bound)
    larger = [rf"[1-9][0-9]{{{len(whole)},}}(\.[0-9]+)?"]
    for i, digit in enumerate(whole):
        if digit != "9":
            larger.append(rf"{whole[:i]}[{int(digit) + 1}-9][0-9]{{{len(whole) - i - 1}}}(\.[0-9]+)?")
    larger += [rf"{whole}\.{fraction[:i]}[{int(digit) + 1}-9][0-9]*" for i, digit in enumerate(fraction) if digit != "9"]
    if is_open:
        larger.append(rf"{whole}\.{fraction}[0-9]*[1-9][0-9]*")
    else:
        larger.append(rf"{whole}\.{fraction}[0-9]*" if fraction else rf"{whole}(\.[0-9]+)?")
    return "|".join(larger)


def _at_most(bound: Decimal, is_open: bool) -> str:
    whole, fraction = _split(bound)
    smaller = [rf"(0|[1-9][0-9]{{0,{len(whole) - 2}}})(\.[0-9]+)?"] if len(whole) > 1 else []
    for i, digit in enumerate(whole):
        first = int(i == 0 and len(whole) > 1)
        if int(digit) > first:
            smaller.append(rf"{whole[:i]}[{first}-{int(digit) - 1}][0-9]{{{len(whole) - i - 1}}}(\.[0-9]+)?")
    if fraction:
        smaller.append(whole)
        smaller += [rf"{whole}\.{fraction[:i]}" for i in range(1, len(fraction))]
        smaller += [rf"{whole}\.{fraction[:i]}[0-{int(digit) - 1}][0-9]*" for i, digit in enumerate(fraction) if digit != "0"]
    if not is_open:
        smaller.append(rf"{whole}\.{fraction}0*" if fraction else rf"{whole}(\.0+)?")
    return "|".join(smaller)


def _decimal(bound: float | None) -> Decimal | None:
    if bound is None:
        return None
    exact = Decimal(str(bound))
    if len(_split(abs(exact))[1]) > DECIMALS:
        raise ValueError(f"{bound} has more than {DECIMALS} decimals")
    return exact


def _negated(bound: Decimal | None) -> Decimal | None:
    return None if bound is None else -bound


def _split(bound: Decimal) -> tuple[str, str]:
    """The digits before the point and those after it, without zeros at their end."""
    whole, _, fraction = format(bound, "f").partition(".")
    return whole, fraction.rstrip("0")
