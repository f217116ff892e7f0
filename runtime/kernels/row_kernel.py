"""A generated kernel as an operation of torch: known to autograd, torch.compile, fake tensors and FSDP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from .choice import kernels_in_use
from .launch import Launch, Layout, One, Part, Plan, Rows, Shape, Vector, launch, plan

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
PLANS = 256  # kept of one kernel: a server sees many lengths
_registered: Counter[str] = Counter()


class KernelError(ValueError):
    """Tensors that a kernel cannot take: the message names the operation and its line in the spec."""


@dataclass(frozen=True)
class _Prepared:
    """One kind of call: its plan and what it allocates."""

    plan: Plan
    made: tuple[tuple[tuple[int, ...], torch.dtype], ...]


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
        self._names = tuple(layout.name for layout in self.arguments)
        self._prepared: dict[object, _Prepared] = {}
        self._operation = self._register()

    def __call__(self, *tensors: Tensor, training: bool = False) -> Any:
        if not kernels_in_use(tensors[0].device):
            return self.reference(*tensors, training=training) if self.probabilities else self.reference(*tensors)
        extra: tuple[Any, ...] = ()
        if self.probabilities:
            # Drawn from torch's generator: a step's seed decides, and recomputation draws the same again.
            seed = torch.randint(1 << 31 if training else 1, (1,), device=tensors[0].device)
            extra = (seed, *(p if training else 0.0 for p in self.probabilities))
        if _plain(tensors):
            made = _Direct.apply(self, extra, *tensors)
        else:
            self._check(tensors)
            made = self._operation(*tensors, *extra)
        if len(self.results) == 1:
            return made[0] if isinstance(made, tuple | list) else made
        return tuple(made[: len(self.results)])

    # --- what it computes

    def run(self, tensors: Sequence[Tensor], extra: tuple[Any, ...]) -> list[Tensor]:
        """Results, then what is saved."""
        key = ("forward", *((t.shape, t.stride(), t.dtype, t.device) for t in tensors))
        prepared = self._prepared.get(key)
        if prepared is None:
            self._check(tensors)
            prepared = self._keep_prepared(key, self._prepare_forward(tensors))
        device = tensors[0].device
        made = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in prepared.made]
        launch(prepared.plan, self.forward, tensors, made, extra)
        return made

    def run_backward(self, lead: Sequence[int], tensors: Sequence[Tensor], extra: tuple[Any, ...]) -> list[Tensor]:
        """Gradients as backward writes them, from what it reads."""
        assert self.backward is not None
        key = ("backward", *((t.shape, t.stride(), t.dtype, t.device) for t in tensors))
        prepared = self._prepared.get(key)
        if prepared is None:
            prepared = self._keep_prepared(key, self._prepare_backward(lead, tensors))
        device = tensors[0].device
        made = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in prepared.made]
        launch(prepared.plan, self.backward, tensors, made, extra)
        return made

    def _keep_prepared(self, key: object, prepared: _Prepared) -> _Prepared:
        if len(self._prepared) >= PLANS:
            self._prepared.clear()
        self._prepared[key] = prepared
        return prepared

    def _prepare_forward(self, tensors: Sequence[Tensor]) -> _Prepared:
        named = dict(zip(self._names, tensors, strict=True))
        shape, computed = self._shape(self._lead(tensors), named)
        made: list[tuple[tuple[int, ...], torch.dtype]] = []
        for layout, dtype in zip(self.results, self.dtypes, strict=True):
            kind = named[dtype].dtype if isinstance(dtype, str) else dtype
            made.append((shape.of(layout), computed if kind == torch.float32 else kind))
        made += [(shape.lead, computed) for _ in self.saved]
        layouts = [self.layouts[name] for name in self.forward.reads]
        return _Prepared(plan(self.forward, shape, layouts, tensors, computed == torch.float64), tuple(made))

    def _prepare_backward(self, lead: Sequence[int], tensors: Sequence[Tensor]) -> _Prepared:
        assert self.backward is not None
        named = dict(zip(self.backward.reads, tensors, strict=True))
        shape, computed = self._shape(tuple(lead), named)
        made = tuple(
            (shape.of(self.layouts[name]), named[self.like[name]].dtype if name in self.like else computed)
            for name in self.backward.writes
        )
        layouts = [self.layouts[name] for name in self.backward.reads]
        return _Prepared(plan(self.backward, shape, layouts, tensors, computed == torch.float64), made)

    def _shape(self, lead: tuple[int, ...], named: Mapping[str, Tensor]) -> tuple[Shape, torch.dtype]:
        """What a call's rows are, and the dtype that it is computed in."""
        sizes = dict(self.sizes)
        for name, tensor in named.items():
            layout = self.layouts[name]
            if not isinstance(layout, One):
                sizes[layout.width] = tensor.shape[-1]
        double = any(tensor.dtype == torch.float64 for tensor in named.values())
        known = {name: size for name, size in sizes.items() if size is not None}
        return Shape(lead, known), torch.float64 if double else torch.float32

    # --- what tensors it takes

    def _check(self, tensors: Sequence[Tensor]) -> None:
        if len(tensors) != len(self.arguments):
            raise self.error(f"takes {len(self.arguments)} tensors, not {len(tensors)}")
        device, lead = tensors[0].device, self._lead(tensors)
        for layout, tensor in zip(self.arguments, tensors, strict=True):
            if tensor.device != device:
                raise self.error(f"`{layout.name}` is on {tensor.device}, and others are on {device}")
            if tensor.is_floating_point() and tensor.dtype not in FLOATING:
                kinds = ", ".join(str(d).removeprefix("torch.") for d in FLOATING)
                raise self.error(f"`{layout.name}` is {tensor.dtype}, and kernels take {kinds}")
            self._check_shape(layout, tensor, lead)

    def _check_shape(self, layout: Layout, tensor: Tensor, lead: tuple[int, ...]) -> None:
        shape = tuple(tensor.shape)
        if not isinstance(layout, One):
            width = self.sizes[layout.width]
            if not shape or (width is not None and shape[-1] != width):
                raise self.error(f"`{layout.name}` is {list(shape)}, and its last axis must be {width}")
        if isinstance(layout, Rows):
            fits = shape[:-1] == lead
        elif isinstance(layout, One):
            fits = shape == lead
        elif isinstance(layout, Vector):
            fits = len(shape) == 1
        else:
            fits = shape[:-1] == lead[layout.first : layout.first + len(shape) - 1]
        if not fits:
            raise self.error(f"`{layout.name}` is {list(shape)}, which does not lie over rows {list(lead)}")

    def error(self, message: str) -> KernelError:
        return KernelError(f"{self.name.split('::')[1]} ({self.spec}): {message}")

    def _lead(self, tensors: Sequence[Tensor]) -> tuple[int, ...]:
        for layout, tensor in zip(self.arguments, tensors, strict=False):
            if isinstance(layout, Rows):
                return tuple(tensor.shape[:-1])
        found = [tuple(t.shape) for layout, t in zip(self.arguments, tensors, strict=False) if isinstance(layout, One)]
        return found[0]

    # --- gradients

    def keep(self, ctx: Any, tensors: Sequence[Tensor], made: Sequence[Tensor], extra: tuple[Any, ...]) -> None:
        """Saves for backward what it reads, and what tells its results' dtypes."""
        named = dict(zip((*self._names, *(t.name for t in self.results), *self.saved), (*tensors, *made), strict=True))
        ctx.save_for_backward(*(named[name] for name in (*self.kept, *self.saved)), *extra[:1])
        ctx.scalars, ctx.lead = extra[1:], self._lead(tensors)
        ctx.like = [(t.shape, t.dtype, t.device) for t in made[: len(self.results)]]
        ctx.into = [(t.dtype, t.ndim) for t in tensors]
        ctx.mark_non_differentiable(*made[len(self.results) :], *(t for t in made if not t.is_floating_point()))

    def gradient(
        self, ctx: Any, given: Sequence[Tensor | None], wanted: Sequence[bool], run: Callable[..., Sequence[Tensor]]
    ) -> list[Tensor | None]:
        """For each argument its gradient, None where none is wanted. Raises KernelError where there is none."""
        if self.backward is None:
            raise self.error("it has no gradient")
        kept = dict(zip((*self.kept, *self.saved), ctx.saved_tensors, strict=False))
        extra = (*ctx.saved_tensors[len(kept) :], *ctx.scalars)
        for layout, gradient, (shape, dtype, device) in zip(self.results, given, ctx.like, strict=False):
            if gradient is None:
                gradient = torch.zeros(shape, dtype=dtype, device=device)
            kept[f"grad_{layout.name}"] = gradient
        made = run(ctx.lead, [kept[name] for name in self.backward.reads], extra)
        found = dict(zip(self.backward.writes, made, strict=True))
        return [self._into(ctx, i, found) if wanted[i] else None for i in range(len(self.arguments))]

    def _into(self, ctx: Any, i: int, found: Mapping[str, Tensor]) -> Tensor:
        layout = self.arguments[i]
        if layout.name not in self.gradients:
            raise self.error(f"there is no gradient of `{layout.name}`: it is not computed from what is learned")
        gradient, (dtype, axes) = found[self.gradients[layout.name]], ctx.into[i]
        if isinstance(layout, Part):  # of every row: summed over the axes that it lacks
            own = range(layout.first, layout.first + axes - 1)
            gradient = gradient.sum([axis for axis in range(len(ctx.lead)) if axis not in own])
        return gradient.to(dtype)

    # --- what torch is told

    def _register(self) -> Callable[..., Any]:
        extra = ["Tensor seed", *(f"float p{i}" for i in range(len(self.probabilities)))] if self.probabilities else []
        taken = ", ".join([*(f"Tensor {name}" for name in self._names), *extra])
        name, count = _unique(self.name), len(self._names)

        def forward(*given: Any) -> Any:
            return _one_or_all(self.run(given[:count], given[count:]))

        def fake(*given: Any) -> Any:
            return _one_or_all(_empty(self._prepare_forward(given[:count]).made, given[0].device))

        schema = f"({taken}) -> {_tensors(len(self.results) + len(self.saved))}"
        operation = torch.library.custom_op(name, forward, mutates_args=(), schema=schema)
        operation.register_fake(fake)
        if self.backward is not None:
            derived = self._register_backward(f"{name}_backward", extra)

            def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
                made = output if isinstance(output, tuple | list) else (output,)
                self.keep(ctx, inputs[:count], made, tuple(inputs[count:]))

            def gradient(ctx: Any, *given: Tensor | None) -> tuple[Any, ...]:
                found = self.gradient(ctx, given, ctx.needs_input_grad[:count], derived)
                return (*found, *(None for _ in extra))

            operation.register_autograd(gradient, setup_context=keep)
        return operation

    def _register_backward(self, name: str, extra: list[str]) -> Callable[..., Sequence[Tensor]]:
        assert self.backward is not None
        count = len(self.backward.reads)

        def backward(lead: list[int], *given: Any) -> Any:
            return _one_or_all(self.run_backward(lead, given[:count], given[count:]))

        def fake(lead: list[int], *given: Any) -> Any:
            return _one_or_all(_empty(self._prepare_backward(lead, given[:count]).made, given[0].device))

        taken = ", ".join(["SymInt[] lead", *(f"Tensor {read}" for read in self.backward.reads), *extra])
        schema = f"({taken}) -> {_tensors(len(self.backward.writes))}"
        operation = torch.library.custom_op(name, backward, mutates_args=(), schema=schema)
        operation.register_fake(fake)

        def run(lead: Sequence[int], tensors: Sequence[Tensor], given: tuple[Any, ...]) -> Sequence[Tensor]:
            made = operation(list(lead), *tensors, *given)
            return made if isinstance(made, tuple | list) else (made,)

        return run


