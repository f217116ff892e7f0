"""`dskc diff RUN --with RUN|hf`: the first operation whose output differs."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..data import open_tokens
from ..kernels.choice import choose_kernels
from ..problem import Problem
from ..reference import next_token
from ..train import load_model
from ..train.folder import RunFolder
from ..train.kept import find_checkpoint
from .compare import Compared, Found, compare_operations, compare_tensors, difference
from .theirs import counterparts, load_theirs, outputs_of
from .trace import Operation, trace

HF = "hf"
HF_TOLERANCE = 1e-4  # two ways of computing the same in float32
HF_GRADIENTS = 1e-3  # which come back through all of it
LOGITS = "logits, the result"


@dataclass(frozen=True)
class Side:
    """A run's model in float32, on the CPU. plan: what its compiler said of it."""

    run: str
    checkpoint: str
    model: nn.Module
    code: Path
    plan: Mapping[str, object]

    @classmethod
    def load(cls, run: Path, which: str) -> Side:
        """Raises Problem for what is no run, and for a model of more than text."""
        model, _, _ = load_model(run, which, "cpu", torch.float32)
        code = Path(inspect.getfile(type(model))).parent
        needed = [
            name
            for name, parameter in inspect.signature(type(model).forward).parameters.items()
            if parameter.default is parameter.empty and name != "self" and not name.startswith("tokens")
        ]
        if needed:
            raise Problem(f"{run}: the model takes more than text ({', '.join(needed)})", "models of text are compared")
        folder = RunFolder(run)
        path, _ = find_checkpoint(folder.checkpoints, which)
        plan = json.loads((code / "plan.json").read_text(encoding="utf-8")) if (code / "plan.json").is_file() else {}
        return cls(str(run), path.name, model, code, plan)


@dataclass(frozen=True)
class Report:
    """weights: of the two runs; None where they are the same by construction. forward: operations. gradients: of the
    next-token loss, by parameter in the order of the forward pass; None where they were not asked for. tokens: how
    many.
    """

    one: str
    other: str
    tokens: str
    weights: Compared | None
    forward: Compared
    gradients: Compared | None

    @property
    def differs(self) -> bool:
        return bool(self.forward.differing or (self.gradients is not None and self.gradients.differing))


def diff(
    run: Path,
    other: str,
    hf: Path | None = None,
    checkpoint: str = "last",
    with_checkpoint: str = "last",
    gradients: bool = False,
    length: int = 64,
    sequences: int = 2,
    seed: int = 0,
    tolerance: float | None = None,
) -> Report:
    """Run two models on the same tokens: those held out of the run's data, or drawn from a seed where it has none.

    Both compute in float32 on the CPU, by the references that kernels stand for, without dropout. other: a run, or
    `hf` for the model that transformers makes by `hf/config.json` of the run's weights. tolerance: relative, by norm,
    up to which values count as the same; unless told 0 between runs, and with transformers 1e-4, 1e-3 of gradients.
    Raises Problem when one of them is no run, when they take different vocabularies, and when transformers and the run
    do not fit.
    """
    choose_kernels("reference")
    ours = Side.load(run, checkpoint)
    tokens = _tokens(run, ours, sequences, length, seed)
    what = f"{sequences} x {length} tokens"
    if other == HF:
        if hf is None:
            raise Problem("--with hf: whose configuration?", "name the folder of its config.json with --hf FOLDER")
        return _with_hf(ours, hf, tokens, gradients, tolerance, what)
    theirs = Side.load(Path(other), with_checkpoint)
    limit = int(str(theirs.plan.get("vocabulary", 1 << 62)))
    if int(tokens.max()) >= limit:
        raise Problem(
            f"{other}: its vocabulary of {limit:,} does not have the tokens of {run}", "compare models of one"
        )
    return _with_run(ours, theirs, tokens, gradients, tolerance or 0.0, what)


def report_text(report: Report) -> str:
    """For people."""
    lines = [f"{report.one}\n{report.other}\non {report.tokens}"]
    if report.weights is not None:
        lines += _part("weights", "parameters", report.weights)
    lines += _part("forward", "operations", report.forward)
    if report.gradients is not None:
        lines += _part("gradients", "parameters", report.gradients, last=True)
    return "\n".join(lines)


def report_json(report: Report) -> str:
    """For programs: everything."""
    found = asdict(report) | {"differs": report.differs}
    for name in ("weights", "forward", "gradients"):
        part: Compared | None = getattr(report, name)
        if part is not None:
            found[name]["first"] = asdict(part.first) if part.first is not None else None
    return json.dumps(found, indent=2).replace(": Infinity", ": null")


def main(run: Path, other: str, as_json: bool = False, **options: object) -> None:
    """Prints the report; exits with 1 where the models differ."""
    report = diff(run, other, **options)  # type: ignore[arg-type]
    print(report_json(report) if as_json else report_text(report))
    if report.differs:
        sys.exit(1)


