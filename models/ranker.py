"""The ranker: from encoded columns to the logits of click, of conversion given a click, and of further tasks.

Shapes: B batch, N rows, T task (0 click, 1 conversion given a click, then further tasks), C columns, D width,
O outputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.attention import check_attention
from models.embedding import FusedEmbedding
from models.entire_space import TASKS, entire_space_probabilities
from models.experts import BODIES, PLE, BodySize, MMoE, input_groups
from models.extra_tasks import check_spaces, extra_outputs
from models.inputs import Columns, Features, InputLayer, check_fields
from models.numeric import NumericSize, check_numeric
from models.serialization import load_module, save_module
from models.towers import TaskTowers

__all__ = ["Features", "Ranker", "RankerSpec", "load_ranker", "predict", "save_ranker"]

CONTEXT_HIDDEN_WIDTH = 32
LINEAR = "linear"


@dataclass(frozen=True, kw_only=True)
class RankerSpec:
    """All that determines a ranker's architecture and its initial weights."""

    body: str
    """linear, single_task, shared_embedding, shared_bottom, mmoe or ple."""
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
    numeric_width: int = 8
    experts: int = 4
    """Experts that all tasks share (mmoe, ple)."""
    task_experts: int = 2
    """Experts of each task alone (ple)."""
    hidden: tuple[int, ...] = (128, 64)
    """Widths of an expert's layers."""
    tower: tuple[int, ...] = (32,)
    """Widths of a task tower's hidden layers."""
    levels: int = 2
    """Extraction levels (ple)."""
    dropout: float = 0.0
    binary_tasks: dict[str, str] = field(default_factory=dict)
    """Further binary tasks, each with the space of its label: impression, click or conversion."""
    value_tasks: dict[str, str] = field(default_factory=dict)
    """Labels that are numbers, none of them negative, whose mean is predicted; each with its space."""
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self)

    @property
    def heads(self) -> int:
        """Number of logits T: click, conversion given a click, binary tasks, values."""
        return TASKS + len(self.binary_tasks) + len(self.value_tasks)

    def outputs(self) -> list[str]:
        """Returns the names of what `predict` gives, in order."""
        binary, values = (f"p_{name}" for name in self.binary_tasks), (f"expected_{name}" for name in self.value_tasks)
        return ["p_click", "p_conversion", "p_click_and_conversion", *binary, *values]


class ContextBias(nn.Module):
    """Scores the context columns alone (position, surface, hour)."""

    def __init__(self, spec: RankerSpec) -> None:
        super().__init__()
        self.inputs = _input_layer(spec, _columns(spec, single=spec.context, numeric=spec.context_numeric, pooled={}))
        self.towers = TaskTowers(tasks=spec.heads, input_width=self.inputs.width, hidden=(CONTEXT_HIDDEN_WIDTH,))

    def forward(self, features: Features, table: FusedEmbedding) -> Tensor:
        """Returns logits (B, T)."""
        logits_BT: Tensor = self.towers(self.inputs(features, table))
        return logits_BT


class DeepScorer(nn.Module):
    """Scores by a body and task towers, and adds a bias from the context.

    The trunk does not see the context: a change of context columns moves the logits of all candidates alike, unless a
    context number depends on the item too.
    """

    def __init__(self, spec: RankerSpec) -> None:
        super().__init__()
        trunk = _columns(
            spec,
            single=[name for name in spec.single if name not in spec.context],
            numeric=[name for name in spec.numeric if name not in spec.context_numeric],
            pooled=spec.pooled,
            attended=spec.attention,
        )
        self.table = FusedEmbedding(
            cardinalities=list(spec.categorical_cardinalities.values()),
            width=input_groups(spec.body, spec.heads) * spec.embedding_width,
        )
        self.inputs = _input_layer(spec, trunk)
        self.body = BODIES[spec.body](_body_size(spec, input_width=self.inputs.width))
        self.towers = TaskTowers(tasks=spec.heads, input_width=spec.hidden[-1], hidden=spec.tower)
        self.context = ContextBias(spec) if spec.context or spec.context_numeric else None

    def forward(self, features: Features) -> Tensor:
        """Returns logits (B, T)."""
        logits_BT: Tensor = self.towers(self.body(self.inputs(features, self.table)))
        return logits_BT if self.context is None else logits_BT + self.context(features, self.table)

    def gates(self, features: Features) -> list[Tensor]:
        """Returns the body's expert weights level by level; none for a body without gates."""
        return self.body.gates(self.inputs(features, self.table)) if isinstance(self.body, MMoE | PLE) else []


