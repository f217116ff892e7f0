"""The matrix products of `linear_loss`, over some logits at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..device import on_its_device
from ..tuning import Tile, Way, run_best
from .rows import (
    ALIGNED,
    BLOCK_TILES,
    ROW_TILES,
    LossOptions,
    Parts,
    aligned,
    gradient_in_place,
    in_one_part,
    loss_rows,
    row_key,
    wide_of,
)

# Bytes of logits at a time. The least are 1,024 rows of 102,400 in bf16.
LEAST_BYTES, MOST_BYTES = 200 << 20, 640 << 20
GROUPS = 8  # of rows, between those bounds: the weight's gradient is read and written once for each
ROWS, COLUMNS = 128, 4096  # groups of rows are multiples of the first; groups of columns have at least as many


def bytes_at_a_time(logits: int) -> int:
    """How many bytes of logits are held at once, of so many bytes of them."""
    return min(logits, max(LEAST_BYTES, min(MOST_BYTES, logits // GROUPS)))


@dataclass(frozen=True)
class Wanted:
    """Which gradients are."""

    x: bool
    weight: bool
    bias: bool


class Over(NamedTuple):
    """What gradients are still to be divided by, in fp32 on the device: that of x, and those of weight and bias."""

    x: Tensor
    others: Tensor


@dataclass
class Gradients:
    """Of x [N, D], weight [V, D] and bias [V], each in its dtype; None where it is not wanted."""

    x_ND: Tensor | None
    weight_VD: Tensor | None
    bias_V: Tensor | None

    def there(self, over: Over) -> list[tuple[Tensor, Tensor]]:
        """Those that are, each with what it is to be divided by."""
        every = ((self.x_ND, over.x), (self.weight_VD, over.others), (self.bias_V, over.others))
        return [(gradient, by) for gradient, by in every if gradient is not None]


@on_its_device
def losses_of_rows(
    x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, target_N: Tensor, options: LossOptions
) -> tuple[Tensor, Tensor]:
    """Losses and logsumexps [N] in fp32 (fp64 of fp64), zero where the target is ignored."""
    made = torch.empty(2, len(x_ND), dtype=wide_of(x_ND.dtype), device=x_ND.device)
    flat = _logits(len(x_ND), weight_VD)
    for rows in _row_groups(len(x_ND), weight_VD):
        made[0, rows], made[1, rows] = _rows(flat, x_ND[rows], weight_VD, bias_V, target_N[rows], None, options)[1]
    return made[0], made[1]


@on_its_device
def gradients_of_mean(
    x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, target_N: Tensor, options: LossOptions, wanted: Wanted
) -> tuple[Tensor, Gradients, Over]:
    """Losses [N], the gradients of their sum times a factor, and what these are still to be divided by for the mean.

    That is 1 but in float16, whose range does not reach down to a probability by the number of rows, and not up to the
    sum over many rows of the same target: the weight's gradient lies half way between sum and mean.
    """
    count = (target_N != options.ignored).sum().clamp(min=1).to(wide_of(x_ND.dtype))
    one = torch.ones_like(count)
    factor, share, over = one / count, 1.0, Over(one, one)
    if x_ND.dtype == torch.float16:
        share = 2.0 ** -(len(x_ND).bit_length() // 2)
        factor, over = one, Over(count, count * share)

    def run(way: Way) -> tuple[Tensor, Gradients]:
        mean = _Mean(x_ND, weight_VD, bias_V, target_N, factor, share, options, wanted)
        if way is IN_ITS_PLACE:
            return mean.in_place_of_the_gradient()
        return mean.by_rows()

    able = wanted.weight and weight_VD.is_contiguous() and _widths_within(x_ND.shape, weight_VD) is not None
    ways = [IN_ITS_PLACE, BY_ROWS] if able else [BY_ROWS]
    rows = 1 << max(0, len(x_ND) - 1).bit_length()
    key = (rows, *weight_VD.shape, str(x_ND.dtype), wanted.x, wanted.weight, able)
    return (*run_best("linear_loss.mean", key, ways, run), over)


BY_ROWS = Way("groups of rows")
IN_ITS_PLACE = Way("logits in the gradient's memory first")


@dataclass
class _Mean:
    """One call: loss and gradients of the mean over rows."""

    x_ND: Tensor
    weight_VD: Tensor
    bias_V: Tensor | None
    target_N: Tensor
    factor: Tensor
    share: float  # of the sum over rows, which the gradients of weight and bias are
    options: LossOptions
    wanted: Wanted
    loss_N: Tensor = field(init=False)
    grad_ND: Tensor | None = field(init=False)
    grad_VD: Tensor | None = field(init=False)
    grad_V: Tensor | None = field(init=False)

    def by_rows(self) -> tuple[Tensor, Gradients]:
        """A group of rows after the other, each with all its logits; the weight's gradient is summed over groups."""
        self._begin()
        self._go_on(range(len(self.x_ND)), _logits(len(self.x_ND), self.weight_VD), first=True)
        return self._end()

    def in_place_of_the_gradient(self) -> tuple[Tensor, Gradients]:
        """As many rows as x has columns come first, their logits in the memory of the weight's gradient.

        There is room for just so many. Logits lie in parts, each some columns of all these rows; the gradient of a
        part's columns needs that part only. It is written over the part before, or for the first into what is free, as
        the last part lies elsewhere. So these rows make one group, and what the products read of the weight and its
        gradient, they read and write once for all. Any other rows follow in groups.
        """
        self._begin()
        widths = _widths_within(self.x_ND.shape, self.weight_VD)
        assert self.grad_VD is not None and widths is not None
        rows = min(self.x_ND.shape)
        used = rows * sum(map(aligned, widths[:-1]))
        every = len(self.x_ND)
        flat = _logits(every - rows, self.weight_VD, least=rows * widths[-1], of=every)
        parts = Parts(rows, widths, self.grad_VD.view(-1)[self.grad_VD.numel() - used :], flat)
        x_ND, target_N = self.x_ND[:rows], self.target_N[:rows]
        starts = [sum(widths[:i]) for i in range(len(widths))]
        columns = [slice(start, start + width) for start, width in zip(starts, widths, strict=True)]
        self.loss_N[:rows] = self._losses_in_parts(parts, columns, x_ND, target_N)
        for i, of in enumerate(columns):
            change_RC = parts[i]
            if self.grad_ND is not None:
                _add_product(self.grad_ND[:rows], change_RC, self.weight_VD[of], first=i == 0)
            if self.grad_V is not None:
                self.grad_V[of] = change_RC.sum(0, dtype=self.grad_V.dtype)
            _add_product(self.grad_VD[of], change_RC.T, x_ND, first=True, share=self.share)
        self._go_on(range(rows, len(self.x_ND)), flat, first=False)
        return self._end()

    def _losses_in_parts(self, parts: Parts, columns: list[slice], x_RD: Tensor, target_R: Tensor) -> Tensor:
        def run(way: Way) -> Tensor:
            assert isinstance(way, Tile)
            for i, of in enumerate(columns):
                _product(x_RD, self.weight_VD[of], None if self.bias_V is None else self.bias_V[of], parts[i])
            return loss_rows(parts, target_R, self.factor, self.options, way)[0]

        key = (*row_key(len(self.weight_VD), x_RD.dtype, self.options, True), len(columns))
        return run_best("linear_loss.parts", key, ROW_TILES, run)

    def _begin(self) -> None:
        wanted, wide = self.wanted, wide_of(self.x_ND.dtype)
        rows, vocabulary = len(self.x_ND), len(self.weight_VD)
        self.loss_N = self.x_ND.new_empty(rows, dtype=wide)
        self.grad_ND = torch.empty_like(self.x_ND) if wanted.x else None
        self.grad_VD = torch.empty_like(self.weight_VD) if wanted.weight else None
        self.grad_V = self.x_ND.new_empty(vocabulary, dtype=wide) if wanted.bias else None
        if not rows:
            for gradient in (self.grad_VD, self.grad_V):
                if gradient is not None:
                    gradient.zero_()

    def _go_on(self, rows: range, flat: Tensor, first: bool) -> None:
        """The rows that are left, group by group. first: nothing has been written to what is summed over groups."""
        for group in _row_groups(len(rows), self.weight_VD, len(self.x_ND)):
            of = slice(rows.start + group.start, rows.start + group.stop)
            x_RD, target_R = self.x_ND[of], self.target_N[of]
            logits, (self.loss_N[of], _) = _rows(
                flat, x_RD, self.weight_VD, self.bias_V, target_R, self.factor, self.options
            )
            change_RV = logits[0]
            if self.grad_ND is not None:
                torch.mm(change_RV, self.weight_VD, out=self.grad_ND[of])
            if self.grad_VD is not None:
                _add_product(self.grad_VD, change_RV.T, x_RD, first, self.share)
            if self.grad_V is not None:
                _add(self.grad_V, change_RV.sum(0, dtype=self.grad_V.dtype), first)
            first = False

    def _end(self) -> tuple[Tensor, Gradients]:
        bias = None if self.grad_V is None else self.grad_V.mul_(self.share).to(self.x_ND.dtype)
        return self.loss_N, Gradients(self.grad_ND, self.grad_VD, bias)


