"""Row programs, drawn: kernels and their derived backwards against references in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dskc.compiler.ir import Graph
from dskc.compiler.ops.elementwise import Activation, Elementwise, Softmax
from dskc.compiler.ops.norm import RmsNorm
from dskc.compiler.ops.routing import TopK
from dskc.compiler.rows import derive, facts
from dskc.runtime.kernels import RowKernel, use_kernels

from .drawn_programs import STEPS, Program, compiled, kernels, programs, tensors

QUIET = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 3e-3, torch.float16: 2e-2, torch.bfloat16: 6e-2}
DTYPES = tuple(TOLERANCE)


def run(kernel: RowKernel, given: tuple[Tensor, ...], mode: str, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Results and the gradients of all floating arguments, for random gradients of the results."""
    fixed = {layout.name for layout in kernel.arguments} - set(kernel.gradients)
    leaves = [
        t.detach().clone() if layout.name in fixed or not t.is_floating_point() else t.detach().requires_grad_()
        for layout, t in zip(kernel.arguments, given, strict=True)
    ]
    with use_kernels(mode):
        made = kernel(*leaves)
        results = list(made) if isinstance(made, tuple) else [made]
        generator = torch.Generator().manual_seed(seed)
        differentiable = [y for y in results if y.requires_grad]
        directions = [torch.randn(y.shape, generator=generator, dtype=torch.float64) for y in differentiable]
        wanted = [t for t in leaves if t.requires_grad]
        found = list(
            torch.autograd.grad(
                differentiable, wanted, [d.to(y) for d, y in zip(directions, differentiable, strict=True)],
                allow_unused=True,
            )
        ) if differentiable else []  # fmt: skip
    return results, [torch.zeros_like(t) if g is None else g for g, t in zip(found, wanted, strict=False)]


def compare(kernel: RowKernel, given: tuple[Tensor, ...], dtype: torch.dtype, text: str, seed: int = 1) -> None:
    """A kernel's results and gradients against its reference in float64 on the same numbers."""
    exact = tuple(t.double() if t.is_floating_point() else t for t in given)
    ours, theirs = run(kernel, given, "triton", seed), run(kernel, exact, "reference", seed)
    for what, (ys, zs) in {"result": (ours[0], theirs[0]), "gradient": (ours[1], theirs[1])}.items():
        assert len(ys) == len(zs)
        for i, (y, z) in enumerate(zip(ys, zs, strict=True)):
            assert y.shape == z.shape
            if y.dtype == torch.int64:
                if dtype == torch.float64:
                    assert torch.equal(y, z), f"{what} {i} of {kernel.name}\n{text}"
                continue
            assert y.isfinite().all() if y.is_floating_point() and y.itemsize > 1 else True
            tolerance = TOLERANCE[dtype]
            if y.dtype == torch.float8_e4m3fn and not y.is_cuda:
                tolerance = 0.13  # Triton's interpreter cuts where a GPU rounds
            error = (y.double() - z.double()).norm()
            scale = z.double().norm() + 1e-3 * max(1, z.numel()) ** 0.5
            assert error <= tolerance * scale, f"{what} {i} of {kernel.name}: {error / scale:.2e}\n{text}"


def check(graph: Graph, lead: tuple[int, int], dtype: torch.dtype, seed: int, strided: bool, most: int | None) -> int:
    """Compiles a graph and compares all its kernels; `most` columns in a block, so that others loop."""
    before = facts.MOST_COLUMNS
    facts.MOST_COLUMNS = most or before
    try:
        text, module = compiled(graph)
    finally:
        facts.MOST_COLUMNS = before
    count = 0
    kinds = {op.kind for op in graph.body.ops}
    if kinds & {"top_k", "quantize"}:
        dtype = torch.float64  # rounded a little otherwise, a row has other choices
    elif kinds & {"relu", "clamp", "cast"} or len(graph.results) > 1:
        dtype = torch.float32  # rounded coarsely, a number is beyond a bound, or a norm has noise left to enlarge
    for kernel in kernels(module):
        sizes = {"B": lead[0], "S": lead[1]}
        compare(kernel, tensors(kernel, sizes, dtype, seed, strided), dtype, text)
        count += 1
    return count


LEADS = st.sampled_from([(1, 1), (2, 3), (3, 5), (0, 4), (7, 9)])


@settings(max_examples=30, **QUIET)
@given(graph=programs(), lead=LEADS, dtype=st.sampled_from(DTYPES), seed=st.integers(0, 99), strided=st.booleans())
def test_drawn_programs(graph: Graph, lead: tuple[int, int], dtype: torch.dtype, seed: int, strided: bool) -> None:
    check(graph, lead, dtype, seed, strided, None)