class LinearScorer(nn.Module):
    """Scores by logistic regression: the baseline, without interactions.

    Each id and each knot has one weight a task.
    """

    def __init__(self, spec: RankerSpec) -> None:
        super().__init__()
        self.heads = spec.heads
        columns = _columns(spec, single=spec.single, numeric=spec.numeric, pooled=spec.pooled)
        self.table = FusedEmbedding(cardinalities=list(spec.categorical_cardinalities.values()), width=spec.heads)
        numeric = NumericSize(bins=spec.bins, width=spec.heads, zero_bin=spec.zero_bin)
        self.inputs = InputLayer(columns, numeric=numeric, embedding_width=spec.heads)

    def forward(self, features: Features) -> Tensor:
        """Returns logits (B, T)."""
        weights_BCT: Tensor = self.inputs(features, self.table).unflatten(1, (-1, self.heads))
        return weights_BCT.sum(1)


class Ranker(nn.Module):
    """Predicts the logits of click and of conversion given a click.

    Equal specs give equal weights; the global random state is left alone.
    """

    def __init__(self, spec: RankerSpec) -> None:
        super().__init__()
        self.spec = spec
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(spec.seed)
            self.scorer = LinearScorer(spec) if spec.body == LINEAR else DeepScorer(spec)
        self.bias_T = nn.Parameter(torch.zeros(spec.heads))

    def forward(self, features: Features) -> Tensor:
        """Returns logits (B, T) float32; the context is part of them."""
        logits_BT: Tensor = self.scorer(features) + self.bias_T
        return logits_BT

    def start_at(self, *, click_rate: float, conversion_rate: float, extra: Mapping[str, float] | None = None) -> None:
        """Sets the bias so that an untrained ranker predicts the base rates, and the mean of each value.

        Rates are strictly between 0 and 1, means above 0; `extra` has those of further tasks within their spaces, by
        name. Without it rare tasks spend their first steps on learning that they are rare.
        """
        binary = {name: (extra or {})[name] for name in self.spec.binary_tasks}
        rates = {"click": click_rate, "conversion": conversion_rate, **binary}
        means = {name: (extra or {})[name] for name in self.spec.value_tasks}
        if wrong := {name: rate for name, rate in rates.items() if not 0 < rate < 1}:
            raise ValueError(f"base rates are {wrong}, expected all between 0 and 1")
        if wrong := {name: mean for name, mean in means.items() if not mean > 0}:
            raise ValueError(f"base means are {wrong}, expected all above 0")
        rates_T = torch.tensor(list(rates.values()), dtype=torch.float64)
        means_T = torch.tensor(list(means.values()), dtype=torch.float64)
        with torch.no_grad():
            self.bias_T[: len(rates) + len(means)].copy_(torch.cat([torch.logit(rates_T), means_T.log()]))

    def gates(self, features: Features) -> list[Tensor]:
        """Returns the experts' weights (B, N, E) of N gates level by level; none for a body without gates."""
        return self.scorer.gates(features) if isinstance(self.scorer, DeepScorer) else []


