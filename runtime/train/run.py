"""A training run: what stands between a generated training loop and its folder."""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import TypedDict, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from ..data import Batch
from ..data.source import TEXT
from ..optim.init import Initialiser
from ..optim.loss_scale import LossScale
from ..optim.optimizer import Optimizer, trainable
from ..problem import Problem
from .anchor import Anchor, fisher_of
from .checkpoint import State, read_checkpoint
from .device import used_memory
from .dropped import Dropped
from .environment import environment
from .evaluate import HeldOut, Objective, evaluate
from .folder import RunFolder, write_json
from .fp8 import use_fp8
from .kept import Position, set_aside
from .ledger import Ledger
from .load import build_model
from .lock import locked
from .log import Line, Log, read_lines
from .open import Opened, open_new, open_resumed
from .options import Options
from .plot import plot_loss
from .progress import Progress
from .recipe import Precision, Recipe, dtype_of
from .saver import Saver
from .skips import Skips
from .sources import digest_of
from .start import adapt, earlier_data, read_base
from .stop import Stop
from .watch import Watch

M = TypeVar("M", bound=nn.Module)


class States(TypedDict):
    """What every optimizer is told of what it keeps: the dtype of moments, how bf16 is rounded to, and whether each
    parameter has a copy in fp32.
    """

    state_dtype: torch.dtype
    rounding: str
    master: bool


HELD_OUT_AT_SAVE = 65_536  # positions of each source to measure on when a checkpoint is written
HELD_OUT_AT_END = 262_144
ACCURACY = "accuracy"  # how names in the log begin that are no loss


