"""Recipes, plans and serving setups, worked out: settings checked against their tables and against the model."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from fractions import Fraction

from .signature import Record


@dataclass(frozen=True, slots=True)
class Term:
    """One term of an objective: a weight, and `next_token(result, ahead, z, smoothing)`, `classify(result)`,
    `regress(result)`, or a model's loss by name.
    """

    weight: Fraction
    loss: str  # next_token, classify, regress, or the name of a loss of the model
    result: str | None = None
    ahead: int = 1
    z: float = 0.0
    smoothing: float = 0.0

    @property
    def kernel(self) -> tuple[object, ...]:
        """What terms share that one kernel computes."""
        return (self.result, self.z, self.smoothing)

    def __str__(self) -> str:
        text = self.loss
        if self.result is not None:
            said = [f", ahead: {self.ahead}"] if self.ahead != 1 else []
            said += [f", {key}: {value:g}" for key in ("z", "smoothing") if (value := getattr(self, key))]
            text = f"{self.loss}({self.result}{''.join(said)})"
        return text if self.weight == 1 else f"{float(self.weight):g} * {text}"


@dataclass(frozen=True, slots=True)
class Precision:
    """Dtypes by what they are for; None in a plan leaves the recipe's.

    rounding: to bf16, by the optimizer: nearest or stochastic. None in a recipe is nearest. master: of a copy of the
    parameters that the optimizer keeps; None in a recipe is that it keeps none.
    """

    params: str | None = None
    compute: str | None = None
    reduce: str | None = None
    optimizer: str | None = None
    rounding: str | None = None
    master: str | None = None

    def over(self, base: Precision) -> Precision:
        """What is said here, and the rest as in another."""
        said = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        return replace(base, **said)

    def said(self) -> dict[str, str | None]:
        """By name; rounding and master only where they are said."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in found.items() if value or name not in ("rounding", "master")}

    @property
    def rounds(self) -> bool:
        """Whether the optimizer writes anything in bf16."""
        return "bf16" in (None if self.master else self.params, self.optimizer)


@dataclass(frozen=True, slots=True)
class Group:
    """What is under a path of the model, and how it is trained. paths: of the state dict, `*` for an index. decay,
    init: None leaves them as all else has them.
    """

    paths: tuple[str, ...]
    rate: Fraction = Fraction(1)
    decay: Fraction | None = None
    init: Record | None = None
    lora: Record | None = None
    frozen: bool | None = None
    fp8: str | None = None  # by "rows" or "blocks", "none" within a group that has it


@dataclass(frozen=True, slots=True)
class Ramp:
    """Batches that grow from `start` by `by` sequences at a time, over a fraction of all steps."""

    start: int
    by: int
    over: Fraction


@dataclass(frozen=True, slots=True)
class TrainRecipe:
    """A `train` section with every default filled in."""

    name: str
    model: str
    objective: tuple[Term, ...]
    tokens: int
    sequences: int
    length: int
    microbatch: int | None
    precision: Precision
    optimizer: Record
    schedule: Record
    init: Record
    save_every: int
    save_keep: int
    balance_speed: float | None = None  # of biases that even out experts; None leaves them as they are
    doc: str | None = None
    default: bool = False
    lengths: tuple[tuple[str, int], ...] = ()  # of one sequence, along dims of the data other than B and S
    groups: tuple[Group, ...] = ()
    ramp: Ramp | None = None

    @property
    def data(self) -> dict[str, int]:
        """The sizes of dims of the data that it settles."""
        return {"S": self.length, **dict(self.lengths)}


@dataclass(frozen=True, slots=True)
class PlanRecipe:
    """A `plan` section. `mesh` in the order of its axes; `shards` pairs what is sharded with a mesh axis."""

    name: str
    train: str
    device: str | None
    devices: int
    mesh: tuple[tuple[str, int], ...]
    shards: tuple[tuple[str, str], ...]
    schedule: Record | None
    microbatch: int | None
    memory_limit: int | None
    recompute: str
    precision: Precision


@dataclass(frozen=True, slots=True)
class ServeRecipe:
    """A `serve` section."""

    name: str
    model: str
    device: str | None
    weights: str
    compute: str
    cache: Record | None
    batch: int


def objective_text(terms: tuple[Term, ...]) -> str:
    return " + ".join(str(term) for term in terms)
