"""What an operation sees of the code that it is written into: the texts of its operands, and the names at hand."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from dskc.dsl.dims import Dim

from ..ir import DType, Op, Value
from ..reserved import PYTHON
from ..signature import Record
from ..values import Mask
from .text import ATOM, LOOSE, PRODUCT, SUM, Text, call, number

if TYPE_CHECKING:
    from .names import Names

TORCH_DTYPES = {
    DType.FP32: "torch.float32",
    DType.BF16: "torch.bfloat16",
    DType.FP16: "torch.float16",
    DType.INT64: "torch.int64",
    DType.INT8: "torch.int8",
    DType.FP8: "torch.float8_e4m3fn",
    DType.BOOL: "torch.bool",
}


Modules = dict[Value, tuple[str, str]]  # a weight: the text of the module that owns it, and that one's class


@dataclass(frozen=True, slots=True)
class Reference:
    """A function of `runtime/reference`, imported by being called."""

    name: str

    def __call__(self, *arguments: Text, **named: Text | str | None) -> Text:
        spelled = [str(a) for a in arguments]
        spelled += [f"{name}={value}" for name, value in named.items() if value is not None]
        return call(self.name, tuple(spelled))


@dataclass(slots=True)
class Call:
    """One operation being written."""

    op: Op
    operands: tuple[Text, ...]
    names: Names
    modules: Modules
    serving: bool = False
    training: str = "self.training"  # whether dropout drops
    compute: str = "self.compute"  # the dtype of activations
    state: Text | None = None  # while serving, what the operation carries from pass to pass
    qualified: bool = False  # functions of the reference by their module, where their names are taken

    def operand(self, index: int) -> Text:
        return self.operands[index]

    def tensor(self, index: int) -> Text:
        """An operand that may be a weight: then the parameter of the module that owns it."""
        value = self.op.operands[index]
        if value in self.modules:
            return Text(f"{self.modules[value][0]}.{self.names.tensors[value]}")
        return self.operands[index]

    def text(self, text: str) -> Text:
        return Text(text)

    def apply(self, callee: str, *arguments: Text) -> Text:
        return call(callee, tuple(str(a) for a in arguments))

    def infix(self, left: Text, sign: str, right: Text, level: int) -> Text:
        """`left sign right`; the right side of `-` and `/` holds tighter than the left."""
        kind = SUM if level == 1 else PRODUCT
        tighter = kind + 1 if sign in "-/" else kind
        return Text(f"{left.at(kind)} {sign} {right.at(tighter)}", kind)

    def reference(self, name: str) -> Reference:
        if self.qualified:
            self.names.use("dskc.runtime", "reference")
            return Reference(f"reference.{name}")
        self.names.use("dskc.runtime.reference", name)
        return Reference(name)

    def number(self, value: float) -> Text:
        return Text(number(value), ATOM if value >= 0 else LOOSE)

    def string(self, value: str) -> str:
        return f'"{value}"'

    def size(self, size: Dim) -> str:
        return self.names.size(size)

    def dtype(self, dtype: DType) -> str:
        if dtype is DType.COMPUTE:
            self.names.casts = True
            return self.compute
        self.names.use_torch()
        return TORCH_DTYPES[dtype]

    def mask(self, mask: Mask, documents: Text | None) -> str | None:
        """The mask as an expression; in serving there is one document, so it goes."""
        if mask.operator in ("&", "|"):
            parts = [self.mask(operand, documents) for operand in mask.operands]
            present = [p for p in parts if p is not None]
            if mask.operator == "|":  # anything or everything is everything
                return " | ".join(present) if len(present) == len(parts) else None
            spelled = [f"({p})" if " | " in p else p for p in present]
            return " & ".join(spelled) or None
        if mask.operator == "documents":
            if documents is None or self.serving:
                return None
            self.names.use("dskc.runtime.reference", "documents")
            return f"documents({documents})"
        self.names.use("dskc.runtime.reference", mask.operator)
        if mask.arguments:
            named = len(mask.arguments) > 1
            given = [(f"{k}_" if k in PYTHON else k, number(value)) for k, value in mask.arguments]
            return f"{mask.operator}({', '.join(f'{k}={v}' if named else v for k, v in given)})"
        return mask.operator

    def record(self, record: Record, classes: dict[str, str]) -> str:
        """A constructor of the language as the runtime's class."""
        name = classes[record.name]
        self.names.use("dskc.runtime.reference", name)
        spelled = []
        for key, value in record.arguments:
            if value is None or value is True:  # what the classes take unless told
                continue
            if value is False:
                spelled.append(f"{key}=False")
                continue
            key = "original" if key == "from" else key
            assert isinstance(value, Fraction)
            whole = key == "original"
            spelled.append(f"{key}={number(int(value) if whole else float(value))}")
        return f"{name}({', '.join(spelled)})"

    # --- weights and modules

    def module(self, index: int) -> str:
        """The module that owns an operand which is a weight."""
        return self.modules[self.op.operands[index]][0]

    def module_class(self, index: int) -> str:
        return self.modules[self.op.operands[index]][1]

    def submodule(self, path: str) -> str:
        """The module of a block, or of the experts, at a path."""
        return f"self.{path.rsplit('.', 1)[-1]}"