class Run:
    """A run in progress, in the order in which a trainer uses it: open, build, restore, steps, finish.

    steps: optimizer steps in all. states: how the optimizer keeps what it knows of each parameter.
    """

    def __init__(self, opened: Opened, recipe: Recipe, ledger: Ledger, objective: Objective) -> None:
        self.folder, self.facts, self.device, self._data = opened.folder, opened.facts, opened.device, opened.data
        self.recipe, self.ledger, self.objective = recipe, ledger, objective
        self.steps = self.facts.steps
        self.states = States(
            state_dtype=dtype_of(self.facts.precision.optimizer),
            rounding=self.facts.precision.rounding,
            master=self.facts.precision.master is not None,
        )
        self.done = opened.position.step if opened.position is not None else 0
        self._taken = opened.position.sequences if opened.position is not None else 0  # from the data
        self._opened = opened
        self._digest = digest_of(self._data.sources)
        self._stop = Stop()
        self._progress = Progress(self.steps, self._stop)
        self._watch = Watch.of(self.folder, self._progress, self.facts, ledger, self.device)
        self._saver = Saver(self.folder.checkpoints, recipe.save_keep)
        self._losses: dict[str, Tensor] = {}
        self._counted: dict[str, int] = {}  # in how many batches of the step a term was there
        self._positions = 0  # of the step's batches
        self._skips = Skips()
        self._anchor: Anchor | None = None
        self._scale = _loss_scale(self.facts.precision, opened.position)
        self._line: Line | None = None
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
        run = cls(opened, recipe, ledger, objective)
        try:
            run._watch.ask(options, run.done, run.steps)
        except Problem:
            if opened.staging is not None:
                opened.staging.discard()
            raise
        return run

    @property
    def accumulation(self) -> int:
        """Forward passes in the step."""
        return self.recipe.sequences_at(self.done, self.steps) // self.facts.microbatch

    def build(self, model_class: type[M], init: Initialiser, fp8: Mapping[str, str] | None = None) -> M:
        """The model on the device, initialised from the seed, its first layers recomputed as the ledger found
        necessary. fp8: which linear layers have 8-bit products, as `use_fp8` has it.
        """
        precision = self.facts.precision
        model = build_model(model_class, dtype_of(precision.compute), dtype_of(precision.params), self.device)
        assert isinstance(model, model_class)
        init(model, self.facts.seed)
        if self.facts.base and (self.recipe.lora or self._opened.checkpoint is None):
            for said in read_base(model, Path(self.facts.base), list(init.groups)):
                self._progress.say(f"weights: {said}")
        adapt(model, self.recipe, self.facts.seed)
        use_fp8(model, fp8 or {})
        layers = [layer for repeat in self.ledger.repeats for layer in model.get_submodule(repeat.name).children()]
        for layer in layers[: self.facts.recompute]:
            # The instance's own `forward` hides its class's: names in the state dict stay as they are.
            layer.forward = functools.partial(recomputed, layer.forward, use_reentrant=False)
        return model

    def anchor(self, model: nn.Module) -> Anchor:
        """What holds a model to the weights that it began with, by what these mattered for the data of that run.

        To be called before `restore`.
        """
        ewc, path = self.recipe.ewc, self.folder.anchor
        assert ewc is not None and self.facts.base, "the recipe does not hold weights"
        if self._opened.staging is not None:
            path = self._opened.staging.path / path.name
        if not path.is_file():
            base, rows = RunFolder(Path(self.facts.base)), ewc.samples
            self._progress.say(f"how much each weight matters: measuring on {rows:,} rows of the data of {base.path}")
            data = earlier_data(base)
            batches = (data.batch(i, 1).to(self.device) for i in range(rows))
            fisher = fisher_of(model, self.objective, batches)
            if base.anchor.is_file():  # that run was held to one before it, arXiv:1805.06370, section 3
                for name, held in Anchor.read(base.anchor, model, ewc.strength).fisher.items():
                    fisher[name] += held
            before = {name: parameter.detach().clone() for name, parameter in trainable(model).items()}
            Anchor(ewc.strength, trainable(model), before, fisher).write(path)
        self._anchor = Anchor.read(path, model, ewc.strength)
        return self._anchor

    def restore(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Take up the checkpoint of a resumed run; these are what checkpoints hold from now on."""
        self.model, self.optimizer, self._dropped = model, optimizer, Dropped(model)
        self._watch.look_at(model)
        if self._opened.checkpoint is not None:
            state: dict[str, State] = {"model": self._weights(), "optimizer": optimizer.state_dict()}
            read_checkpoint(self._opened.checkpoint, state)

    def __iter__(self) -> Iterator[int]:
        """Steps from where the run stands to the last, counted from 0; each is followed by a save when one is due.

        After SIGINT or SIGTERM the step is finished and saved, and the process exits as those signals make it.
        """
        if self._opened.staging is not None:
            self._opened.staging.commit()
        with ExitStack() as stack:
            stack.enter_context(locked(self.folder.path))
            if self._opened.staging is None:
                for path in self._opened.damaged:
                    set_aside(path)
                self.folder.write(self.facts)
                write_json(self.folder.path / "environment.json", environment(self.device))
            self._log = stack.enter_context(closing(Log.open(self.folder.log, after=self.done)))
            self._watch.start(self.done, self.facts.precision.compute)
            stack.enter_context(closing(self._watch))
            stack.enter_context(self._stop.listening())
            for step in range(self.done, self.steps):
                self._watch.begin(step + 1)
                self._began = time.monotonic()
                torch.manual_seed(_mix(self.facts.seed, step))  # dropout and rounding are functions of seed and step
                yield step
                self._end_step(step + 1)

    def batches(self, step: int) -> Iterator[Batch]:
        """The step's batches, `accumulation` of them. Once a loss of theirs is not finite, the optimizer's next step
        changes nothing.
        """
        self._losses, self._counted, self._positions = {}, {}, 0
        assert step == self.done, f"step {step} follows {self.done} that are done"
        rows = self.accumulation * self.facts.microbatch
        for batch in self._data.batches(self._taken, self._taken + rows, self.facts.microbatch):
            self._positions += batch.positions
            yield batch.to(self.device)
        self.optimizer.guard = self._losses.get("loss")

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one pass's loss to those of the step, which is the mean over its passes.

        Where activations are fp16 they are computed of a multiple of the loss, which the optimizer's step takes out.
        """
        if self._scale is not None:
            self.optimizer.scale = self._scale.value
        (loss * (self.optimizer.scale / self.accumulation)).backward()

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
        loss = losses.pop("loss")
        self._line = {"step": step + 1, "loss": loss, "tokens_per_s": round(speed, 1), "rate": rate}
        if norm is not None:
            self._line["norm"] = float(norm)
        self._line |= losses
        if self._anchor is not None and self._anchor.penalty is not None:
            self._line["ewc"] = float(self._anchor.penalty)
        if self._dropped:
            self._line["dropped"] = self._dropped.take()
        skipped = self.optimizer.skipped
        if self._scale is not None:
            self._line["loss_scale"] = self._scale.value
        if self._scale is not None and self._scale.count(skipped is not None and math.isfinite(loss)):
            assert skipped is not None
            self._line["skipped"] = skipped.name
            self._progress.say(
                f"step {step + 1:,} skipped: {skipped.what}; the loss is scaled by {self._scale.value:,.0f} now"
            )
        elif name := self._skips.count(skipped, {**losses, "loss": loss}):
            self._line["skipped"] = name
            self._progress.say(f"step {step + 1:,} skipped: {self._skips.what}")
        self._watch.measure(self._line, speed, seconds)

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
        if self._timed and (mfu := self._watch.mfu(self._timed / self._seconds)) is not None:
            result["mfu"] = round(mfu, 4)
        if skipped := sum("skipped" in line for line in lines):
            result["skipped"] = skipped
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
        self._taken += self.recipe.sequences_at(done - 1, self.steps)
        self.done, last = done, done == self.steps
        due, mark = last or done % self.facts.save_every == 0, None
        if due and not self._stop.signal:
            held = self._evaluate(HELD_OUT_AT_END if last else HELD_OUT_AT_SAVE)
            self._held = held if last else None
            line |= self._held_out_line(held)
            mark = self._mark(held)
        self._watch.end(line)
        self._log.write(line)  # before the checkpoint: a resumed run cuts lines off, but cannot add them
        self._skips.require_progress(self.folder.checkpoints)
        if due or self._stop.signal:
            measured = f", held-out loss {line['held_out']:.4f}" if "held_out" in line else ""
            accuracy = (f", {name.split('.')[-1]} {share:.1%}" for name, share in line.items() if ACCURACY in name)
            self._save(mark, f"step {done:,}{measured}{''.join(accuracy)}")
        if last or self._stop.signal:
            self._saver.wait()
        for said in self._saver.finished():
            self._progress.say(said)
        if self._stop.signal and not last:
            self._progress.say(f"stopped; go on with:\n  {self._resume_command()}")
            sys.exit(128 + self._stop.signal)

    def _save(self, mark: float | None, said: str) -> None:
        position = Position(
            step=self.done,
            sequences=self._taken,
            seed=self.facts.seed,
            spec_hash=self.facts.spec_hash,
            text=self._digest,
            loss_scale=self._scale.value if self._scale is not None else 0.0,
            good_steps=self._scale.good if self._scale is not None else 0,
        )
        self._saver.start(position, self._weights(), self.optimizer.state_dict(), mark, said)

    def _mark(self, held: dict[str, HeldOut]) -> float:
        """The held-out loss by which checkpoints compare: always that of as many rows, so of fewer than at the end."""
        sources = self._data.sources
        if any(held[source.name].rows > max(1, HELD_OUT_AT_SAVE // source.positions) for source in sources):
            held = self._evaluate(HELD_OUT_AT_SAVE)
        return self._held_out_loss(held)

    def _weights(self) -> dict[str, Tensor]:
        """What a checkpoint holds of the model: all of it, or what is trained where the rest is that of another run."""
        state = self.model.state_dict()
        if not self.recipe.lora:
            return state
        trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        return {name: value for name, value in state.items() if name in trained}

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
        counts = self._data.rows(self._taken)
        return sum(source.filled(n) for n, source in zip(counts, self._data.sources, strict=True))

    def _resume_command(self) -> str:
        script = self.folder.code(self.facts.model) / self.facts.trainer
        return shlex.join(["python", str(script), "--out", str(self.folder.path), "--resume"])


def _loss_scale(precision: Precision, position: Position | None) -> LossScale | None:
    """Of a run in fp16, as it was when it was saved; None where there is none."""
    if precision.compute != "fp16":
        return None
    there = position is not None and position.loss_scale > 0
    return LossScale(position.loss_scale, position.good_steps) if position is not None and there else LossScale()


def _of_tokens(held: dict[str, HeldOut]) -> HeldOut | None:
    """Of the first source whose tokens are predicted."""
    return next((one for one in held.values() if one.unigram_entropy is not None), None)


def _mix(seed: int, step: int) -> int:
    """A seed for each step, unlike those of other steps and other seeds."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{step}".encode()).digest()[:8], "little") >> 1
