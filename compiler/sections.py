"""The keys of every section: what `train`, `plan` and `serve` may say, of which kind, and what it means.

These tables check specs and are what the documentation lists.
"""

from __future__ import annotations

from .signature import DTYPES, REQUIRED, Kind, Parameter, Signature


def _key(
    name: str, kind: Kind, doc: str = "", choices: tuple[str, ...] = (), records: tuple[Signature, ...] = ()
) -> Parameter:
    return Parameter(name, kind, None, choices, records, doc=doc)


_BETAS = Parameter("betas", Kind.NUMBERS, None, doc="decay of the running means")
_LR = Parameter("lr", Kind.FLOAT, REQUIRED, doc="the peak learning rate")
_DECAY = Parameter("decay", Kind.FLOAT, 0.0, doc="decoupled weight decay, on matrices")
_CLIP = Parameter("clip", Kind.FLOAT, None, doc="the most that the norm of all gradients may be")
_WARMUP = Parameter("warmup", Kind.INT, 0, doc="steps from zero to the peak")

_EPS = Parameter("eps", Kind.FLOAT, 1e-8, doc="added to the root of the running mean of squares")

ADAMW = Signature(
    "adamw", (_LR, _BETAS, _EPS, _DECAY, _CLIP), "AdamW (arXiv:1711.05101); betas 0.9 and 0.999 unless told."
)
OPTIMIZERS = (
    ADAMW,
    Signature("lion", (_LR, _BETAS, _DECAY, _CLIP), "Lion (arXiv:2302.06675); betas 0.9 and 0.99 unless told."),
    Signature(
        "muon",
        (
            _LR,
            Parameter("momentum", Kind.FLOAT, 0.95, doc="decay of the running mean of gradients"),
            _DECAY,
            _CLIP,
            Parameter(
                "scale", Kind.SYMBOL, "rms", ("rms", "original"),
                doc="of a step of an M x N matrix: `rms` is 0.2 times the root of the larger (arXiv:2502.16982, "
                "section 2.2), `original` the root of M / N, at least 1",
            ),
            Parameter(
                "adamw", Kind.RECORD, None, records=(Signature("adamw", (_LR, _BETAS, _EPS, _DECAY), ADAMW.doc),),
                doc="how all else is updated; unless told at the same rate and decay",
            ),
        ),
        "Muon for matrices within layers, AdamW for embeddings, heads, norms and biases (Keller Jordan et al., 2024).",
    ),
)  # fmt: skip
SCHEDULES = (
    Signature(
        "steps",
        (
            _WARMUP,
            Parameter("at", Kind.NUMBERS, REQUIRED, doc="fractions of all tokens"),
            Parameter("factor", Kind.NUMBERS, REQUIRED, doc="of the peak rate, from there on"),
        ),
        "The peak rate, then fractions of it (arXiv:2401.02954, section 3.1).",
    ),
    Signature(
        "cosine",
        (_WARMUP, Parameter("floor", Kind.FLOAT, 0.1, doc="the last rate, of the peak")),
        "Half a cosine from the peak to its floor (arXiv:1608.03983).",
    ),
    Signature(
        "constant",
        (
            _WARMUP,
            Parameter("decay", Kind.FLOAT, 0.0, doc="the last fraction of all tokens, in which the rate falls"),
            Parameter(
                "shape",
                Kind.SYMBOL,
                "linear",
                ("linear", "root"),
                doc="of the fall: `root` is 1 less the root of the share that has passed",
            ),
            Parameter("floor", Kind.FLOAT, 0.0, doc="where it ends, of the peak"),
        ),
        "Warmup, the peak rate, and a decay at the end (WSD: arXiv:2404.06395; the shapes: arXiv:2405.18392).",
    ),
)
INITS = (
    Signature(
        "normal",
        (
            Parameter("std", Kind.FLOAT, 0.02, doc="their standard deviation"),
            Parameter(
                "width", Kind.INT, None,
                doc="it is that of matrices with so many inputs, and of others the root of width / inputs times it "
                "(muP: arXiv:2203.03466, table 8)",
            ),
        ),
        "Weights normal, norms one, biases zero.",
    ),
)  # fmt: skip
ZEROS = Signature("zeros", (), "All of it zero.")
LORA = Signature(
    "lora",
    (
        Parameter("rank", Kind.INT, REQUIRED, doc="the width that they pass through"),
        Parameter("alpha", Kind.FLOAT, None, doc="they count alpha / rank times; as much as the rank unless told"),
        Parameter("dropout", Kind.FLOAT, 0.0, doc="of what they take, while training"),
    ),
    "Low-rank adapters (arXiv:2106.09685).",
)
EWC = Signature(
    "ewc",
    (
        Parameter("strength", Kind.FLOAT, REQUIRED, doc="of the penalty"),
        Parameter(
            "samples", Kind.INT, 256, doc="rows of the earlier data on which it is seen how much a weight matters"
        ),
    ),
    "Elastic weight consolidation: strength / 2 times the sum of fisher * (weight - before) ** 2 (arXiv:1612.00796).",
)
RAMP = Signature(
    "ramp",
    (
        Parameter("start", Kind.INT, REQUIRED, doc="sequences of the first steps"),
        Parameter("by", Kind.INT, None, doc="how many more at a time; as many as at the start unless told"),
        Parameter("over", Kind.FLOAT, 0.1, doc="the fraction of all steps that it takes to reach `sequences`"),
    ),
    "Batches that grow, in equal parts of the steps (arXiv:2005.14165, appendix B).",
)
PIPELINES = (
    Signature("one_f_one_b", (), "One forward, one backward (arXiv:2006.09503)."),
    Signature(
        "interleaved",
        (Parameter("stages", Kind.INT, REQUIRED, doc="of each rank"),),
        "Several stages a rank (arXiv:2104.04473).",
    ),
    Signature("zero_bubble", (), "Backward split in two (arXiv:2401.10241)."),
)
CACHES = (
    Signature("paged", (Parameter("block", Kind.INT, 64, doc="positions a page"),), "Pages (arXiv:2309.06180)."),
    Signature("contiguous", (), "One buffer a sequence."),
)

