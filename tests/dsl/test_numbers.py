"""Numbers with units, read and shown exactly."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dskc.dsl.numbers import parse_number, show_bytes, show_number


@pytest.mark.parametrize(
    ("text", "value", "kind"),
    [
        ("0", 0, None),
        ("4096", 4096, None),
        ("102_400", 102_400, None),
        ("4.2e-4", Fraction(42, 100_000), None),
        ("1e-3", Fraction(1, 1000), None),
        ("0.1", Fraction(1, 10), None),
        ("16.384", Fraction(16384, 1000), None),
        ("1_0.2_5", Fraction(1025, 100), None),
        ("10E+2", 1000, None),
        ("72GiB", 72 * 2**30, "bytes"),
        ("1.5KiB", 1536, "bytes"),
        ("80GB", 80 * 10**9, "bytes"),
        ("2T", 2 * 10**12, "count"),
        ("14.8T", 148 * 10**11, "count"),
        ("4M", 4 * 10**6, "count"),
        ("7B", 7 * 10**9, "count"),
        ("32K", 32_000, "count"),
        ("30min", 1800, "time"),
        ("5ms", Fraction(5, 1000), "time"),
        ("1.5h", 5400, "time"),
    ],
)
def test_parse(text: str, value: Fraction, kind: str | None) -> None:
    number = parse_number(text)
    assert (number.value, number.kind, number.text) == (value, kind, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("72GIB", "did you mean `72GiB`"),
        ("72gb", "did you mean `72GB`"),
        ("32k", "did you mean `32K`"),
        ("4m", "did you mean `4M`"),
        ("3GiBs", "did you mean `3GiB`"),
        ("5parsec", "units are K, M, B, T, KiB"),
        ("1_", "underscore"),
        ("1__0", "underscore"),
        ("1.5_", "underscore"),
        ("1e999999999", "exponent"),
        ("9" * 5000, "digits"),
        ("", "not a number"),
        ("-1", "not a number"),
        (".5", "not a number"),
        ("١٢", "not a number"),
    ],
)
def test_parse_errors(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_number(text)


@given(st.decimals(min_value=0, max_value=10**20, allow_nan=False, places=8), st.booleans())
def test_parse_is_exact(value: Decimal, scientific: bool) -> None:
    text = f"{value:e}" if scientific else f"{value:f}"
    assert parse_number(text).value == Fraction(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (4096, "4096"),
        (9999, "9999"),
        (10_000, "10_000"),
        (11_008, "11_008"),
        (6_910_365_696, "6_910_365_696"),
        (Fraction(16384, 1000), "16.384"),
        (Fraction(2, 5), "0.4"),
        (Fraction(32769, 2), "16_384.5"),
        (Fraction(1, 3), "1 / 3"),
        (Fraction(20_000, 3), "20_000 / 3"),
        (Fraction(1, 10**20), "1 / 100_000_000_000_000_000_000"),
        (-12_345, "-12_345"),
        (Fraction(-1, 2), "-0.5"),
    ],
)
def test_show(value: Fraction | int, text: str) -> None:
    assert show_number(value) == text


@given(st.fractions(min_value=0, max_denominator=10**6))
def test_what_is_shown_reads_back(value: Fraction) -> None:
    above, _, below = show_number(value).partition(" / ")
    assert parse_number(above).value / (parse_number(below).value if below else 1) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1023 bytes"),
        (1024, "1KiB"),
        (1536, "1.5KiB"),
        (2**20 - 1, "1MiB"),
        (72 * 2**30, "72GiB"),
        (110 * 10**9, "102.4GiB"),
        (20_000 * 2**40, "20_000TiB"),
        (-1536, "-1.5KiB"),
        (Fraction(5, 2) * 2**30, "2.5GiB"),
    ],
)
def test_show_bytes(value: Fraction | int, text: str) -> None:
    assert show_bytes(value) == text


@given(st.integers(1024, 2**50))
def test_bytes_shown_are_within_a_twentieth_of_the_unit(value: int) -> None:
    number = parse_number(show_bytes(value))
    unit = parse_number(f"1{number.unit}").value
    assert abs(number.value - value) <= unit / 20
