"""What the language means: names of weights, sharing, overrides, what is decided at compile time."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
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


def model(body: str, before: str = "", after: str = "", dims: str = DIMS) -> str:
    head = f"{HEAD}{before}\nmodel m(tokens: ids[B, S]) -> logits: [B, S, V] {{\ndims {{ {dims} }}\n"
    return f"{head}{body}\n}}\n{after}"


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
            logits = linear(y, D -> V) as head
            """
        )
    ).graphs["m"]
    expected = ["embed", "alias", "once", "linear", "mlp.up", "mlp.up.bias", "mlp.down", "mlp.down.bias", "head"]
    assert names(graph) == expected  # `x` and `y` are bound twice, so they name nothing


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


def test_groups_and_repeats_stand_in_the_path(checked: Check) -> None:
    graph = checked(
        model(
            """
            x = embed(tokens, V -> D) as table
            group outer {
              repeat 2 stages {
                repeat 3 layers {
                  x += linear(x, D -> D)
                }
                x += linear(x, D -> D) as mix
              }
              h = linear(x, D -> D)
            }
            logits = linear(h, D -> V)
            """
        )
    ).graphs["m"]
    assert names(graph) == ["table", "outer.stages.*.layers.*.linear", "outer.stages.*.mix", "outer.h", "logits"]
    every = {info.name for info in parameters(graph)}
    assert {"outer.stages.1.layers.2.linear.weight", "outer.stages.1.mix.weight"} <= every
    assert len(every) == 1 + 6 + 2 + 1 + 1
    assert total_parameters(graph) == 2 * 32 * 16 + 9 * 256
    assert count_under(graph, "outer.stages") == 8 * 256
    assert count_under(graph, "outer.stages.layers") == 6 * 256
    assert count_under(graph, "outer.st") is None


def test_names_of_python_and_torch_are_known() -> None:
    # torch's own: other libraries add methods to every module once they are imported.
    own = (name for name, value in vars(nn.Module).items() if getattr(value, "__module__", "torch").startswith("torch"))
    public = {name for name in own if not name.startswith("_")}
    assert public | {"training"} <= MODULE_ATTRIBUTES
    assert {name for name in reference.__all__ if name[0].islower()} - {
        "everything",
        "next_token",
        "token_losses",
        *("classify", "regress", "weighted"),  # of train.py
    } <= CALLED | {"grouped_linear"}
    assert {name for name in (*modules.__all__, *reference.__all__) if name[0].isupper()} - {"Mask", "Rows"} <= CLASSES


# --- values: one set of weights


def test_a_block_value_owns_one_set_of_weights(checked: Check) -> None:
    graph = checked(
        model(
            """
            table = embed(V -> D)
            ff = swiglu(inner: F)
            x = table(tokens)
            x += ff(rms_norm(x) as first)
            repeat 3 layers {
              x += ff(rms_norm(x))
            }
            logits = unembed(x, table)
            require params == 512 + 3 * 384 + 16 + 3 * 16
            require params(ff) == 3 * 384
            """
        )
    ).graphs["m"]
    assert names(graph) == ["table", "first", "ff.gate", "ff.up", "ff.down", "layers.*.ff_norm"]


def test_a_value_that_is_passed_belongs_to_the_block_it_is_passed_to(checked: Check) -> None:
    residual = "block residual(x: [B, S, D], f: block) -> [B, S, D] {\nreturn x + f(rms_norm(x) as norm)\n}"
    graph = checked(
        model(
            """
            x = embed(tokens, V -> D)
            repeat 2 layers {
              x = residual(x, attention(heads: H, width: E)) as mix
              x = residual(x, swiglu(inner: F)) as ff
            }
            shared = linear(D -> D)
            x = residual(x, shared) as a
            x = residual(x, shared) as b
            logits = linear(x, D -> V)
            """,
            residual,
        )
    ).graphs["m"]
    assert [name for name in names(graph) if not name.startswith("layers.*.mix.f.")] == [
        "embed", "layers.*.mix.norm", "layers.*.ff.norm", "layers.*.ff.f.gate", "layers.*.ff.f.up",
        "layers.*.ff.f.down", "shared", "a.norm", "b.norm", "logits",
    ]  # fmt: skip


