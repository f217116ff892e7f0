"""Random small graphs of row operations, compiled as any model's are: what the kernels' tests draw."""

from __future__ import annotations

import importlib.util
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import torch
from hypothesis import strategies as st
from torch import Tensor

from dskc.compiler.emit.kernels import emit_kernels
from dskc.compiler.ir import Axis, DimInfo, DType, Graph, Op, Region, TensorType, Value
from dskc.compiler.ops.arrange import Gather
from dskc.compiler.ops.base import Operation
from dskc.compiler.ops.elementwise import Activation, Cast, Clamp, Elementwise, Softcap, Softmax
from dskc.compiler.ops.norm import L2Norm, LayerNorm, RmsNorm
from dskc.compiler.ops.position import Rope
from dskc.compiler.ops.quantize import Quantize
from dskc.compiler.ops.routing import Normalize, TopK
from dskc.compiler.passes.fuse import fuse
from dskc.compiler.verify import verify
from dskc.dsl.dims import Dim
from dskc.dsl.source import Source, Span
from dskc.runtime.kernels import One, Part, RowKernel, Rows, Vector

SPAN = Span(Source("drawn.dsk", "drawn"), 0, 5)
UNARY = ("silu", "gelu", "gelu_tanh", "sigmoid", "tanh", "relu", "softplus")


@dataclass
class Program:
    """A graph under construction over rows [B, S] and columns [D]."""

    width: int
    ops: list[Op] = field(default_factory=list)
    inputs: list[tuple[str, Value]] = field(default_factory=list)
    fixed: list[Value] = field(default_factory=list)

    def axes(self, *names: str) -> tuple[Axis, ...]:
        return tuple(Axis(name, Dim.of(name)) for name in names)

    def input(self, name: str, *axes: str, dtype: DType = DType.COMPUTE) -> Value:
        value = Value(TensorType(self.axes(*axes), dtype), f"{name}{len(self.inputs)}")
        self.inputs.append((value.name or name, value))
        return value

    def add(self, attributes: Operation, *operands: Value) -> Value:
        return self.several(attributes, *operands)[0]

    def several(self, attributes: Operation, *operands: Value) -> tuple[Value, ...]:
        types = attributes.infer(*(value.type for value in operands))
        results = tuple(Value(kind) for kind in types)
        self.ops.append(Op(attributes, operands, results, SPAN))
        return results

    def graph(self, results: tuple[Value, ...]) -> Graph:
        body = Region(tuple(value for _, value in self.inputs), tuple(self.ops), results)
        dims = (DimInfo("D", None, self.width, None, None),)
        names = tuple(name for name, _ in self.inputs)
        return Graph("drawn", None, SPAN, dims, body, names, tuple(f"y{i}" for i in range(len(results))), ())


Step = Callable[[Program, Value, Value], Value]


def _plus_one_square(p: Program, x: Value) -> Value:
    return p.add(Elementwise("add", by=1.0), p.add(Elementwise("mul"), x, x))


STEPS: dict[str, Step] = {
    **{name: lambda p, x, _, name=name: p.add(Activation(name), x) for name in UNARY},
    "exp": lambda p, x, _: p.add(Activation("exp"), p.add(Activation("tanh"), x)),
    "log": lambda p, x, _: p.add(Activation("log"), _plus_one_square(p, x)),
    "sqrt": lambda p, x, _: p.add(Activation("sqrt"), _plus_one_square(p, x)),
    "add": lambda p, x, y: p.add(Elementwise("add"), x, y),
    "sub": lambda p, x, y: p.add(Elementwise("sub"), x, y),
    "mul": lambda p, x, y: p.add(Elementwise("mul"), x, y),
    "div": lambda p, x, y: p.add(Elementwise("div"), x, _plus_one_square(p, y)),
    "scale": lambda p, x, _: p.add(Elementwise("mul", by=-0.75), x),
    "from one": lambda p, x, _: p.add(Elementwise("sub", by=1.0, reverse=True), x),
    "one over": lambda p, x, _: p.add(Elementwise("div", by=1.0, reverse=True), _plus_one_square(p, x)),
    "softcap": lambda p, x, _: p.add(Softcap(1.5), x),
    "clamp": lambda p, x, _: p.add(Clamp(-0.7, 1.1), x),
    "clamp below": lambda p, x, _: p.add(Clamp(-0.5, None), x),
    "softmax": lambda p, x, _: p.add(Softmax(), x),
    "normalize": lambda p, x, _: p.add(Normalize(), p.add(Activation("sigmoid"), x)),
    "rms_norm": lambda p, x, _: p.add(RmsNorm(1e-6), x, p.input("weight", "D", dtype=DType.PARAMS)),
    "rms_norm of Gemma": lambda p, x, _: p.add(RmsNorm(1e-5, 1.0), x, p.input("weight", "D", dtype=DType.PARAMS)),
    "l2_norm": lambda p, x, _: p.add(L2Norm(1e-6), x),
    "layer_norm": lambda p, x, _: p.add(
        LayerNorm(1e-5), x, p.input("weight", "D", dtype=DType.PARAMS), p.input("bias", "D", dtype=DType.PARAMS)
    ),
    "layer_norm without bias": lambda p, x, _: p.add(LayerNorm(1e-5), x, p.input("weight", "D", dtype=DType.PARAMS)),
    "vector": lambda p, x, _: p.add(Elementwise("mul"), x, p.input("gain", "D")),
    "by position": lambda p, x, _: p.add(Elementwise("add"), x, p.input("place", "S", "D")),
    "cast": lambda p, x, _: p.add(Cast(DType.COMPUTE), p.add(Cast(DType.FP32), x)),
}


