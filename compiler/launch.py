"""Commands that run a model start the runtime by name, when called: the compiler itself never needs torch."""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from .compile import Output, write
from .ir import Graph
from .weight_facts import weight_facts, weight_places


def _runtime(name: str) -> ModuleType:
    return importlib.import_module(f"dskc.runtime.{name}")


def runtime_problem() -> type[Exception]:
    """The runtime's error for users."""
    problem = _runtime("problem").Problem
    assert issubclass(problem, Exception)
    return problem


def launch_trainer(
    outputs: list[Output], settings: tuple[str, ...], arguments: tuple[str, ...], recipe: str | None
) -> None:
    """Runs the generated trainer of the last model, by its first recipe unless another is named.

    With settings, its code stays out of generated/.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads crawl on busy machines; read as torch loads
    output = outputs[-1]
    file = _trainer(output, recipe)
    with tempfile.TemporaryDirectory() as apart:
        if settings:
            output = Output(output.model, Path(apart) / output.model, output.files)
        write(output)
        package = _runtime("train.load").load_package(output.folder)
        trainer = importlib.import_module(f"{package.__name__}.{file.stem}")
        sys.argv = [str(output.folder / file), *arguments]
        _runtime("train").stop_on_problem(trainer.main)


def _trainer(output: Output, recipe: str | None) -> Path:
    """The file that trains by this recipe. Raises the runtime's problem where the model has none of that name."""
    names = [train["name"] for train in json.loads(output.files["plan.json"])["train"]]
    if recipe is None or recipe == names[0]:
        return Path("train.py")
    if recipe not in names:
        raise _runtime("problem").Problem(
            f"--recipe {recipe}: `{output.model}` has no such `train` section", f"it has {', '.join(names)}"
        )
    return Path(f"train_{recipe}.py")


def launch_merge(run: Path, out: Path) -> None:
    """Writes a run's model with its adapters merged."""
    _runtime("train.merged").write_merged(run, out)


def launch_generate(arguments: tuple[str, ...]) -> None:
    """Runs the runtime's sampler."""
    sys.exit(_runtime("serve.generate").main(list(arguments)))


def launch_eval(arguments: tuple[str, ...]) -> None:
    """Runs the runtime's evaluation."""
    sys.exit(_runtime("eval.command").main(list(arguments)))


def launch_runs(paths: tuple[Path, ...], plot: Path | None, as_json: bool) -> None:
    """Prints a list of runs, or a comparison."""
    print(_runtime("train.runs").show(paths, plot, as_json))


def launch_diff(run: Path, other: str, options: dict[str, object]) -> None:
    """Compares two models; exits with 1 where they differ."""
    _runtime("diff.run").main(run, other, **options)


def require_gpu() -> None:
    """Raises the runtime's problem where nothing runs kernels: before a spec is compiled for nothing."""
    if not _runtime("kernels.choice").can_run():
        raise _runtime("problem").Problem(
            "this needs a GPU, and there is none here",
            "run the same command where one is; docs/performance.md and `dskc tune SPEC --show` tell what was found",
        )


def launch_bench(output: Output, kind: str, flags: list[str]) -> None:
    """Times kernels; the generated code lies apart while they run. kind: "model", or "rows" of it beside the others."""
    with tempfile.TemporaryDirectory() as apart:
        own = Output(output.model, Path(apart) / output.model, output.files)
        write(own)
        _runtime("bench.run").main([f"--{kind}={own.folder}", *flags])


def launch_tune(
    output: Output,
    settings: tuple[str, ...],
    optimizer: str,
    batch: int | None,
    length: int | None,
    record: Path | None,
) -> None:
    """Tunes a model's kernels. With settings, its code and what is chosen stay out of generated/."""
    tune = _runtime("bench.tune")
    with tempfile.TemporaryDirectory() as apart:
        if settings:
            output = Output(output.model, Path(apart) / output.model, output.files)
        write(output)
        tune.run(output.folder, None if settings else output.folder / tune.FILE, optimizer, batch, length, record)


def show_tuned(output: Output, record: Path | None) -> None:
    """Prints what was chosen for a model on each GPU, as it stands beside its generated code."""
    tune = _runtime("bench.tune")
    tune.show(output.folder / tune.FILE, record)


def launch_import(
    graph: Graph,
    output: Output,
    checkpoint: Path,
    out: Path,
    dtype: str | None,
    tokenizer: Path | None,
    compare_config: bool = True,
) -> None:
    """Writes a run folder with the generated code and the weights of a checkpoint."""
    plan = json.loads(output.files["plan.json"])
    about = (plan["spec"], plan["spec_hash"], output.model, plan["checkpoint"], plan["vocabulary"])
    facts = weight_facts(graph) if compare_config else None
    options = {"places": weight_places(graph), "facts": facts}
    _runtime("weights.run").import_run(output.files, *about, checkpoint, out, dtype, tokenizer, **options)