@on_its_device
def gradients_of_rows(
    x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, target_N: Tensor, lse_N: Tensor, factor_N: Tensor,
    options: LossOptions, wanted: Wanted,
) -> Gradients:  # fmt: skip
    """Gradients of the sum of losses, each times its factor (fp32, [N]), from the rows' logsumexps.

    Groups are of columns, so that the weight's gradient is whole where rows fit in one group.
    """
    rows, vocabulary = len(x_ND), len(weight_VD)
    factor_N = factor_N.contiguous()
    grad_ND = torch.empty_like(x_ND) if wanted.x else None
    grad_VD = torch.empty_like(weight_VD) if wanted.weight else None
    grad_V = x_ND.new_empty(vocabulary, dtype=wide_of(x_ND.dtype)) if wanted.bias else None
    if not rows:
        return Gradients(grad_ND, *(None if t is None else t.zero_().to(x_ND.dtype) for t in (grad_VD, grad_V)))
    most = max(_most(rows, weight_VD), ALIGNED)
    groups = list(_split(rows, max(1, most // aligned(min(COLUMNS, vocabulary))), ROWS))
    widest = max(of.stop - of.start for of in groups)
    columns = list(_split(vocabulary, max(ALIGNED, most // widest), ROWS))
    flat = x_ND.new_empty(widest * aligned(columns[0].stop))
    for i, of in enumerate(groups):
        for j, some in enumerate(columns):
            change_RC = _gradient_of_block(
                flat, some.start, vocabulary, x_ND[of], weight_VD[some], None if bias_V is None else bias_V[some],
                target_N[of], lse_N[of], factor_N[of], options,
            )  # fmt: skip
            if grad_ND is not None:
                _add_product(grad_ND[of], change_RC, weight_VD[some], first=j == 0)
            if grad_VD is not None:
                _add_product(grad_VD[some], change_RC.T, x_ND[of], first=i == 0)
            if grad_V is not None:
                _add(grad_V[some], change_RC.sum(0, dtype=grad_V.dtype), first=i == 0)
    return Gradients(grad_ND, grad_VD, None if grad_V is None else grad_V.to(x_ND.dtype))


def _gradient_of_block(
    flat: Tensor, before: int, vocabulary: int, x_RD: Tensor, weight_CD: Tensor, bias_C: Tensor | None,
    target_R: Tensor, lse_R: Tensor, factor_R: Tensor, options: LossOptions,
) -> Tensor:  # fmt: skip
    logits_RC = in_one_part(flat, len(x_RD), len(weight_CD))[0]

    def run(way: Way) -> Tensor:
        assert isinstance(way, Tile)
        _product(x_RD, weight_CD, bias_C, logits_RC)
        gradient_in_place(logits_RC, before, vocabulary, target_R, lse_R, factor_R, options, way)
        return logits_RC

    key = row_key(len(weight_CD), x_RD.dtype, options, True)
    return run_best("linear_loss.block", key, BLOCK_TILES, run)


# --- one group of rows


def _rows(
    flat: Tensor, x_RD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, target_R: Tensor, factor: Tensor | None,
    options: LossOptions,
) -> tuple[Parts, tuple[Tensor, Tensor]]:  # fmt: skip
    """Logits of a group in `flat`, of which with a factor the gradient is left, and (losses, logsumexps)."""
    logits = in_one_part(flat, len(x_RD), len(weight_VD))

    def run(way: Way) -> tuple[Tensor, Tensor]:
        assert isinstance(way, Tile)
        # With the product, as rows may be timed several times, and the kernel writes over what it reads.
        _product(x_RD, weight_VD, bias_V, logits[0])
        return loss_rows(logits, target_R, factor, options, way)

    key = row_key(len(weight_VD), x_RD.dtype, options, factor is not None)
    return logits, run_best("linear_loss.rows", key, ROW_TILES, run)


def _product(x_RD: Tensor, weight_CD: Tensor, bias_C: Tensor | None, into_RC: Tensor) -> None:
    if bias_C is None:
        torch.mm(x_RD, weight_CD.T, out=into_RC)
    else:
        torch.addmm(bias_C, x_RD, weight_CD.T, out=into_RC)


def _add_product(total: Tensor, a: Tensor, b: Tensor, first: bool, share: float = 1.0) -> None:
    if first and share == 1.0:
        torch.mm(a, b, out=total)
    else:
        torch.addmm(total, a, b, beta=0 if first else 1, alpha=share, out=total)


def _add(total: Tensor, part: Tensor, first: bool) -> None:
    if first:
        total.copy_(part)
    else:
        total.add_(part)


# --- how logits are divided


def _most(rows: int, weight_VD: Tensor) -> int:
    """How many logits are held at once, of all those of so many rows."""
    size = weight_VD.element_size()
    return bytes_at_a_time(rows * aligned(len(weight_VD)) * size) // size


def _most_rows(rows: int, weight_VD: Tensor) -> int:
    return max(1, _most(rows, weight_VD) // aligned(len(weight_VD)))


def _row_groups(rows: int, weight_VD: Tensor, of: int | None = None) -> Iterator[slice]:
    """`rows`, which are some of a call's (all unless told), in groups."""
    return _split(rows, _most_rows(rows if of is None else of, weight_VD), ROWS)


def _logits(rows: int, weight_VD: Tensor, least: int = 0, of: int | None = None) -> Tensor:
    """Memory for the logits of any of the groups that so many rows make, and for as many as `least` in any case."""
    largest = next(_row_groups(rows, weight_VD, of), slice(0, 0)).stop
    return weight_VD.new_empty(max(largest * aligned(len(weight_VD)), least))


def _split(total: int, most: int, multiple: int) -> Iterator[slice]:
    """`total` in as few groups of at most `most` as will do, about equally large, and of multiples if `most` allows."""
    if most >= multiple:
        most = most // multiple * multiple
    size = -(-total // -(-total // most)) if total else 1
    if most >= multiple:
        size = -(-size // multiple) * multiple
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def _widths_within(shape: tuple[int, ...], weight_VD: Tensor) -> tuple[int, ...] | None:
    """Columns of the parts for the logits of min(N, D) rows, of which all but the last lie in the gradient [V, D].

    The first is the smallest. So each part begins behind the end of the gradient of its own columns, which is written
    while the part is read: the free memory in front of it is as large as the last part's gradient. None where logits
    of all rows are held at once, or parts would be too narrow.
    """
    rows, vocabulary, free = min(shape), len(weight_VD), _most(shape[0], weight_VD)
    if shape[0] <= _most_rows(shape[0], weight_VD) or shape[1] % ALIGNED:
        return None
    most = free // rows // ALIGNED * ALIGNED
    if not ALIGNED <= most < vocabulary:
        return None
    count = -(-vocabulary // most)
    width = aligned(-(-vocabulary // count))
    count = -(-vocabulary // width)
    return (vocabulary - (count - 1) * width, *[width] * (count - 1))