def predict(ranker: Ranker, features: Features, batch_size: int) -> NDArray[np.float32]:
    """Returns `spec.outputs()` of N rows: (N, O) float32, (0, O) for no rows.

    Runs in evaluation mode on the ranker's device, and leaves the ranker's mode as it was.
    """
    spec, device, was_training = ranker.spec, next(ranker.parameters()).device, ranker.training
    outputs_NO = np.empty((len(features), len(spec.outputs())), dtype=np.float32)
    ranker.eval()
    with torch.inference_mode():
        for start in range(0, len(features), batch_size):
            rows = slice(start, start + batch_size)
            logits_BT = ranker(features.slice(rows).to(device))
            base_B3 = entire_space_probabilities(logits_BT[:, :TASKS])
            extra_BX = extra_outputs(logits_BT, spec.binary_tasks, spec.value_tasks)
            outputs_NO[rows] = torch.cat([base_B3, extra_BX], dim=1).cpu().numpy()
    ranker.train(was_training)
    return outputs_NO


def save_ranker(ranker: Ranker, folder: Path) -> None:
    """Writes the ranker's weights (safetensors) and spec (JSON) into a folder."""
    save_module(ranker, ranker.spec, folder)


def load_ranker(folder: Path) -> Ranker:
    """Reads a saved ranker onto the CPU; ValueError when a file is missing, damaged or of another model."""
    return load_module(folder, RankerSpec, Ranker)


def _check(spec: RankerSpec) -> None:
    check_spaces(spec.binary_tasks, spec.value_tasks)
    if spec.body not in {LINEAR, *BODIES}:
        raise ValueError(f"body is {spec.body!r}, expected one of {[LINEAR, *BODIES]}")
    check_fields([*spec.single, *spec.pooled.values()], spec.categorical_cardinalities)
    check_numeric(_numeric_size(spec))
    check_attention(spec.attention, spec.attention_target, pooled=spec.pooled, single=spec.single, context=spec.context)
    for name, chosen, among in (
        ("context", spec.context, spec.single),
        ("context_numeric", spec.context_numeric, spec.numeric),
    ):
        if strangers := sorted(set(chosen) - set(among)):
            raise ValueError(f"{name} names {strangers}, which are no inputs: expected names among {among}")
    if len(spec.single) + len(spec.numeric) + len(spec.pooled) == len(spec.context) + len(spec.context_numeric):
        raise ValueError("every input is a context column, nothing is left to rank by: add other columns")
    if not spec.hidden:
        raise ValueError("hidden is empty, expected the width of at least one layer, such as (128, 64)")


def _columns(
    spec: RankerSpec,
    *,
    single: Sequence[str],
    numeric: Sequence[str],
    pooled: dict[str, str],
    attended: Sequence[str] = (),
) -> Columns:
    field_of = {name: field for field, name in enumerate(spec.categorical_cardinalities)}
    return Columns(
        single={spec.single.index(name): field_of[name] for name in single},
        numeric=[spec.numeric.index(name) for name in numeric],
        pooled={name: field_of[field_name] for name, field_name in pooled.items()},
        attended=attended,
        target=spec.single.index(spec.attention_target) if attended else None,
    )


def _numeric_size(spec: RankerSpec) -> NumericSize:
    return NumericSize(
        bins=spec.bins,
        width=spec.numeric_width,
        zero_bin=spec.zero_bin,
        encoding=spec.numeric_encoding,
        frequencies=spec.frequencies,
        frequency_scale=spec.frequency_scale,
    )


def _input_layer(spec: RankerSpec, columns: Columns) -> InputLayer:
    return InputLayer(
        columns,
        numeric=_numeric_size(spec),
        embedding_width=spec.embedding_width,
        groups=input_groups(spec.body, spec.heads),
    )


def _body_size(spec: RankerSpec, *, input_width: int) -> BodySize:
    return BodySize(
        input_width=input_width,
        tasks=spec.heads,
        hidden=spec.hidden,
        experts=spec.experts,
        task_experts=spec.task_experts,
        levels=spec.levels,
        dropout=spec.dropout,
    )
