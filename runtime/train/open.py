"""Everything that is settled before the first step: options, memory, data, the run's folder."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from ..data import DataSettings, Mixture, Source, TextSource
from ..data.source import TEXT
from ..kernels.choice import choose_kernels, kernels_in_use
from ..problem import Problem
from .device import available_memory, device_name, find_device, make_deterministic
from .environment import environment
from .fit import Fit, choose, refusal, smallest
from .folder import Facts, RunFolder, Staging, copy_package, require_new, write_json
from .kept import Position, find_sound
from .ledger import Ledger, table
from .lock import require_free
from .options import Options
from .recipe import Plan, Precision, Recipe
from .saver import settle
from .sources import digest_of, find_data, mix_of, open_sources, prepare_sources, require_same_settings
from .start import base_of

MUCH_PADDING = 0.1  # of all positions: worth a word


@dataclass(frozen=True)
class Opened:
    """A run that may begin. staging: its folder while it is new. checkpoint, position: where it goes on from. damaged:
    checkpoints that it does not go on from.
    """

    folder: RunFolder
    facts: Facts
    device: torch.device
    data: Mixture
    staging: Staging | None = None
    checkpoint: Path | None = None
    position: Position | None = None
    damaged: tuple[Path, ...] = ()


def open_new(options: Options, recipe: Recipe, ledger: Ledger, package: Path, trainer: str) -> Opened:
    """A new run, its folder staged. Raises Problem for whatever stands in its way."""
    require_new(options.out)
    device = find_device(options.device)
    if options.deterministic:
        make_deterministic()
    name, plan = _plan(options, options.plan)
    precision = _precision(recipe, plan, options)
    if not options.data:
        raise Problem("there is nothing to train on", "name files or folders of text with --data")
    base = _base(options, recipe)
    settings = replace(DataSettings(), **options.settings)
    given = find_data(options, recipe, settings)
    kernels = options.kernels or "auto"
    fit = _fit(_with_kernels(ledger, kernels, device), recipe, precision, plan, device, options)
    facts = Facts(
        model=package.name,
        spec=recipe.spec,
        spec_hash=recipe.spec_hash,
        precision=precision,
        recipe=recipe,
        plan=name,
        trainer=trainer,
        steps=options.steps or recipe.steps,
        save_every=options.save_every or recipe.save_every,
        seed=options.seed or 0,
        kernels=kernels,
        microbatch=fit.microbatch,
        recompute=fit.recompute,
        device=str(device),
        threads=torch.get_num_threads(),
        deterministic=options.deterministic,
        sources=given.names,
        unit=fit.microbatch,
        base=str(base.path.resolve()) if base is not None else "",
        data=settings,
    )
    _introduce(facts, recipe, device)
    _show(fit, device, plan)
    print(f"data: {given.summary()}", flush=True)

    staging = Staging(options.out)
    try:
        folder = RunFolder(staging.path)
        tokenizer = options.tokenizer
        if tokenizer is None and base is not None and base.tokenizer.is_file():
            tokenizer = base.tokenizer
        sources = prepare_sources(given, folder, recipe, tokenizer, facts.seed, settings.packing)
        for source in sources:
            if isinstance(source, TextSource):
                source.loader.require(recipe.sequences)
        facts = replace(facts, mix=mix_of(sources, options.mix))
        copy_package(package, folder.code(facts.model))
        write_json(folder.path / "environment.json", environment(device))
        folder.write(facts)
    except BaseException as error:
        staging.discard()
        if isinstance(error, OSError):
            raise Problem(f"--out {options.out} cannot be written: {error.strerror or error}") from error
        raise
    _count(sources, facts)
    return Opened(RunFolder(options.out), facts, device, Mixture(sources, facts.mix, facts.unit), staging)


def _base(options: Options, recipe: Recipe) -> RunFolder | None:
    """The run whose weights are begun with, None where there is none. Raises Problem where the recipe needs one."""
    if options.weights is not None:
        base = base_of(options.weights)
        if recipe.ewc is not None and base.read().recipe is None:
            raise Problem(
                f"--weights {options.weights} is an import, which has no data to measure on",
                "name a training run",
            )
        return base
    if recipe.lora:
        raise Problem(
            f"the recipe `{recipe.name}` trains adapters, and there are no weights to adapt",
            "name a run with --weights, such as what `dskc import` makes",
        )
    if recipe.ewc is not None:
        raise Problem(
            f"the recipe `{recipe.name}` holds weights to those of an earlier run, and there is none",
            "name it with --weights",
        )
    return None


def open_resumed(options: Options, recipe: Recipe, ledger: Ledger, package: Path, trainer: str) -> Opened:
    """A run that goes on from its last checkpoint; what the options leave open stays as it was."""
    folder = RunFolder(options.out)
    if not options.out.is_dir():
        raise Problem(f"--resume: there is no run in {options.out}", "leave --resume out to begin one there")
    before = folder.read()
    if before.recipe is None:
        raise Problem(
            f"--resume: {options.out} holds an imported model, not a training run", "begin one with another --out"
        )
    _require_same_spec(before, recipe, folder, package, trainer)
    require_free(options.out)
    settle(folder.checkpoints)
    checkpoint, position, damaged = find_sound(folder.checkpoints)
    if options.seed not in (None, before.seed):
        raise Problem(
            f"--seed {options.seed}: this run has seed {before.seed}, which cannot change on the way",
            "leave --seed out, or begin another run",
        )
    if options.weights is not None:
        raise Problem("--weights cannot change on the way", "leave it out with --resume, or begin another run")
    require_same_settings(options, before.data)
    device = find_device(options.device if options.device != "auto" else _same_device(before))
    if options.deterministic or before.deterministic:
        make_deterministic()
    name, plan = _plan(options, options.plan or before.plan)
    precision = before.precision if options.plan is None else _precision(recipe, plan, options)
    if options.precision is not None:
        precision = replace(precision, compute=options.precision)
    same = device.type == torch.device(before.device).type and precision == before.precision and options.plan is None
    if same and options.microbatch is None:
        plan = replace(plan, microbatch=before.microbatch, recompute=before.recompute)
    if device.type == "cpu" and before.threads and before.device == "cpu":
        torch.set_num_threads(before.threads)  # sums over several threads depend on how many they are
    sources = _sources_again(options, folder, before, recipe, position)
    kernels = options.kernels or before.kernels
    unit = before.unit or before.microbatch
    if plan.microbatch is not None:
        Mixture(sources, before.mix, unit).require(plan.microbatch)
    within = unit if len(sources) > 1 else None
    fit = _fit(_with_kernels(ledger, kernels, device), recipe, precision, plan, device, options, within)
    facts = replace(
        before,
        unit=unit,
        kernels=kernels,
        precision=precision,
        plan=name,
        steps=options.steps or before.steps,
        save_every=options.save_every or before.save_every,
        microbatch=fit.microbatch,
        recompute=fit.recompute,
        device=str(device),
        threads=torch.get_num_threads(),
        deterministic=before.deterministic or options.deterministic,
    )
    _introduce(facts, recipe, device)
    _show(fit, device, plan)
    for path, reason in damaged.items():
        print(f"note: the checkpoint {path} is damaged, and an earlier one is used: {reason}", flush=True)
    print(f"going on after step {position.step:,} of {facts.steps:,} ({checkpoint})", flush=True)
    changed = [
        f"{field.name} {getattr(before, field.name)} -> {getattr(facts, field.name)}"
        for field in fields(Facts)
        if field.name not in ("recipe", "save_every", "plan", "unit")
        and getattr(before, field.name) != getattr(facts, field.name)
    ]
    if changed:
        print("note: not as before, so losses may differ from the unbroken run: " + ", ".join(changed), flush=True)
    data = Mixture(sources, facts.mix, facts.unit)
    return Opened(folder, facts, device, data, checkpoint=checkpoint, position=position, damaged=tuple(damaged))


def _plan(options: Options, name: str | None) -> tuple[str | None, Plan]:
    """The plan of this name, `default` when there is none, the trainer's own choices when there is not even that."""
    plans = options.plans or {}
    chosen = name if name is not None else "default" if "default" in plans else None
    if chosen is None:
        plan = Plan()
    elif chosen in plans:
        plan = plans[chosen]
    else:
        raise Problem(f"--plan {chosen}: there is no such plan", "it can be " + ", ".join(plans) if plans else None)
    if plan.devices != 1:
        others = [known for known, own in plans.items() if own.devices == 1]
        raise Problem(
            f"the plan `{chosen}` is for {plan.devices} devices, and this trainer runs on one",
            "choose another with --plan: " + ", ".join(others) if others else "add a plan for one device to the spec",
        )
    if options.microbatch is not None:
        plan = replace(plan, microbatch=options.microbatch)
    return chosen, plan


