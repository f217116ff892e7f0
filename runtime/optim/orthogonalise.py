"""Matrices with all singular values brought near 1, by a few products: Muon's Newton-Schulz iteration."""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 5
# Of x -> ax + bx^3 + cx^5, applied to each singular value: from 0.0 up it is steep, and ends between 0.7 and 1.2
# (Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024).
A, B, C = 3.4445, -4.7750, 2.0315


def orthogonalise(matrices: Tensor, eps: float = 1e-7) -> Tensor:
    """[.., M, N]: what is U S V^T becomes about U V^T, each matrix by itself, whatever its norm over eps.

    Computed and given in bf16, as `torch.optim.Muon` does; on a CPU, where bf16 is no faster, in float32. A matrix of
    zeros stays one; one with a value that is not finite has none that is.
    """
    x = matrices.to(torch.float32 if matrices.device.type == "cpu" else torch.bfloat16)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=eps)  # no singular value is over 1
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.add(A * x, (B * gram + C * (gram @ gram)) @ x)
    return x.mT if tall else x
