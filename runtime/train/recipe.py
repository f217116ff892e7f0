"""What the spec says about training: the recipe, and the plans for running it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..adapter import Lora
from ..data.fields import Fields, Input, Task
from ..optim.rounding import check_rounding
from ..problem import Problem

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64, "fp16": torch.float16}


def dtype_of(name: str) -> torch.dtype:
    """The torch dtype that a spec calls `fp32`, `bf16` or `fp64`; Problem for another name."""
    try:
        return DTYPES[name]
    except KeyError:
        raise Problem(f"precision `{name}` cannot be trained in", "use " + " or ".join(DTYPES)) from None


def name_of(dtype: torch.dtype) -> str:
    """`fp32` for torch.float32, and so on; the inverse of dtype_of."""
    return next(name for name, own in DTYPES.items() if own == dtype)


@dataclass(frozen=True)
class Precision:
    """Dtypes by the spec's names: of parameters (and gradients), of the forward pass, of gradient sums between
    devices, of the optimizer's moments.

    rounding: how the optimizer rounds to bf16, "nearest" or "stochastic". master: of the copy of parameters that the
    optimizer updates, "fp32"; None where it updates them themselves.
    """

    params: str = "fp32"
    compute: str = "bf16"
    reduce: str = "fp32"
    optimizer: str = "fp32"
    rounding: str = "nearest"
    master: str | None = None

    def __post_init__(self) -> None:
        if self.master not in (None, "fp32"):
            raise Problem(f"masters in `{self.master}` are of no use", "use fp32, or none")
        for name in (self.params, self.compute, self.reduce, self.optimizer):
            dtype_of(name)
        check_rounding(self.rounding)
        if "fp16" in (self.params, self.reduce, self.optimizer):
            raise Problem("fp16 is what activations may run in, not what is kept", "keep parameters in fp32 or bf16")

    def __str__(self) -> str:
        rounded = "" if self.rounding == "nearest" else f", {self.rounding} rounding"
        masters = f" with {self.master} masters" if self.master else ""
        return f"{self.params} parameters{masters}, {self.compute} compute, {self.optimizer} optimizer{rounded}"


@dataclass(frozen=True)
class Ramp:
    """Batches that grow from `start` sequences by `by` at a time, in equal parts of a fraction `over` of the steps."""

    start: int
    by: int
    over: float

    def sequences(self, step: int, steps: int, most: int) -> int:
        """Of a step, counted from 0, of so many in all; `most` once the ramp is over."""
        stages = (most - self.start) // self.by
        stage = math.floor(step * stages / (self.over * steps) + 1e-9)
        return min(most, self.start + stage * self.by)


@dataclass(frozen=True)
class Recipe:
    """One `train` section, resolved.

    model, spec, spec_hash: what was compiled. vocabulary: V, which ids stay under. tokens: to train on in all.
    sequences, length: of one batch, that is one optimizer step. save_every: steps; save_keep: checkpoints kept.
    default: the spec had no `train` section. text: how the recipe reads in the language, shown when it is the default.
    inputs: of a model that takes more than text, all by name (but `documents`). tasks: results that are compared with
    labels. next_token: the objective predicts tokens, so that text can be trained on. ramp: batches have fewer
    sequences at first. lora: adapters beside linear layers, by path; all else is frozen then. frozen: parts, by path,
    that are trained (False) or not (True), the longest path counting. bare: layers that losses apply by their weight
    alone, which have no adapter.
    """

    name: str
    model: str
    spec: str
    spec_hash: str
    vocabulary: int
    tokens: int
    sequences: int
    length: int
    precision: Precision
    save_every: int = 1000
    save_keep: int = 3
    default: bool = False
    text: str = ""
    inputs: Mapping[str, Input] = field(default_factory=dict)
    tasks: Mapping[str, Task] = field(default_factory=dict)
    next_token: bool = True
    ramp: Ramp | None = None
    lora: Mapping[str, Lora] = field(default_factory=dict)
    frozen: Mapping[str, bool] = field(default_factory=dict)
    bare: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Recipe:
        """What `dataclasses.asdict` and JSON made of one. Raises TypeError or KeyError when it is none."""
        inputs = {
            name: Input(**(one | {"shape": tuple(one["shape"])})) for name, one in fields.get("inputs", {}).items()
        }
        tasks = {name: Task(**(one | {"shape": tuple(one["shape"])})) for name, one in fields.get("tasks", {}).items()}
        ramp = Ramp(**fields["ramp"]) if fields.get("ramp") else None
        precision = Precision(**fields["precision"])
        lora = {path: Lora(**one) for path, one in fields.get("lora", {}).items()}
        made = {"precision": precision, "inputs": inputs, "tasks": tasks, "ramp": ramp, "lora": lora}
        return cls(**(fields | made | {"bare": tuple(fields.get("bare", ()))}))

    @property
    def fields(self) -> Fields:
        """What a record may hold."""
        inputs = self.inputs or {"tokens": Input((self.length,), ids=True)}
        return Fields(inputs, self.tasks, self.vocabulary, self.next_token)

    @property
    def steps(self) -> int:
        """Optimizer steps that its tokens take."""
        mean = float(self.sequences)
        if self.ramp is not None:  # its stages, of which the last ends one `by` short, are equally long
            mean -= self.ramp.over * (self.sequences - self.ramp.start + self.ramp.by) / 2
        return max(1, math.ceil(self.tokens / (mean * self.length)))

    def sequences_at(self, step: int, steps: int) -> int:
        """Of a step, counted from 0, of so many in all."""
        return self.sequences if self.ramp is None else self.ramp.sequences(step, steps, self.sequences)

    @property
    def divisor(self) -> int:
        """What a microbatch must divide, so that every batch is some of them."""
        return self.sequences if self.ramp is None else math.gcd(self.sequences, self.ramp.start, self.ramp.by)


@dataclass(frozen=True)
class Plan:
    """One `plan` section: how to run a recipe on some hardware. None leaves a choice to the trainer.

    device: what it was written for, as a name. devices: how many. microbatch: sequences in one forward pass. precision:
    instead of the recipe's. memory_limit: bytes of the device that may be used. recompute: how many layers, from the
    first, to run again in the backward pass instead of saving what they computed; "auto" takes the fewest that fit.
    """

    device: str | None = None
    microbatch: int | None = None
    precision: Precision | None = None
    memory_limit: int | None = None
    recompute: str | int = "auto"
    devices: int = 1

    def __post_init__(self) -> None:
        assert self.recompute == "auto" or isinstance(self.recompute, int), f"recompute = {self.recompute!r}"
