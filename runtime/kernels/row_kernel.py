"""A generated kernel as an operation of torch: known to autograd, torch.compile, fake tensors and FSDP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .choice import kernels_in_use
from .launch import Call, Launch, Layout, One, Part, Rows, Vector, launch

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_registered: Counter[str] = Counter()


class KernelError(ValueError):
    """Tensors that a kernel cannot take: the message names the operation and its line in the spec."""


@dataclass
class RowKernel:
    """One row program. Called with tensors, it runs its kernel where kernels are in use, else `reference`.

    name: `model::operation`. arguments, results: how tensors lie over rows. sizes: of columns, None where data decides.
    dtypes: of each result, the name of the argument whose dtype it has, or a dtype. kept: what backward reads of
    arguments and results; saved: what forward leaves for it, a number a row each. gradients: for each argument the name
    of what backward writes; like: something that backward reads whose dtype that has, else it has that of computing.
    probabilities: of dropouts.
    """

    name: str
    spec: str
    reference: Callable[..., Any]
    arguments: tuple[Layout, ...]
    results: tuple[Layout, ...]
    dtypes: tuple[str | torch.dtype, ...]
    sizes: Mapping[str, int | None]
    forward: Launch
    backward: Launch | None = None
    kept: tuple[str, ...] = ()
    saved: tuple[str, ...] = ()
    gradients: Mapping[str, str] = field(default_factory=dict)
    like: Mapping[str, str] = field(default_factory=dict)
    probabilities: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        self.layouts: dict[str, Layout] = {t.name: t for t in (*self.arguments, *self.results)}
        self.layouts |= {name: One(name) for name in self.saved}
        for layout in self.results:
            self.layouts[f"grad_{layout.name}"] = layout
        for argument, gradient in self.gradients.items():
            self.layouts.setdefault(gradient, _of_gradient(self.layouts[argument]))
        self._operation = self._register()

    def __call__(self, *tensors: Tensor, training: bool = False) -> Any:
        if not kernels_in_use(tensors[0].device):
            return self.reference(*tensors, training=training) if self.probabilities else self.reference(*tensors)
        self._check(tensors)
        extra: list[object] = []
        if self.probabilities:
            # Drawn from torch's generator: a step's seed decides, and recomputation draws the same again.
            most = 1 << 31 if training else 1
            seed = torch.randint(most, (1,), device=tensors[0].device)
            extra = [seed, *(p if training else 0.0 for p in self.probabilities)]
        made = self._operation(*tensors, *extra)
        found = made if isinstance(made, tuple | list) else (made,)
        wanted = tuple(found[: len(self.results)])
        return wanted if len(wanted) > 1 else wanted[0]

    # --- what tensors it takes

    def _check(self, tensors: tuple[Tensor, ...]) -> None:
        if len(tensors) != len(self.arguments):
            raise self._error(f"takes {len(self.arguments)} tensors, not {len(tensors)}")
        device, lead = tensors[0].device, self._lead(tensors)
        for layout, tensor in zip(self.arguments, tensors, strict=True):
            if tensor.device != device:
                raise self._error(f"`{layout.name}` is on {tensor.device}, and others are on {device}")
            if tensor.is_floating_point() and tensor.dtype not in FLOATING:
                kinds = ", ".join(str(d).removeprefix("torch.") for d in FLOATING)
                raise self._error(f"`{layout.name}` is {tensor.dtype}, and kernels take {kinds}")
            self._check_shape(layout, tensor, lead)

    def _check_shape(self, layout: Layout, tensor: Tensor, lead: tuple[int, ...]) -> None:
        shape = tuple(tensor.shape)
        if not isinstance(layout, One):
            width = self.sizes[layout.width]
            if not shape or (width is not None and shape[-1] != width):
                raise self._error(f"`{layout.name}` is {list(shape)}, and its last axis must be {width}")
        if isinstance(layout, Rows):
            fits = shape[:-1] == lead
        elif isinstance(layout, One):
            fits = shape == lead
        elif isinstance(layout, Vector):
            fits = len(shape) == 1
        else:
            fits = shape[:-1] == lead[layout.first : layout.first + len(shape) - 1]
        if not fits:
            raise self._error(f"`{layout.name}` is {list(shape)}, which does not lie over rows {list(lead)}")

    def _error(self, message: str) -> KernelError:
        return KernelError(f"{self.name.split('::')[1]} ({self.spec}): {message}")

    def _lead(self, tensors: tuple[Tensor, ...]) -> tuple[int, ...]:
        for layout, tensor in zip(self.arguments, tensors, strict=True):
            if isinstance(layout, Rows):
                return tuple(tensor.shape[:-1])
        (shape,) = (t.shape for layout, t in zip(self.arguments, tensors, strict=True) if isinstance(layout, One))
        return tuple(shape)

    # --- what torch is told

    def _register(self) -> Callable[..., Any]:
        tensors = ", ".join(f"Tensor {layout.name}" for layout in self.arguments)
        extra = ["Tensor seed", *(f"float p{i}" for i in range(len(self.probabilities)))] if self.probabilities else []
        count = len(self.results) + len(self.saved)
        schema = f"({', '.join([tensors, *extra])}) -> {_tensors(count)}"
        name = _unique(self.name)
        operation = torch.library.custom_op(name, self._forward, mutates_args=(), schema=schema)
        operation.register_fake(self._fake)
        if self.backward is None:
            return operation
        given = [*self.backward.reads, *extra]
        typed = ", ".join(g if " " in g else f"Tensor {g}" for g in given)
        shape = ", ".join(["SymInt[] lead", typed]) if typed else "SymInt[] lead"
        writes = _tensors(len(self.backward.writes))
        derived = torch.library.custom_op(
            f"{name}_backward", self._backward, mutates_args=(), schema=f"({shape}) -> {writes}"
        )
        derived.register_fake(self._fake_backward)
        operation.register_autograd(self._gradient(derived), setup_context=self._keep)
        return operation

    def _forward(self, *given: Any) -> Any:
        made = self._fake(*given)
        call = self._call(given)
        wrote = made if isinstance(made, tuple) else (made,)
        call.tensors |= dict(zip(self.forward.writes, wrote, strict=True))
        launch(call, self.forward)
        return made

    def _fake(self, *given: Any) -> Any:
        call = self._call(given)
        device = given[0].device
        made = []
        for layout, dtype in zip(self.results, self.dtypes, strict=True):
            kind = call.tensors[dtype].dtype if isinstance(dtype, str) else _at_least(dtype, call.dtype)
            made.append(torch.empty(_shape(call, layout), dtype=kind, device=device))
        made += [torch.empty(call.lead, dtype=call.dtype, device=device) for _ in self.saved]
        return tuple(made) if len(made) > 1 else made[0]

    def _call(self, given: tuple[Any, ...]) -> Call:
        tensors = given[: len(self.arguments)]
        named = {layout.name: t for layout, t in zip(self.arguments, tensors, strict=True)}
        extra = given[len(self.arguments) :]
        return self._launched(self._lead(tensors), named, extra)

    def _launched(self, lead: tuple[int, ...], named: dict[str, Tensor], extra: tuple[Any, ...]) -> Call:
        sizes = dict(self.sizes)
        for name, tensor in named.items():
            layout = self.layouts[name]
            if not isinstance(layout, One):
                sizes[layout.width] = tensor.shape[-1]
        known = {name: size for name, size in sizes.items() if size is not None}
        double = any(tensor.dtype == torch.float64 for tensor in named.values())
        dtype = torch.float64 if double else torch.float32
        seed, scalars = (extra[0], {f"p{i}": p for i, p in enumerate(extra[1:])}) if extra else (None, {})
        return Call(lead, known, self.layouts, dict(named), dtype, seed, scalars)

    def _keep(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        outputs = output if isinstance(output, tuple | list) else (output,)
        named = dict(zip((t.name for t in self.arguments), inputs, strict=False))
        named |= dict(zip((*(t.name for t in self.results), *self.saved), outputs, strict=True))
        extra = inputs[len(self.arguments) :]
        ctx.save_for_backward(*(named[n] for n in (*self.kept, *self.saved)), *extra[:1])
        ctx.scalars = extra[1:]
        ctx.lead = self._lead(inputs[: len(self.arguments)])
        ctx.like = [(tuple(t.shape), t.dtype, t.device) for t in outputs[: len(self.results)]]
        ctx.into = [t.dtype for t in inputs[: len(self.arguments)]]
        ctx.axes = [t.ndim for t in inputs[: len(self.arguments)]]
        ctx.mark_non_differentiable(*outputs[len(self.results) :])

    def _gradient(self, derived: Callable[..., Any]) -> Callable[..., Any]:
        backward = self.backward
        assert backward is not None

        def gradient(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
            kept = dict(zip((*self.kept, *self.saved), ctx.saved_tensors, strict=False))
            extra = (*ctx.saved_tensors[len(kept) :], *ctx.scalars)
            for layout, given, (shape, dtype, device) in zip(self.results, gradients, ctx.like, strict=False):
                kept[f"grad_{layout.name}"] = torch.zeros(shape, dtype=dtype, device=device) if given is None else given
            made = derived(list(ctx.lead), *(kept[name] for name in backward.reads), *extra)
            found = dict(zip(backward.writes, made if isinstance(made, tuple | list) else (made,), strict=True))
            return (*(self._into(ctx, i, found) for i in range(len(self.arguments))), *(None for _ in extra))

        return gradient

    def _into(self, ctx: Any, i: int, found: dict[str, Tensor]) -> Tensor | None:
        layout = self.arguments[i]
        if not ctx.needs_input_grad[i]:
            return None
        if layout.name not in self.gradients:
            raise self._error(f"there is no gradient of `{layout.name}`: it is not computed from what is learned")
        gradient = found[self.gradients[layout.name]]
        if isinstance(layout, Part):  # of every row: summed over the axes that it lacks
            own = range(layout.first, layout.first + ctx.axes[i] - 1)
            gradient = gradient.sum([axis for axis in range(len(ctx.lead)) if axis not in own])
        return gradient.to(ctx.into[i])

    def _backward(self, lead: list[int], *given: Any) -> Any:
        backward = self.backward
        assert backward is not None
        made = self._fake_backward(lead, *given)
        wrote = list(made) if isinstance(made, tuple) else [made]
        call = self._backward_call(lead, given)
        call.tensors |= {name: t for name, t in zip(backward.writes, wrote, strict=True) if name not in backward.sums}
        sums = launch(call, backward)
        wrote = [sums.get(name, t) for name, t in zip(backward.writes, wrote, strict=True)]
        return tuple(wrote) if len(wrote) > 1 else wrote[0]

    def _backward_call(self, lead: list[int], given: tuple[Any, ...]) -> Call:
        assert self.backward is not None
        count = len(self.backward.reads)
        return self._launched(tuple(lead), dict(zip(self.backward.reads, given[:count], strict=True)), given[count:])

    def _fake_backward(self, lead: list[int], *given: Any) -> Any:
        assert self.backward is not None
        call = self._backward_call(lead, given)
        made = []
        for name in self.backward.writes:
            dtype = call.tensors[self.like[name]].dtype if name in self.like else call.dtype
            made.append(torch.empty(_shape(call, self.layouts[name]), dtype=dtype, device=given[0].device))
        return tuple(made) if len(made) > 1 else made[0]


def _of_gradient(argument: Layout) -> Layout:
    """How a gradient lies: as its argument, but for what comes again, whose gradient comes for every row."""
    return Rows(argument.name, argument.width) if isinstance(argument, Part) else argument


def _shape(call: Call, layout: Layout) -> tuple[int, ...]:
    if isinstance(layout, One):
        return call.lead
    width = call.sizes[layout.width]
    return (width,) if isinstance(layout, Vector) else (*call.lead, width)


def _at_least(dtype: torch.dtype, computed: torch.dtype) -> torch.dtype:
    """float32 is float64 where that is computed in."""
    return computed if dtype == torch.float32 else dtype


def _tensors(count: int) -> str:
    return "Tensor" if count == 1 else f"({', '.join(['Tensor'] * count)})"


def _unique(name: str) -> str:
    """A name that torch does not know yet: the same model may be loaded from two folders."""
    _registered[name] += 1
    return name if _registered[name] == 1 else f"{name}_{_registered[name]}"
