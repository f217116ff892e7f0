"""Kernels without a GPU: Triton's interpreter runs them, in this folder's tests only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import triton


def examples(count: int) -> int:
    """How many examples a test draws: where kernels are compiled, each takes seconds, and a third must do."""
    return max(4, count // 3) if torch.cuda.is_available() else count


@contextmanager
def triton_interprets() -> Iterator[None]:
    """Kernels defined within are interpreted where there is no GPU."""
    before = triton.knobs.runtime.interpret
    triton.knobs.runtime.interpret = not torch.cuda.is_available()
    yield
    triton.knobs.runtime.interpret = before


@pytest.fixture(scope="package", autouse=True)
def interpreted() -> Iterator[None]:
    """What a test defines is interpreted; whether it then runs is chosen by the test."""
    with triton_interprets():
        yield
