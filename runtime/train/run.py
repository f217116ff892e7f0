"""A training run: what stands between a generated training loop and its folder."""

from __future__ import annotations

import functools
import hashlib
import inspect
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from ..data import Batch
from ..data.source import TEXT
from ..optim.init import Initialiser
from ..optim.optimizer import Optimizer
from ..problem import Problem
from .checkpoint import Position, State, list_checkpoints, read_checkpoint, write_checkpoint
from .device import used_memory
from .dropped import Dropped
from .environment import environment
from .evaluate import HeldOut, Objective, evaluate
from .folder import write_json
from .ledger import Ledger
from .load import build_model
from .log import Log, read_lines
from .open import Opened, open_new, open_resumed
from .options import Options
from .plot import plot_loss
from .progress import Progress
from .recipe import Recipe, dtype_of
from .sources import digest_of
from .stop import Stop

M = TypeVar("M", bound=nn.Module)

HELD_OUT_AT_SAVE = 65_536  # positions of each source to measure on when a checkpoint is written
HELD_OUT_AT_END = 262_144
ACCURACY = "accuracy"  # how names in the log begin that are no loss


class Run:
    """A run in progress, in the order in which a trainer uses it: open, build, restore, steps, finish.

    steps: optimizer steps in all. accumulation: forward passes in each. state_dtype, rounding: for the optimizer.
    """

    def __init__(self, opened: Opened, recipe: Recipe, ledger: Ledger, objective: Objective) -> None:
        self.folder, self.facts, self.device, self._data = opened.folder, opened.facts, opened.device, opened.data
        self.recipe, self.ledger, self.objective = recipe, ledger, objective
        self.steps = self.facts.steps
        self.accumulation = recipe.sequences // self.facts.microbatch
        self.state_dtype = dtype_of(self.facts.precision.optimizer)
        self.rounding = self.facts.precision.rounding
        self.done = opened.position.step if opened.position is not None else 0
        self._opened = opened
        self._digest = digest_of(self._data.sources)
        self._stop = Stop()
        self._progress = Progress(self.steps, self._stop)
        self._losses: dict[str, Tensor] = {}
        self._counted: dict[str, int] = {}  # in how many batches of the step a term was there
        self._positions = 0  # of the step's batches
        self._line: dict[str, float] | None = None
        self._held: dict[str, HeldOut] | None = None
        self._seconds, self._timed = 0.0, 0  # of the steps of this process, and their positions

    @classmethod
    def open(cls, options: Options, recipe: Recipe, ledger: Ledger, objective: Objective, *, package: Path) -> Run:
        """Settle everything that can go wrong before training, and say what memory it will need.

        package: the folder of the generated code, of which the run keeps a copy. objective: also measured on held-out
        text, at every save and at the end. Raises Problem; a new run's folder comes to be only when its first step
        begins.
        """
        written_in = Path(inspect.getfile(objective))  # a package has a trainer for each `train` section
        trainer = written_in.name if written_in.parent.resolve() == package.resolve() else "train.py"
        opened = (open_resumed if options.resume else open_new)(options, recipe, ledger, package, trainer)
        return cls(opened, recipe, ledger, objective)

    def build(self, model_class: type[M], init: Initialiser) -> M:
        """The model on the device, initialised from the seed, its first layers recomputed as the ledger found
        necessary.
        """
        precision = self.facts.precision
        model = build_model(model_class, dtype_of(precision.compute), dtype_of(precision.params), self.device)
        assert isinstance(model, model_class)
        init(model, self.facts.seed)
        layers = [layer for repeat in self.ledger.repeats for layer in model.get_submodule(repeat.name).children()]
        for layer in layers[: self.facts.recompute]:
            # The instance's own `forward` hides its class's: names in the state dict stay as they are.
            layer.forward = functools.partial(recomputed, layer.forward, use_reentrant=False)
        return model

    def restore(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Take up the checkpoint of a resumed run; these are what checkpoints hold from now on."""
        self.model, self.optimizer, self._dropped = model, optimizer, Dropped(model)
        if self._opened.checkpoint is not None:
            state: dict[str, State] = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            read_checkpoint(self._opened.checkpoint, state)

    def __iter__(self) -> Iterator[int]:
        """Steps from where the run stands to the last, counted from 0; each is followed by a save when one is due.

        After SIGINT or SIGTERM the step is finished and saved, and the process exits as those signals make it.
        """
        if self._opened.staging is not None:
            self._opened.staging.commit()
        else:
            self.folder.write(self.facts)
            write_json(self.folder.path / "environment.json", environment(self.device))
        self._log = Log.open(self.folder.log, after=self.done)
        with closing(self._log), self._stop.listening():
            for step in range(self.done, self.steps):
                self._began = time.monotonic()
                torch.manual_seed(_mix(self.facts.seed, step))  # dropout and rounding are functions of seed and step
                yield step
                self._end_step(step + 1)

    def batches(self, step: int) -> Iterator[Batch]:
        """The step's batches, `accumulation` of them. Raises Problem after the last when the loss is not finite."""
        self._losses, self._counted, self._positions = {}, {}, 0
        rows = self.recipe.sequences
        for batch in self._data.batches(step * rows, (step + 1) * rows, self.facts.microbatch):
            self._positions += batch.positions
            yield batch.to(self.device)
        # Looked at once a step, with all its work queued, and before anything was changed by it.
        for name, loss in self._losses.items():
            if not loss.isfinite():
                raise self._not_finite(step + 1, name, float(loss))

    def add(self, losses: dict[str, Tensor]) -> None:
        """Count the losses of one batch into the step's means: each over the batches that have its term."""
        for name, loss in losses.items():
            self._losses[name] = self._losses[name] + loss.detach() if name in self._losses else loss.detach()
            self._counted[name] = self._counted.get(name, 0) + 1

    def report(self, step: int, *, rate: float, norm: Tensor | float | None = None) -> None:
        """The step's line for the log, and the progress line. The log counts steps done, so the first is 1."""
        losses = {name: float(loss) / self._counted[name] for name, loss in self._losses.items()}
        seconds = time.monotonic() - self._began
        self._seconds, self._timed = self._seconds + seconds, self._timed + self._positions
        speed = self._positions / seconds
        self._line = {"step": step + 1, "loss": losses.pop("loss"), "tokens_per_s": round(speed, 1), "rate": rate}
        if norm is not None:
            self._line["norm"] = float(norm)
        self._line |= losses
        if self._dropped:
            self._line["dropped"] = self._dropped.take()
        self._progress.update(step + 1, self._line["loss"], speed, seconds, used_memory(self.device))

    def finish(self) -> None:
        """Measure held-out loss, write result.json and loss.png, and say how it went."""
        held = self._held or self._evaluate(HELD_OUT_AT_END)
        text = _of_tokens(held)
        entropy = text.unigram_entropy if text is not None else None
        lines = read_lines(self.folder.log)
        result: dict[str, object] = {
            "model": self.recipe.model,
            "steps": self.done,
            "tokens": self._trained(),
            "loss": lines[-1]["loss"] if lines else None,
            "held_out_loss": self._held_out_loss(held),
            "unigram_entropy": entropy,
            "held_out_tokens": text.tokens if text is not None else 0,
            "held_out": text.losses if text is not None else {},
            "sources": {name: asdict(one) for name, one in held.items()},
            "tokens_per_s": round(self._timed / self._seconds, 1) if self._timed else None,
            "memory": used_memory(self.device),
        }
        if shares := [line["dropped"] for line in lines if "dropped" in line]:
            result["dropped"] = dropped = sum(shares) / len(shares)
            self._progress.say(f"experts had no room for {dropped:.2%} of all choices")
        write_json(self.folder.path / "result.json", result)
        for name, one in held.items():
            self._progress.say(one.describe() if len(held) == 1 else f"{name}: {one.describe()}")
        picture = self.folder.path / "loss.png"
        missing = plot_loss(self.folder.log, picture, self.recipe.model, entropy)
        self._progress.say(missing or f"loss plot: {picture}")
        self._progress.say(f"done: {self.folder.path}")

    def _end_step(self, done: int) -> None:
        line = self._line
        assert line is not None and line["step"] == done, f"step {done} ended without a report"
        self.done, last = done, done == self.steps
        due = last or done % self.facts.save_every == 0
        if due and not self._stop.signal:
            held = self._evaluate(HELD_OUT_AT_END if last else HELD_OUT_AT_SAVE)
            self._held = held if last else None
            line |= self._held_out_line(held)
        self._log.write(line)  # before the checkpoint: a resumed run cuts lines off, but cannot add them
        if due or self._stop.signal:
            path = self._save()
            measured = f", held-out loss {line['held_out']:.4f}" if "held_out" in line else ""
            accuracy = (f", {name.split('.')[-1]} {share:.1%}" for name, share in line.items() if ACCURACY in name)
            self._progress.say(f"step {done:,}{measured}{''.join(accuracy)}, saved {path.name}")
        if self._stop.signal and not last:
            self._progress.say(f"stopped; go on with:\n  {self._resume_command()}")
            sys.exit(128 + self._stop.signal)

    def _save(self) -> Path:
        position = Position(
            step=self.done,
            sequences=self.done * self.recipe.sequences,
            seed=self.facts.seed,
            spec_hash=self.facts.spec_hash,
            text=self._digest,
        )
        model, optimizer = self.model.state_dict(), self.optimizer.state_dict()
        return write_checkpoint(
            self.folder.checkpoints, self.done, model, optimizer, position, keep=self.recipe.save_keep
        )

    def _evaluate(self, most: int) -> dict[str, HeldOut]:
        """On at most about so many positions of each source, by its name."""
        return {
            source.name: evaluate(
                self.model,
                self.objective,
                source.held_out(most, self.facts.microbatch),
                self.recipe.tasks,
                self.device,
            )
            for source in self._data.sources
        }

    def _held_out_loss(self, held: dict[str, HeldOut]) -> float:
        """The text's, which compares with an entropy; without text, that of all sources in their proportion."""
        if (text := _of_tokens(held)) is not None:
            return text.loss
        pairs = zip(held.values(), self.facts.mix, strict=True)
        return sum(one.loss * weight for one, weight in pairs) / sum(self.facts.mix)

    def _held_out_line(self, held: dict[str, HeldOut]) -> dict[str, float]:
        """For the log: the loss alone of text, and of several sources each term of each, and the accuracy."""
        line = {"held_out": self._held_out_loss(held)}
        if list(held) != [TEXT]:
            for source, one in held.items():
                line |= {f"held_out.{source}.{term}": loss for term, loss in one.losses.items()}
                line |= {f"{ACCURACY}.{source}.{result}": share for result, share in one.accuracy.items()}
        return line

    def _trained(self) -> int:
        """Positions of all batches so far, without padding."""
        counts = self._data.rows(self.done * self.recipe.sequences)
        return sum(source.filled(n) for n, source in zip(counts, self._data.sources, strict=True))

    def _not_finite(self, step: int, name: str, value: float) -> Problem:
        term = "" if name == "loss" else f" ({name})"
        there = list_checkpoints(self.folder.checkpoints)
        way = "try a lower learning rate, a longer warmup, or --precision fp32"
        if there:
            way += f"; {there[-1]} was saved before"
        return Problem(f"the loss{term} of step {step:,} is {value}", way)

    def _resume_command(self) -> str:
        script = self.folder.code(self.facts.model) / self.facts.trainer
        return shlex.join(["python", str(script), "--out", str(self.folder.path), "--resume"])


def _of_tokens(held: dict[str, HeldOut]) -> HeldOut | None:
    """Of the first source whose tokens are predicted."""
    return next((one for one in held.values() if one.unigram_entropy is not None), None)


def _mix(seed: int, step: int) -> int:
    """A seed for each step, unlike those of other steps and other seeds."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{step}".encode()).digest()[:8], "little") >> 1
