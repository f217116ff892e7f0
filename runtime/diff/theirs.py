"""The model that transformers makes of the same weights, and what its modules give."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..problem import Problem
from ..weights.rules import TensorNamed, bind, read_rules
from ..weights.transfer import export_weights

Rules = Sequence[Mapping[str, object]]


def load_theirs(config: Path, rules: Rules, state: Mapping[str, Tensor]) -> nn.Module:
    """A model of transformers by `config/config.json`, with the weights of a run by the spec's checkpoint map, on the
    CPU and in float32. state: the run's.

    Raises Problem when transformers is missing, when there is no such configuration, and when weights and model do not
    fit each other.
    """
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        raise Problem("--with hf: transformers is not installed", "pip install transformers") from None
    if not (config / "config.json").is_file():
        raise Problem(f"--hf {config}: there is no config.json in it", "name the folder of a checkpoint of the model")
    tensors = {name: value.float().contiguous() for name, value in export_weights(rules, state).items()}
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(config / "config.json", Path(folder) / "config.json")
        save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        try:
            made: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
            )
        except (ValueError, RuntimeError, OSError, KeyError) as error:
            raise Problem(f"--hf {config}: transformers makes no model of it: {error}") from error
    model, told = made
    assert isinstance(model, nn.Module)
    kinds = {"missing_keys": "missing", "unexpected_keys": "unexpected", "mismatched_keys": "of another shape"}
    wrong = [f"  {what}: {name}" for kind, what in kinds.items() for name in sorted(map(str, told[kind]))]
    if wrong:
        raise Problem(
            f"--hf {config}: its model and the run's weights do not fit:\n" + "\n".join(wrong[:20]),
            "the configuration must be of the same architecture and size",
        )
    return model.eval()


def counterparts(rules: Rules, parameters: Mapping[str, Tensor]) -> dict[str, str]:
    """Of each of our parameters that the checkpoint has as it is, the name that it has there."""
    read = read_rules(rules)
    found = {}
    for name, value in parameters.items():
        for rule in read.parameters:
            if (at := rule.matches(name)) is not None:
                stored = bind(rule.value, at, experts=value.shape[0] if value.ndim else 0)
                if isinstance(stored, TensorNamed):
                    found[name] = stored.name
    return found


def outputs_of(model: nn.Module, names: Mapping[str, str], tokens_BS: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits, and what the modules give whose weights these are: by our names of the weights."""
    given: dict[str, Tensor] = {}
    modules = dict(model.named_modules())

    def note(ours: str, output: object) -> None:
        value = output[0] if isinstance(output, tuple) else output
        if isinstance(value, Tensor):
            given[ours] = value.detach()

    with ExitStack() as stack:
        for ours, theirs in names.items():
            module = modules.get(theirs.removesuffix(".weight"))
            if theirs.endswith(".weight") and module is not None:
                hook = module.register_forward_hook(lambda _m, _i, output, ours=ours: note(ours, output))  # type: ignore[misc]
                stack.callback(hook.remove)
        logits_BSV = model(tokens_BS, use_cache=False).logits
    return logits_BSV, given
