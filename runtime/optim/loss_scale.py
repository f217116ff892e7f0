"""A factor of the loss that lets small gradients live in fp16 (arXiv:1710.03740, section 3.2), found as it goes."""

from __future__ import annotations

from dataclasses import dataclass

FIRST = 2.0**16
LEAST, MOST = 1.0, 2.0**24
PATIENCE = 2000  # steps without an overflow before it is doubled


@dataclass
class LossScale:
    """value: what the loss is multiplied by, and gradients are divided by again. good: steps since it last changed.

    An overflow halves it, PATIENCE steps without one double it.
    """

    value: float = FIRST
    good: int = 0

    def count(self, overflowed: bool) -> bool:
        """Count a step, in which gradients of a finite loss were not finite or were. Whether a smaller scale helps: at
        the least one it is not the scale that is too large.
        """
        if overflowed:
            helps = self.value > LEAST
            self.value, self.good = max(LEAST, self.value / 2), 0
            return helps
        self.good += 1
        if self.good >= PATIENCE:
            self.value, self.good = min(MOST, self.value * 2), 0
        return False
