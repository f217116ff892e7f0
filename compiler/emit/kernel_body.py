"""A row program's kernel as a Triton function: one block of columns where a row fits, loops over blocks where not.

Three forms: flat (every element by itself), rows (whole rows in a program) and wide (a pass over the columns for each
reduction that depends on another, then one that writes). Variables carry their axes: N rows, then the columns.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from ..ir import DType
from ..rows.facts import (
    columns_of,
    depths,
    draws,
    is_flat,
    is_integer,
    is_wide,
    scalars_of,
    shift_of_exponentials,
    vanishes,
    widths_of,
)
from ..rows.node import REDUCTIONS, Columns, Node, reachable
from ..rows.program import Kernel, Layout, Part, Store, Tensor, part_names
from .text import ATOM, LOOSE, PRODUCT, SUM, WIDTH, Text, fit, number

LOWEST = "-3.0e38"  # what no number is under, finite so that differences are
INLINE = 50  # characters of an expression that is written where it is used
FUNCTIONS = {"exp": "tl.exp", "log": "tl.log", "sigmoid": "tl.sigmoid", "sqrt": "tl.sqrt", "rsqrt": "tl.rsqrt",
             "erf": "tl.erf", "abs": "tl.abs", "maximum": "tl.maximum", "minimum": "tl.minimum", "tanh": "tanh",
             "round_even": "round_even", "where": "tl.where"}  # fmt: skip
INFIX = {"add": ("+", SUM), "sub": ("-", SUM), "mul": ("*", PRODUCT), "div": ("/", PRODUCT), "less": ("<", LOOSE),
         "less_equal": ("<=", LOOSE), "equal": ("==", LOOSE)}  # fmt: skip
STATEMENTS = frozenset({"load", "sum", "max", "top_k", "gather", "scatter", "uniform"})  # never within an expression


@dataclass(slots=True)
class KernelBody:
    """Writes one kernel."""

    kernel: Kernel
    lines: list[str] = field(default_factory=list)
    texts: dict[Node, Text] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    indent: str = "    "
    helpers: set[str] = field(default_factory=set)
    flat: bool = False
    wide: bool = False

    def write(self, doc: str) -> list[str]:
        """The function's lines."""
        self.flat, self.wide = is_flat(self.kernel), is_wide(self.kernel)
        self._docstring(doc)
        if draws(self.kernel):
            self._line("seed = tl.load(seed_ptr)")
        if self.flat:
            self._flat()
        elif any(store.summed for store in self.kernel.stores):
            self._summing()
        else:
            self._line("row_N = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]")
            self._rows()
        head = fit("", f"def {self.kernel.name}", self.parameters(), ":")
        return ["@triton.jit", *head, *self.lines]

    # --- the signature, in the order that `runtime/kernels` launches by

    def parameters(self) -> tuple[str, ...]:
        kernel, names = self.kernel, []
        names += [f"{t.name}_ptr" for t in (*kernel.loads, *(s.tensor for s in kernel.stores))]
        if not self.flat:
            names += [f"{t.name}_stride" for t in kernel.loads if t.layout is Layout.ROWS]
            for t in kernel.loads:
                if t.layout is Layout.PART:
                    names += [f"{t.name}_inner", f"{t.name}_count"]
        names += ["seed_ptr"] if draws(kernel) else []
        names += scalars_of(kernel)
        names.append("N")
        if self.flat:
            return (*names, "BLOCK: tl.constexpr", "WIDE: tl.constexpr")
        columns = columns_of(kernel)
        for c in (*widths_of(kernel), *columns):
            names.append(c.name if c.size is None else f"{c.name}: tl.constexpr")
        names += ["BLOCK_N: tl.constexpr", *(f"BLOCK_{c.name}: tl.constexpr" for c in columns)]
        stages = ("STAGES: tl.constexpr",) if any(store.summed for store in kernel.stores) else ()
        return (*names, *stages, "WIDE: tl.constexpr")

    # --- forms

    def _flat(self) -> None:
        self._line("place_I = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)")
        self._line("mask_I = place_I < N")
        self._scope([v for s in self.kernel.stores for v in s.values])
        for store in self.kernel.stores:
            self._store(store, 0)

    def _summing(self) -> None:
        """A few programs take all rows in turn, so that sums over rows are added up in one order, in two stages."""
        summed = [store for store in self.kernel.stores if store.summed]
        self._line("program = tl.program_id(0)")
        if not self.wide:
            self._columns()
            self._scope([n for n in reachable(self.kernel.results) if n.kind == "load" and not n.rows])
            for store in summed:
                for name, part in zip(self._sums(store), store.tensor.parts, strict=True):
                    self._line(f"{name} = tl.zeros((1, BLOCK_{part.columns.name}), WIDE)")
        self._line("for block in tl.range(program, tl.cdiv(N, BLOCK_N), tl.num_programs(0), num_stages=STAGES):")
        self.indent += "    "
        self._line("row_N = tl.cast(block, tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]")
        self._rows()
        self.indent = self.indent[:-4]
        if not self.wide:
            for store in summed:
                for name, part in zip(self._sums(store), store.tensor.parts, strict=True):
                    at = f"{store.tensor.name}_ptr + program * {self._total(store.tensor)} + {self._offset(part)}"
                    self._line(f"tl.store({at}, {name}, mask_{part.columns.name})")

    def _sums(self, store: Store) -> tuple[str, ...]:
        suffix = [part.columns.name for part in store.tensor.parts]
        if len(suffix) == 1:
            return (f"{store.tensor.name}_{suffix[0]}",)
        return tuple(f"{store.tensor.name}{i}_{name}" for i, name in enumerate(suffix, start=1))

    def _rows(self) -> None:
        self._line("mask_N = row_N < N")
        if self.wide:
            self._wide()
            return
        if not any(store.summed for store in self.kernel.stores):
            self._columns()
        for c in columns_of(self.kernel):
            self._line(f"mask_N{c.name} = mask_N & mask_{c.name}")
        self._scope([v for s in self.kernel.stores for v in s.values])
        for store in self.kernel.stores:
            for i in range(len(store.values)):
                self._store(store, i)

    def _columns(self) -> None:
        for c in columns_of(self.kernel):
            self._line(f"column_{c.name} = tl.arange(0, BLOCK_{c.name})[None, :]")
            self._line(f"mask_{c.name} = column_{c.name} < {c.name}")

    def _wide(self) -> None:
        """A pass over the columns for each level of reductions, and a last one that writes."""
        depth = depths(self.kernel)
        reductions = [n for n in depth if n.kind in REDUCTIONS]
        online = {n: most for n in reductions if (most := shift_of_exponentials(n)) is not None}
        for level in range(1, max((depth[n] for n in reductions), default=0) + 1):
            now = [n for n in reductions if depth[n] == level and n not in self.texts]
            self._narrow([n.operands[0] for n in now])
            for columns in dict.fromkeys(n.operands[0].columns for n in now):
                assert columns is not None
                nodes = [n for n in now if n.operands[0].columns == columns]
                self._reduce(columns, nodes, {most: total for total, most in online.items() if most in nodes})
        wide = [(s, i) for s in self.kernel.stores for i in range(len(s.values)) if s.tensor.parts]
        self._narrow([v for store in self.kernel.stores for v in store.values])
        for columns in dict.fromkeys(s.tensor.parts[i].columns for s, i in wide):
            here = [(s, i) for s, i in wide if s.tensor.parts[i].columns == columns]
            self._loop(columns, [s.values[i] for s, i in here], partial(self._stores, here))
        for store in self.kernel.stores:
            if not store.tensor.parts:
                self._scope(list(store.values))
                self._store(store, 0)

    def _stores(self, here: list[tuple[Store, int]]) -> None:
        for store, i in here:
            self._store(store, i)

    def _narrow(self, targets: list[Node]) -> None:
        """Before a loop: the numbers a row that it needs, which no column changes."""
        available = frozenset(self.texts)
        needed = [n for n in reachable(targets, available) if n.columns is None and n.rows and n not in available]
        ready = [n for n in needed if n.kind not in REDUCTIONS and all(_known(o, self.texts) for o in n.operands)]
        if ready:
            self._scope(ready, every=True)

    def _reduce(self, columns: Columns, nodes: list[Node], online: dict[Node, Node]) -> None:
        """One pass for several reductions. `online`: with a maximum the sum of exponentials that it shifts, each column
        rescaling its own sum where its maximum grows (arXiv:1805.02867), which saves a pass.
        """
        names = {}
        for node in (*nodes, *online.values()):
            name = self._fresh(node, self.kernel.nodes.hints.get(node, node.kind))
            names[node] = name
            start = LOWEST if node in online else 'float("-inf")' if node.kind == "max" else "0.0"
            self._line(f"{name}{columns.name} = tl.full((BLOCK_N, BLOCK_{columns.name}), {start}, WIDE)")

        def accumulate() -> None:
            for node in nodes:
                value, total = self._masked(node.operands[0], node.kind), f"{names[node]}{columns.name}"
                if node in online:
                    exponentials, x = f"{names[online[node]]}{columns.name}", self.texts[node.operands[0]].at(SUM)
                    self._line(f"grown = tl.maximum({total}, {value})")
                    added = f"tl.where(mask_N{columns.name}, tl.exp({x} - grown), 0.0)"
                    self._line(f"{exponentials} = {exponentials} * tl.exp({total} - grown) + {added}")
                    self._line(f"{total} = grown")
                elif node.kind == "max":
                    self._line(f"{total} = tl.maximum({total}, {value})")
                else:
                    self._line(f"{total} += {value}")

        self._loop(columns, [n.operands[0] for n in nodes], accumulate)
        for node in nodes:
            total = f"{names[node]}{columns.name}"
            self._line(f"{names[node]} = tl.{node.kind}({total}, 1, keep_dims=True)")
            if node in online:
                exponentials = names[online[node]]
                scaled = f"{exponentials}{columns.name} * tl.exp({total} - {names[node]})"
                self._line(f"{exponentials} = tl.sum({scaled}, 1, keep_dims=True)")
                self.texts[online[node]] = Text(exponentials)
            self.texts[node] = Text(names[node])

    def _loop(self, columns: Columns, targets: list[Node], last: Callable[[], None]) -> None:
        c = columns.name
        known = dict(self.texts)
        self._line(f"for start in range(0, {c}, BLOCK_{c}):")
        self.indent += "    "
        self._line(f"column_{c} = start + tl.arange(0, BLOCK_{c})[None, :]")
        self._line(f"mask_{c} = column_{c} < {c}")
        self._line(f"mask_N{c} = mask_N & mask_{c}")
        taken = set(self.taken)
        self._scope(targets)
        last()
        self.texts, self.taken = known, taken  # what was computed of one block is not that of the next
        self.indent = self.indent[:-4]

    # --- statements

    def _scope(self, targets: list[Node], every: bool = False) -> None:
        """Statements for all that targets need and is not known yet; `every`: variables for the targets themselves."""
        order = [n for n in reachable(targets, frozenset(self.texts)) if n not in self.texts]
        counts = Counter(o for n in order for o in n.operands)
        counts.update(targets)
        stored = {v for s in self.kernel.stores for v in s.values}
        for node in order:
            if node.kind in REDUCTIONS and self.wide:
                continue
            if node.kind == "round_as" and node in stored and counts[node] == 1 and not every:
                self._stored(node)
                continue
            text = self._expression(node)
            again = counts[node] > 1 or node.kind in STATEMENTS or (every and node in targets)
            named = node in self.kernel.nodes.hints and not (node in stored and counts[node] == 1)
            plain = node.kind in ("constant", "scalar", "size", "index", "stop", "spread")
            if plain or not (again or named or len(text.text) > INLINE):
                self.texts[node] = text
            else:
                name = self._fresh(node, self.kernel.nodes.hints.get(node, _default(node)))
                self._assign(name, text)
                self.texts[node] = Text(name)

    def _stored(self, node: Node) -> None:
        """What is only stored needs no rounding of its own: storing rounds."""
        text = self.texts[node.operands[0]]
        if not text.text.isidentifier() and len(text.text) > INLINE:
            name = self._fresh(node, self.kernel.nodes.hints.get(node, node.kind))
            self._assign(name, text)
            text = Text(name)
        self.texts[node] = text

    def _store(self, store: Store, i: int) -> None:
        tensor, node = store.tensor, store.values[i]
        value = self.texts[node]
        if tensor.dtype is DType.FP8:  # from there alone Triton rounds to 8 bits
            value = value.method("to(tl.float32)")
        if self.flat:
            self._call("tl.store", (f"{tensor.name}_ptr + place_I", str(value), "mask_I"))
        elif tensor.layout is Layout.ONE:
            self._call("tl.store", (f"{tensor.name}_ptr + row_N", str(value), "mask_N"))
        elif store.summed:
            self._add_to_sum(store, i)
        else:
            part = tensor.parts[i]
            at = f"{tensor.name}_ptr + row_N * {self._total(tensor)} + {self._offset(part)}"
            self._call("tl.store", (at, str(value), f"mask_N{part.columns.name}"))

    def _add_to_sum(self, store: Store, i: int) -> None:
        part = store.tensor.parts[i]
        value = self._masked(store.values[i], "sum", part.columns)
        if not self.wide:
            self._line(f"{self._sums(store)[i]} += tl.sum({value}, 0, keep_dims=True)")
            return
        at = f"{store.tensor.name}_ptr + program * {self._total(store.tensor)} + {self._offset(part)}"
        mask = f"mask_{part.columns.name}"
        name = self._sums(store)[i]
        self._line(f"{name} = tl.load({at}, {mask}, other=0.0)  # this program's own, from the rows before")
        self._line(f"tl.store({at}, {name} + tl.sum({value}, 0, keep_dims=True), {mask})")

    def _masked(self, node: Node, kind: str, columns: Columns | None = None) -> str:
        """An expression as a reduction takes it: outside of the row it is zero, or never the greatest."""
        text = self.texts[node]
        columns = columns or node.columns
        assert columns is not None
        if kind == "sum" and node.rows and node.columns is not None and vanishes(node):
            return str(text)
        other = 'float("-inf")' if kind == "max" else "0.0"
        return f"tl.where(mask_N{columns.name}, {text}, {other})"

    # --- expressions

    def _expression(self, node: Node) -> Text:
        kind = node.kind
        if kind == "load":
            return self._load(node)
        if kind in INFIX:
            return self._infix(node)
        if kind in FUNCTIONS:
            name = FUNCTIONS[kind]
            if not name.startswith("tl."):
                self.helpers.add(name)
            arguments = tuple(str(self.texts[o]) for o in node.operands)
            return Text(f"{name}({', '.join(arguments)})", ATOM, (name, arguments))
        if kind == "constant":
            assert isinstance(node.label, float)
            if not math.isfinite(node.label):
                return Text(f'float("{node.label}")')
            return Text(number(node.label), ATOM if node.label >= 0 else LOOSE)
        if kind in ("scalar", "size"):
            return Text(str(node.label))
        if kind in ("stop", "spread"):
            return self.texts[node.operands[0]]
        if kind == "neg":
            return Text(f"-{self.texts[node.operands[0]].at(ATOM)}", LOOSE)
        if kind == "round_as":
            pointer = dict(self.kernel.rounded)[str(node.label)]
            tensor = next(t for t in (*self.kernel.loads, *(s.tensor for s in self.kernel.stores)) if t.name == pointer)
            return self.texts[node.operands[0]].method(f"to({tensor.name}_ptr.dtype.element_ty).to(WIDE)")
        return self._special(node)

    def _special(self, node: Node) -> Text:
        if node.kind in REDUCTIONS:
            value = self._masked(node.operands[0], node.kind)
            return Text(f"tl.{node.kind}({value}, 1, keep_dims=True)")
        if node.kind == "index":
            assert node.columns is not None
            return Text(f"column_{node.columns.name}")
        if node.kind == "uniform":
            assert node.columns is not None
            c = node.columns.name
            place = "place_I" if self.flat else f"row_N * {c} + column_{c}"
            return Text(f"tl.rand(seed + {node.label}, ({place}).to(tl.uint32))")
        self.helpers.add(node.kind)
        operands = [str(self.texts[o]) for o in node.operands]
        if node.kind == "top_k":
            x, k = node.operands[0].columns, node.columns
            assert x is not None and k is not None
            return Text(f"top_k({operands[0]}, column_{x.name}, {x.name}, {k.name}, BLOCK_{k.name})")
        x, k = node.operands[0].columns, node.columns
        if node.kind == "scatter":
            x, k = k, x
        assert x is not None and k is not None
        return Text(f"{node.kind}({', '.join(operands)}, column_{x.name}, {k.name}, BLOCK_{k.name})")

    def _infix(self, node: Node) -> Text:
        sign, level = INFIX[node.kind]
        left, right = (self.texts[o] for o in node.operands)
        if level is LOOSE:
            if any(is_integer(o, self.kernel) for o in node.operands):
                left, right = (self._whole(o) for o in node.operands)
            if node.operands[0].kind == "constant":
                left, sign, right = right, {"<": ">", "<=": ">="}.get(sign, sign), left
            return Text(f"{left.at(SUM)} {sign} {right.at(SUM)}", LOOSE)
        return Text(f"{left.at(level)} {sign} {right.at(level + 1 if sign in '-/' else level)}", level)

    def _whole(self, node: Node) -> Text:
        """An operand of a comparison between integers."""
        if node.kind != "constant":
            return self.texts[node]
        assert isinstance(node.label, float)
        return Text(str(int(node.label)))

    def _load(self, node: Node) -> Text:
        tensor, i = next(
            (t, part_names(t).index(str(node.label)) if t.parts else 0)
            for t in self.kernel.loads
            if node.label == t.name or node.label in part_names(t)
        )
        pointer = f"{tensor.name}_ptr"
        wide = ".to(WIDE)" if tensor.floating else ""
        if self.flat:
            return Text(f"tl.load({pointer} + place_I, mask_I, other=0{'.0' if wide else ''}){wide}")
        if tensor.layout is Layout.ONE:
            return Text(f"tl.load({pointer} + row_N, mask_N, other=0{'.0' if wide else ''}){wide}")
        part = tensor.parts[i]
        c = part.columns.name
        if tensor.layout is Layout.VECTOR:
            return Text(f"tl.load({pointer} + {self._offset(part)}, mask_{c}, other=0.0){wide}")
        if tensor.layout is Layout.PART:
            row = f"row_N // {tensor.name}_inner % {tensor.name}_count * {self._total(tensor)}"
        else:
            row = f"row_N * {tensor.name}_stride"
        return Text(
            f"tl.load({pointer} + {row} + {self._offset(part)}, mask_N{c}, other=0{'.0' if wide else ''}){wide}"
        )

    def _offset(self, part: Part) -> str:
        column = f"column_{part.columns.name}"
        stepped = column if part.step == 1 else f"{part.step} * {column}"
        return f"{part.start} + {stepped}" if part.start else stepped

    def _total(self, tensor: Tensor) -> str:
        assert tensor.width is not None
        return tensor.width.name

    # --- text

    def _fresh(self, node: Node, wanted: str) -> str:
        axes = ("N" if node.rows else "") + (node.columns.name if node.columns is not None else "")
        axes = "I" if self.flat else axes
        stem, n = wanted, 2
        name = f"{stem}_{axes}" if axes else stem
        while name in self.taken:
            name, n = (f"{stem}{n}_{axes}" if axes else f"{stem}{n}"), n + 1
        self.taken.add(name)
        return name

    def _assign(self, name: str, text: Text) -> None:
        line = f"{self.indent}{name} = {text}"
        if len(line) > WIDTH and line.endswith(").to(WIDE)"):
            place, _, rest = str(text).removeprefix("tl.load(").partition(", ")  # in two statements
            self._line(f"at = {place}")
            self._line(f"{name} = tl.load(at, {rest}")
        elif len(line) <= WIDTH or not text.parts:
            self.lines.append(line)
        else:
            self.lines += fit(self.indent, f"{name} = {text.parts[0]}", text.parts[1], "")

    def _call(self, callee: str, arguments: tuple[str, ...]) -> None:
        self.lines += fit(self.indent, callee, arguments, "")

    def _line(self, text: str) -> None:
        self.lines.append(f"{self.indent}{text}")

    def _docstring(self, doc: str) -> None:
        self._line(f'"""{doc}"""')


def _known(node: Node, texts: dict[Node, Text]) -> bool:
    """Whether a number a row can be written now."""
    if node in texts:
        return True
    if node.columns is not None or node.kind in REDUCTIONS:
        return False
    return all(_known(o, texts) for o in node.operands)


def _default(node: Node) -> str:
    return {"load": str(node.label).split(":")[0], "uniform": "drawn", "top_k": "chosen"}.get(node.kind, node.kind)
