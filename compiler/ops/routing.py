"""Choosing experts: scores, choices and the losses that keep them even."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dskc.dsl.dims import Dim

from ..ir import Axis, DType, Op, TensorType, Value
from ..primitive import Primitive, Site
from ..signature import Kind, Parameter, Signature
from .base import Operation, RowOperation, Saved, ShapeError, check_all_but_last, check_floating, last_axis

if TYPE_CHECKING:
    from ..emit.expression import Call, Text
    from ..rows.row import Row, Writing


@dataclass(frozen=True, slots=True)
class TopK(RowOperation):
    """Indices of the k greatest along the last axis, best first; ties go to the lower index."""

    k: int

    def infer(self, score: TensorType) -> tuple[TensorType, ...]:
        last_axis(score, "score")
        return (TensorType((*score.axes[:-1], _chosen(self.k)), DType.INT64),)

    def emit(self, call: Call) -> Text:
        return call.reference("top_k")(call.operand(0), call.text(str(self.k)))

    def rows(self, writing: Writing, *operands: Row) -> tuple[Row, ...]:
        return (operands[0].top_k(writing.columns(_chosen(self.k))),)


def _chosen(k: int) -> Axis:
    return Axis("K", Dim.of(k))


@dataclass(frozen=True, slots=True)
class Normalize(RowOperation):
    """x / (sum(x) + 1e-20) over the last axis."""

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        check_floating(x, "x")
        last_axis(x, "x")
        return (x,)

    def saved(self, op: Op) -> Saved:
        kind = op.result.type
        return Saved(op.operands, ((kind.elements / kind.axes[-1].size, "fp32"),))

    def emit(self, call: Call) -> Text:
        return call.reference("normalize")(call.operand(0))

    def rows(self, writing: Writing, *operands: Row) -> tuple[Row, ...]:
        (x,) = operands
        return (x / (x.sum() + 1e-20).called("total"),)


@dataclass(frozen=True, slots=True)
class Balance(Operation):
    """An auxiliary loss of scores [.., X] and choices [.., K]: `load_balance` or `sequence_balance`."""

    function: str

    @property
    def kind(self) -> str:
        return self.function

    def infer(self, score: TensorType, chosen: TensorType) -> tuple[TensorType, ...]:
        if chosen.dtype is not DType.INT64:
            raise ShapeError(f"choices are integers, not {chosen}", "chosen")
        check_floating(score, "score")
        check_all_but_last(score, chosen, "chosen")
        if len(score.axes) < 3:
            raise ShapeError(f"scores are [B, S, X], and these are {score}", "score")
        return (TensorType((), DType.FP32),)

    def saved(self, op: Op) -> Saved:
        return Saved(op.operands[:1]) if self.function == "sequence_balance" else Saved()

    def emit(self, call: Call) -> Text:
        return call.reference(self.function)(*call.operands)

    def describe(self) -> str:
        return ""


def _top_k(site: Site) -> Value:
    score, k = site.tensor("score"), int(site.number("k"))
    if k < 1:
        raise ShapeError(f"`k` is at least 1, not {k}", "k", code="DSK0131")
    return site.add(TopK(k), score)


def _balance(name: str, doc: str) -> Primitive:
    def build(site: Site) -> Value:
        return site.add(Balance(name), site.tensor("score"), site.tensor("chosen"))

    return Primitive(Signature(name, (Parameter("score", Kind.TENSOR), Parameter("chosen", Kind.TENSOR)), doc), build)


PRIMITIVES = (
    Primitive(
        Signature(
            "top_k",
            (Parameter("score", Kind.TENSOR), Parameter("k", Kind.INT)),
            "The indices of the k best along the last axis, best first.",
        ),
        _top_k,
    ),
    Primitive(
        Signature("normalize", (Parameter("x", Kind.TENSOR),), "x / sum(x) over the last axis."),
        lambda site: site.add(Normalize(), site.tensor("x")),
    ),
    _balance("load_balance", "The load-balancing loss over the batch (arXiv:2101.03961, equations 4 to 6)."),
    _balance("sequence_balance", "The balance loss of each sequence (arXiv:2412.19437, equations 17 to 20)."),
)
