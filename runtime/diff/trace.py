"""What each operation of a generated model's forward pass gives, in the order in which they are computed."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from torch import Tensor, nn

from ..spec_module import spec_line

Key = tuple[str, str, int]


@dataclass(frozen=True)
class Operation:
    """One value of the forward pass. module: in which it is computed, by its path in the model (`` is the model).
    name: of the variable, function or layer that it is the value of; number: which one of those with this name there.
    parameter: the last argument of the function that is a parameter, by its path. code, spec: the line of generated
    code that computes it, and the spec's line behind that.
    """

    module: str
    name: str
    number: int
    value: Tensor
    code: str
    spec: str
    parameter: str | None = None

    @property
    def key(self) -> Key:
        """By which it is found in another model."""
        return self.module, self.name, self.number

    def __str__(self) -> str:
        number = f" ({self.number + 1})" if self.number else ""
        return f"{self.module or 'model'}: {self.name}{number}"


@dataclass
class Trace:
    """Follows generated code, statement by statement, by Python's tracing (`sys.settrace`).

    Noted are the tensors that its functions assign, and those that layers and functions of the runtime give to it, each
    tensor once; and what its functions give back, even so: another model may do more to it in between. Where kernels do
    not run, that is each operation on its own: their references are generated code, too.
    """

    model: nn.Module
    folder: Path  # of the generated code
    inputs: tuple[Tensor | None, ...] = ()
    operations: list[Operation] = field(default_factory=list)
    _lines: dict[int, int] = field(default_factory=dict)  # of generated frames: the one that runs
    _counts: dict[tuple[str, str], int] = field(default_factory=dict)
    _seen: dict[int, Tensor] = field(default_factory=dict)  # by identity, and kept alive so that it stays theirs

    def __post_init__(self) -> None:
        self._modules = {id(module): name for name, module in self.model.named_modules()}
        self._parameters = {id(tensor): name for name, tensor in self.model.named_parameters()}
        for tensor in (*self.model.parameters(), *self.model.buffers(), *self.inputs):
            if tensor is not None:
                self._seen[id(tensor)] = tensor

    @contextmanager
    def following(self) -> Iterator[list[Operation]]:
        """Within, what the model computes is noted."""
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            yield self.operations
        finally:
            sys.settrace(before)

    def _enter(self, frame: FrameType, _event: str, _arg: object) -> Any:
        if self._is_generated(frame):
            return self._inside
        caller = frame.f_back
        if (caller is not None and self._is_generated(caller)) or self._layer(frame) is not None:
            frame.f_trace_lines = False
            return self._outside
        return None

    def _inside(self, frame: FrameType, event: str, given: object) -> Any:
        """Of generated code: a statement is about to run, so the one before has been done; or it returns."""
        if event in ("line", "return"):
            for name, value in list(frame.f_locals.items()):
                self._note(frame, name, value)
            self._lines[id(frame)] = frame.f_lineno
        if event == "return":
            self._note(frame, frame.f_code.co_name, given, again=True)
            del self._lines[id(frame)]
        return self._inside

    def _outside(self, frame: FrameType, event: str, given: object) -> Any:
        """Of what generated code calls: it returns."""
        if event == "return":
            layer = self._layer(frame)
            parameter = next(
                (name for each in list(frame.f_locals.values())[::-1] if (name := self._parameters.get(id(each)))), None
            )
            if layer is not None:
                path, _, name = layer.rpartition(".")
                self._note(frame, name, given, path, parameter or f"{layer}.weight")
            else:
                self._note(frame, _called(frame), given, None, parameter)
        return self._outside

    def _note(
        self,
        frame: FrameType,
        name: str,
        value: object,
        module: str | None = None,
        parameter: str | None = None,
        again: bool = False,
    ) -> None:
        if isinstance(value, tuple | list):
            for at, each in enumerate(value):
                self._note(frame, f"{name}.{_part(value, at)}", each, module, parameter, again)
        if not isinstance(value, Tensor) or (id(value) in self._seen and not again):
            return
        self._seen[id(value)] = value
        owner, line = self._place(frame)
        module = owner if module is None else module
        number = self._counts.get((module, name), 0)
        self._counts[module, name] = number + 1
        code = linecache.getline(*line).strip() if line else ""
        spec = spec_line(Path(line[0]), line[1]) if line else ""
        self.operations.append(Operation(module, name, number, value.detach(), code, spec, parameter))

    def _place(self, frame: FrameType | None) -> tuple[str, tuple[str, int] | None]:
        """The module whose generated code is running, and the line."""
        while frame is not None:
            owner = self._modules.get(id(frame.f_locals.get("self")))
            if owner is not None and self._is_generated(frame):
                return owner, (frame.f_code.co_filename, self._lines.get(id(frame), frame.f_lineno))
            frame = frame.f_back
        return "", None

    def _layer(self, frame: FrameType) -> str | None:
        """The path of a layer of the runtime whose forward this is."""
        if frame.f_code.co_name != "forward" or self._is_generated(frame):
            return None
        return self._modules.get(id(frame.f_locals.get("self")))

    def _is_generated(self, frame: FrameType) -> bool:
        return Path(frame.f_code.co_filename).parent == self.folder


def trace(
    model: nn.Module, folder: Path, inputs: tuple[Tensor | None, ...]
) -> tuple[Tensor | tuple[Tensor, ...], list[Operation]]:
    """What a model gives, and its operations. folder: of its generated code."""
    following = Trace(model, folder, inputs)
    with following.following() as operations:
        output = model(*inputs)
    return output, operations


def _called(frame: FrameType) -> str:
    """What a function of the runtime is called; an object that is called, by its own name."""
    if frame.f_code.co_name != "__call__":
        return frame.f_code.co_name
    own = frame.f_locals.get("self")
    name = getattr(own, "name", None)
    return name.rpartition("::")[2] if isinstance(name, str) else type(own).__name__.lower()


def _part(value: tuple[object, ...] | list[object], at: int) -> str:
    fields = getattr(value, "_fields", None)
    return str(fields[at]) if fields is not None else str(at)
