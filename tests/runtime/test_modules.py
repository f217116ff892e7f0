"""The leaf modules, and the spec's line on the errors of a generated model."""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from pathlib import Path

import pytest
import torch
from torch import nn

from dskc.runtime.modules import Embed, GroupedLinear, LayerNorm, Linear, RMSNorm, SpecModule, unembed
from dskc.runtime.spec_module import spec_lines


def test_names_and_shapes_of_parameters() -> None:
    modules: dict[str, tuple[nn.Module, dict[str, tuple[int, ...]]]] = {
        "linear": (Linear(3, 5), {"weight": (5, 3)}),
        "biased": (Linear(3, 5, bias=True), {"weight": (5, 3), "bias": (5,)}),
        "embed": (Embed(7, 3), {"weight": (7, 3)}),
        "rms": (RMSNorm(3, eps=1e-6), {"weight": (3,)}),
        "layer": (LayerNorm(3, eps=1e-6), {"weight": (3,), "bias": (3,)}),
        "scale only": (LayerNorm(3, eps=1e-6, bias=False), {"weight": (3,)}),
        "experts": (GroupedLinear(2, 3, 5, bias=True), {"weight": (2, 5, 3), "bias": (2, 5)}),
    }
    for name, (module, shapes) in modules.items():
        assert {k: tuple(v.shape) for k, v in module.state_dict().items()} == shapes, name


def test_meta_device_allocates_nothing() -> None:
    with torch.device("meta"):
        model = nn.ModuleList([Linear(10**6, 10**6), GroupedLinear(64, 10**5, 10**5), Embed(10**7, 10**4)])
        model.append(RMSNorm(10**9, eps=1e-6))
    assert all(p.is_meta for p in model.parameters())
    rows = model[1](torch.empty(5, 10**5, device="meta"), torch.empty(64, dtype=torch.int32, device="meta"))
    assert rows.shape == (5, 10**5)


def test_weights_are_cast_to_what_they_meet() -> None:
    x = torch.randn(2, 3, 8).bfloat16()
    for module in (Linear(8, 4, bias=True), RMSNorm(8, eps=1e-6), LayerNorm(8, eps=1e-6)):
        assert module(x).dtype == torch.bfloat16
        assert module.weight.dtype == torch.float32
        assert module(x.double()).dtype == torch.float64
    router = Linear(8, 4, compute=torch.float32)
    assert router(x).dtype == torch.float32
    assert torch.equal(router(x), x.float() @ router.weight.T)
    assert torch.equal(router.bfloat16()(x), x.float() @ router.weight.float().T)


def test_first_values() -> None:
    torch.manual_seed(0)
    for module in (Linear(200, 200, bias=True), Embed(200, 200), GroupedLinear(4, 100, 100, bias=True)):
        assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
        if getattr(module, "bias", None) is not None:
            assert not module.bias.any()
    assert RMSNorm(4, eps=1e-6).weight.tolist() == [1.0] * 4
    gemma = RMSNorm(4, eps=1e-6, offset=1.0)
    assert gemma.weight.tolist() == [0.0] * 4
    x = torch.randn(2, 4)
    torch.testing.assert_close(gemma(x), RMSNorm(4, eps=1e-6)(x))


def test_unembed_is_the_tied_head() -> None:
    table = Embed(7, 3)
    x = torch.randn(2, 3).bfloat16()
    assert torch.equal(unembed(x, table.weight), x @ table.weight.bfloat16().T)


MODEL = """
import torch
from dskc.runtime.modules import Linear, SpecModule


class Layer(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.out = Linear(4, width)

    def forward(self, x):
        return x + self.out(x)  # line 12


class Model(SpecModule):
    def __init__(self, width=4):
        super().__init__()
        self.layer = Layer(width)

    def forward(self, x):
        y = self.layer(x)  # line 21
        return y


def decode(model, x):
    return model.layer(x)
"""
MAP = {
    "files": {
        "model.py": {
            "10": ["specs/tiny.dsk", 7, "x += linear(x, D -> W)"],
            "21": ["specs/tiny.dsk", 9, "y = layer(x)"],
        }
    }
}


@pytest.fixture
def generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "tiny_model"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "model.py").write_text(MODEL)
    (folder / "source.map.json").write_text(json.dumps(MAP))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("tiny_model.model")
    for name in ("tiny_model.model", "tiny_model"):
        sys.modules.pop(name)


def test_an_error_ends_with_the_line_of_the_spec(generated) -> None:
    with pytest.raises(RuntimeError) as caught:
        generated.Model(width=5)(torch.ones(1, 4))
    assert caught.value.__notes__ == ["  specs/tiny.dsk:7: x += linear(x, D -> W)"]
    assert traceback.format_exception(caught.value)[-1] == "  specs/tiny.dsk:7: x += linear(x, D -> W)\n"


def test_the_note_comes_once_and_never_in_the_way(generated) -> None:
    class Outer(SpecModule):
        def __init__(self) -> None:
            super().__init__()
            self.inner = generated.Model(width=5)

        def forward(self, x):
            return self.inner(x)

    Outer.__module__ = generated.__name__
    with pytest.raises(RuntimeError) as caught:
        Outer()(torch.ones(1, 4))
    assert len(caught.value.__notes__) == 1


def test_lines_above_the_first_entry_have_no_note(generated) -> None:
    with pytest.raises(TypeError) as caught, spec_lines(generated):
        generated.Layer()
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"files": {"model.py": {"x": 1}}}', '{"files": 3}', None])
def test_a_map_that_cannot_be_read_changes_nothing(generated, text: str | None) -> None:
    path = Path(generated.__file__).with_name("source.map.json")
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(RuntimeError) as caught:
        generated.Model(width=5)(torch.ones(1, 4))
    assert not hasattr(caught.value, "__notes__")


def test_plain_functions_of_generated_code_carry_it_too(generated) -> None:
    with pytest.raises(RuntimeError) as caught, spec_lines(generated):
        generated.decode(generated.Model(width=5), torch.ones(1, 4))
    assert (
        caught.value.__notes__ == ["  specs/tiny.dsk:9: y = layer(x)"] or "specs/tiny.dsk" in caught.value.__notes__[0]
    )


def test_a_line_without_an_entry_has_that_of_the_nearest_above(generated) -> None:
    with pytest.raises(AttributeError) as caught, spec_lines(generated):
        generated.decode(None, torch.ones(1, 4))
    assert caught.value.__notes__ == ["  specs/tiny.dsk:9: y = layer(x)"]


def test_state_dict_is_that_of_a_plain_module(generated) -> None:
    assert list(generated.Model().state_dict()) == ["layer.out.weight"]


def test_compiles_as_one_graph(generated) -> None:
    model = generated.Model()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    x = torch.randn(2, 4)
    assert torch.equal(torch.compile(model, fullgraph=True, backend=backend)(x), model(x))
    assert len(graphs) == 1
