"""The command line of every generated trainer."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..data.settings import DataSettings
from .recipe import Plan, Recipe


@dataclass(frozen=True)
class Options:
    """What the user said; None where nothing was said, and the recipe (or the run that is resumed) decides.

    precision: of the forward pass alone; parameters and states stay as the plan or recipe says. plans: all there are.
    mix: shares of the sources, in the order that `data` names them in. settings: of DataSettings, by name.
    """

    out: Path
    data: tuple[Path, ...] = ()
    mix: tuple[Fraction, ...] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None
    resume: bool = False
    save_every: int | None = None
    seed: int | None = None
    device: str = "auto"
    precision: str | None = None
    plan: str | None = None
    tokenizer: Path | None = None
    weights: Path | None = None
    microbatch: int | None = None
    deterministic: bool = False
    kernels: str | None = None
    tensorboard: bool = False
    profile: tuple[int, int] | None = None
    plans: Mapping[str, Plan] | None = None


def parse_options(recipe: Recipe, plans: Mapping[str, Plan], arguments: Sequence[str] | None = None) -> Options:
    """Parse the command line (`sys.argv` when `arguments` is None). As argparse does, prints and exits on a wrong
    one.
    """
    given = _parser(recipe, plans).parse_args(arguments)
    return Options(
        out=given.out,
        data=tuple(given.data),
        mix=given.mix,
        settings={each.name: said for each in fields(DataSettings) if (said := getattr(given, each.name)) is not None},
        steps=given.steps,
        resume=given.resume,
        save_every=given.save_every,
        seed=given.seed,
        device=given.device,
        precision=given.precision,
        plan=given.plan,
        tokenizer=given.tokenizer,
        weights=given.weights,
        microbatch=given.microbatch,
        deterministic=given.deterministic,
        kernels=given.kernels,
        tensorboard=given.tensorboard,
        profile=given.profile,
        plans=plans,
    )


def _parser(recipe: Recipe, plans: Mapping[str, Plan]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=f"Trains {recipe.model} by the recipe `{recipe.name}` of {recipe.spec}.",
        epilog="Ctrl-C finishes the step, saves a checkpoint and says how to go on.",
    )
    add = parser.add_argument
    add(
        "--data",
        nargs="+",
        action="extend",
        type=Path,
        default=[],
        metavar="PATH",
        help="text (UTF-8, .jsonl, .parquet, hf:NAME), folders of it (NAME=PATH: for that input), .safetensors records",
    )
    add(
        "--mix",
        type=_shares,
        metavar="A,B,...",
        help="shares of the sources in the order of --data, all text being one (default: as many as each has rows)",
    )
    _add_settings(parser)
    add(
        "--steps",
        type=_at_least(1),
        metavar="N",
        help=f"optimizer steps (default: {recipe.steps:,}, the recipe's tokens)",
    )
    add(
        "--out", type=Path, default=Path("runs") / recipe.model, metavar="FOLDER", help="the run's folder (%(default)s)"
    )
    add("--resume", action="store_true", help="go on from the last checkpoint in --out; other flags keep their values")
    add(
        "--save-every",
        type=_at_least(1),
        metavar="N",
        help=f"steps between checkpoints (default: {recipe.save_every:,})",
    )
    add("--seed", type=_at_least(0), metavar="N", help="of weights, order of the data and dropout (default: 0)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: CUDA where there is any, else cpu)")
    add(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        help=f"of the forward pass (default: {recipe.precision.compute}, or the plan's); parameters and optimizer "
        "states stay as the plan or the recipe says",
    )
    names = ", ".join(plans) or "none"
    add("--plan", metavar="NAME", help=f"one of: {names}")
    add("--tokenizer", type=Path, metavar="FILE", help="tokenizer.json to use instead of training one on the text")
    add(
        "--weights",
        type=Path,
        metavar="RUN",
        help="begin with the weights of this run, or of what `dskc import` made, and with its tokenizer",
    )
    add(
        "--kernels",
        choices=("triton", "reference"),
        help="generated Triton kernels, or the plain PyTorch that they stand for (default: kernels on a GPU)",
    )
    add("--microbatch", type=_at_least(1), metavar="N", help="sequences in one forward pass (default: as many as fit)")
    add(
        "--deterministic",
        action="store_true",
        help="on a GPU, only kernels that give the same bits each time, so that a resumed run repeats the unbroken one "
        "exactly; slower (a CPU does so anyway)",
    )
    add("--tensorboard", action="store_true", help="write event files for TensorBoard into the run's folder, too")
    add(
        "--profile",
        type=_window,
        metavar="FIRST:LAST",
        help="profile these steps, counted from 1: a trace for Chrome, and a table of operations, in the run's folder",
    )
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """How data is read, which cannot change on the way; None where nothing is said."""
    group = parser.add_argument_group("reading --data", "settled when a run begins")
    which = group.add_mutually_exclusive_group()
    which.add_argument("--text-field", metavar="NAME", help="the field of a row that is its text (text)")
    which.add_argument(
        "--join", metavar="TEMPLATE", help='several fields in one text instead, like "{title} [SEP] {content}"'
    )
    add = group.add_argument
    add("--max-rows", type=_at_least(1), metavar="N", help="of each hf: data set, only the first N rows")
    add("--min-chars", type=_at_least(0), metavar="N", help="leave out texts of fewer characters")
    add("--max-chars", type=_at_least(1), metavar="N", help="leave out texts of more characters")
    add(
        "--max-control",
        type=_share,
        metavar="SHARE",
        help="leave out texts of which more is control characters, other than line ends and tabs (default: 0.1)",
    )
    add("--keep-duplicates", action="store_true", default=None, help="keep texts that are the same as an earlier one")
    add(
        "--near-duplicates",
        type=_share,
        metavar="SHARE",
        help="leave out texts that have this share of their runs of five words in common with an earlier one, such as "
        "0.8 (default: keep them)",
    )
    add(
        "--packing",
        choices=("bestfit", "stream"),
        help="into sequences: texts whole as far as they fit, or one stream of them cut anywhere (default: bestfit)",
    )


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text.replace("_", ""))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is less than {least}")
        if value >= 1 << 63:
            raise argparse.ArgumentTypeError(f"{value} is over 2**63 - 1, the most that torch takes")
        return value

    return parse


def _window(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"{text!r} is not two steps such as 10:12")
    return int(first), int(last)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number over 0, up to 1")
    return share


def _shares(text: str) -> tuple[Fraction, ...]:
    """Numbers over 0, exactly as written."""
    try:
        shares = tuple(Fraction(part) for part in text.split(","))
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers with commas between them") from None
    if min(shares) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} has a share that is not over 0")
    return shares
