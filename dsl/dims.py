"""Exact arithmetic over dims: `D / H`, `2 * Fx + 1`, `floor(0.4 * D)`.

A `Dim` is a Laurent polynomial with rational coefficients in a normal form, so that two that are built differently but
mean the same are equal: `D / H * H == D`. What no polynomial expresses (`floor`, `ceil`, `min`, `max`, `%`, division by
a sum) is an opaque atom: equal when its parts are equal. Symbols stand for whole numbers that are not zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from .terms import (
    MAX_BITS,
    MAX_POWER,
    MAX_TERMS,
    Atom,
    Coefficient,
    DimSizeError,
    Opaque,
    Terms,
    accumulate,
    bare,
    check_bits,
    common_monomial,
    divide_exactly,
    flipped,
    is_whole_term,
    reading_order,
    show_terms,
    tidy,
    times,
)

__all__ = [
    "Dim",
    "DimDivisionError",
    "DimSizeError",
    "MissingDimError",
    "ceil",
    "floor",
    "maximum",
    "minimum",
]


class DimDivisionError(ZeroDivisionError):
    """A dim is divided by zero."""


class MissingDimError(KeyError):
    """A symbol has no value; `name` is the symbol."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"dim `{self.name}` has no value"


class Dim:
    """An exact size, immutable and hashable. Make one with `Dim.of`."""

    __slots__ = ("_hash", "_terms")

    _terms: Terms
    _hash: int | None

    @staticmethod
    def of(value: Dim | str | int | Fraction) -> Dim:
        """A dim from a symbol's name, a number, or a dim."""
        if isinstance(value, str):
            known = _symbols.get(value)
            if known is None:
                known = _symbols[value] = _make({((value, 1),): 1})
            return known
        if isinstance(value, Dim):
            return value
        if type(value) is int and 0 <= value < len(_small):
            return _small[value]
        return _constant(value)

    # --- arithmetic

    def __add__(self, other: Dim | int | Fraction) -> Dim:
        if not isinstance(other, Dim):
            if not isinstance(other, int | Fraction):
                return NotImplemented
            other = Dim.of(other)
        if not other._terms:
            return self
        if not self._terms:
            return other
        terms = dict(self._terms)
        accumulate(terms, other._terms.items())
        return _settled(terms)

    __radd__ = __add__

    def __neg__(self) -> Dim:
        return _make({monomial: -coefficient for monomial, coefficient in self._terms.items()})

    def __sub__(self, other: Dim | int | Fraction) -> Dim:
        if not isinstance(other, Dim | int | Fraction):
            return NotImplemented
        return self + -Dim.of(other)

    def __rsub__(self, other: int | Fraction) -> Dim:
        return -self + other

    def __mul__(self, other: Dim | int | Fraction) -> Dim:
        if not isinstance(other, Dim):
            if not isinstance(other, int | Fraction):
                return NotImplemented
            other = Dim.of(other)
        pairs = len(self._terms) * len(other._terms)
        if pairs == 1:
            ((a, x),) = self._terms.items()
            ((b, y),) = other._terms.items()
            return _settled({times(a, b): tidy(x * y)})
        if pairs > MAX_TERMS * 10:
            raise DimSizeError(f"this product has over {MAX_TERMS} terms")
        terms: Terms = {}
        for a, x in self._terms.items():
            accumulate(terms, ((times(a, b), x * y) for b, y in other._terms.items()))
        return _settled(terms)

    __rmul__ = __mul__

    def __truediv__(self, other: Dim | int | Fraction) -> Dim:
        """Exact division; where whole numbers are wanted, `evaluate` and look at the denominator, or use `floor`."""
        if not isinstance(other, Dim | int | Fraction):
            return NotImplemented
        return self * _inverse(self, Dim.of(other))

    def __rtruediv__(self, other: int | Fraction) -> Dim:
        return Dim.of(other) / self

    def __floordiv__(self, other: Dim | int | Fraction) -> Dim:
        if not isinstance(other, Dim | int | Fraction):
            return NotImplemented
        return floor(self / other)

    def __rfloordiv__(self, other: int | Fraction) -> Dim:
        return floor(Dim.of(other) / self)

    def __mod__(self, other: Dim | int | Fraction) -> Dim:
        """What is left of this dim after taking out whole multiples of `other`; it has the sign of `other`."""
        if not isinstance(other, Dim | int | Fraction):
            return NotImplemented
        other = Dim.of(other)
        quotient = self / other
        if quotient.is_whole:
            return _ZERO
        if quotient.is_constant:
            return other * (quotient.constant - math.floor(quotient.constant))
        return _atom(_opaque("%", (self, other)))

    def __rmod__(self, other: int | Fraction) -> Dim:
        return Dim.of(other) % self

    # --- questions

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Dim):
            return self is other or self._terms == other._terms
        if isinstance(other, int | Fraction):
            return self.is_constant and self._terms.get((), 0) == other
        return NotImplemented

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(self._terms.get((), 0)) if self.is_constant else hash(frozenset(self._terms.items()))
        return self._hash

    @property
    def is_constant(self) -> bool:
        terms = self._terms
        return not terms or (len(terms) == 1 and () in terms)

    @property
    def constant(self) -> Fraction:
        """The number that a constant dim is."""
        assert self.is_constant, f"{self} is not constant"
        return Fraction(self._terms.get((), 0))

    @property
    def is_whole(self) -> bool:
        """Whether this is a whole number whatever the symbols are. (False means only: not for every value.)"""
        return all(is_whole_term(monomial, coefficient) for monomial, coefficient in self._terms.items())

    def symbols(self) -> frozenset[str]:
        """The names it depends on. (A set has no order: sort it before it is shown.)"""
        found: set[str] = set()
        for monomial in self._terms:
            for atom, _ in monomial:
                if isinstance(atom, str):
                    found.add(atom)
                else:
                    found.update(*(part.symbols() for part in atom.parts))
        return frozenset(found)

    def substitute(self, values: Mapping[str, Dim | int | Fraction]) -> Dim:
        """Puts dims in the place of symbols, all at once; names that are not in `values` stay."""
        if not self._terms or self.symbols().isdisjoint(values):
            return self
        total = _ZERO
        for monomial, coefficient in self._terms.items():
            product = Dim.of(coefficient)
            for atom, power in monomial:
                base = _substituted(atom, values)
                for _ in range(abs(power)):
                    product = product * base if power > 0 else product / base
            total += product
        return total

    def evaluate(self, values: Mapping[str, int]) -> Fraction:
        """The exact value. Raises MissingDimError for a symbol without one, DimDivisionError, DimSizeError."""
        whole, fractions = 0, _NOUGHT
        for monomial, coefficient in self._terms.items():
            product: Coefficient = coefficient
            divisor: Coefficient = 1
            for atom, power in monomial:
                value = _atom_value(atom, values)
                if power > 0:
                    product *= value**power
                elif value == 0:
                    raise DimDivisionError(f"`{self}` divides by `{bare(atom)}`, which is zero")
                else:
                    divisor *= value**-power
            if divisor != 1 or not isinstance(product, int):
                fractions += Fraction(product) / divisor
            else:
                whole += product
            check_bits(product, divisor)
        return fractions + whole if fractions else Fraction(whole)

    # --- text

    def __str__(self) -> str:
        """In the language's own syntax: `2 * D`, `D / H`, `floor(0.4 * D)`."""
        atom = _as_atom(self)
        return show_terms(self._terms) if atom is None else bare(atom)

    def __repr__(self) -> str:
        return f"Dim({self})"