def _precision(recipe: Recipe, plan: Plan, options: Options) -> Precision:
    precision = plan.precision or recipe.precision
    return precision if options.precision is None else replace(precision, compute=options.precision)


def _with_kernels(ledger: Ledger, kernels: str, device: torch.device) -> Ledger:
    """Has kernels run, or not, from here on; the ledger of that."""
    choose_kernels(kernels)
    return ledger if kernels_in_use(device) else ledger.without_kernels()


def _fit(
    ledger: Ledger,
    recipe: Recipe,
    precision: Precision,
    plan: Plan,
    device: torch.device,
    options: Options,
    unit: int | None = None,
) -> Fit:
    """What fits on the device now, or the Problem that nothing does. unit: as `choose` has it."""
    free = available_memory(device)

    def fit(precision: Precision, plan: Plan) -> Fit | None:
        available = min(free, plan.memory_limit or free)
        return choose(ledger, recipe, precision, plan, available, device.type, unit)

    found = fit(precision, plan)
    if found is not None:
        return found
    others = [
        name
        for name, other in (options.plans or {}).items()
        if other.devices == 1 and fit(_precision(recipe, other, options), other) is not None
    ]
    least = smallest(ledger, recipe, precision, plan, device.type)
    raise refusal(least, min(free, plan.memory_limit or free), _where(device, plan, free), others)