# --- overrides


BASE = model(
    f"x = embed(tokens, V -> D)\nrepeat 4 layers {{\n{LAYER}\n}}\nlogits = linear(x, D -> V)\n"
    "require params > 0\nweights llama",
    dims="V = 32, D = 16, F = 2 * D, H = 4, E = D / H",
    after="""
train slow of m {
  tokens    = 1M
  batch     { sequences = 4, S = 16 }
  optimizer adamw(lr: 1e-3, betas: [0.9, 0.95], decay: 0.1)
}
""",
)


def test_a_derived_model_changes_what_it_says(checked: Check) -> None:
    found = checked(
        f"""{BASE}
model n from m {{
  dims {{ D = 32 }}
  repeat layers 2
  layers.attention(qk_norm: true, mask: causal & window(3))
  require params == 32 * 32 * 2 + 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32 + 2 * 8)
}}
model k from n {{
  layers.attention(qk_norm: false)
  layers.swiglu(inner: D)
}}
train fast from slow of n {{
  tokens = 2M
  optimizer(lr: 2e-3)
}}
"""
    )
    n, k = found.graphs["n"], found.graphs["k"]
    assert n.sizes == {"V": 32, "D": 32, "F": 64, "H": 4, "E": 8}
    assert "layers.*.attention.q_norm" in names(n) and "layers.*.attention.q_norm" not in names(k)
    masks = {str(op.attributes.mask) for op, _ in walk(k.body) if isinstance(op.attributes, Attend)}
    assert masks == {"causal & window(3)"}
    assert {i.pattern: i.shape for i in parameters(k)}["layers.*.swiglu.gate.weight"] == (32, 32)
    assert checkpoint_rules(found.program.models["n"], n, found.problems)  # weights are inherited
    slow, fast = found.recipes.trains["slow"], found.recipes.trains["fast"]
    assert (fast.model, fast.tokens, fast.sequences, fast.length) == ("n", 2_000_000, 4, 16)
    assert fast.optimizer["lr"] == Fraction(2, 1000) and fast.optimizer["betas"] == slow.optimizer["betas"]


def test_a_plan_rounds_what_it_keeps_in_bf16(checked: Check) -> None:
    says = "precision { params = bf16, optimizer = bf16, rounding = stochastic }"
    found = checked(f"{BASE}\nplan one for slow on h100_80gb {{\n  {says}\n}}\n")
    train, plan = found.recipes.trains["slow"], found.recipes.plans["one"]
    assert train.precision.rounding is None and "rounding" not in train.precision.said()
    merged = plan.precision.over(train.precision)
    assert merged.said() == {
        "params": "bf16", "compute": "bf16", "reduce": "fp32", "optimizer": "bf16", "rounding": "stochastic"
    }  # fmt: skip
    assert replace(merged, params="fp32", optimizer="fp32").rounds is False


@pytest.mark.parametrize(
    ("setting", "holds"),
    [
        ("dims.D=32", lambda f: f.graphs["m"].sizes == {"V": 32, "D": 32, "F": 64, "H": 4, "E": 8}),
        ("dims.F=D + 2", lambda f: f.graphs["m"].sizes["F"] == 18),
        ("layers=2", lambda f: len({i.name for i in parameters(f.graphs["m"])}) == 2 + 2 * 9),
        ("layers.attention.qk_norm=true", lambda f: "layers.*.attention.k_norm" in names(f.graphs["m"])),
        ("m.dims.D=32", lambda f: f.graphs["m"].sizes["D"] == 32),
        ("slow.tokens=3M", lambda f: f.recipes.trains["slow"].tokens == 3_000_000),
        ("slow.batch.S=8", lambda f: f.recipes.trains["slow"].length == 8),
        ("slow.optimizer.lr=0.5", lambda f: f.recipes.trains["slow"].optimizer["lr"] == Fraction(1, 2)),
        ("slow.optimizer=lion(lr: 1e-4)", lambda f: f.recipes.trains["slow"].optimizer.name == "lion"),
        ("slow.precision.compute=fp32", lambda f: f.recipes.trains["slow"].precision.compute == "fp32"),
    ],
)
def test_settings_of_the_command_line(checked: Check, setting: str, holds: Callable[[Compiled], bool]) -> None:
    assert not holds(checked(BASE))
    assert holds(checked(BASE, setting))


