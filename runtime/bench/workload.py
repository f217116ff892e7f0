"""What a model asks of kernels: every call of one training step with the shapes of its tensors, found without a GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import AttentionKernel, ExpertsKernel, RowKernel, use_kernels
from ..modules import GroupedLinear, Linear
from ..problem import Problem
from .model import Trained, checked_length, cut_model, random_batch


@dataclass(frozen=True)
class Given:
    """A tensor of a call: its shape, the name of its dtype, and whether a gradient flows to it."""

    shape: tuple[int, ...]
    dtype: str
    learns: bool

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    @property
    def bytes(self) -> int:
        return self.elements * self.torch_dtype.itemsize

    @property
    def elements(self) -> int:
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Call:
    """Of one of the model's kernels, by its name in kernels.py."""

    kernel: str
    tensors: tuple[Given, ...]
    named: tuple[str, ...] = ()  # what tensors it is given by name, such as documents and sinks of attention
    is_attention: bool = False


@dataclass(frozen=True)
class Workload:
    """What one model asks for at a batch of `batch` sequences of `length` tokens, each kind of thing once.

    folder: of its generated code. linears: (outputs, inputs) of its weights. experts: (experts, choices of a token,
    outputs, inputs) of grouped weights. parameters: shapes of all, in one layer of each kind.
    """

    model: str
    folder: str
    batch: int
    length: int
    vocabulary: int
    calls: tuple[Call, ...]
    linears: tuple[tuple[int, int], ...]
    experts: tuple[tuple[int, int, int, int], ...]
    parameters: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    @property
    def hidden(self) -> int | None:
        """What the vocabulary's weight maps from; None of a model without one."""
        return next((shape[1] for shape in self.parameters if len(shape) == 2 and shape[0] == self.vocabulary), None)


def workload(folder: Path, batch: int | None = None, length: int | None = None) -> Workload:
    """Of generated code, computing in bf16; batch and length are the plan's and the recipe's unless told.

    Raises Problem where a step cannot be followed without data.
    """
    trained = Trained.load(folder)
    length = checked_length(trained.recipe, length)
    batch = batch or trained.batch_size(length)
    meta = torch.device("meta")
    model = cut_model(trained, torch.bfloat16, torch.bfloat16, meta)
    calls: dict[Call, None] = {}
    choices: dict[int, int] = {}
    try:
        with use_kernels("reference"), _told(trained, calls, choices):
            trained.losses(model, random_batch(trained.recipe, batch, length, meta))
    except (RuntimeError, NotImplementedError) as error:
        raise Problem(
            f"{trained.name} cannot be followed without data: {str(error).splitlines()[0]}",
            "measure the published shapes: dskc bench kernels",
        ) from error
    grouped = [(m.weight.shape[0], *m.weight.shape[-2:]) for m in model.modules() if isinstance(m, GroupedLinear)]
    return Workload(
        trained.name,
        str(folder),
        batch,
        length,
        trained.recipe.vocabulary,
        tuple(calls),
        tuple(dict.fromkeys((m.out_features, m.in_features) for m in _all(model, Linear))),
        tuple((x, choices[x], f, d) for x, f, d in dict.fromkeys(grouped) if x in choices),
        tuple(tuple(p.shape) for p in model.parameters()),
    )


def _all(model: nn.Module, kind: type[Linear]) -> Iterator[Linear]:
    return (module for module in model.modules() if isinstance(module, kind))


@contextmanager
def _told(trained: Trained, calls: dict[Call, None], choices: dict[int, int]) -> Iterator[None]:
    """Within, each call of a kernel joins `calls`, and of each count of experts the choices of a token `choices`."""
    model = sys.modules[f"{trained.package.__name__}.model"]
    kept = [(trained.kernels, name, value) for name, value in vars(trained.kernels).items() if _is_kernel(value)]
    if hasattr(model, "dispatch"):
        kept.append((model, "dispatch", model.dispatch))

    def called(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        attends = isinstance(kernel, AttentionKernel)

        def call(*tensors: Any, **options: Any) -> Any:
            named = tuple(sorted(option for option, t in options.items() if isinstance(t, Tensor)))
            calls[Call(name, tuple(_given(t) for t in tensors if isinstance(t, Tensor)), named, attends)] = None
            return kernel(*tensors, **options)

        return call

    def gated(kernel: ExpertsKernel) -> Callable[..., Tensor]:
        def call(x: Tensor, chosen: Tensor, weight: Tensor, gate: Tensor, *others: Any, **options: Any) -> Tensor:
            choices[gate.shape[0]] = chosen.shape[-1]
            return kernel(x, chosen, weight, gate, *others, **options)

        return call

    def dispatched(dispatch: Callable[..., Any]) -> Callable[..., Any]:
        def call(x: Tensor, chosen: Tensor, experts: int) -> Any:
            choices[experts] = chosen.shape[-1]
            return dispatch(x, chosen, experts)

        return call

    for module, name, value in kept:
        if name == "dispatch":
            setattr(module, name, dispatched(value))
        elif isinstance(value, ExpertsKernel):
            setattr(module, name, gated(value))
        else:
            setattr(module, name, called(name, value))
    try:
        yield
    finally:
        for module, name, value in kept:
            setattr(module, name, value)


def _is_kernel(value: object) -> bool:
    return isinstance(value, RowKernel | AttentionKernel | ExpertsKernel)


def _given(tensor: Tensor) -> Given:
    return Given(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.requires_grad)
