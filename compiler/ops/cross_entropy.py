"""Cross entropy of rows of logits: what an objective's `next_token` is summed from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..ir import DType, TensorType
from .base import RowOperation

if TYPE_CHECKING:
    from ..emit.expression import Call, Text
    from ..rows.row import Row, Writing

IGNORED = -100  # the target of a position that has nothing to predict


@dataclass(frozen=True, slots=True)
class CrossEntropy(RowOperation):
    """Operands: logits [.., V], targets [..]. `z`: of the squared log-sum-exp; `smoothing`: towards the uniform."""

    z: float = 0.0
    smoothing: float = 0.0

    def infer(self, logits: TensorType, targets: TensorType) -> tuple[TensorType, ...]:
        return (TensorType(targets.axes, DType.FP32),)

    def emit(self, call: Call) -> Text:
        z = call.number(self.z) if self.z else None
        smoothing = call.number(self.smoothing) if self.smoothing else None
        return call.reference("token_losses")(*call.operands, z=z, smoothing=smoothing)

    def rows(self, writing: Writing, *operands: Row) -> tuple[Row, ...]:
        x, target = operands
        most = x.max().called("most")
        log_sum = ((x - most).exp().sum().log() + most).called("log_sum")
        picked = x.where(x.numbered().equal(target), 0.0).sum()
        loss = log_sum - picked
        if self.smoothing:
            loss = log_sum - picked * (1.0 - self.smoothing) - x.mean() * self.smoothing
        if self.z:
            loss = loss + log_sum * log_sum * self.z
        nowhere = float("nan")  # a target that is no token gives no number, where torch stops
        loss = loss.where(target.less(x.width()), nowhere).where(writing.number(0).less_equal(target), nowhere)
        return (writing.number(0.0).where(target.equal(IGNORED), loss),)
