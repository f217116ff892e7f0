"""Every diagnostic code and what it means, in one line. A code, once released, keeps its meaning."""

from __future__ import annotations

CODES: dict[str, str] = {
    # the text
    "DSK0001": "a statement cannot be read",
    "DSK0002": "a spec does not say its edition, or says one that this compiler does not know",
    "DSK0003": "a bracket or brace is never closed",
    "DSK0004": "a number cannot be read",
    "DSK0005": "something is nested too deep",
    # files
    "DSK0010": "a file does not exist",
    "DSK0011": "a file cannot be read",
    "DSK0012": "a file is not UTF-8",
    "DSK0013": "a file is too large to be a spec",
    # names
    "DSK0101": "a name is not known",
    "DSK0102": "a name is defined twice",
    "DSK0103": "a library does not exist",
    "DSK0104": "a file does not define what is imported from it",
    "DSK0105": "files import each other",
    "DSK0106": "something comes from itself",
    "DSK0107": "a section does not say what it is for",
    "DSK0108": "a key is said twice",
    # values
    "DSK0110": "`..` stands where it means nothing",
    "DSK0111": "a path stands where a value is needed",
    "DSK0112": "an optional dim is used without being given",
    "DSK0113": "something that is not a dim is used as one",
    "DSK0114": "an operator does not go between two values",
    "DSK0115": "a number is divided by zero",
    "DSK0116": "a condition depends on a dim of the data",
    "DSK0117": "a condition is not true or false",
    "DSK0118": "something that is not a block is called",
    "DSK0119": "a name is one of Python's or PyTorch's",
    # calls
    "DSK0120": "two weights would have the same name",
    "DSK0121": "a block uses itself",
    "DSK0122": "an argument is given twice",
    "DSK0123": "a call has no place for an argument",
    "DSK0124": "a call has no parameter of that name",
    "DSK0125": "a call lacks an argument",
    "DSK0126": "an argument is not what its parameter takes",
    "DSK0127": "weights that have a name are named again",
    "DSK0128": "a block gives back more or fewer results than it declares",
    "DSK0129": "a block gives back something that is no tensor",
    # arguments
    "DSK0131": "a number is outside its range",
    "DSK0132": "a word is none of those that its place takes",
    # models
    "DSK0140": "an override meets nothing",
    "DSK0141": "an override does not say what it changes",
    "DSK0142": "a derived model holds something other than overrides",
    "DSK0143": "a model returns",
    "DSK0144": "a model takes something that is not a tensor",
    "DSK0145": "a result is never computed",
    "DSK0146": "a statement is never reached",
    "DSK0147": "a statement stands where it does not belong",
    "DSK0148": "an override stands outside a derived model",
    "DSK0149": "names and values differ in number",
    # statements
    "DSK0150": "a `require` does not hold",
    "DSK0151": "a name is not written as what it is",
    "DSK0152": "a loss is not one number",
    "DSK0153": "a repeat's count is not a number in range",
    "DSK0154": "a requirement asks for something unknown",
    # extern blocks
    "DSK0160": "an extern block states an unknown cost",
    "DSK0161": "an extern block does not name a class",
    # recipes
    "DSK0170": "a section has no such key",
    "DSK0172": "a unit does not fit",
    "DSK0173": "an objective cannot be read",
    "DSK0174": "a checkpoint map cannot be read",
    "DSK0175": "a weight is called almost as its checkpoint map has it",
    # limits of this compiler
    "DSK0190": "something is not compiled yet",
    "DSK0191": "a model has too many operations",
    # shapes
    "DSK0201": "shapes do not fit",
    "DSK0202": "a dim is bound to two sizes",
    "DSK0203": "a tensor has other axes than its parameter declares",
    "DSK0204": "a dim does not divide over a mesh axis",
    "DSK0205": "a block does not give back what it declares",
    "DSK0206": "a value changes its shape within a repeat",
    "DSK0207": "a dim is defined by itself",
    "DSK0208": "a size is not a whole number from 1",
    "DSK0209": "sizes do not fit each other",
    # plans
    "DSK0210": "a mesh does not have as many ranks as the plan has devices",
    "DSK0211": "a plan names an unknown device",
    "DSK0212": "a plan shards something that the model does not have",
    "DSK0213": "a batch does not divide into the microbatches of a plan",
    # sizes that data decide
    "DSK0214": "a size that must be known depends on the data",
}
