"""Times every way of each operation that a model calls, at its shapes, and keeps what is fastest on this GPU."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from ..kernels.choice import kernels_in_use
from ..kernels.tuning import Timing, key_text, record, tuning
from ..optim import AdamW, Lion, clip, normal
from ..problem import Problem
from ..serve.cache import Cache
from ..train.recipe import dtype_of
from .choices import Choice, Choices, add_choices, read_choices, table
from .model import Trained, checked_length, cut_model, random_batch
from .worker import machine

Listener = Callable[[Timing], None]
FILE = "tuned.json"
OPTIMIZERS: dict[str, type[AdamW] | type[Lion]] = {"adamw": AdamW, "lion": Lion}


def tune(folder: Path, optimizer: str, batch: int | None, length: int | None, listener: Listener) -> tuple[int, int]:
    """Runs a step of training, and passes of decoding, of the model in a folder of generated code; each timing goes to
    `listener`. Gives the batch and the length that it ran at.

    The model has one layer of each kind, since choices depend on shapes alone. Where even that does not fit, gradients
    are let go as they come, parameters have the dtype of computing, and the optimizer keeps its recorded ways. batch
    and length are the plan's and the recipe's unless told; optimizer: "adamw" or "lion". Raises Problem without a GPU,
    or where it does not fit into one.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not kernels_in_use(device):
        raise Problem(
            "kernels are tuned on a GPU, and there is none here",
            "run the same command where one is; `--show` tells what was chosen on others",
        )
    trained = Trained.load(folder)
    length = checked_length(trained.recipe, length)
    batch = batch or trained.batch_size(length)
    with tuning(listener):
        fits = _fits(lambda: _train(trained, optimizer, batch, length, device)) or _fits(
            lambda: _train_lean(trained, batch, length, device)
        )
        if not fits or not _fits(lambda: _decode(trained, length, device)):
            raise Problem(
                f"a layer of each kind of {trained.name} with {batch} sequences of {length} does not fit into this GPU",
                "give a smaller --batch or --length",
            )
    return batch, length


def _fits(run: Callable[[], None]) -> bool:
    """Runs it; whether there was memory for it, which is free again in any case."""
    try:
        run()
    except torch.OutOfMemoryError:
        return False
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return True


def _train(trained: Trained, optimizer: str, batch: int, length: int, device: torch.device) -> None:
    """One step, with what a trainer does in it."""
    precision = trained.recipe.precision
    plans = [plan.precision for plan in trained.trainer.PLANS.values() if plan.devices == 1 and plan.precision]
    precision = plans[0] if plans else precision
    model = cut_model(trained, dtype_of(precision.compute), dtype_of(precision.params), device)
    normal(std=0.02)(model, 0)
    made = OPTIMIZERS[optimizer](model, lr=1e-5, state_dtype=dtype_of(precision.optimizer))
    torch.manual_seed(0)
    losses = trained.losses(model, random_batch(trained.recipe, batch, length, device))
    losses["loss"].backward()
    clip(model, 1.0)
    made.step(1e-5)


def _train_lean(trained: Trained, batch: int, length: int, device: torch.device) -> None:
    """Forward and backward with as little memory as they can."""
    compute = dtype_of(trained.recipe.precision.compute)
    model = cut_model(trained, compute, compute, device)
    normal(std=0.02)(model, 0)
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(_let_go)
    torch.manual_seed(0)
    trained.losses(model, random_batch(trained.recipe, batch, length, device))["loss"].backward()


def _let_go(parameter: Tensor) -> None:
    parameter.grad = None


@torch.no_grad()
def _decode(trained: Trained, length: int, device: torch.device) -> None:
    """A prompt of a text, and the token behind it; nothing of models that take more than text."""
    if list(trained.recipe.fields.inputs) != ["tokens"]:
        return
    serve = importlib.import_module(f"{trained.package.__name__}.serve")
    compute = dtype_of(trained.recipe.precision.compute)
    model = cut_model(trained, compute, compute, device)
    normal(std=0.02)(model, 0)
    tokens = torch.randint(0, trained.recipe.vocabulary, (1, length), device=device)
    cache = Cache(1, length, device)
    serve.forward(model.eval(), tokens[:, :-1], cache)
    serve.forward(model, tokens[:, -1:], cache)


def run(
    folder: Path,
    file: Path | None,
    optimizer: str,
    batch: int | None,
    length: int | None,
    record_into: Path | None,
    console: Console | None = None,
) -> None:
    """`dskc tune SPEC`: tunes with its progress shown, keeps what was chosen in `file`, and prints it."""
    console = console or Console()
    if file is not None:
        read_choices(file)  # what cannot be added to is said before all the work
    timings: list[Timing] = []
    with console.status("tuning") as status:

        def listen(timing: Timing) -> None:
            timings.append(timing)
            text = _progress(timings)
            status.update(text)
            if not console.is_terminal:
                console.print(text, highlight=False, markup=False, soft_wrap=True)

        batch, length = tune(folder, optimizer, batch, length, listen)
    about = machine()
    found = Choices(about.gpu, about.versions, batch, length, _choices(timings))
    if not found.choices:
        precision = Trained.load(folder).recipe.precision
        console.print(f"nothing has a choice in this model as it is trained ({precision})", highlight=False)
        return
    console.print(table(found))
    if file is not None:
        add_choices(file, found)
        console.print(f"{file} written", highlight=False, soft_wrap=True)
    if record_into is not None:
        record(record_into, found.recorded())
        console.print(f"{record_into} written", highlight=False, soft_wrap=True)


def show(file: Path, record_into: Path | None, console: Console | None = None) -> None:
    """`dskc tune SPEC --show`: what `file` says for every GPU that the model was tuned on."""
    console = console or Console()
    found = read_choices(file)
    if not found:
        raise Problem(f"{file.parent.name} was not tuned yet", "run dskc tune without --show where a GPU is")
    for one in found:
        console.print(table(one))
    if record_into is not None:
        if len(found) > 1:
            gpus = ", ".join(one.gpu for one in found)
            raise Problem(
                f"{record_into} is of one kind of GPU, and {file} of {gpus}", "tune on that GPU with --record"
            )
        record(record_into, found[0].recorded())
        console.print(f"{record_into} written", highlight=False, soft_wrap=True)


def _progress(timings: list[Timing]) -> str:
    """The last timing, and the best so far of its operation and shape."""
    last = timings[-1]
    same = [t for t in timings if (t.operation, t.key) == (last.operation, last.key) and t.median is not None]
    took = f"{last.median:.4f} ms" if last.median is not None else last.reason
    best = min(same, key=lambda t: t.median or 0.0, default=None)
    behind = f"; best {best.way}, {best.median:.4f} ms" if best is not None else ""
    return f"{last.operation} ({key_text(last.key)}) {last.way}: {took}{behind}"


def _choices(timings: list[Timing]) -> tuple[Choice, ...]:
    """Of each operation and shape the fastest way and the next; none of one that no way could do."""
    found: list[Choice] = []
    for operation, key in dict.fromkeys((t.operation, t.key) for t in timings):
        same = [t for t in timings if (t.operation, t.key) == (operation, key)]
        ran = sorted((t.median, t.way) for t in same if t.median is not None)
        if ran:
            (ms, way), (next_ms, next_way) = ran[0], (ran[1] if len(ran) > 1 else (None, None))
            found.append(Choice(operation, key_text(key), way, round(ms, 4), next_way, next_ms and round(next_ms, 4)))
    return tuple(found)