def test_a_model_that_is_set_otherwise_need_not_hold_its_requirements(tmp_path: Path, checked: Check) -> None:
    exact = BASE.replace("params > 0", "params == 11_392")
    checked(exact)
    checked(exact, "layers=2")
    spec = tmp_path / "wrong.dsk"
    spec.write_text(exact.replace("repeat 4", "repeat 5"))
    assert [d.code for d in check(spec).problems] == ["DSK0150"]


@pytest.mark.parametrize(
    ("setting", "code", "says"),
    [
        ("dims.Q=3", "DSK0140", "has no dim `Q`"),
        ("layrs=3", "DSK0140", "did you mean `layers`?"),
        ("layers.attention.qk=true", "DSK0140", "takes no `qk`"),
        ("slow.tokns=3", "DSK0170", "did you mean `tokens`?"),
        ("slow.optimizer.rate=3", "DSK0124", "takes no `rate`"),
        ("dims.D", "DSK0140", "path.to.key=value"),
        ("dims.D=", "DSK0140", ""),
        ("=3", "DSK0140", ""),
        ("dims.D=3 +", "DSK0140", ""),
    ],
)
def test_settings_that_meet_nothing(tmp_path: Path, setting: str, code: str, says: str) -> None:
    spec = tmp_path / "spec.dsk"
    spec.write_text(BASE)
    found = list(check(spec, (setting,)).problems)
    assert [d.code for d in found] == [code]
    drawn = render(found)
    assert says in drawn
    assert "--set" in drawn


# --- what is decided at compile time


def test_a_repeat_is_as_many_bodies_as_its_index_makes_different(checked: Check) -> None:
    graph = checked(
        model(
            """
            x = embed(tokens, V -> D)
            repeat 8 layers[i] {
              x += attention(rms_norm(x), heads: H, width: E, mask: if i % 4 == 3 then causal else causal & window(3))
              x += if i < 2 or i == 7 then swiglu(rms_norm(x), inner: F) else moe(rms_norm(x), count: X, inner: F,
                                                                                  top: 2)
            }
            logits = linear(x, D -> V)
            """
        )
    ).graphs["m"]
    (repeat,) = (op.attributes for op in graph.body.ops if isinstance(op.attributes, Repeat))
    assert repeat.variants == (0, 0, 1, 2, 1, 1, 1, 3)
    every = {info.name for info in parameters(graph)}
    assert [f"layers.{i}.moe.router.weight" in every for i in range(8)] == [False, False, *[True] * 5, False]


def test_if_as_statement(checked: Check) -> None:
    block = """
block b(x: [B, S, D], rank: R?, kind: int = 2, gate: [B, S, D]?) -> [B, S, D] {
  if not R {
    y = linear(x, D -> D) as full
  } else if kind > 1 and R < 8 {
    y = linear(linear(x, D -> R) as down, R -> D) as up
  } else {
    y = x
  }
  if gate { y = y * sigmoid(gate) }
  return y
}
"""
    graph = checked(
        model(
            """
            x = embed(tokens, V -> D)
            x = b(x) as a
            x = b(x, rank: 2) as c
            x = b(x, rank: 9) as d
            x = b(x, rank: H, kind: 1, gate: x) as e
            logits = linear(x, D -> V)
            """,
            block,
        )
    ).graphs["m"]
    assert names(graph) == ["embed", "a.full", "c.down", "c.up", "logits"]
    assert [op.kind for op, _ in walk(graph.body) if op.kind in ("sigmoid", "mul")] == ["sigmoid", "mul"]


