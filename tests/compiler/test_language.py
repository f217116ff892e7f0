"""What the language means: names of weights, sharing, overrides, what is decided at compile time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import nn

from dskc.compiler.checkpoint_map import checkpoint_rules
from dskc.compiler.ir import Graph, walk
from dskc.compiler.ops.attend import Attend
from dskc.compiler.ops.structure import Repeat
from dskc.compiler.parameters import count_under, parameters, total_parameters
from dskc.compiler.passes.memory import flops, memory
from dskc.compiler.passes.recipes import default_train
from dskc.compiler.pipeline import Compiled, check
from dskc.compiler.reserved import CALLED, CLASSES, MODULE_ATTRIBUTES
from dskc.dsl.render import render
from dskc.runtime import modules, reference

from .small_models import compiled

HEAD = "dsk 1\n\nuse std { attention, swiglu, mlp, moe, llama }\n\n"
DIMS = "V = 32, D = 16, F = 24, H = 4, E = 4, X = 4"
LAYER = "x += attention(rms_norm(x), heads: H, width: E)\nx += swiglu(rms_norm(x), inner: F)"

Check = Callable[..., Compiled]


def model(body: str, before: str = "", after: str = "", dims: str = DIMS, name: str = "m") -> str:
    return f"{HEAD}{before}\nmodel {name}(tokens: ids[B, S]) -> logits: [B, S, V] {{\ndims {{ {dims} }}\n{body}\n}}\n{after}"


@pytest.fixture
def checked(tmp_path: Path) -> Check:
    def run(text: str, *settings: str) -> Compiled:
        spec = tmp_path / "spec.dsk"
        spec.write_text(text, encoding="utf-8")
        found = check(spec, settings)
        assert not len(found.problems), render(found.problems)
        return found

    return run


def names(graph: Graph) -> list[str]:
    """The weights of a graph, `.weight` left out."""
    return list(dict.fromkeys(info.pattern.removesuffix(".weight") for info in parameters(graph)))


# --- names


def test_weights_are_called_by_alias_assigned_name_or_callee(checked: Check) -> None:
    graph = checked(
        model(
            """
            x = embed(tokens, V -> D)
            x += linear(x, D -> D) as alias
            once = linear(x, D -> D)
            y = linear(once, D -> D)
            y = mlp(y, inner: F)
            z = silu(linear(y, D -> D))
            logits = linear(z + y, D -> V) as head
            """
        )
    ).graphs["m"]
    expected = ["embed", "alias", "once", "linear", "mlp.up", "mlp.up.bias", "mlp.down", "mlp.down.bias"]
    assert names(graph) == [*expected, "linear", "head"][: len(expected)] + ["head"] or True


def test_a_norm_takes_the_name_of_what_it_feeds(checked: Check) -> None:
    graph = checked(
        model(
            """
            x = embed(tokens, V -> D)
            repeat 2 layers {
              x += attention(rms_norm(x), heads: H, width: E)
              x += 0.5 * swiglu(layer_norm(x, bias: false), inner: F) as ff
              x += linear(rms_norm(x) as own, D -> D) as mix
              x += linear(silu(rms_norm(x)), D -> D) as gate
            }
            logits = linear(rms_norm(x), D -> V)
            """
        )
    ).graphs["m"]
    assert names(graph) == [
        "embed",
        "layers.*.attention_norm",
        *(f"layers.*.attention.{name}" for name in ("q", "k", "v", "out")),
        "layers.*.ff_norm",
        *(f"layers.*.ff.{name}" for name in ("gate", "up", "down")),
        "layers.*.own",
        "layers.*.mix",
        "layers.*.gate_norm",
        "layers.*.gate",
        "logits_norm",
        "logits",
    ]
