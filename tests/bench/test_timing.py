"""Timing: how often, by which clock, and that nothing is left behind by what fails."""

from __future__ import annotations

import weakref
from unittest import mock

import pytest
import torch

from dskc.runtime.kernels.timing import Recorded, gpu_times


@pytest.mark.skipif(torch.cuda.is_available(), reason="by the clock, where there is no GPU")
def test_how_often_without_a_gpu() -> None:
    run = mock.Mock()
    assert len(gpu_times(run, fewest=3, most=5, seconds=0.0)) == 3
    assert run.call_count == 4  # one that does not count
    assert len(gpu_times(run, fewest=3, most=5, seconds=60.0)) == 5


def test_a_recorded_graph_holds_its_inputs() -> None:
    x, graph = torch.zeros(3), mock.Mock()
    gone = weakref.ref(x)
    recorded = Recorded(graph, (lambda held: lambda: held + 1)(x))
    del x
    recorded()
    assert gone() is not None
    graph.replay.assert_called_once_with()


@pytest.mark.gpu
def test_what_waits_for_the_gpu_or_fails_leaves_it_usable() -> None:
    x = torch.randn(1 << 20, device="cuda")
    assert all(ms > 0 for ms in gpu_times(lambda: float(x.sum()), 3, 5, 0.01))

    def fails() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        gpu_times(fails, 3, 5, 0.01)
    assert torch.rand(8, device="cuda").isfinite().all()
