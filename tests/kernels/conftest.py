"""Kernels without a GPU: Triton's interpreter runs them, in this folder's tests only."""

from __future__ import annotations

import fcntl
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


@pytest.fixture(autouse=True)
def gpu_memory_is_given_back() -> Iterator[None]:
    """Processes that share a GPU keep nothing of a test that is over."""
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@pytest.fixture
def much_memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Of all processes that share a GPU, one at a time runs a test that takes much of it."""
    with (tmp_path_factory.getbasetemp().parent / "much_memory").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