# --- functions of the language


def floor(value: Dim) -> Dim:
    """The largest whole number that is not above `value`."""
    whole, rest = _split_whole(value)
    return whole if not rest._terms else whole + _rounded("floor", rest)


def ceil(value: Dim) -> Dim:
    """The smallest whole number that is not below `value`."""
    whole, rest = _split_whole(value)
    return whole if not rest._terms else whole + _rounded("ceil", rest)


def minimum(*values: Dim | int | Fraction) -> Dim:
    """The smallest of some dims."""
    return _extreme("min", values)


def maximum(*values: Dim | int | Fraction) -> Dim:
    """The largest of some dims."""
    return _extreme("max", values)


# --- normal form


def _make(terms: Terms) -> Dim:
    dim = Dim.__new__(Dim)
    dim._terms = terms
    dim._hash = None
    return dim


def _constant(value: int | Fraction) -> Dim:
    if not isinstance(value, int) and value.denominator == 1:
        value = value.numerator
    check_bits(value)
    return _make({(): value + 0} if value else {})


def _atom(atom: Atom, power: int = 1) -> Dim:
    return _make({((atom, power),): 1})


def _settled(terms: Terms) -> Dim:
    """The dim of these terms, sizes checked, with sums expanded or cancelled where they can be."""
    if len(terms) > MAX_TERMS:
        raise DimSizeError(f"this expression has over {MAX_TERMS} terms")
    sums: dict[Opaque, int] = {}
    for monomial, coefficient in terms.items():
        if type(coefficient) is not int or coefficient.bit_length() > MAX_BITS:
            check_bits(coefficient)
        for atom, power in monomial:
            if type(atom) is Opaque and atom.operation == "sum":
                sums[atom] = max(sums.get(atom, -MAX_POWER), power)
    for atom, highest in sums.items():
        settled = _expand_sum(terms, atom) if highest > 0 else _cancel_sum(terms, atom)
        if settled is not None:
            return settled
    return _make(terms)


