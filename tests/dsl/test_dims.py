"""Dim arithmetic against exact rationals."""

import ast
import contextlib
import math
import operator
import time
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dskc.dsl.dims import Dim, DimDivisionError, DimSizeError, MissingDimError, ceil, floor, maximum, minimum
from dskc.dsl.numbers import parse_number

D, E, F, H, Rq = (Dim.of(name) for name in ("D", "E", "F", "H", "Rq"))
NAMES = "DEFH"

# --- one tree, two readings: as a dim, and as a rational number


class Tree:
    """An expression that can be built from dims or worked out with rationals."""

    def __init__(self, text: str, read: Callable[[Callable[[str], object], bool], object]) -> None:
        self.text = text
        self.read = read

    def dim(self, values: dict[str, Dim] | None = None) -> Dim:
        return Dim.of(self.read(lambda name: (values or {}).get(name, Dim.of(name)), True))

    def value(self, values: dict[str, int]) -> Fraction:
        return Fraction(self.read(lambda name: Fraction(values[name]), False))

    def __repr__(self) -> str:
        return self.text


def leaf(value: str | int | Fraction) -> Tree:
    if isinstance(value, str):
        return Tree(value, lambda look, dims: look(value))
    return Tree(str(value), lambda look, dims: Dim.of(value) if dims else Fraction(value))


def binary(symbol: str, apply: Callable, left: Tree, right: Tree) -> Tree:
    def read(look: Callable[[str], object], dims: bool) -> object:
        result = apply(left.read(look, dims), right.read(look, dims))
        return result if dims else Fraction(result)

    return Tree(f"({left} {symbol} {right})", read)


def function(name: str, for_dims: Callable, for_numbers: Callable, *parts: Tree) -> Tree:
    def read(look: Callable[[str], object], dims: bool) -> object:
        values = [part.read(look, dims) for part in parts]
        return for_dims(*map(Dim.of, values)) if dims else Fraction(for_numbers(*values))

    return Tree(f"{name}({', '.join(map(str, parts))})", read)


LEAVES = st.one_of(
    st.sampled_from(NAMES),
    st.integers(-3, 300),
    st.fractions(-2, 2, max_denominator=10),
).map(leaf)


