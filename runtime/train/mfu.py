"""Model FLOPs utilisation: the share of a device's arithmetic that a model itself needs (arXiv:2204.02311, appendix B).

Counted are the matrix products of a forward pass, attention as the half that a causal mask needs, and twice that for
the backward pass; nothing for what is computed again. The whole is what the device does at most in dense products
(without sparsity) of the dtype that activations are in.
"""

from __future__ import annotations

PASSES = 3  # forward, and the two products of backward for each of its own
TERA = 10**12

# Dense TFLOP/s of NVIDIA's data sheets, half of what they show with sparsity; fp32 without TF32, as torch has it unless
# told otherwise. The first whose name is in the device's counts.
PEAKS: tuple[tuple[str, dict[str, float]], ...] = (
    ("H100 PCIe", {"bf16": 756, "fp16": 756, "fp32": 51}),  # NVIDIA H100 Tensor Core GPU data sheet
    ("H100 NVL", {"bf16": 835, "fp16": 835, "fp32": 60}),  # the same
    ("H100", {"bf16": 989, "fp16": 989, "fp32": 67}),  # the same, SXM
    ("H200 NVL", {"bf16": 835, "fp16": 835, "fp32": 60}),  # NVIDIA H200 Tensor Core GPU data sheet
    ("H200", {"bf16": 989, "fp16": 989, "fp32": 67}),  # the same, SXM
    ("A100", {"bf16": 312, "fp16": 312, "fp32": 19.5}),  # NVIDIA A100 Tensor Core GPU data sheet
    ("L40S", {"bf16": 362, "fp16": 362, "fp32": 91.6}),  # NVIDIA L40S GPU data sheet
    ("A10", {"bf16": 125, "fp16": 125, "fp32": 31.2}),  # NVIDIA A10 Tensor Core GPU data sheet
)


def peak_flops(device_name: str, compute: str) -> float | None:
    """FLOP/s of a device in dense products of a dtype by the spec's name; None where none is known, as of CPUs."""
    for name, peaks in PEAKS:
        if name in device_name and compute in peaks:
            return peaks[compute] * TERA
    return None


def utilisation(flops_per_token: int, tokens_per_s: float, peak: float | None) -> float | None:
    """The share, or None where the whole is not known. flops_per_token: of a forward pass."""
    return PASSES * flops_per_token * tokens_per_s / peak if peak else None


def convention(peak: float, compute: str) -> str:
    """What the share is of, in words."""
    return f"3 x forward FLOPs, causal attention by half, of {peak / TERA:,.0f} TFLOP/s dense {compute}"
