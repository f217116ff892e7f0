"""What memory training will need, before anything is allocated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .recipe import Precision, dtype_of

GIB, MIB = 1 << 30, 1 << 20
# Bytes that one logit takes where the loss is computed: in float32 the logit, its log-softmax, and the gradients of
# both.
LOSS_BYTES = 16
SHARE = 0.05  # of all else: fragments of the allocator, and what lives only within one operation
LIBRARIES = 256 * MIB  # workspaces of matrix multiply and attention libraries


@dataclass(frozen=True)
class Saved:
    """What a part of the model keeps from forward to backward, for one sequence.

    compute: elements in the compute dtype; fp32: elements in float32; bytes: all else (indices, masks).
    """

    compute: int = 0
    fp32: int = 0
    bytes: int = 0

    def size(self, precision: Precision) -> int:
        return self.compute * _width(precision.compute) + self.fp32 * 4 + self.bytes


@dataclass(frozen=True)
class Repeat:
    """A repeated part of the model, whose copies can be computed again in the backward pass.

    name: the attribute of the model that holds the copies (`layers`). saved: by one copy (the mean, when they differ).
    input: elements of compute dtype that enter one copy, for one sequence: what is left saved when it is recomputed.
    params: trainable elements of one copy.
    """

    name: str
    count: int
    saved: Saved
    input: int
    params: int = 0


@dataclass(frozen=True)
class Ledger:
    """What the compiler knows of a model's memory, in elements; all activations for one sequence of the recipe's
    length.

    params: trainable elements in all. rest: saved outside of the repeats, without the loss. logits: elements that the
    loss is computed from. optimizer_moments: states per parameter (AdamW 2, Lion 1). buffers: bytes. flops_per_token:
    forward, attention counted causally.
    """

    params: int
    repeats: tuple[Repeat, ...] = ()
    rest: Saved = Saved()
    logits: int = 0
    optimizer_moments: int = 2
    buffers: int = 0
    flops_per_token: int = 0

    @property
    def layers(self) -> int:
        """Copies in all repeats, which is how many can be recomputed."""
        return sum(repeat.count for repeat in self.repeats)


@dataclass(frozen=True)
class Row:
    """A line of the ledger: bytes, and how they come about."""

    name: str
    bytes: int
    why: str


def rows(ledger: Ledger, precision: Precision, microbatch: int, recompute: int) -> list[Row]:
    """The ledger's lines for so many sequences in a forward pass, the first `recompute` layers recomputed."""
    assert 0 <= recompute <= ledger.layers, f"{recompute} of {ledger.layers} layers recomputed"
    params, states = _width(precision.params), _width(precision.optimizer)
    moments = ledger.params * ledger.optimizer_moments
    found = [
        Row("parameters", ledger.params * params, f"{ledger.params:,} in {precision.params}"),
        Row("gradients", ledger.params * params, f"as many in {precision.params}"),
        Row("optimizer states", moments * states, f"{ledger.optimizer_moments} a parameter in {precision.optimizer}"),
    ]
    if ledger.buffers:
        found.append(Row("buffers", ledger.buffers, ""))
    kept = _split(ledger, recompute)
    if precision.params != precision.compute:
        # A matrix multiply keeps the copy of its weight in the compute dtype until its backward.
        cast = ledger.params - sum(again * repeat.params for repeat, _, again in kept)
        cast += max((repeat.params for repeat, _, again in kept if again), default=0)
        found.append(Row(f"weights in {precision.compute}", cast * _width(precision.compute), "kept for backward"))
    activations = ledger.rest.size(precision)
    for repeat, saved, again in kept:
        activations += saved * repeat.saved.size(precision) + again * repeat.input * _width(precision.compute)
    # A layer that is recomputed is whole for the time of its own backward.
    activations += max((repeat.saved.size(precision) for repeat, _, again in kept if again), default=0)
    why = f"{microbatch} sequence{'s' * (microbatch != 1)}, {recompute} of {ledger.layers} layers recomputed"
    found.append(Row("activations", microbatch * activations, why))
    loss = microbatch * ledger.logits * max(LOSS_BYTES, 4 * _width(precision.compute))
    found.append(Row("logits and loss", loss, f"{microbatch * ledger.logits:,} logits"))
    share = round(SHARE * sum(row.bytes for row in found)) + LIBRARIES
    found.append(Row("allocator and libraries", share, f"{SHARE:.0%} and {LIBRARIES // MIB} MiB"))
    return found


def total(lines: Sequence[Row]) -> int:
    """Bytes of all lines."""
    return sum(row.bytes for row in lines)


def table(lines: Sequence[Row], available: int, where: str) -> str:
    """The ledger as text: a line each, then the total against what there is."""
    width = max(len(row.name) for row in lines) + 2
    text = [f"  {row.name:<{width}}{size(row.bytes):>10}  {row.why}".rstrip() for row in lines]
    text.append(f"  {'total':<{width}}{size(total(lines)):>10}  of {size(available)} {where}")
    return "\n".join(text)


def size(count: int) -> str:
    """Bytes for people: `812.0 MiB`, `1.4 GiB`."""
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count / MIB:,.1f} MiB"


def _split(ledger: Ledger, recompute: int) -> list[tuple[Repeat, int, int]]:
    """Each repeat with how many of its copies are saved, and how many recomputed: the first ones are."""
    found = []
    for repeat in ledger.repeats:
        again = min(repeat.count, recompute)
        found.append((repeat, repeat.count - again, again))
        recompute -= again
    return found


def _width(name: str) -> int:
    return dtype_of(name).itemsize
