"""What a ranker is: its inputs, its sizes, its tasks, and whether they can work together."""

from dataclasses import dataclass, field

from models.attention import check_attention
from models.body import BodySize, check_size
from models.experts import BODIES, WITH_SHARED_EXPERTS
from models.extra_tasks import check_spaces
from models.inputs import check_fields
from models.losses import AUXILIARY_HEADS, LOSS_NAMES
from models.numeric import NumericSize, check_numeric

LINEAR = "linear"


@dataclass(frozen=True, kw_only=True)
class RankerSpec:
    """All that determines a ranker's architecture and its initial weights."""

    body: str
    """linear, or one of `models.experts.BODIES`."""
    categorical_cardinalities: dict[str, int]
    """Number of ids of each field of the embedding table."""
    numeric: list[str]
    """Numeric columns, in order."""
    bins: int
    """Quantile bins of a numeric column."""
    pooled: dict[str, str]
    """Multi-valued columns, each with the field whose embeddings it averages, or attends to."""
    single: list[str]
    """Single-valued categorical columns, in order; each is a field of the same name."""
    context: list[str]
    """The columns of `single` that enter only the context bias."""
    context_numeric: list[str]
    """The columns of `numeric` that enter only the context bias."""
    zero_bin: bool = False
    """Whether a numeric column's zeros may lie apart, at position bins + 2."""
    numeric_encoding: str = "piecewise_linear"
    """piecewise_linear or periodic; the linear body's is piecewise-linear."""
    frequencies: int = 16
    """Frequencies of a numeric column (periodic)."""
    frequency_scale: float = 1.0
    """Standard deviation of the initial frequencies, in periods over all bins (periodic)."""
    attention: list[str] = field(default_factory=list)
    """The columns of `pooled` that are weighted by the candidate (DIN), not averaged; the linear body averages."""
    attention_target: str = "item_id"
    """The column of `single` that is the candidate."""
    embedding_width: int = 16
    task_embeddings: bool = False
    """Whether each task's experts read embeddings of their own, the shared ones shared ones (cgc, ple, adatt)."""
    numeric_width: int = 8
    experts: int = 4
    """Experts that all tasks share (moe, mmoe, cgc, ple, adatt, stem); adatt may have none."""
    task_experts: int = 2
    """Experts of each task alone (cgc, ple, adatt, stem)."""
    expert_activation: str = "relu"
    """relu or swish."""
    expert_norm: str = "none"
    """none, layer or batch: normalises before each activation of an expert."""
    gate_dropout: float = 0.0
    """Probability that a gate loses an expert in training."""
    gate_temperature: float = 1.0
    """Divides the gates' logits."""
    load_balance: float = 0.0
    """Weight of `load_balance_loss` in training."""
    hidden: tuple[int, ...] = (128, 64)
    """Widths of an expert's layers."""
    tower: tuple[int, ...] = (32,)
    """Widths of a task tower's hidden layers."""
    levels: int = 2
    """Levels of experts (ple, adatt, stem)."""
    dropout: float = 0.0
    binary_tasks: dict[str, str] = field(default_factory=dict)
    """Further binary tasks, each with the space of its label: impression, click or conversion."""
    value_tasks: dict[str, str] = field(default_factory=dict)
    """Labels that are numbers, none of them negative, whose mean is predicted; each with its space."""
    conversion_loss: str = "esmm"
    """How conversions are supervised: one of `models.losses.AUXILIARY_HEADS`, which names the heads it adds."""
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self)

    @property
    def heads(self) -> int:
        """Number of logits T."""
        return len(self.tasks())

    def tasks(self) -> list[str]:
        """Returns the names of the logits in order; those that only training needs are the last."""
        return ["click", "conversion", *self.binary_tasks, *self.value_tasks, *AUXILIARY_HEADS[self.conversion_loss]]

    def outputs(self) -> list[str]:
        """Returns the names of what `predict` gives, in order."""
        binary, values = (f"p_{name}" for name in self.binary_tasks), (f"expected_{name}" for name in self.value_tasks)
        return ["p_click", "p_conversion", "p_click_and_conversion", *binary, *values]


def numeric_size(spec: RankerSpec) -> NumericSize:
    """Returns the sizes of the numeric columns' vectors."""
    return NumericSize(
        bins=spec.bins,
        width=spec.numeric_width,
        zero_bin=spec.zero_bin,
        encoding=spec.numeric_encoding,
        frequencies=spec.frequencies,
        frequency_scale=spec.frequency_scale,
    )


def body_size(spec: RankerSpec, *, input_width: int) -> BodySize:
    """Returns the sizes and options of the body."""
    return BodySize(
        input_width=input_width,
        tasks=spec.heads,
        hidden=spec.hidden,
        experts=spec.experts,
        task_experts=spec.task_experts,
        levels=spec.levels,
        dropout=spec.dropout,
        expert_activation=spec.expert_activation,
        expert_norm=spec.expert_norm,
        gate_dropout=spec.gate_dropout,
        gate_temperature=spec.gate_temperature,
    )


def _check(spec: RankerSpec) -> None:
    check_spaces(spec.binary_tasks, spec.value_tasks)
    _check_losses(spec)
    if spec.body not in {LINEAR, *BODIES}:
        raise ValueError(f"body is {spec.body!r}, expected one of {[LINEAR, *BODIES]}")
    check_fields([*spec.single, *spec.pooled.values()], spec.categorical_cardinalities)
    check_numeric(numeric_size(spec))
    check_attention(spec.attention, spec.attention_target, pooled=spec.pooled, single=spec.single, context=spec.context)
    for name, chosen, among in (
        ("context", spec.context, spec.single),
        ("context_numeric", spec.context_numeric, spec.numeric),
    ):
        if strangers := sorted(set(chosen) - set(among)):
            raise ValueError(f"{name} names {strangers}, which are no inputs: expected names among {among}")
    if len(spec.single) + len(spec.numeric) + len(spec.pooled) == len(spec.context) + len(spec.context_numeric):
        raise ValueError("every input is a context column, nothing is left to rank by: add other columns")
    check_size(body_size(spec, input_width=1))
    if spec.body in WITH_SHARED_EXPERTS and spec.experts < 1:
        raise ValueError(
            f"experts is {spec.experts}, expected at least 1 with body {spec.body!r}: only adatt does without"
        )
    if not spec.load_balance >= 0:
        raise ValueError(f"load_balance is {spec.load_balance}, expected 0 or more: 0 switches it off")


def _check_losses(spec: RankerSpec) -> None:
    if spec.conversion_loss not in AUXILIARY_HEADS:
        raise ValueError(f"conversion_loss is {spec.conversion_loss!r}, expected one of {list(AUXILIARY_HEADS)}")
    if taken := sorted(LOSS_NAMES & {*spec.binary_tasks, *spec.value_tasks}):
        raise ValueError(f"tasks {taken} have names of the ranker's own losses: name them differently")