@settings(max_examples=15, **QUIET)
@given(graph=programs(most=4), lead=LEADS, dtype=st.sampled_from(DTYPES), seed=st.integers(0, 99))
def test_drawn_programs_whose_rows_take_several_blocks(
    graph: Graph, lead: tuple[int, int], dtype: torch.dtype, seed: int
) -> None:
    if any(isinstance(op.attributes, TopK) for op in graph.body.ops):
        return  # a choice is made in one block, whatever a block can be
    check(graph, lead, dtype, seed, False, 4)


@pytest.mark.exhaustive
@settings(max_examples=600, **QUIET)
@given(
    graph=programs(most=10), lead=LEADS, dtype=st.sampled_from(DTYPES), seed=st.integers(0, 999), strided=st.booleans()
)
def test_many_drawn_programs(graph: Graph, lead: tuple[int, int], dtype: torch.dtype, seed: int, strided: bool) -> None:
    check(graph, lead, dtype, seed, strided, None)


def _one_step(name: str) -> Graph:
    """A step between others, so that it is fused and its gradient is used."""
    p = Program(13)
    x, y = p.input("x", "B", "S", "D"), p.input("y", "B", "S", "D")
    z = STEPS[name](p, p.add(Elementwise("mul"), x, y), y)
    return p.graph((p.add(Elementwise("mul"), z, x),))


@pytest.mark.parametrize("name", sorted(STEPS))
def test_each_step(name: str) -> None:
    assert check(_one_step(name), (2, 3), torch.float64, 0, False, None) == 1
    assert check(_one_step(name), (2, 3), torch.float64, 0, False, 4) == 1


# Which step shows an error in the rule of a kind. (`spread` has one for gradients of what backward itself spreads.)
WITNESS = {
    "add": "add", "sub": "sub", "mul": "mul", "div": "div", "neg": "from one", "where": "clamp", "exp": "exp",
    "log": "log", "tanh": "tanh", "sigmoid": "sigmoid", "sqrt": "sqrt", "rsqrt": "rms_norm", "erf": "gelu",
    "sum": "softmax", "round_as": "cast",
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(WITNESS))
def test_a_planted_error_in_a_derivative_is_caught(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = derive.RULES[kind]

    def wrong(n, y, g):  # type: ignore[no-untyped-def]
        return [None if part is None else n.mul(n.constant(1.01), part) for part in rule(n, y, g)]

    monkeypatch.setitem(derive.RULES, kind, wrong)
    graph = _one_step(WITNESS[kind])
    if kind in ("neg", "round_as"):  # which stand at ends: products' constants fold, results are rounded
        p = Program(13)
        x, y = p.input("x", "B", "S", "D"), p.input("y", "B", "S", "D")
        graph = p.graph((p.add(Softmax(), p.add(Elementwise("sub", by=0.0, reverse=True), p.add(Softmax(), x))), y))
    with pytest.raises(AssertionError, match="gradient"):
        check(graph, (2, 3), torch.float64, 0, False, None)


def test_every_rule_has_a_witness() -> None:
    unreached = {"maximum", "minimum", "abs", "spread", "gather"}  # of quantize, whose gradient stops; of backward
    assert set(derive.RULES) - unreached == set(WITNESS)


def test_a_planted_error_in_the_gather_of_a_choice_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    from dskc.compiler.ops.arrange import Gather

    p = Program(13)
    score = p.add(Activation("sigmoid"), p.input("x", "B", "S", "D"))
    chosen = p.add(TopK(3), score)
    graph = p.graph((chosen, p.add(Gather(), score, chosen)))
    check(graph, (2, 3), torch.float64, 0, False, None)
    rule = derive.RULES["gather"]
    monkeypatch.setitem(derive.RULES, "gather", lambda n, y, g: rule(n, y, n.mul(n.constant(1.01), g)))
    with pytest.raises(AssertionError, match="gradient"):
        check(graph, (2, 3), torch.float64, 0, False, None)


def test_sums_over_rows_are_the_same_each_time() -> None:
    p = Program(33)
    x = p.input("x", "B", "S", "D")
    _, module = compiled(p.graph((p.add(RmsNorm(1e-6), x, p.input("weight", "D")),)))
    (kernel,) = kernels(module)
    given = tensors(kernel, {"B": 40, "S": 50}, torch.float32, 0)
    first, again = run(kernel, given, "triton", 0)[1], run(kernel, given, "triton", 0)[1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