def _sources_again(
    options: Options, folder: RunFolder, before: Facts, recipe: Recipe, position: Position
) -> tuple[Source, ...]:
    """The sources the run began with. When the user names the data again it must be the same."""
    if not options.data and options.tokenizer is not None:
        raise Problem("--tokenizer cannot change on the way", "leave it out with --resume, or begin another run")
    if options.data:
        given = find_data(options, recipe, before.data)
        if given.digest != position.text or given.names != before.sources:
            what = "text" if before.sources == (TEXT,) else "data"
            raise Problem(
                f"--data is not the {what} that this run was trained on: now it is {given.summary()}",
                f"leave --data out to go on with what lies in {folder.data}, or begin another run",
            )
        sources = prepare_sources(given, folder, recipe, options.tokenizer, before.seed, before.data.packing)
    else:
        sources = open_sources(folder, before.sources, recipe, before.seed, before.data.packing)
        if digest_of(sources) != position.text:
            raise Problem(f"{folder.data} is not what this run was trained on", "name the data again with --data")
    if options.mix is not None and mix_of(sources, options.mix) != before.mix:
        raise Problem(
            f"--mix: this run has a mix of {', '.join(map(str, before.mix))}, which cannot change on the way",
            "leave --mix out, or begin another run",
        )
    return sources


def _require_same_spec(before: Facts, recipe: Recipe, folder: RunFolder, package: Path, trainer: str) -> None:
    if before.spec_hash == recipe.spec_hash:
        return
    lines = []
    if before.recipe is not None:
        lines = [
            f"  {field.name}: {getattr(before.recipe, field.name)} -> {getattr(recipe, field.name)}"
            for field in fields(Recipe)
            if field.name not in ("spec_hash", "text")
            and getattr(before.recipe, field.name) != getattr(recipe, field.name)
        ]
    old = folder.code(before.model)
    lines += _diff(old / "model.py", package / "model.py") + _diff(old / before.trainer, package / trainer)
    shown = lines[:40] + ([f"  and {len(lines) - 40} lines more"] if len(lines) > 40 else [])
    raise Problem(
        f"--resume: {folder.path} was begun with another spec (then -, now +):\n" + "\n".join(shown),
        f"begin another run, or go on with the code it had: python {old / before.trainer} --out {folder.path} --resume",
    )


def _diff(old: Path, new: Path) -> list[str]:
    def read(path: Path) -> list[str]:
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    found = list(difflib.unified_diff(read(old), read(new), new.name, new.name, n=0, lineterm=""))
    return [f"  {line}" for line in found if not line.startswith(("---", "@@"))]


def _same_device(before: Facts) -> str:
    return before.device if not before.device.startswith("cuda") or torch.cuda.is_available() else "auto"


def _introduce(facts: Facts, recipe: Recipe, device: torch.device) -> None:
    if recipe.default:
        print(f"{recipe.spec} has no `train` section; this is the default recipe:\n{recipe.text}".rstrip())
    print(
        f"{recipe.model}, recipe `{recipe.name}`: {facts.steps:,} steps of {recipe.sequences} x {recipe.length} tokens "
        f"on {device} ({device_name(device)}), {facts.precision}, seed {facts.seed}"
    )


def _show(fit: Fit, device: torch.device, plan: Plan) -> None:
    free = available_memory(device)
    print("memory it will need:")
    print(table(fit.rows, min(free, plan.memory_limit or free), _where(device, plan, free)), flush=True)


def _where(device: torch.device, plan: Plan, free: int) -> str:
    limited = plan.memory_limit is not None and plan.memory_limit < free
    return "that the plan allows" if limited else f"available on {device}"


def _count(sources: tuple[Source, ...], facts: Facts) -> None:
    for source in sources:
        if isinstance(source, TextSource):
            manifest = source.tokens.manifest
            of = "" if source.name == TEXT else f" of {source.name}"
            print(
                f"tokens{of}: {manifest.train_tokens:,} to train on, {manifest.held_tokens:,} held out, "
                f"{manifest.bytes / max(1, manifest.train_tokens + manifest.held_tokens):.2f} bytes a token",
                flush=True,
            )
            loader = source.loader
            padded = f", {loader.padding:.1%} padding" if loader.packing != "stream" else ""
            padded += "; --packing stream has none" if loader.padding > MUCH_PADDING else ""
            print(f"packing: {loader.count:,} sequences of {loader.length:,}{padded}", flush=True)
    if len(sources) > 1:
        shares = (
            f"{weight / sum(facts.mix):.1%} {name}" for name, weight in zip(facts.sources, facts.mix, strict=True)
        )
        print(f"batches: {', '.join(shares)}", flush=True)
