"""Golden graphs, and what is generated: committed as written, the same everywhere, never overwritten when edited."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dskc.compiler.compile import EditedError, compile_spec, stale, write
from dskc.compiler.pipeline import PASS_NAMES, check, lower
from dskc.compiler.print_ir import print_graph
from dskc.runtime.train.load import load_package

ROOT = Path(__file__).resolve().parents[2]
SPECS = sorted((ROOT / "specs").glob("*.dsk"))
DENSE = [spec for spec in SPECS if "combine(" not in (ROOT / "generated" / spec.stem / "model.py").read_text("utf-8")]


@pytest.mark.parametrize("name", ["deepseek_nano", "moe_nano"])
@pytest.mark.parametrize("after", [name for name in PASS_NAMES if name != "absorb"])  # which changes neither of them
def test_graph_after_each_pass(name: str, after: str, golden: Callable[[Path, str], None]) -> None:
    graph = check(ROOT / "specs" / f"{name}.dsk").graphs[name]
    golden(Path(__file__).parent / "golden" / f"{name}.{after}.txt", print_graph(lower(graph, after)))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.stem)
def test_what_is_committed_is_what_is_generated(spec: Path) -> None:
    _, outputs = compile_spec(spec)
    assert outputs
    for output in outputs:
        assert not stale(output), "\n".join(stale(output))


HASHES = """
import hashlib, sys
from pathlib import Path
from dskc.compiler.compile import compile_spec
digest = hashlib.sha256()
for spec in sorted(Path(sys.argv[1]).glob("*.dsk")):
    for output in compile_spec(spec)[1]:
        for name, text in output.files.items():
            digest.update(f"{output.model}/{name}\\0{text}".encode())
print(digest.hexdigest())
"""


@pytest.mark.slow
def test_the_same_bytes_under_any_hash_seed_and_in_any_folder(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "specs", tmp_path / "elsewhere" / "specs")
    digests = set()
    for seed, folder, specs in (("0", ROOT, "specs"), ("7", ROOT, "specs"), ("42", tmp_path / "elsewhere", "specs")):
        done = subprocess.run(
            [sys.executable, "-c", HASHES, specs],
            cwd=folder,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout.strip())
    assert len(digests) == 1


@pytest.mark.parametrize("spec", DENSE, ids=lambda spec: spec.stem)
def test_a_dense_model_is_a_short_file(spec: Path) -> None:
    model = ROOT / "generated" / spec.stem / "model.py"
    assert len(model.read_text(encoding="utf-8").splitlines()) < 200


def test_an_edited_file_is_not_overwritten(tmp_path: Path) -> None:
    _, (output,) = compile_spec(ROOT / "specs" / "moe_nano.dsk", tmp_path)
    assert set(write(output)) == set(output.files)
    assert write(output) == []
    edited = output.folder / "model.py"
    text = edited.read_text(encoding="utf-8").replace("eps=1e-6", "eps=1e-5")
    edited.write_text(text, encoding="utf-8")
    (output.folder / "serve.py").unlink()
    with pytest.raises(EditedError, match=r"model\.py"):
        write(output)
    assert edited.read_text(encoding="utf-8") == text
    assert not (output.folder / "serve.py").exists(), "nothing is written when something is refused"
    assert set(write(output, force=True)) == {"model.py", "serve.py"}


WITHOUT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("lark", "pydantic", "click") or name in ("dskc.dsl", "dskc.compiler"):
            raise ImportError(f"{name} is not on this machine")

sys.meta_path.insert(0, Refuse())
sys.path.insert(0, "generated")
import torch
from deepseek_nano import Model, load, train
from deepseek_nano import serve
from dskc.runtime.serve.cache import Cache
import dskc.runtime.serve.generate
model = Model().eval()
tokens = torch.zeros(1, 4, dtype=torch.int64)
assert model(tokens).shape == (1, 4, 4096)
assert serve.forward(model, tokens, Cache(1, 4)).shape == (1, 4096)
"""


@pytest.mark.slow
def test_generated_code_runs_without_the_compilers_libraries() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_errors_end_with_the_line_of_the_spec() -> None:
    model = load_package(ROOT / "generated" / "moe_nano").Model()
    with pytest.raises(IndexError) as caught:
        model(torch.full((1, 4), 5000))
    assert caught.value.__notes__ == ["  specs/moe_nano.dsk:16: x = embed(tokens, V -> D)"]
    model.layers[2].attention.k.weight = torch.nn.Parameter(torch.zeros(192, 100))
    with pytest.raises(RuntimeError) as caught_inside:
        model(torch.zeros((1, 4), dtype=torch.int64))
    (note,) = caught_inside.value.__notes__
    assert note.startswith("  specs/moe_nano.dsk:18: x += attention(rms_norm(x)")
    library = (ROOT / "dsl" / "std" / "attention.dsk").read_text(encoding="utf-8").splitlines()
    line = next(n for n, text in enumerate(library, start=1) if text.startswith("  k = linear"))
    assert note.endswith(f"(in std/attention.dsk:{line})")


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.stem)
def test_the_source_map_leads_to_lines_that_are_there(spec: Path) -> None:
    folder = ROOT / "generated" / spec.stem
    files = json.loads((folder / "source.map.json").read_text(encoding="utf-8"))["files"]
    assert set(files) == {"kernels.py", "model.py", "serve.py"}
    for name, lines in files.items():
        count = len((folder / name).read_text(encoding="utf-8").splitlines())
        assert lines
        for number, (path, line, text) in lines.items():
            assert 1 <= int(number) <= count
            assert (ROOT / path).read_text(encoding="utf-8").splitlines()[line - 1].strip() == text.split("  (in std/")[
                0
            ]


def test_hashes_in_headers_are_those_of_the_bodies() -> None:
    text = (ROOT / "generated" / "deepseek_7b" / "model.py").read_text(encoding="utf-8")
    body = text.split("\n", 3)[3]
    assert f"body sha256:{hashlib.sha256(body.encode()).hexdigest()[:16]}" in text.split("\n")[1]