def rope(p: Program, x: Value, turned: int, pairs: str) -> Value:
    """x with its first `2 * turned` columns rotated."""
    axes = (Axis("S", Dim.of("S")), Axis("D", Dim.of(turned)))
    cos, sin = (Value(TensorType(axes, DType.FP32), name) for name in ("cos", "sin"))
    for value in (cos, sin):
        p.inputs.append((f"{value.name}{len(p.inputs)}", value))
        p.fixed.append(value)
    return p.add(Rope(pairs), x, cos, sin)


@st.composite
def programs(draw: st.DrawFn, most: int = 6) -> Graph:
    """A chain of up to `most` operations, some of whose intermediate values are results too."""
    p = Program(draw(st.one_of(st.integers(1, 9), st.sampled_from([16, 17, 33, 40]))))
    values = [p.input("x", "B", "S", "D"), p.input("y", "B", "S", "D")]
    ending = draw(st.sampled_from(["plain", "plain", "rope", "top_k", "quantize"]))
    chooses = ending in ("top_k", "quantize")  # compared in float64, which no cast to fp32 may come into
    known = sorted(STEPS.keys() - {"cast"} if chooses else STEPS)
    for _ in range(draw(st.integers(1, most))):
        step = STEPS[draw(st.sampled_from(known))]
        values.append(step(p, values[-1], draw(st.sampled_from(values))))
    last = values[-1]
    results = [v for v in values[2:-1] if draw(st.integers(0, 3)) == 0]
    if ending == "rope" and p.width > 1:
        turned = draw(st.integers(1, p.width // 2))
        results.append(rope(p, last, turned, draw(st.sampled_from(["half", "interleaved"]))))
    elif ending == "top_k":
        score = p.add(Softmax(), last)
        chosen = p.add(TopK(draw(st.integers(1, min(3, p.width)))), score)
        weight = p.add(Gather(), score, chosen)
        results += [score, chosen, p.add(Normalize(), weight)]
    elif ending == "quantize":
        results += [last, *p.several(Quantize(draw(st.sampled_from(["int8", "fp8"]))), last)]
    else:
        results.append(last)
    graph = p.graph(tuple(dict.fromkeys(results)))
    verify(graph)
    return graph


# --- compiled


_numbers = itertools.count()


def compiled(graph: Graph) -> tuple[str, ModuleType]:
    """The text of a graph's kernels and the module that it is, as `dskc compile` would write it."""
    fused = fuse(graph)
    verify(fused)
    file = emit_kernels(fused)
    if not file.lines:  # what torch does in one kernel is left to it
        return "", ModuleType("nothing")
    text = "\n".join(line.text for line in file.file()) + "\n"
    name = f"drawn_kernels_{next(_numbers)}"
    path = Path(tempfile.mkdtemp()) / f"{name}.py"
    path.write_text(text, encoding="utf-8")  # Triton reads the source of what it compiles
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return text, module


def kernels(module: ModuleType) -> Iterator[RowKernel]:
    """The row kernels of a module."""
    yield from [value for value in vars(module).values() if isinstance(value, RowKernel)]


def tensors(
    kernel: RowKernel, sizes: dict[str, int], dtype: torch.dtype, seed: int, strided: bool = False
) -> tuple[Tensor, ...]:
    """Random tensors for a kernel's arguments. `strided`: cut out of larger ones, in various ways."""
    generator = torch.Generator().manual_seed(seed)
    lead = (sizes["B"], sizes["S"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    made = []
    for i, layout in enumerate(kernel.arguments):
        if isinstance(layout, One):
            shape = lead
        elif isinstance(layout, Vector):
            shape = (kernel.sizes[layout.width],)
        elif isinstance(layout, Part):
            shape = (sizes["S"], kernel.sizes[layout.width])
        else:
            assert isinstance(layout, Rows)
            shape = (*lead, kernel.sizes[layout.width])
        exact = layout.name.startswith(("cos", "sin", "weight", "bias"))
        kind = torch.promote_types(dtype, torch.float32) if exact else dtype
        if strided and len(shape) == 3:
            x = _strided(shape, i, generator).to(kind)
        else:
            x = torch.randn(shape, generator=generator, dtype=torch.float64).to(kind)
        made.append(x.to(device))
    return tuple(made)


def _strided(shape: tuple[int, ...], how: int, generator: torch.Generator) -> Tensor:
    b, s, d = shape
    if how % 3 == 0:
        return torch.randn(b, s, 2 * d + 3, generator=generator, dtype=torch.float64)[..., 2 : 2 + d]
    if how % 3 == 1:
        return torch.randn(s, b, d, generator=generator, dtype=torch.float64).transpose(0, 1)
    return torch.randn(b, s, 2 * d, generator=generator, dtype=torch.float64)[..., ::2]
