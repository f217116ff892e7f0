"""The sparse form of a dim: coefficients by monomial, with their arithmetic and their text."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import TYPE_CHECKING

from .numbers import show_number

if TYPE_CHECKING:
    from .dims import Dim

MAX_TERMS = 2_000
MAX_POWER = 100
MAX_BITS = 8_192


class DimSizeError(ValueError):
    """An expression grows beyond what any architecture needs; refused before it takes long."""


class Opaque:
    """A part that stays whole: `operation` is floor, ceil, min, max, `%`, or `sum` (which is only ever divided by).

    `text` is how it stands in a product, `size` how much it holds.
    """

    __slots__ = ("_hash", "operation", "parts", "size", "text")

    def __init__(self, operation: str, parts: tuple[Dim, ...], text: str, size: int) -> None:
        if size > MAX_TERMS:
            raise DimSizeError(f"this expression has over {MAX_TERMS} parts")
        self.operation = operation
        self.parts = parts
        self.text = text
        self.size = size
        self._hash = hash((operation, parts))

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Opaque) and self.operation == other.operation and self.parts == other.parts

    def __hash__(self) -> int:
        return self._hash

    @property
    def is_whole(self) -> bool:
        if self.operation in ("floor", "ceil"):
            return True
        return self.operation != "sum" and all(part.is_whole for part in self.parts)


Atom = str | Opaque
Monomial = tuple[tuple[Atom, int], ...]  # atoms with their powers, sorted, no power zero
Coefficient = int | Fraction  # a whole one is always an int
Terms = dict[Monomial, Coefficient]  # no coefficient zero


def accumulate(terms: Terms, more: Iterable[tuple[Monomial, Coefficient]]) -> None:
    """Adds terms into `terms`, keeping whole coefficients as ints and no zeros."""
    for monomial, coefficient in more:
        total = terms.get(monomial, 0) + coefficient
        if not total:
            del terms[monomial]
        else:
            terms[monomial] = tidy(total)


def times(a: Monomial, b: Monomial) -> Monomial:
    """The product of two monomials, in order, what cancels left out."""
    if not a or not b:
        return a or b
    powers = dict(a)
    for atom, power in b:
        total = powers.get(atom, 0) + power
        if total:
            if not -MAX_POWER <= total <= MAX_POWER:
                raise DimSizeError(f"`{bare(atom)}` is raised to a power over {MAX_POWER}")
            powers[atom] = total
        else:
            del powers[atom]
    return tuple(powers.items()) if len(powers) < 2 else tuple(sorted(powers.items(), key=atom_order))


def tidy(value: Coefficient) -> Coefficient:
    """A whole fraction as an int, which is much faster and equal."""
    return value if type(value) is int or value.denominator != 1 else value.numerator


def flipped(monomial: Monomial) -> Monomial:
    """One over a monomial."""
    return tuple((atom, -power) for atom, power in monomial)


def atom_order(item: tuple[Atom, int]) -> tuple[bool, str]:
    """Symbols by name, then opaque parts by text."""
    atom = item[0]
    return (False, atom) if isinstance(atom, str) else (True, atom.operation + atom.text)


def check_bits(*values: Coefficient) -> None:
    """Raises DimSizeError for numbers that only grow so long by repeated squaring."""
    for value in values:
        if value.numerator.bit_length() > MAX_BITS or value.denominator.bit_length() > MAX_BITS:
            raise DimSizeError("this number has over two thousand digits")


def is_whole_term(monomial: Monomial, coefficient: Coefficient) -> bool:
    """Whether a term is a whole number whatever whole numbers its symbols are."""
    if type(coefficient) is not int:
        return False
    return all(power > 0 and (isinstance(atom, str) or atom.is_whole) for atom, power in monomial)


def common_monomial(terms: Terms) -> Monomial:
    """The lowest power of every atom over all terms: what can be taken out of the sum."""
    monomials = [dict(monomial) for monomial in terms]
    atoms = {atom: None for monomial in monomials for atom in monomial}
    lowest = ((atom, min(monomial.get(atom, 0) for monomial in monomials)) for atom in atoms)
    return tuple(sorted(((atom, power) for atom, power in lowest if power), key=atom_order))


def divide_exactly(above: Terms, below: Terms, most_steps: int = 500) -> Terms | None:
    """The quotient of two polynomials, by long division over a graded order; None when something is left over.

    `below` has no monomial to take out, so that dividing the polynomial part of `above` decides it. An atom that only
    one of them has is no obstacle, it is one more variable. Division that takes over `most_steps` is given up.
    """
    shared = common_monomial(above)
    numerator = {times(monomial, flipped(shared)): coefficient for monomial, coefficient in above.items()}
    atoms = list({atom: None for monomial in (*numerator, *below) for atom, _ in monomial})

    def order(monomial: Monomial) -> tuple[int, list[int]]:
        powers = dict(monomial)
        return sum(powers.values()), [powers.get(atom, 0) for atom in atoms]

    leading = max(below, key=order)
    quotient: Terms = {}
    for _ in range(most_steps):
        if not numerator:
            return {times(monomial, shared): c for monomial, c in quotient.items()}
        top = max(numerator, key=order)
        step = times(top, flipped(leading))
        if any(power < 0 for _, power in step):
            return None
        factor = tidy(Fraction(numerator[top]) / below[leading])
        quotient[step] = factor
        accumulate(numerator, ((times(step, monomial), -factor * c) for monomial, c in below.items()))
    return None


# --- text


def bare(atom: Atom) -> str:
    """An atom that stands alone, without the parentheses it would need as a factor."""
    if isinstance(atom, str):
        return atom
    return atom.text[1:-1] if atom.operation in ("%", "sum") else atom.text


def reading_order(monomial: Monomial) -> tuple[bool, int, list[str]]:
    """Products of many dims first, constants last."""
    degree = sum(power for _, power in monomial)
    return (not monomial, -degree, [f"{power < 0}{bare(atom)}{power}" for atom, power in monomial])


def show_terms(terms: Terms) -> str:
    """A sum in the language's syntax; a positive term comes first where there is one."""
    if not terms:
        return "0"
    ordered = sorted(terms.items(), key=lambda term: reading_order(term[0]))
    first = next((i for i, (_, coefficient) in enumerate(ordered) if coefficient > 0), 0)
    ordered.insert(0, ordered.pop(first))
    text = ""
    for monomial, coefficient in ordered:
        shown = _show_term(monomial, coefficient if coefficient > 0 else -coefficient)
        if not text:
            text = shown if coefficient > 0 else f"-{shown}"
        else:
            text += f" + {shown}" if coefficient > 0 else f" - {shown}"
    return text


def _show_term(monomial: Monomial, coefficient: Coefficient) -> str:
    """A product over a product; sums are divided by one after the other, as they came."""
    if not monomial:
        return show_number(coefficient)
    above: list[str] = []
    below: list[str] = []
    sums: list[str] = []
    for atom, power in monomial:
        name = atom if isinstance(atom, str) else atom.text
        place = above if power > 0 else sums if isinstance(atom, Opaque) and atom.operation == "sum" else below
        place.extend([name] * abs(power))
    shown = show_number(coefficient)
    numerator, denominator = coefficient.numerator, coefficient.denominator
    if denominator == 1 or (numerator != 1 and len(shown.partition(".")[2]) in range(1, 5)):
        if coefficient != 1:
            above.insert(0, shown)
    else:
        below.insert(0, show_number(denominator))
        if numerator != 1:
            above.insert(0, show_number(numerator))
    below_text = " * ".join(below) if len(below) < 2 else f"({' * '.join(below)})"
    return " / ".join([" * ".join(above) or "1", *([below_text] if below else []), *sums])
