"""`dskc diff RUN --with hf`: no difference where there is none, and what was changed where there is one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command import dskc
from differential import imported
from families import FAMILIES
from test_transformers import Models

from dskc.runtime.diff.run import LOGITS, diff
from dskc.runtime.problem import Problem


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("transformers"))


# In DeepSeek-V3 and its like a module that transformers leaves out has weights of its own.
@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.ahead])
def test_every_family_agrees(name: str, models: Models, tmp_path: Path) -> None:
    theirs = models[name]
    imported(theirs.family.path, theirs.checkpoint, tmp_path / "run", theirs.family.shrunk)
    report = diff(tmp_path / "run", "hf", theirs.checkpoint, gradients=True)
    assert not report.differs, report
    assert report.gradients is not None and len(report.gradients.found) >= 8
    names = [each.name for each in report.forward.found]
    assert names[-1] == LOGITS and len(names) > 8


CHANGED = [
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 11_000.0}}, "layers.0.attention: out"),
    ("llama", {"rms_norm_eps": 1e-3}, "layers.0: rms_norm"),
    ("llama", {"hidden_act": "gelu"}, "layers.0.swiglu: down"),
    ("mistral", {"sliding_window": 16}, "layers.0.attention: out"),
    ("qwen3", {"rms_norm_eps": 1e-3}, "layers.0: rms_norm"),
    ("gemma2", {"attn_logit_softcapping": 1.0}, "layers.0.attention: out"),
    ("gemma2", {"final_logit_softcapping": 5.0}, LOGITS),
]


@pytest.mark.parametrize(("name", "change", "first"), CHANGED)
def test_the_first_that_a_change_reaches_is_named(
    name: str, change: dict[str, object], first: str, models: Models, tmp_path: Path
) -> None:
    theirs = models[name]
    imported(theirs.family.path, theirs.checkpoint, tmp_path / "run", theirs.family.shrunk)
    shutil.copytree(theirs.checkpoint, tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert change.keys() <= config.keys()
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | change))
    result = dskc("diff", tmp_path / "run", "--with", "hf", "--hf", tmp_path / "hf", "--gradients")
    assert result.exit_code == 1
    lines = result.output.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("forward: "))
    assert lines[at + 1].startswith(f"  {first}: by "), result.output


def test_other_sizes_are_refused(models: Models, tmp_path: Path) -> None:
    theirs = models["llama"]
    imported(theirs.family.path, theirs.checkpoint, tmp_path / "run", theirs.family.shrunk)
    shutil.copytree(theirs.checkpoint, tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(Problem, match=r"do not fit:\n  missing: model\.layers\.2"):
        diff(tmp_path / "run", "hf", tmp_path / "hf")
    with pytest.raises(Problem, match=r"there is no config\.json"):
        diff(tmp_path / "run", "hf", tmp_path)
