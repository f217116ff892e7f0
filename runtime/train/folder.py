"""The folder of a run: what lies where, how it comes to be all at once, and what it remembers.

run.json  environment.json  tokenizer.json  code/<model>/  data/  checkpoints/  train.jsonl  result.json  loss.png
lock  profile/  tensorboard/
"""

from __future__ import annotations

import json
import os
import shutil
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..data.settings import DataSettings
from ..data.source import TEXT
from ..problem import Problem
from .recipe import Precision, Recipe

FORMAT = 1  # of run.json and of what it speaks of
PARTIAL = ".partial"


@dataclass(frozen=True)
class Facts:
    """What a run is, kept in run.json. Of an imported model only the first four and `format` count; it has no recipe.

    model: name of the package under code/. trainer: file in it that trains. steps: to train for in all. microbatch,
    recompute: as chosen when it began, kept so that a resumed run computes the same numbers. threads: of torch on the
    CPU, on which they depend there. sources, mix: what it is trained on, and in which proportion; unit: how
    many rows of one source follow one another (0: the microbatch). data: how it was read.
    """

    model: str
    spec: str
    spec_hash: str
    precision: Precision
    format: int = FORMAT
    recipe: Recipe | None = None
    plan: str | None = None
    trainer: str = "train.py"
    steps: int = 0
    save_every: int = 0
    seed: int = 0
    microbatch: int = 0
    recompute: int = 0
    device: str = "cpu"
    threads: int = 0
    deterministic: bool = False
    kernels: str = "auto"
    base: str = ""  # the run whose weights it began with
    sources: tuple[str, ...] = (TEXT,)
    mix: tuple[int, ...] = (1,)
    unit: int = 0
    data: DataSettings = field(default_factory=DataSettings)


@dataclass(frozen=True)
class RunFolder:
    """Paths of the parts of a run's folder."""

    path: Path

    @property
    def facts(self) -> Path:
        return self.path / "run.json"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer.json"

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def anchor(self) -> Path:
        return self.path / "anchor.safetensors"

    @property
    def log(self) -> Path:
        return self.path / "train.jsonl"

    def code(self, model: str) -> Path:
        return self.path / "code" / model

    def read(self) -> Facts:
        """What run.json says. Raises Problem when this is no run, or one of another version."""
        try:
            fields = json.loads(self.facts.read_text(encoding="utf-8"))
            if fields["format"] != FORMAT:
                raise Problem(f"{self.facts} has format {fields['format']}; this version of dskc reads {FORMAT}")
            recipe = fields.pop("recipe")
            if recipe is not None:
                recipe = Recipe.from_json(recipe)
            tuples = {name: tuple(fields[name]) for name in ("sources", "mix") if name in fields}
            data = DataSettings.from_json(fields.get("data"))
            made = {"precision": Precision(**fields["precision"]), "recipe": recipe, "data": data}
            return Facts(**(fields | tuples | made))
        except FileNotFoundError:
            raise Problem(f"{self.path} is not the folder of a run: it has no run.json") from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise Problem(f"{self.facts} cannot be read: {error}") from error

    def write(self, facts: Facts) -> None:
        write_json(self.facts, asdict(facts))


def create_run_folder(out: Path, package: Path, facts: Facts, tokenizer: Path | None = None) -> RunFolder:
    """The folder of a run without training data, such as an import makes: facts, generated code, tokenizer.

    package: the folder of the generated code. Add the weights with `write_checkpoint(run.checkpoints, 0, state)`.
    Raises Problem when `out` is there already and not empty. For all or nothing, call it within `staged(out)`.
    """
    require_new(out)
    out.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(out)
    copy_package(package, folder.code(facts.model))
    if tokenizer is not None:
        shutil.copyfile(tokenizer, folder.tokenizer)
    folder.write(facts)
    return folder


def require_new(out: Path) -> None:
    """Raises Problem unless `out` can become the folder of a new run: absent, or an empty folder."""
    if out.is_dir():
        if any(part.name != PARTIAL for part in out.iterdir()):
            what = "holds another run" if RunFolder(out).facts.exists() else "is not empty"
            raise Problem(f"--out {out} {what}", "add --resume to go on with it, name another folder, or remove it")
        return
    if out.exists() or out.is_symlink():
        raise Problem(f"--out {out} is a file, and a run needs a folder", "name another one")
    for parent in out.absolute().parents:
        if parent.exists():
            if not parent.is_dir():
                raise Problem(f"--out {out}: {parent} is a file", "name another folder")
            if not os.access(parent, os.W_OK):
                raise Problem(f"--out {out}: no permission to write in {parent}", "name another folder")
            return


class Staging:
    """A folder beside `out` (inside, if that is an empty folder) to fill, which becomes `out` when it is committed
    and vanishes when it is not.

    Raises Problem when `out` cannot be the folder of a new run. What was not committed is removed by `discard`, and
    at the latest when the process ends.
    """

    def __init__(self, out: Path) -> None:
        require_new(out)
        self.out = out.resolve()
        made = [parent for parent in self.out.parents if not parent.exists()]
        # A folder that is there may be a mount, which nothing can be renamed to.
        self._inside = self.out.is_dir()
        self.path = self.out / PARTIAL if self._inside else self.out.with_name(f".{self.out.name}{PARTIAL}")
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)
        self._finalizer = weakref.finalize(self, _remove, self.path, made)

    def commit(self) -> None:
        """Rename the folder to `out`, or move what is in it there: run.json, which makes it a run, last."""
        require_new(self.out)  # it may have come to be since
        if self._inside:
            for part in sorted(self.path.iterdir(), key=lambda part: part.name == RunFolder(self.path).facts.name):
                os.replace(part, self.out / part.name)
            self.path.rmdir()
        else:
            os.replace(self.path, self.out)
        self._finalizer.detach()

    def discard(self) -> None:
        """Remove the folder; nothing when it was committed."""
        self._finalizer()


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A Staging for a block of code: committed at its end, discarded by an error."""
    staging = Staging(out)
    try:
        yield staging.path
        staging.commit()
    finally:
        staging.discard()


def _remove(path: Path, made: list[Path]) -> None:
    shutil.rmtree(path, ignore_errors=True)
    for parent in made:  # innermost first; one that something else came to use stays
        if parent.is_dir() and next(parent.iterdir(), None) is None:
            parent.rmdir()


def copy_package(package: Path, to: Path) -> None:
    """A copy of the generated code, without caches; nothing to do when it is that copy itself."""
    if package.resolve() == to.resolve():
        return
    shutil.copytree(package, to, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*"), dirs_exist_ok=True)


def write_json(path: Path, value: object) -> None:
    """Written whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)
