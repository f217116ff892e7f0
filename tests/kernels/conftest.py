"""Kernels without a GPU: Triton's interpreter runs them, in this folder's tests only."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import triton


@pytest.fixture(scope="package", autouse=True)
def interpreted() -> Iterator[None]:
    """Kernels defined from here on are interpreted where there is no GPU; what runs is chosen by each test."""
    before = triton.knobs.runtime.interpret
    triton.knobs.runtime.interpret = not torch.cuda.is_available()
    yield
    triton.knobs.runtime.interpret = before