def test_dims_are_exact(checked: Check) -> None:
    dims = "V = 32, D = 10, F = floor(0.7 * D) + 2, H = 2, E = D / H, X = max(H, 4, min(D, 3)), Q = ceil(D / 3) * H % 5"
    graph = checked(model("x = embed(tokens, V -> D)\nlogits = linear(x, D -> V)", dims=dims)).graphs["m"]
    assert graph.sizes == {"V": 32, "D": 10, "F": 9, "H": 2, "E": 5, "X": 4, "Q": 3}


def test_roots_and_logarithms_of_numbers_are_numbers(checked: Check, tmp_path: Path) -> None:
    scale = "0.1 * log(8 * E) / sqrt(4)"
    line = f"x += attention(x, heads: H, width: E, scale: {scale})\nlogits = log(linear(x, D -> V))"
    graph = checked(model(f"x = embed(tokens, V -> D)\n{line}")).graphs["m"]
    (attend,) = (op.attributes for op, _ in walk(graph.body) if isinstance(op.attributes, Attend))
    assert attend.scale == pytest.approx(0.05 * math.log(32), rel=1e-15)
    for number in ("log(0)", "log(B)", "sqrt(0 - 1)"):
        (tmp_path / "wrong.dsk").write_text(model(f"logits = linear(embed(tokens, V -> D) * {number}, D -> V)"))
        problems = check(tmp_path / "wrong.dsk").problems
        assert "needs a number" in render(problems) and len(problems) == 1


def test_a_number_named_like_a_block_does_not_hide_it(checked: Check) -> None:
    graph = checked(
        model(
            "x = embed(tokens, V -> D)\nx += mlp(x, inner: F, dropout: 0.5)\nlogits = linear(x, D -> V)",
        )
    ).graphs["m"]
    assert [op.attributes.describe() for op, _ in walk(graph.body) if op.kind == "dropout"] == ["p=0.5"]


def test_several_results(checked: Check) -> None:
    block = """
block two(x: [.., D], inner: F) -> [.., F], [.., D] {
  h = silu(linear(x, D -> F) as up)
  return h, linear(h, F -> D) as down
}
"""
    graph = checked(
        model("x = embed(tokens, V -> D)\nh, y = two(x, F)\nx = x + y\nlogits = linear(h, F -> V)", block)
    ).graphs["m"]
    assert names(graph) == ["embed", "two.up", "two.down", "logits"]


# --- blocks written elsewhere


def test_an_extern_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere_blocks.py").write_text(
        """
from torch import nn


class Mine(nn.Module):
    def __init__(self, D, F, scale, twice):
        super().__init__()
        assert (D, F, scale, twice) == (16, 24, 0.5, True)
        self.inner = nn.Linear(D, D)

    def forward(self, x):
        return 2 * self.inner(x)
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    before = (
        "block mine(x: [B, S, D], inner: F, scale: float = 0.5, twice = true) -> [B, S, D] = "
        'extern "elsewhere_blocks:Mine" { flops = 2 * B * S * D * D, saved = B * S * D }'
    )
    body = "x = embed(tokens, V -> D)\nrepeat 2 layers {\n  x += mine(x, F)\n}\nlogits = linear(x, D -> V)"
    small = compiled(model(body, before), tmp_path)
    run = small.model()
    assert {name for name, _ in run.named_modules()} >= {"layers.0.mine.inner", "layers.1.mine"}
    tokens_BS = torch.randint(0, 32, (2, 5))
    run(tokens_BS).sum().backward()
    full, _ = flops(small.graph, 5, sequences=2)
    assert full == 2 * 10 * 16 * (2 * 16 + 32)
    (repeat,) = memory(small.graph, default_train(small.graph, 1)).repeats
    assert repeat.saved.compute == 1024 * 16
    assert "elsewhere_blocks" in sys.modules