MESH_AXES = {
    "dp": "data-parallel",
    "pp": "pipeline-parallel",
    "tp": "tensor-parallel",
    "ep": "expert-parallel",
    "cp": "context-parallel",
}
SHARDABLE = ("params", "optimizer", "gradients")  # what a plan may shard besides dims

TRAINABLE = ("fp32", "bf16")  # what parameters, their gradients and states are kept in
ROUNDINGS = ("nearest", "stochastic")
RECOMPUTE = ("auto", "none", "full")
STORABLE = ("fp32", "bf16", "fp16", "fp8", "int8", "int4")  # what a server may keep weights in
_PRECISION = (
    _key("precision.params", Kind.DTYPE, choices=TRAINABLE, doc="parameters and gradients are stored in"),
    _key(
        "precision.compute",
        Kind.DTYPE,
        choices=(*TRAINABLE, "fp16"),
        doc="activations run in; in fp16 the loss is scaled (arXiv:1710.03740)",
    ),
    _key("precision.reduce", Kind.DTYPE, choices=TRAINABLE, doc="gradients are summed across ranks in"),
    _key("precision.optimizer", Kind.DTYPE, choices=TRAINABLE, doc="optimizer states are stored in"),
    _key(
        "precision.master",
        Kind.DTYPE,
        choices=("fp32",),
        doc="a copy of parameters that the optimizer updates, where they are stored in less",
    ),
    _key(
        "precision.rounding",
        Kind.SYMBOL,
        choices=ROUNDINGS,
        doc="how the optimizer rounds to bf16; stochastic: up as often as what is cut is large (arXiv:2010.06192)",
    ),
)