def _expand_sum(terms: Terms, atom: Opaque) -> Dim:
    """Multiplies out a sum that came to stand above the line (after dividing by a quotient)."""
    total = _ZERO
    for monomial, coefficient in terms.items():
        power = dict(monomial).get(atom, 0)
        if power <= 0:
            total += _make({monomial: coefficient})
            continue
        product = _make({times(monomial, ((atom, -power),)): coefficient})
        for _ in range(power):
            product *= atom.parts[0]
        total += product
    return total


def _cancel_sum(terms: Terms, atom: Opaque) -> Dim | None:
    """Cancels a sum below the line with the terms above it, when it divides them; None when it does not."""
    lowest = min(power for monomial in terms for other, power in monomial if other == atom)
    above: Terms = {}
    rest: Terms = {}
    for monomial, coefficient in terms.items():
        if (atom, lowest) in monomial:
            above[times(monomial, ((atom, -lowest),))] = coefficient
        else:
            rest[monomial] = coefficient
    divided = divide_exactly(above, atom.parts[0]._terms)
    if divided is None:
        return None
    quotient = _make(divided)
    if lowest < -1:
        quotient = quotient * _atom(atom, lowest + 1)
    return quotient + _make(rest)


def _inverse(above: Dim, below: Dim) -> Dim:
    """One over `below`. `above`, what it will multiply, is only named in the error."""
    terms = below._terms
    if not terms:
        raise DimDivisionError(f"`{above}` is divided by zero")
    if len(terms) == 1:
        ((monomial, coefficient),) = terms.items()
        inverse = coefficient if coefficient in (1, -1) else tidy(1 / Fraction(coefficient))
        return _make({flipped(monomial): inverse}) if type(inverse) is int else _settled({flipped(monomial): inverse})
    # In lowest terms, so that division by 2 * D + 2 * H and by D + H speak of the same atom.
    shared = common_monomial(terms)
    reduced = {times(monomial, flipped(shared)): coefficient for monomial, coefficient in terms.items()}
    leading = reduced[min(reduced, key=reading_order)]
    primitive = _make({monomial: tidy(Fraction(c) / leading) for monomial, c in reduced.items()})
    scale = _make({flipped(shared): tidy(1 / Fraction(leading))})
    return scale * _atom(_opaque("sum", (primitive,)), -1)


