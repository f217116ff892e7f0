"""Checkpoints of others in and out, by the map in the spec, with exact coverage."""

from .coverage import ImportPlan, plan_import
from .source import Source, open_source
from .tokenizer import read_tokenizer
from .transfer import export_weights, import_weights, read_weights

__all__ = [
    "ImportPlan",
    "Source",
    "export_weights",
    "import_weights",
    "open_source",
    "plan_import",
    "read_tokenizer",
    "read_weights",
]