def _with_run(ours: Side, theirs: Side, tokens: Tensor, gradients: bool, tolerance: float, what: str) -> Report:
    sides = (ours, theirs)
    traced = [_traced(side, tokens, gradients) for side in sides]
    forward = compare_operations(traced[0][1], traced[1][1], tolerance)
    weights = compare_tensors(ours.model.state_dict(), theirs.model.state_dict(), 0.0)
    graded = compare_tensors(_gradients(ours.model), _gradients(theirs.model), tolerance) if gradients else None
    one, other = (f"{side.run}, {side.checkpoint}" for side in sides)
    return Report(one, other, what, weights, forward, graded)


def _with_hf(ours: Side, config: Path, tokens: Tensor, gradients: bool, tolerance: float | None, what: str) -> Report:
    rules = ours.plan.get("checkpoint")
    if not rules:
        raise Problem(f"{ours.run}: its spec has no checkpoint map", "give the model `weights NAME`")
    assert isinstance(rules, list)
    state = ours.model.state_dict()
    names = counterparts(rules, dict(ours.model.named_parameters()))
    theirs = load_theirs(config, rules, state)
    logits, operations = _traced(ours, tokens, gradients)
    with torch.set_grad_enabled(gradients):
        their_logits, outputs = outputs_of(theirs, names, tokens)
    known = dict(theirs.named_parameters())
    graded = None
    if gradients:
        _backward(their_logits, tokens)
        there = {own: known[name].grad for own, name in names.items() if name in known}
        own_gradients = _gradients(ours.model)
        graded = compare_tensors(
            own_gradients,
            {name: g for name, g in there.items() if g is not None and g.shape == own_gradients[name].shape},
            HF_GRADIENTS if tolerance is None else tolerance,
        )
    forward = compare_layers(
        operations, outputs, logits, their_logits, HF_TOLERANCE if tolerance is None else tolerance
    )
    return Report(f"{ours.run}, {ours.checkpoint}", f"transformers by {config}", what, None, forward, graded)


def compare_layers(
    operations: Sequence[Operation], outputs: Mapping[str, Tensor], ours: Tensor, theirs: Tensor, tolerance: float
) -> Compared:
    """What our operations give that have a weight, beside what the modules of transformers give that have the same.

    These need not mean the same: some scale embeddings inside of the module, some outside. So what differs before a
    layer of which anything agrees is left out: what enters that layer is the same.
    """
    found: dict[str, Found] = {}
    for one in operations:
        other = outputs.get(one.parameter or "")
        if one.parameter in found or other is None or other.numel() != one.value.numel():
            continue
        if other.is_floating_point() == one.value.is_floating_point():
            apart = difference(one.value.reshape(-1), other.reshape(-1))
            found[str(one.parameter)] = Found(str(one), apart, one.code, one.spec)
    agreed = max((_layer(name) for name, each in found.items() if each.difference.relative <= tolerance), default=-1)
    kept = [each for name, each in found.items() if each.difference.relative <= tolerance or _layer(name) >= agreed]
    kept.append(Found(LOGITS, difference(ours, theirs)))
    return Compared(tuple(kept), tuple(name for name in outputs if name not in found), tolerance)


def _traced(side: Side, tokens: Tensor, gradients: bool) -> tuple[Tensor, list[Operation]]:
    """The logits and the operations; gradients are those of the next-token loss, if they are wanted."""
    side.model.requires_grad_(gradients)
    output, operations = trace(side.model, side.code, (tokens,))
    logits = output if isinstance(output, Tensor) else output[0]
    if gradients:
        _backward(logits, tokens)
    return logits, [replace(each, value=each.value.detach()) for each in operations]


def _backward(logits_BSV: Tensor, tokens_BS: Tensor) -> None:
    targets = torch.cat([tokens_BS[:, 1:], torch.full_like(tokens_BS[:, :1], -100)], dim=1)
    next_token(logits_BSV, targets).backward()


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _tokens(run: Path, side: Side, sequences: int, length: int, seed: int) -> Tensor:
    """[sequences, length]: the beginning of what is held out, or drawn."""
    folder = RunFolder(run)
    if (folder.data / "held.tokens").is_file():
        held = torch.from_numpy(open_tokens(folder.data).held[: sequences * length].astype("int64"))
        if held.numel() == sequences * length:
            return held.view(sequences, length)
    vocabulary = int(str(side.plan.get("vocabulary", 2)))
    return torch.randint(vocabulary, (sequences, length), generator=torch.Generator().manual_seed(seed))


def _layer(name: str) -> int:
    """The number of the layer that a parameter is in; -1 before all, and after all where it comes after."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else -1 if name.startswith("embed") else 1 << 30


def _part(title: str, of: str, part: Compared, last: bool = False) -> list[str]:
    """What is said of one comparison. last: what is computed last is named, too, as backward comes to it first."""
    count, differing = len(part.found), part.differing
    more = f"; {len(part.only):,} are only in one" if part.only else ""
    if not differing:
        return [f"{title}: all {count:,} {of} agree{more}"]
    first = differing[0]
    lines = [f"{title}: {len(differing):,} of {count:,} {of} differ{more}; the first is"]
    lines.append(f"  {first.name}: {first.difference}")
    lines += [f"    {text}" for text in (first.code, first.spec) if text]
    if last and len(differing) > 1:
        lines.append(f"  and the last, which backward comes to first, {differing[-1].name}: {differing[-1].difference}")
    return lines
