"""Devices that plans name."""

from __future__ import annotations

from dataclasses import dataclass

GB = 10**9


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator: `memory` in bytes that its driver reports, `bf16` in dense FLOP/s, `bandwidth` in bytes/s."""

    name: str
    memory: int
    bf16: float
    bandwidth: float


DEVICES = {
    # NVIDIA H100 Tensor Core GPU data sheet, SXM: 80 GB, 989 TFLOP/s dense bf16, 3.35 TB/s.
    "h100_80gb": Device("h100_80gb", 85_000 * 10**6, 989e12, 3.35e12),
    # NVIDIA H200 Tensor Core GPU data sheet, SXM: 141 GB, 989 TFLOP/s dense bf16, 4.8 TB/s.
    "h200_141gb": Device("h200_141gb", 150_000 * 10**6, 989e12, 4.8e12),
    # NVIDIA A100 Tensor Core GPU data sheet, SXM 80 GB: 312 TFLOP/s dense bf16, 2.04 TB/s.
    "a100_80gb": Device("a100_80gb", 84_900 * 10**6, 312e12, 2.04e12),
}
