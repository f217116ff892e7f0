"""What memory training will need, before anything is allocated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..kernels.loss.products import bytes_at_a_time
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

    name: the attribute of the model that holds the copies (`layers`). saved: by one copy (the mean, when they differ);
    unfused: the same where kernels do not run, None where that makes no difference. input: elements of compute dtype
    that enter one copy, for one sequence: what is left saved when it is recomputed. params: trainable elements of one
    copy.
    """

    name: str
    count: int
    saved: Saved
    input: int
    params: int = 0
    unfused: Saved | None = None


@dataclass(frozen=True)
class LinearLoss:
    """A loss of logits that is computed with the linear map which makes them, and holds only some of them at a time.

    logits, input: elements of them, and of what the map takes, for one sequence. weight: elements of the map's weight
    and bias. terms: how many of the objective are computed so from these logits, each with gradients of its own.
    """

    logits: int
    input: int
    weight: int
    terms: int = 1


@dataclass(frozen=True)
class Ledger:
    """What the compiler knows of a model's memory, in elements; all activations for one sequence of the recipe's
    length.

    params: trainable elements in all; frozen: the others. rest: saved outside of the repeats, without the loss;
    rest_unfused: the same where kernels do not run. logits: elements that the loss is computed from; loss_kernel: by a
    kernel, which holds nothing but these and their gradients; losses: of which logits it holds not even these.
    optimizer_moments: states per parameter (AdamW 2, Lion 1); single_moment: parameters that have one and not two, as
    Muon's have. buffers: bytes. flops_per_token: forward, attention counted causally.
    """

    params: int
    repeats: tuple[Repeat, ...] = ()
    rest: Saved = Saved()
    logits: int = 0
    optimizer_moments: int = 2
    single_moment: int = 0
    frozen: int = 0
    buffers: int = 0
    flops_per_token: int = 0
    rest_unfused: Saved | None = None
    loss_kernel: bool = False
    losses: tuple[LinearLoss, ...] = ()

    def without_kernels(self) -> Ledger:
        """The ledger of the same model where kernels do not run, and what their references save is saved."""
        repeats = tuple(replace(r, saved=r.unfused or r.saved, unfused=None) for r in self.repeats)
        rest = self.rest_unfused or self.rest
        return replace(self, repeats=repeats, rest=rest, rest_unfused=None, loss_kernel=False, losses=())

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


def rows(ledger: Ledger, precision: Precision, microbatch: int, recompute: int, accumulated: bool) -> list[Row]:
    """The ledger's lines for so many sequences in a forward pass, the first `recompute` layers recomputed.

    Memory peaks as the backward pass begins, with all that was saved and the loss, or as it ends, with all gradients.
    accumulated: gradients of earlier passes are there all the time; else they come as what was saved goes.
    """
    assert 0 <= recompute <= ledger.layers, f"{recompute} of {ledger.layers} layers recomputed"
    params, moments = ledger.params, ledger.params * ledger.optimizer_moments - ledger.single_moment
    gradients = params * _width(precision.params)
    kept = _keep(ledger, precision, microbatch, recompute)
    loss = _loss(ledger, precision, microbatch)
    later = kept.again + (0 if accumulated else gradients)  # in place of what has gone by then
    beyond = max(0, later - kept.saved - kept.cast - loss.bytes)
    activations = kept.throughout + kept.saved
    found = [
        Row("parameters", gradients + ledger.frozen * _width(precision.params), _parameters(ledger, precision)),
        Row("gradients", gradients, f"as many in {precision.params}")
        if accumulated
        else Row("gradients", beyond, f"of {size(gradients)}, which take the place of activations"),
        Row(
            "optimizer states",
            moments * _width(precision.optimizer),
            f"{moments / max(1, params):.3g} a parameter in {precision.optimizer}",
        ),
    ]
    if precision.master is not None and precision.master != precision.params:
        found.append(Row("master weights", params * _width(precision.master), f"as many in {precision.master}"))
    if ledger.buffers:
        found.append(Row("buffers", ledger.buffers, ""))
    if kept.cast:
        found.append(Row(f"weights in {precision.compute}", kept.cast, "kept for backward"))
    passed = f"{microbatch} sequence{'s' * (microbatch != 1)}, {recompute} of {ledger.layers} layers recomputed"
    found += [
        Row("activations", activations + (beyond if accumulated else 0), passed),
        loss,
    ]
    share = round(SHARE * total(found)) + LIBRARIES
    return [*found, Row("allocator and libraries", share, f"{SHARE:.0%} and {LIBRARIES // MIB} MiB")]


def _parameters(ledger: Ledger, precision: Precision) -> str:
    frozen = f", {ledger.frozen:,} of them frozen" if ledger.frozen else ""
    return f"{ledger.params + ledger.frozen:,} in {precision.params}{frozen}"


def _loss(ledger: Ledger, precision: Precision, microbatch: int) -> Row:
    """What there is of logits and losses as the backward pass begins."""
    logits, width = microbatch * ledger.logits, _width(precision.compute)
    if not ledger.loss_kernel:
        return Row("logits and loss", logits * max(LOSS_BYTES, 4 * width), f"{logits:,} logits")
    held = logits - microbatch * sum(one.logits for one in ledger.losses)
    if not ledger.losses:
        return Row("logits and loss", held * 2 * width, f"{held:,} logits")
    gradients = sum(one.terms * (microbatch * one.input + one.weight) for one in ledger.losses) * width
    part = max(bytes_at_a_time(microbatch * one.logits * width) for one in ledger.losses)
    # Afterwards the first of these gradients gets the dtype of its parameter, whose own copy has gone.
    cast = max(one.weight for one in ledger.losses) * (_width(precision.params) - width)
    why = f"{held + part // width:,} logits at a time, gradients of the map behind them"
    return Row("logits and loss", held * 2 * width + gradients + max(part, cast), why)


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


@dataclass(frozen=True)
class _Kept:
    """Bytes kept from forward to backward. throughout: outside the repeats, and what enters recomputed layers. saved:
    by the other layers, whose backward comes first. again: by one recomputed layer, while its own backward runs.
    cast: copies of weights in the compute dtype, which a matrix multiply keeps; those of recomputed layers go at
    once.
    """

    throughout: int
    saved: int
    again: int
    cast: int


def _keep(ledger: Ledger, precision: Precision, microbatch: int, recompute: int) -> _Kept:
    throughout, saved, again, cast = ledger.rest.size(precision), 0, 0, ledger.params + ledger.frozen
    for repeat in ledger.repeats:
        count = min(repeat.count, recompute)  # the first layers of all are recomputed
        recompute -= count
        cast -= count * repeat.params
        throughout += count * repeat.input * _width(precision.compute)
        saved += (repeat.count - count) * repeat.saved.size(precision)
        again = max(again, repeat.saved.size(precision) if count else 0)
    cast = cast * _width(precision.compute) if precision.params != precision.compute else 0
    return _Kept(microbatch * throughout, microbatch * saved, microbatch * again, cast)


def _width(name: str) -> int:
    return dtype_of(name).itemsize
