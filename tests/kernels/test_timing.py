"""What a recorded graph reads stays as long as it is replayed."""

from __future__ import annotations

import weakref
from unittest import mock

import torch

from dskc.runtime.kernels import timing
from dskc.runtime.kernels.timing import Recorded


def test_a_recorded_graph_holds_its_inputs_and_is_not_recorded_again() -> None:
    x, graph = torch.zeros(3), mock.Mock()
    gone = weakref.ref(x)
    recorded = Recorded(graph, (lambda held: lambda: held + 1)(x))
    del x
    replay = timing._captured(recorded)
    replay()
    assert replay is recorded and gone() is not None
    graph.replay.assert_called_once_with()