def arithmetic(children: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
    signs = [("+", operator.add), ("-", operator.sub), ("*", operator.mul)]
    return st.tuples(st.sampled_from(signs), children, children).map(lambda t: binary(*t[0], t[1], t[2]))


def anything(children: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
    signs = [("/", operator.truediv), ("//", operator.floordiv), ("%", operator.mod)]
    divided = st.tuples(st.sampled_from(signs), children, children).map(lambda t: binary(*t[0], t[1], t[2]))
    rounds = [("floor", floor, math.floor), ("ceil", ceil, math.ceil)]
    rounded = st.tuples(st.sampled_from(rounds), children).map(lambda t: function(*t[0], t[1]))
    extremes = [("min", minimum, min), ("max", maximum, max)]
    extreme = st.tuples(st.sampled_from(extremes), children, children).map(lambda t: function(*t[0], t[1], t[2]))
    return st.one_of(arithmetic(children), divided, rounded, extreme)


POLYNOMIALS = st.recursive(LEAVES, arithmetic, max_leaves=8)
TREES = st.recursive(LEAVES, anything, max_leaves=8)
VALUES = st.fixed_dictionaries({name: st.integers(1, 40) for name in NAMES})


def built(tree: Tree, values: dict[str, Dim] | None = None) -> Dim:
    try:
        return tree.dim(values)
    except DimDivisionError:
        assume(False)
        raise


def worked_out(tree: Tree, values: dict[str, int]) -> Fraction:
    try:
        return tree.value(values)
    except ZeroDivisionError:
        assume(False)
        raise


@settings(max_examples=200, deadline=None)
@given(TREES, VALUES)
def test_a_dim_is_worth_what_its_expression_is(tree: Tree, values: dict[str, int]) -> None:
    expected = worked_out(tree, values)
    assert built(tree).evaluate(values) == expected


@settings(max_examples=100, deadline=None)
@given(TREES, st.dictionaries(st.sampled_from(NAMES), TREES, max_size=3), VALUES)
def test_substituting_then_evaluating_is_evaluating_then_substituting(
    tree: Tree, inner: dict[str, Tree], values: dict[str, int]
) -> None:
    whole = {name: function("floor", floor, math.floor, other) for name, other in inner.items()}
    dims = {name: built(other) for name, other in whole.items()}
    worth = values | {name: worked_out(other, values) for name, other in whole.items()}
    expected = worked_out(tree, worth)
    try:
        substituted = built(tree).substitute(dims)
    except DimDivisionError:
        assume(False)
        raise
    assert substituted.evaluate(values) == expected


@settings(max_examples=100, deadline=None)
@given(TREES, st.data())
def test_building_with_dims_in_place_equals_substituting_them(tree: Tree, data: st.DataObject) -> None:
    swap = dict(zip(NAMES, data.draw(st.permutations([Dim.of(name) for name in NAMES])), strict=True))
    assert built(tree, swap) == built(tree).substitute(swap)


@settings(max_examples=100, deadline=None)
@given(POLYNOMIALS, POLYNOMIALS)
def test_polynomials_are_equal_exactly_when_they_mean_the_same(a: Tree, b: Tree) -> None:
    # Kronecker's substitution: degrees are at most 8 and coefficients small, so no two monomials meet in a digit.
    point = {name: (10**40) ** (9**k) for k, name in enumerate(NAMES)}
    same = a.value(point) == b.value(point)
    assert (a.dim() == b.dim()) == same
    if same:
        assert hash(a.dim()) == hash(b.dim()) and str(a.dim()) == str(b.dim())


@settings(max_examples=100, deadline=None)
@given(POLYNOMIALS, POLYNOMIALS, POLYNOMIALS)
def test_the_laws_of_arithmetic(a: Tree, b: Tree, c: Tree) -> None:
    x, y, z = a.dim(), b.dim(), c.dim()
    assert x + y == y + x and x * y == y * x
    assert (x + y) + z == x + (y + z) and (x * y) * z == x * (y * z)
    assert x * (y + z) == x * y + x * z
    assert x - x == 0 and x + 0 == x and x * 1 == x
    assert x - y == -(y - x)
    if y != 0:
        assert x * y / y == x
        assert x / y * y == x
    assert (x + z) / D == x / D + z / D


@settings(max_examples=100, deadline=None)
@given(TREES)
def test_whole_dims_are_whole(tree: Tree) -> None:
    dim = built(tree)
    if dim.is_whole:
        for point in ({n: k + 2 for k, n in enumerate(NAMES)}, {n: 7 * k + 1 for k, n in enumerate(NAMES)}):
            with contextlib.suppress(DimDivisionError):
                assert dim.evaluate(point).denominator == 1


# --- text


def reading(text: str) -> Dim:
    """A dim from its text, by Python's own grammar: the operators of both languages bind alike."""
    calls = {"floor": floor, "ceil": ceil, "min": minimum, "max": maximum}
    signs = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}

    def walk(node: ast.expr) -> Dim:
        match node:
            case ast.Constant():
                return Dim.of(parse_number(ast.get_source_segment(text, node)).value)
            case ast.Name(id=name):
                return Dim.of(name)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -walk(operand)
            case ast.BinOp(op=ast.Mod(), left=left, right=right):
                return walk(left) % walk(right)
            case ast.BinOp(op=sign, left=left, right=right):
                return signs[type(sign)](walk(left), walk(right))
            case ast.Call(func=ast.Name(id=name), args=arguments):
                return calls[name](*map(walk, arguments))
        raise AssertionError(ast.dump(node))

    return walk(ast.parse(text, mode="eval").body)


@settings(max_examples=200, deadline=None)
@given(TREES)
def test_text_reads_back(tree: Tree) -> None:
    """To the same dim, or where a quotient could be shortened, which dims do not look for, to one of the same worth."""
    dim = built(tree)
    read = reading(str(dim))
    if read == dim:
        return
    assert "/" in str(dim)
    for k in (3, 5, 11):
        point = {name: 10**k + 7**i for i, name in enumerate(NAMES)}
        with contextlib.suppress(DimDivisionError):
            assert read.evaluate(point) == dim.evaluate(point)


@pytest.mark.parametrize(
    ("dim", "text"),
    [
        (D, "D"),
        (Dim.of(0), "0"),
        (Dim.of(11_008), "11_008"),
        (Dim.of(Fraction(1, 3)), "1 / 3"),
        (2 * D, "2 * D"),
        (D * 11_008, "11_008 * D"),
        (D / H, "D / H"),
        (D / 2, "D / 2"),
        (3 * D / 2, "1.5 * D"),
        (2 * D / 3, "2 * D / 3"),
        (D / H / 2, "D / (2 * H)"),
        (D * D / H, "D * D / H"),
        (1 / D, "1 / D"),
        (D + 1, "D + 1"),
        (1 - D, "1 - D"),
        (-D, "-D"),
        (-D - 1, "-D - 1"),
        (H * E - D, "E * H - D"),
        (floor(Fraction(2, 5) * D), "floor(0.4 * D)"),
        (256 * ceil(D / 256), "256 * ceil(D / 256)"),
        (D % H, "D % H"),
        (2 * (D % H), "2 * (D % H)"),
        ((D + 1) % (H * 2), "(D + 1) % (2 * H)"),
        (minimum(D, 4096, H), "min(D, H, 4096)"),
        (D / (E + H), "D / (E + H)"),
        (D / (E + H) / (E + H) / (D + 1) / H / 2, "D / (2 * H) / (D + 1) / (E + H) / (E + H)"),
        ((D + 1) / (E + H), "D / (E + H) + 1 / (E + H)"),
        (D - H * Fraction(1, 3), "D - H / 3"),
    ],
)
def test_text(dim: Dim, text: str) -> None:
    assert str(dim) == text


# --- normal form


def test_division_cancels() -> None:
    assert D / H * H == D
    assert (D * H) / H == D
    assert D / (D / H) == H
    assert 6 * D / (2 * H) == 3 * D / H
    assert D / D == 1 and (2 * D) / D == 2


def test_division_by_a_sum() -> None:
    assert (D * D - H * H) / (D + H) == D - H
    assert D / (2 * E + 2 * H) == D / (E + H) / 2
    assert D / (E * F + E * H) == D / E / (F + H)
    assert D / (E + H) * (H + E) == D
    assert D / (1 / (E + H)) == D * E + D * H
    assert E / (E + H) + H / (E + H) == 1
    assert 1 / (E + H) / (E + H) * (E + H) == 1 / (E + H)
    assert (D / (E + H)).substitute({"E": 1 - H}) == D


def test_rounding_takes_whole_parts_out() -> None:
    assert floor(D) == D and ceil(D * H + 1) == D * H + 1
    assert floor(D / 2 + H) == floor(D / 2) + H
    assert (
        floor(Dim.of(Fraction(7, 2))) == 3
        and ceil(Dim.of(Fraction(7, 2))) == 4
        and floor(Dim.of(Fraction(-1, 2))) == -1
    )
    assert floor(floor(D / 2) * H) == floor(D / 2) * H
    assert D // 1 == D and floor(D / H) == D // H and floor(7 / D) == 7 // D
    assert not (D / 2).is_whole and floor(D / 2).is_whole and (D % H).is_whole and not (1 / (D + 1)).is_whole


def test_remainders_and_extremes() -> None:
    assert D % 1 == 0 and (H * D) % D == 0 and Dim.of(7) % 4 == 3 and 7 % Dim.of(4) == 3
    assert minimum(D, D) == D and minimum(D, minimum(H, 3), 5) == minimum(3, H, D)
    assert maximum(D, 1, 2) == maximum(2, D) and maximum(3, 4) == 4 and maximum(D, H) != minimum(D, H)


def test_constants() -> None:
    assert Dim.of(3) == 3 == Dim.of(Fraction(3)) and hash(Dim.of(3)) == hash(3)
    assert Dim.of(3).is_constant and Dim.of(3).constant == 3 and not D.is_constant and (D - D).constant == 0
    assert Dim.of(Fraction(4, 2)) == 2 and D != 3 and D != "D"
    assert Dim.of(True) == 1 and str(Dim.of(True)) == "1"
    assert Dim.of(D) is D and Dim.of("D") is D
    with pytest.raises(AssertionError):
        _ = D.constant


def test_symbols() -> None:
    assert (D / H + floor(E / 2) - minimum(F, Rq)).symbols() == {"D", "H", "E", "F", "Rq"}
    assert (D - D).symbols() == frozenset()


def test_there_is_no_order_before_evaluating() -> None:
    for compare in (operator.lt, operator.le, operator.gt, operator.ge):
        with pytest.raises(TypeError):
            compare(D, H)
    for wrong in (operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod):
        with pytest.raises(TypeError):
            wrong(D, "H")


# --- errors


def test_missing_symbols() -> None:
    with pytest.raises(KeyError) as error:
        (D / H).evaluate({"D": 4})
    assert isinstance(error.value, MissingDimError)
    assert error.value.name == "H" and str(error.value) == "dim `H` has no value"


def test_division_by_zero() -> None:
    for divide in (lambda: D / 0, lambda: D / (H - H), lambda: D // 0, lambda: D % 0, lambda: 1 / (D - D)):
        with pytest.raises(DimDivisionError, match="divided by zero"):
            divide()
    with pytest.raises(ZeroDivisionError, match=r"`D / \(E - H\)` divides by `E - H`, which is zero"):
        (D / (E - H)).evaluate({"D": 1, "E": 2, "H": 2})
    with pytest.raises(DimDivisionError, match="`D / H` divides by `H`"):
        (D / H).evaluate({"D": 1, "H": 0})
    with pytest.raises(DimDivisionError):
        (D % H).evaluate({"D": 1, "H": 0})
    with pytest.raises(DimDivisionError):
        (D / (E - H)).substitute({"E": H})


def repeated(step: Callable[[Dim], Dim], value: Dim, times: int = 64) -> None:
    for _ in range(times):
        value = step(value)


@pytest.mark.parametrize(
    "explode",
    [
        lambda: repeated(lambda x: x * x, D),
        lambda: repeated(lambda x: x * x, Dim.of(3)),
        lambda: repeated(lambda x: x / (1 / x), D + H),
        lambda: repeated(lambda x: x * x, D + E + F + H),
        lambda: repeated(lambda x: floor(x / 3) * floor(x / 5), D),
        lambda: repeated(lambda x: minimum(x / 3, x / 5), D),
        lambda: D**1 if False else repeated(lambda x: x * D, D, 200),
        lambda: Dim.of(10**300).substitute({}) * repeated(lambda x: x * 10**300, Dim.of(1), 200),
    ],
)
def test_what_would_explode_is_refused_at_once(explode: Callable[[], object]) -> None:
    start = time.perf_counter()
    with pytest.raises(DimSizeError):
        explode()
    assert time.perf_counter() - start < 5


def test_thousands_of_dims_are_cheap() -> None:
    def best(action: Callable[[], object]) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(2000):
                action()
            times.append(time.perf_counter() - start)
        return min(times)

    assert best(lambda: Dim.of("D") == Dim.of(4096)) < 0.05
    assert best(lambda: D * H) < 0.05
    assert best(lambda: D / H) < 0.1