# --- parts that stay whole


def _opaque(operation: str, parts: tuple[Dim, ...]) -> Opaque:
    if operation == "%":
        text = f"({_factor(parts[0])} % {_factor(parts[1])})"
    else:
        text = f"{'' if operation == 'sum' else operation}({', '.join(map(str, parts))})"
    return Opaque(operation, parts, text, 1 + sum(_size(part) for part in parts))


def _size(dim: Dim) -> int:
    return sum(1 + sum(atom.size for atom, _ in m if type(atom) is Opaque) for m in dim._terms)


def _split_whole(value: Dim) -> tuple[Dim, Dim]:
    """The terms that are whole numbers, and the others."""
    whole: Terms = {}
    rest: Terms = {}
    for monomial, coefficient in value._terms.items():
        (whole if is_whole_term(monomial, coefficient) else rest)[monomial] = coefficient
    return _make(whole), _make(rest)


def _rounded(operation: str, value: Dim) -> Dim:
    if value.is_constant:
        return Dim.of(math.floor(value.constant) if operation == "floor" else math.ceil(value.constant))
    return _atom(_opaque(operation, (value,)))


def _extreme(operation: str, values: tuple[Dim | int | Fraction, ...]) -> Dim:
    assert values, f"{operation} of nothing"
    choose = min if operation == "min" else max
    parts: dict[Dim, None] = {}
    constants: list[Fraction] = []
    for value in values:
        dim = Dim.of(value)
        nested = _as_atom(dim)
        inner = nested.parts if nested is not None and nested.operation == operation else (dim,)
        for part in inner:
            if part.is_constant:
                constants.append(part.constant)
            else:
                parts[part] = None
    ordered = sorted(parts, key=str)
    if constants:
        ordered.append(_constant(choose(constants)))
    return ordered[0] if len(ordered) == 1 else _atom(_opaque(operation, tuple(ordered)))


def _as_atom(dim: Dim) -> Opaque | None:
    """The opaque atom that a dim consists of, when it is nothing else."""
    if len(dim._terms) != 1:
        return None
    ((monomial, coefficient),) = dim._terms.items()
    if coefficient != 1 or len(monomial) != 1 or monomial[0][1] != 1 or isinstance(monomial[0][0], str):
        return None
    return monomial[0][0]


def _substituted(atom: Atom, values: Mapping[str, Dim | int | Fraction]) -> Dim:
    if isinstance(atom, str):
        return Dim.of(values[atom]) if atom in values else Dim.of(atom)
    parts = [part.substitute(values) for part in atom.parts]
    match atom.operation:
        case "floor":
            return floor(parts[0])
        case "ceil":
            return ceil(parts[0])
        case "%":
            return parts[0] % parts[1]
        case "sum":
            return parts[0]
        case _:
            return _extreme(atom.operation, tuple(parts))


def _atom_value(atom: Atom, values: Mapping[str, int]) -> int | Fraction:
    if isinstance(atom, str):
        try:
            return values[atom]
        except KeyError:
            raise MissingDimError(atom) from None
    parts = [part.evaluate(values) for part in atom.parts]
    match atom.operation:
        case "floor":
            return math.floor(parts[0])
        case "ceil":
            return math.ceil(parts[0])
        case "%":
            if parts[1] == 0:
                raise DimDivisionError(f"`{bare(atom)}` divides by zero")
            return parts[0] % parts[1]
        case "sum":
            return parts[0]
        case "min":
            return min(parts)
        case _:
            return max(parts)


# --- text


def _factor(dim: Dim) -> str:
    atom = _as_atom(dim)
    if atom is not None:
        return atom.text
    text = str(dim)
    return text if text.replace("_", "").isalnum() else f"({text})"


_ZERO = _make({})
_NOUGHT = Fraction(0)
_small = tuple(_make({(): value} if value else {}) for value in range(257))
_symbols: dict[str, Dim] = {}
