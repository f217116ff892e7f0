"""Choosing experts: scores, choices, what evens them out, and the losses that keep them even."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dskc.dsl.dims import Dim

from ..ir import Axis, DType, Op, TensorType, Value
from ..primitive import Primitive, Site
from ..signature import Kind, Parameter, Signature
from ..values import Size
from .base import Operation, RowOperation, Saved, ShapeError, check_all_but_last, check_floating, last_axis
from .elementwise import Elementwise
from .weights import Weight

if TYPE_CHECKING:
    from ..emit.expression import Call, Text
    from ..rows.row import Row, Writing

GROUP_BY = ("best", "best_two")


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


@dataclass(frozen=True, slots=True)
class GroupedTopK(Operation):
    """`TopK` among the `keep` best of `groups` equal parts of the last axis."""

    k: int
    groups: int
    keep: int
    group_by: str

    def infer(self, score: TensorType) -> tuple[TensorType, ...]:
        last_axis(score, "score")
        return (TensorType((*score.axes[:-1], _chosen(self.k)), DType.INT64),)

    def problem(self, among: int) -> str | None:
        """What does not go with so many scores; None where all does."""
        if among % self.groups:
            return f"{among:_} scores do not make {self.groups} equal groups"
        each = among // self.groups
        if self.group_by == "best_two" and each < 2:
            return f"groups of {among:_} / {self.groups} = {each} have no best two"
        if self.k > self.keep * each:
            return f"the best {self.k} cannot be chosen from {self.keep} groups of {each}"
        return None

    def emit(self, call: Call) -> Text:
        return call.reference("top_k")(
            call.operand(0),
            call.text(str(self.k)),
            groups=str(self.groups),
            keep=str(self.keep),
            group_by=call.string(self.group_by),
        )


def _chosen(k: int) -> Axis:
    return Axis("K", Dim.of(k))


@dataclass(frozen=True, slots=True)
class BalanceBias(Operation):
    """Operand: the buffer [X]. Its numbers, in float32."""

    def infer(self, bias: TensorType) -> tuple[TensorType, ...]:
        return (bias,)

    def emit(self, call: Call) -> Text:
        return call.tensor(0)


@dataclass(frozen=True, slots=True)
class CountLoad(Operation):
    """Operands: the buffer [X] of a `balance_bias`, and choices. The same choices, counted for it while training."""

    pure: ClassVar[bool] = False

    def infer(self, bias: TensorType, chosen: TensorType) -> tuple[TensorType, ...]:
        return (chosen,)

    def emit(self, call: Call) -> Text:
        return call.operand(1) if call.serving else call.apply(call.module(0), call.operand(1))


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


@dataclass(frozen=True, slots=True)
class ZLoss(Operation):
    """The mean over positions of logsumexp(logits)²: one number, in float32."""

    def infer(self, logits: TensorType) -> tuple[TensorType, ...]:
        check_floating(logits, "logits")
        last_axis(logits, "logits")
        return (TensorType((), DType.FP32),)

    def saved(self, op: Op) -> Saved:
        kind = op.operands[0].type
        return Saved(op.operands, ((kind.elements / kind.axes[-1].size, "fp32"),))

    def emit(self, call: Call) -> Text:
        return call.reference("z_loss")(call.operand(0))


def _top_k(site: Site) -> Value:
    score, k = site.tensor("score"), int(site.number("k"))
    groups = int(site.number("groups"))
    keep = groups if site["keep"] is None else int(site.number("keep"))
    for name, number in (("k", k), ("groups", groups), ("keep", keep)):
        if number < 1:
            raise ShapeError(f"`{name}` is at least 1, not {number}", name, code="DSK0131")
    if keep > groups:
        raise ShapeError(f"of {groups} groups {keep} cannot be kept", "keep", code="DSK0131")
    counted = None
    if site["bias"] is not None:
        bias = site.tensor("bias")
        if len(bias.type.axes) > 1:
            raise ShapeError(f"`bias` has a number for each score, and this is {bias.type}", "bias")
        counted = _buffer(site, bias)
        # Named, so that no cast takes it for a residual stream.
        score = site.builder.one(Elementwise("add"), (score, bias), site.span, "biased")
    if keep == groups:
        chosen = site.add(TopK(k), score)
    else:
        chosen = site.add(GroupedTopK(k, groups, keep, str(site["group_by"])), score)
    return chosen if counted is None else site.add(CountLoad(), counted, chosen)


def _buffer(site: Site, bias: Value) -> Value | None:
    """The buffer that a bias was read from, where it is a `balance_bias` of this body."""
    read = (op for op in site.builder.ops if bias in op.results and isinstance(op.attributes, BalanceBias))
    return next((op.operands[0] for op in read), None)


def _balance_bias(site: Site) -> Value:
    count = site["count"]
    assert isinstance(count, Size)
    if site.builder.stack is not None:
        raise ShapeError("a `balance_bias` evens out experts, and none of them can own one")
    (bias,) = site.weights("BalanceBias", Weight("bias", ((count.axis,),), "zeros", state="saved"))
    return site.add(BalanceBias(), bias)


def _balance(name: str, doc: str) -> Primitive:
    def build(site: Site) -> Value:
        return site.add(Balance(name), site.tensor("score"), site.tensor("chosen"))

    return Primitive(Signature(name, (Parameter("score", Kind.TENSOR), Parameter("chosen", Kind.TENSOR)), doc), build)


PRIMITIVES = (
    Primitive(
        Signature(
            "top_k",
            (
                Parameter("score", Kind.TENSOR),
                Parameter("k", Kind.INT),
                Parameter("bias", Kind.TENSOR, None, doc="[X], added to the scores for the choice; none unless told"),
                Parameter("groups", Kind.INT, 1, doc="equal parts of the last axis"),
                Parameter("keep", Kind.INT, None, doc="groups, the best, to choose from; all unless told"),
                Parameter(
                    "group_by",
                    Kind.SYMBOL,
                    "best",
                    GROUP_BY,
                    doc="what a group is worth: its best score, or the sum of its best two",
                ),
            ),
            "The indices of the k best along the last axis, best first; of equals the lower index first.",
        ),
        _top_k,
    ),
    Primitive(
        Signature(
            "balance_bias",
            (Parameter("count", Kind.SIZE, doc="experts"),),
            "A bias of each expert, [X], which no gradient moves but `balance` of a `train` section, by the load that "
            "`top_k(.., bias: balance_bias(X))` counts (arXiv:2412.19437, section 2.1.2).",
        ),
        _balance_bias,
        weighted=True,
    ),
    Primitive(
        Signature("normalize", (Parameter("x", Kind.TENSOR),), "x / sum(x) over the last axis."),
        lambda site: site.add(Normalize(), site.tensor("x")),
    ),
    _balance("load_balance", "The load-balancing loss over the batch (arXiv:2101.03961, equations 4 to 6)."),
    _balance("sequence_balance", "The balance loss of each sequence (arXiv:2412.19437, equations 17 to 20)."),
    Primitive(
        Signature(
            "z_loss",
            (Parameter("logits", Kind.TENSOR),),
            "The mean of logsumexp(logits)² over all positions (arXiv:2202.08906, equation 5).",
        ),
        lambda site: site.add(ZLoss(), site.tensor("logits")),
    ),
)
