"""The training runtime: what a generated `train.py` is written in terms of."""

from ..adapter import Lora
from ..data.batch import Batch
from ..data.fields import Input, Task
from .checkpoint import write_checkpoint
from .folder import create_run_folder
from .ledger import Ledger, LinearLoss, Repeat, Saved
from .load import load_model, load_weights
from .options import Options, parse_options
from .recipe import Plan, Precision, Ramp, Recipe
from .run import Run
from .stop import stop_on_problem

__all__ = [
    "Batch",
    "Input",
    "Ledger",
    "LinearLoss",
    "Lora",
    "Options",
    "Plan",
    "Precision",
    "Ramp",
    "Recipe",
    "Repeat",
    "Run",
    "Saved",
    "Task",
    "create_run_folder",
    "load_model",
    "load_weights",
    "parse_options",
    "stop_on_problem",
    "write_checkpoint",
]
