"""Whether two regions do the same: the key under which the iterations of a repeat are grouped."""

from __future__ import annotations

from .ir import Op, Region, Value


def region_key(region: Region, losses: dict[str, Value]) -> object:
    """Equal for regions that hold the same operations on the same outer values."""
    numbers: dict[Value, int] = {}
    shape = _region(region, numbers)
    return shape, tuple((name, _operand(value, numbers)) for name, value in sorted(losses.items()))


def _region(region: Region, numbers: dict[Value, int]) -> object:
    for value in region.arguments:
        numbers[value] = len(numbers)
    arguments = tuple(value.type for value in region.arguments)
    ops = tuple(_op(op, numbers) for op in region.ops)
    return arguments, ops, tuple(_operand(value, numbers) for value in region.results)


def _op(op: Op, numbers: dict[Value, int]) -> object:
    operands = tuple(_operand(value, numbers) for value in op.operands)
    regions = tuple(_region(region, numbers) for region in op.regions)
    for value in op.results:
        numbers[value] = len(numbers)
    return op.attributes, operands, regions, tuple((value.type, value.name) for value in op.results)


def _operand(value: Value, numbers: dict[Value, int]) -> object:
    return numbers.get(value, value)
