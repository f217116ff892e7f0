"""One row of a benchmark: what is done, what it must cost at least, and everyone who does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

Run = Callable[[], object]
OURS = "dskc"


@dataclass(frozen=True)
class Case:
    """`build` allocates random inputs and gives what to time by name: this project's `dskc` first, then its peers.

    kernel: "attention forward". shape: "causal B2 S4096 H32 E128". flops: that it must do. bytes: that it must move
    through the GPU's memory, each input read and each output written once. unit: which of both its rate is of.
    ceiling: the measured rate that bounds it: of copying, or of products in a dtype. A peer that raises is not there.
    """

    kernel: str
    shape: str
    flops: float
    bytes: float
    build: Callable[[], Mapping[str, Run]]
    unit: Literal["TFLOP/s", "GB/s"] = "TFLOP/s"
    ceiling: Literal["copy", "bf16", "fp8", "int8"] = "bf16"