class _Direct(torch.autograd.Function):
    """The same without torch's dispatcher in between, which takes longer than most kernels do."""

    @staticmethod
    def forward(ctx: Any, kernel: RowKernel, extra: tuple[Any, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        made = kernel.run(tensors, extra)
        if any(ctx.needs_input_grad):
            kernel.keep(ctx, tensors, made, extra)
        ctx.kernel = kernel
        ctx.set_materialize_grads(False)
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Any, ...]:
        kernel: RowKernel = ctx.kernel
        return (None, None, *kernel.gradient(ctx, given, ctx.needs_input_grad[2:], kernel.run_backward))


def _plain(tensors: Sequence[Tensor]) -> bool:
    """Whether nobody but autograd looks on: no compiler, no mode, no kind of tensor of somebody's own."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    return all(type(t) is Tensor or type(t) is Parameter for t in tensors) and tensors[0].device.type != "meta"


def _of_gradient(argument: Layout) -> Layout:
    """How a gradient lies: as its argument, but for what comes again, whose gradient comes for every row."""
    return Rows(argument.name, argument.width) if isinstance(argument, Part) else argument


def _empty(made: Sequence[tuple[tuple[int, ...], torch.dtype]], device: torch.device) -> list[Tensor]:
    return [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in made]


def _one_or_all(made: list[Tensor]) -> Any:
    return made[0] if len(made) == 1 else tuple(made)


def _tensors(count: int) -> str:
    return "Tensor" if count == 1 else f"({', '.join(['Tensor'] * count)})"


def _unique(name: str) -> str:
    """A name that torch does not know yet: the same model may be loaded from two folders."""
    _registered[name] += 1
    return name if _registered[name] == 1 else f"{name}_{_registered[name]}"