TRAIN_KEYS = {
    p.name: p
    for p in (
        _key("tokens", Kind.INT, doc="how many to train on"),
        _key("batch.sequences", Kind.INT, doc="sequences a step"),
        _key("batch.microbatch", Kind.INT, doc="sequences at once"),
        _key("batch.ramp", Kind.RECORD, records=(RAMP,), doc="fewer sequences a step at first"),
        *_PRECISION,
        _key("optimizer", Kind.RECORD, records=OPTIMIZERS, doc="how weights are updated"),
        _key("schedule", Kind.RECORD, records=SCHEDULES, doc="how the learning rate goes"),
        _key("init", Kind.RECORD, records=INITS, doc="how weights begin"),
        _key("save.every", Kind.INT, doc="steps from checkpoint to checkpoint"),
        _key("save.keep", Kind.INT, doc="how many of the last checkpoints are kept, besides the best"),
        _key("hold", Kind.RECORD, records=(EWC,), doc="to the weights of the run that it begins with"),
        _key("balance.speed", Kind.FLOAT, doc="how far the bias of `balance_bias` moves after each step"),
    )
}
GROUP_KEYS = {
    p.name: p
    for p in (
        _key("rate", Kind.FLOAT, doc="times the learning rate; dims may stand in it, `256 / D`"),
        _key("decay", Kind.FLOAT, doc="weight decay of all of it, norms and biases too"),
        _key(
            "fp8",
            Kind.SYMBOL,
            choices=("rows", "blocks", "none"),
            doc="linear layers have products of 8-bit floats, scaled by rows or by blocks of 128 x 128 "
            "(arXiv:2412.19437, section 3.3)",
        ),
        _key("frozen", Kind.BOOL, doc="it is not trained"),
        _key("lora", Kind.RECORD, records=(LORA,), doc="adapters beside its linear layers; all else is frozen then"),
        _key("init", Kind.RECORD, records=(*INITS, ZEROS), doc="how it begins, `normal(...)` or `zeros`"),
    )
}
PLAN_KEYS = {
    p.name: p
    for p in (
        *(_key(f"mesh.{axis}", Kind.INT, doc=f"{what} ranks") for axis, what in MESH_AXES.items()),
        _key("pipeline.schedule", Kind.RECORD, records=PIPELINES, doc="the order of microbatches"),
        _key("pipeline.microbatch", Kind.INT, doc="sequences at once"),
        _key("memory.limit", Kind.INT, doc="bytes of a device that may be used"),
        _key("memory.recompute", Kind.SYMBOL, choices=RECOMPUTE, doc="what backward computes again; auto unless told"),
        *_PRECISION,
        _key("batch.microbatch", Kind.INT, doc="sequences at once"),
    )
}
SERVE_KEYS = {
    p.name: p
    for p in (
        _key("precision.weights", Kind.SYMBOL, choices=STORABLE, doc="weights are stored in; bf16 unless told"),
        _key("precision.compute", Kind.DTYPE, choices=DTYPES, doc="activations run in; bf16 unless told"),
        _key("cache", Kind.RECORD, records=CACHES, doc="where what blocks keep lies"),
        _key("batch", Kind.INT, doc="sequences at once; 1 unless told"),
    )
}

GROUPS = "groups"  # the section of a recipe that holds sections by paths of the model
PLACEMENTS = "shard"  # the section of a plan that holds `what -> mesh axis`
# Keys whose values no table can check alone: the model and the plan say what may stand there.
OBJECTIVE, DATA_DIM = "objective", "batch.S"
NEXT_TOKEN = Signature(
    "next_token",
    (
        Parameter("result", Kind.NAMES, doc="a result of the model"),
        Parameter("ahead", Kind.INT, 1, doc="how many places on the token stands that is foretold"),
        Parameter("z", Kind.FLOAT, 0.0, doc="adds this times the squared log-sum-exp (arXiv:2204.02311, section 5)"),
        Parameter("smoothing", Kind.FLOAT, 0.0, doc="of the target, towards all tokens (arXiv:1512.00567, section 7)"),
    ),
    "Cross entropy of a token, averaged; a sequence's last tokens and first ones of documents are not asked for.",
)
CLASSIFY = Signature(
    "classify",
    (Parameter("result", Kind.NAMES, doc="a result [B, C]: the scores of a row's classes"),),
    "Cross entropy of the label that comes with each row, averaged over the rows of batches that have labels.",
)
REGRESS = Signature(
    "regress",
    (Parameter("result", Kind.NAMES, doc="a result of any shape"),),
    "The mean square of a result's distance from what comes with the rows, in batches that have it.",
)
OPEN_KEYS = {
    "train": {
        OBJECTIVE: "what to make small: `next_token(result, ahead: 1)`, `classify(result)`, `regress(result)` and "
        "losses of the model by name, weighted",
        DATA_DIM: "the length of a sequence; any dim of the data stands so, under its own name",
        **{
            f"{GROUPS}.PATH.{key}": f"{p.doc}; of what is under a path, `layers.attention`, the longest counting"
            for key, p in GROUP_KEYS.items()
        },
    },
    "plan": {f"{PLACEMENTS}.NAME -> AXIS": f"a dim, or {', '.join(SHARDABLE)}, cut over a mesh axis that divides it"},
    "serve": {},
}
EXTERN_COSTS = {
    "flops": "floating-point operations of its matrix products, as `2 * B * S * D`",
    "saved": "elements that it holds for backward",
}

UNITS = {"memory.limit": "bytes"}  # keys whose number is of a kind; all others are plain counts
MINIMUM_ONE = (
    "tokens",
    "batch.sequences",
    "batch.microbatch",
    "save.every",
    "save.keep",
    "pipeline.microbatch",
    "batch",
)
